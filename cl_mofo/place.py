"""Where a run is to be, and what an earlier process has left of it there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_mofo.claim import clear, kept_recipe, manifest_of
from cl_mofo.errors import UserError
from cl_mofo.files import PARTIAL, DamagedError, read_checked
from cl_mofo.folder import CHECKPOINTS, LOG, PROGRESS, RECIPE, RunFolder, begun, holds_run
from cl_mofo.identity import compare, dotted, others
from cl_mofo.manifest import now
from cl_mofo.observer import Observer
from cl_mofo.report import load_results

if TYPE_CHECKING:
    from cl_mofo.checkpoint.store import Checkpoint
    from cl_mofo.config import Recipe
    from cl_mofo.engine.ranks import Ranks


@dataclass(frozen=True)
class Left:
    """What a run goes on from.

    Args:
        checkpoint: the newest good one.
        progress: what has been measured, at least as far as the checkpoint.
        manifest: the run's record, and that it goes on now.
    """

    checkpoint: Checkpoint | None = None
    progress: Any = None
    manifest: dict[str, Any] | None = None


@dataclass(frozen=True)
class Place:
    """Where a run is to be.

    Args:
        out: its folder; None makes a fresh one.
        resume: whether it goes on with the run that is there.
        overwrite: whether it replaces the run that is there.
    """

    out: str | Path | None
    resume: bool = False
    overwrite: bool = False

    def check(self, recipe: Recipe) -> dict[str, Any] | None:
        """Refuse a place that cannot be, before anything is loaded.

        Args:
            recipe: of the run that is to be there.

        Returns:
            the results of the run that is there, if it is to go on and is finished.

        Raises:
            UserError: what was asked for does not fit what is there.
        """
        if self.resume and self.overwrite:
            raise UserError("--resume and --overwrite: give one of them")
        if self.out is None or not (self.resume or self.overwrite):
            if self.resume or self.overwrite:
                raise UserError("--resume and --overwrite need --out: name the run's folder")
            RunFolder.check(self.out)
            return None
        folder = Path(self.out)
        if not holds_run(folder):
            if self.resume or (folder.is_dir() and begun(folder)):
                missing = f"{LOG} and no manifest.json" if (folder / RECIPE).is_file() else RECIPE
                raise UserError(f"{folder}: holds no run: there is no {missing}")
            RunFolder.check(folder)
            return None
        if RunFolder.in_use(folder):
            raise UserError(f"{folder}: another process is running this run. Let it, or stop it")
        if self.resume and "finished" in manifest_of(folder):
            file = folder / "results.json"
            if file.is_file() and load_results(folder).finished:
                if differing := others(kept_recipe(folder), recipe):
                    raise UserError(
                        f"{folder}: holds a finished run of another recipe: "
                        f"{'; '.join(differing)}. Name another --out, or replace it by --overwrite"
                    )
                # Its process may have been killed while it removed them.
                shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
                results: dict[str, Any] = json.loads(file.read_bytes())
                return results | {"folder": str(folder)}
        return None

    def take(self, label: str) -> RunFolder:
        """Return the folder, which no other process can take until it is closed.

        Raises:
            UserError: it cannot be used, or another process has it.
        """
        replaced = self.overwrite and self.out is not None and (Path(self.out) / RECIPE).is_file()
        folder = RunFolder(self.out, label, resume=self.resume or replaced)
        if replaced:
            try:
                clear(folder.path)  # once the folder is this process's, and not before
            except UserError:
                folder.close()
                raise
        return folder

    def left(
        self, folder: RunFolder, made_of: Mapping[str, Any], observer: Observer, ranks: Ranks
    ) -> Left:
        """Return what to go on from; on all ranks the same.

        Raises:
            UserError: what is there is of another run; names what differs.
        """
        if not self.resume:
            return Left()
        from cl_mofo.checkpoint.store import Store
        from cl_mofo.evaluation.journal import forget

        def warn(text: str) -> None:
            folder.log.warning(text)
            observer.warned(text)

        store = Store(folder.path, ranks, keep=1)
        name, kept, manifest = None, None, None
        with ranks.together():
            if ranks.first:
                _clear_partial(folder.path)
                checkpoint = None
                for found in store.read():
                    if not isinstance(found, DamagedError):
                        checkpoint, name = found, found.name
                        break
                    warn(f"{found}. The one before it is taken")
                kept = _kept(folder.path, warn)
                then = checkpoint.identity if checkpoint else (kept or {}).get("identity")
                if not then:  # nothing says whose the answers are
                    forget(folder.path / CHECKPOINTS)
                for remark in compare(then or _recorded(folder.path, made_of), made_of):
                    warn(remark)
                manifest = _manifest(folder.path, name)
                where = f"checkpoint {name}" if name else "the beginning: there is no checkpoint"
                folder.log.info("going on from %s", where)
                observer.resumed(where)
        name, kept, manifest = ranks.agree([name, kept, manifest])
        progress = kept and kept.get("progress")
        return Left(store.open(name) if name else None, progress, manifest)


def _clear_partial(folder: Path) -> None:
    """Remove what an earlier process did not write to its end."""
    for path in sorted(folder.rglob(f"*{PARTIAL}"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _kept(folder: Path, warn: Any) -> dict[str, Any] | None:
    if not (folder / PROGRESS).exists():
        return None
    try:
        return read_checked(folder / PROGRESS)
    except DamagedError as error:
        warn(f"{error}. Test sets that were done after the checkpoint are done again")
        return None


def _recorded(folder: Path, made_of: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run was made of as far as its recipe and its manifest say.

    What they do not say, as those of an older version, counts as it is now.
    """
    record, ours = manifest_of(folder), made_of["recipe"]
    kept = {key: value for key, value in dotted(kept_recipe(folder)) if key in ours}
    model = record.get("model")
    return {
        **made_of,
        "recipe": ours | kept,
        "data": record.get("data", made_of["data"]),
        "model": model.get("sha256") if isinstance(model, dict) else made_of["model"],
    }


def _manifest(folder: Path, checkpoint: str | None) -> dict[str, Any] | None:
    """Return the record of a run that goes on, None where there is none."""
    record = {k: v for k, v in manifest_of(folder).items() if k != "diverged"}
    before = record.get("resumed")
    resumed = [*(before if isinstance(before, list) else ()), {"at": now(), "from": checkpoint}]
    return record | {"resumed": resumed} if record else None
