"""Find tasks and strategies: built-in ones, installed ones, and the user's own files.

Every module named by the entry-point groups `cl_mofo.tasks` and `cl_mofo.strategies` is imported,
and where it is a package all its modules are, so that a new file needs no reinstall. Those of the
one group may hold `Task` objects, those of the other `Strategy` subclasses, and a file given with
`--import FILE.py` both.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from cl_mofo.config import SWEEP, Recipe
from cl_mofo.errors import UserError, nearest
from cl_mofo.strategy import CLAIMED, PHASES, STEP_PHASES, Strategy
from cl_mofo.task import Task
from cl_mofo.untrusted import shortened

TASKS, STRATEGIES = "cl_mofo.tasks", "cl_mofo.strategies"
"""The entry-point groups."""


class Registry:
    """The tasks and strategies that can be named, each by its name.

    Strategies are looked for when one is asked for: they load torch, which tasks do without.

    Args:
        files: modules of the user's own.
    """

    def __init__(self, files: Sequence[ModuleType]) -> None:
        self.files = files

    @functools.cached_property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks, by name."""
        return _by_name("task", _tasks([*_installed(TASKS), *self.files]))

    @functools.cached_property
    def strategies(self) -> Mapping[str, type[Strategy]]:
        """The strategies, by name."""
        return _by_name("strategy", _strategies([*_installed(STRATEGIES), *self.files]))

    def task(self, name: str) -> Task:
        """Return the task called `name`; raise `UserError` with the nearest name if none is."""
        return _lookup("task", name, self.tasks)

    def strategy(self, name: str) -> type[Strategy]:
        """Return the strategy called `name`; raise `UserError` with the nearest name if none is."""
        return _lookup("strategy", name, self.strategies)

    def suite(self, name: str) -> tuple[Task, ...]:
        """Return the tasks of a suite in the suite's order."""
        members = [task for task in self.tasks.values() if task.suite == name]
        return tuple(sorted(members, key=lambda task: (task.position, task.name)))


T = TypeVar("T")


def _lookup(kind: str, name: str, known: Mapping[str, T]) -> T:
    if name not in known:
        raise UserError(
            f"unknown {kind} '{shortened(name)}'{nearest(name, known)}; known: {', '.join(known)}. "
            f"Your own come in with --import FILE.py"
        )
    return known[name]


@functools.lru_cache(maxsize=8)
def registry(imports: tuple[Path, ...] = ()) -> Registry:
    """Discover everything there is, the files in `imports` included.

    Raises:
        UserError: a file cannot be imported, or two things share a name.
    """
    known = Registry([_from_file(path) for path in imports])
    if known.tasks and imports:  # what is wrong with the user's own is told at once
        _ = known.strategies
    return known


def _installed(group: str) -> Iterator[ModuleType]:
    seen: set[str] = set()
    for entry in entry_points(group=group):
        module = _imported(entry.module, f"entry point '{entry.name}' in group {group}")
        if module.__name__ in seen:
            continue
        seen.add(module.__name__)
        yield module
        for info in pkgutil.iter_modules(getattr(module, "__path__", ())):
            name = f"{module.__name__}.{info.name}"
            yield _imported(name, f"module {name}")


def _imported(module: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise UserError(
            f"{where} cannot be imported: {type(error).__name__}: {error}. Mend or remove it"
        ) from error


def _from_file(path: Path) -> ModuleType:
    path = Path(path).resolve()
    if not path.is_file():
        raise UserError(f"--import {path}: there is no such file")
    name = f"cl_mofo_import_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--import {path}: not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"--import {path}: {type(error).__name__}: {error}") from error
    return module


def _tasks(modules: Sequence[ModuleType]) -> Iterator[tuple[str, Task, str]]:
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, Task):
                yield value.name, value, str(module.__file__)


def _strategies(modules: Sequence[ModuleType]) -> Iterator[tuple[str, type[Strategy], str]]:
    for module in modules:
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, Strategy)
                and value.__module__ == module.__name__
                and getattr(value, "name", None)
            ):
                _check_strategy(value, str(module.__file__))
                yield value.name, value, str(module.__file__)


def _check_strategy(strategy: type[Strategy], file: str) -> None:
    """Refuse what would not work as part of a recipe or of a folder's name."""
    where = f"{file}: strategy {strategy.__name__}"
    reserved = {*Recipe.model_fields, SWEEP}
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", strategy.name) or strategy.name in reserved:
        raise UserError(
            f"{where}: its name is {strategy.name!r}; use small letters, digits, '_' and '-', a "
            f"letter first, and none of the recipe's own keys"
        )
    if not isinstance(strategy.phases, (set, frozenset)) or strategy.phases - set(PHASES):
        raise UserError(
            f"{where}: phases is {strategy.phases!r}; give a set of {', '.join(PHASES)}, as in "
            f'frozenset({{"penalty"}})'
        )
    if len(steps := strategy.phases & set(STEP_PHASES)) > 1:
        raise UserError(
            f"{where}: acts in {' and '.join(sorted(steps))}; a strategy has one phase of a step"
        )
    for hook, phases in CLAIMED.items():
        used = getattr(strategy, hook) is not getattr(Strategy, hook)
        if used and not strategy.phases & phases:
            raise UserError(
                f"{where}: has {hook}, but not the phase {' or '.join(sorted(phases))} that it "
                f"acts in"
            )
    if not dataclasses.is_dataclass(strategy.Config):
        raise UserError(f"{where}: its Config is no dataclass; write @dataclass(frozen=True) above")
    try:
        config = strategy.Config()
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where}: every setting needs a default that is valid ({error})"
        ) from error
    try:
        strategy(config)
    except Exception as error:
        raise UserError(
            f"{where}: cannot be made of its Config: {type(error).__name__}: {error}"
        ) from error


def _by_name(kind: str, found: Iterable[tuple[str, T, str]]) -> dict[str, T]:
    named: dict[str, T] = {}
    origin: dict[str, str] = {}
    for name, value, file in found:
        if name in named and named[name] is not value:
            raise UserError(
                f"two {kind}s are called '{name}': {origin[name]} and {file}. Rename one of them"
            )
        named[name], origin[name] = value, file
    return named
