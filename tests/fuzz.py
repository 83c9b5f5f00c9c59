"""Feed malformed files to everything that reads files, by the ten thousands.

    python -m tests.fuzz --count 20000 --seed 1            every target
    python -m tests.fuzz --count 50000 recipes data        some
    python -m tests.fuzz --atheris 120                     guided by coverage (pip install atheris)

Each case is refused with one message, or taken and then looked at again; anything else is a fault,
a hang included. Faults are shown, and their inputs kept. Exit code: 1 if there was any.
"""

from __future__ import annotations

import argparse
import faulthandler
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

SECONDS = 20.0
"""What one case may take; the usual ones take milliseconds."""


class HangError(BaseException):
    """A case takes too long; no handler of `Exception` holds it up."""


def _late(number: int, frame: FrameType | None) -> None:
    raise HangError(f"no answer in {SECONDS:g} s")


def outcome(target: str, data: bytes) -> str:
    """Return "refused" or "taken", or raise what should not have been."""
    from tests.fuzz_targets import REFUSED, TARGETS, place

    folder = place() / target
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        TARGETS[target].take(data, folder)
    except REFUSED as error:
        if not str(error).strip():
            raise AssertionError("refused without a word") from error
        return "refused"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "taken"


def fuzz(target: str, count: int, seed: int, keep: Path) -> Counter[str]:
    """Run a target's cases, and return how many came out how."""
    from tests.fuzz_targets import case

    counts: Counter[str] = Counter()
    for number in range(count):
        data = case(target, seed, number)
        # For what hangs where Python cannot be interrupted.
        faulthandler.dump_traceback_later(3 * SECONDS, exit=True, file=sys.__stderr__)
        try:
            counts[outcome(target, data)] += 1
        except (Exception, HangError):
            counts["faults"] += 1
            keep.mkdir(parents=True, exist_ok=True)
            file = keep / f"{target}-{seed}-{number}"
            file.write_bytes(data)
            print(f"fault: target {target}, seed {seed}, case {number}, kept in {file}")
            traceback.print_exc(limit=-6, file=sys.stdout)
    faulthandler.cancel_dump_traceback_later()
    return counts


def guided(names: list[str], seconds: int) -> None:
    """Let atheris look for inputs that reach new code; does not return."""
    import atheris

    with atheris.instrument_imports(include=["cl_mofo", "yaml"]):
        from tests.fuzz_targets import TARGETS

    corpus = Path(tempfile.mkdtemp(prefix="cl-mofo-corpus-"))
    for i, name in enumerate(names):
        for j, data in enumerate(TARGETS[name].seeds):
            (corpus / f"{name}-{j}").write_bytes(bytes([i]) + data)

    def one(data: bytes) -> None:
        if data:
            outcome(names[data[0] % len(names)], data[1:])

    limits = [f"-max_total_time={seconds}", "-timeout=60", "-rss_limit_mb=4096", "-max_len=8192"]
    atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", str(corpus)], one)
    atheris.Fuzz()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("targets", nargs="*", help="all by default")
    parser.add_argument("--count", type=int, default=20_000, help="cases of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", type=int, metavar="SECONDS")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir(), "cl-mofo-fuzz"))
    given: Any = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    signal.signal(signal.SIGALRM, _late)
    if given.atheris:
        guided(given.targets or ["recipes", "json", "data", "runs"], given.atheris)
    from tests.fuzz_targets import TARGETS

    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    print(f"{'target':<12}{'cases':>9}{'refused':>9}{'taken':>9}{'faults':>9}{'seconds':>9}")
    total: Counter[str] = Counter()
    for name in given.targets or TARGETS:
        began = time.perf_counter()
        counts = fuzz(name, given.count, given.seed, given.keep)
        total += counts
        _row(name, counts, time.perf_counter() - began)
    _row("all", total, None)
    return 1 if total["faults"] else 0


def _row(name: str, counts: Counter[str], seconds: float | None) -> None:
    cells = [counts.total(), counts["refused"], counts["taken"], counts["faults"]]
    took = "" if seconds is None else f"{seconds:.1f}"
    print(f"{name:<12}" + "".join(f"{cell:>9}" for cell in cells) + f"{took:>9}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
