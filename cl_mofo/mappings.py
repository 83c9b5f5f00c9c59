"""Recipes' plain mappings: parsed from YAML, laid over one another, changed key by key."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import yaml

from cl_mofo.config import SWEEP
from cl_mofo.errors import UserError
from cl_mofo.untrusted import MIB, printable, shortened

DEEPEST = 3
"""Mappings within mappings that a recipe has: `tasks.epochs.FOMC`."""
MOST_CHARACTERS = MIB // 4
MOST_VALUES = 25_000
"""Values of a recipe once its aliases are unfolded: some for each of a sweep's 1000 runs."""
DEEPEST_NODE = 50
"""Lists and mappings within one another, wherever in a recipe."""
MOST_BITS = 64
"""Of a whole number; none in a recipe needs more."""


class _Loader(yaml.SafeLoader):
    """YAML's values that JSON has too; 1e-5 is a number, and a key given twice is refused."""

    def fetch_flow_collection_start(self, TokenClass: type[yaml.Token]) -> None:
        if self.flow_level > DEEPEST_NODE:  # each would take longer than the last
            raise yaml.YAMLError(f"nested deeper than {DEEPEST_NODE} levels")
        super().fetch_flow_collection_start(TokenClass)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        found = dict(super().construct_mapping(node, deep))
        if len(found) < len(keys):
            twice = next(key for i, key in enumerate(keys) if key in keys[:i])
            raise yaml.YAMLError(f"the key '{shortened(twice)}' is given twice")
        return found

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > 2 * MOST_BITS:
            raise yaml.YAMLError(f"a number of {len(node.value)} digits")
        number = int(super().construct_yaml_int(node))
        if number.bit_length() > MOST_BITS:
            raise yaml.YAMLError(
                f"the number {shortened(node.value)} has more than {MOST_BITS} bits"
            )
        return number

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        text = str(super().construct_yaml_str(node))
        if printable(text) != text:
            raise yaml.YAMLError(f"'{shortened(text)}' has characters that cannot be printed")
        return text

    def construct_undefined(self, node: yaml.Node) -> NoReturn:
        kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
        raise yaml.YAMLError(
            f"a value of the kind '{shortened(kind)}', which no recipe has (line "
            f"{node.start_mark.line + 1}). If it is a text, put it in quotes"
        )


_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
_Loader.yaml_constructors = {
    f"tag:yaml.org,2002:{kind}": _Loader.yaml_constructors[f"tag:yaml.org,2002:{kind}"]
    for kind in _KINDS
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_yaml_str)
_Loader.add_constructor(None, _Loader.construct_undefined)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"),
    list("-+.0123456789"),
)


def parsed(text: str, where: str) -> Any:
    """Return what a YAML text says.

    Raises:
        UserError: it is not YAML; the text opens with `where`.
    """
    if len(text) > MOST_CHARACTERS:
        raise UserError(
            f"{where}: has {len(text)} characters; a recipe has at most {MOST_CHARACTERS}"
        )
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            _check_size(node)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError as error:
        raise UserError(f"{where}: not valid YAML: nested too deep") from error
    except Exception as error:  # a tag on a wrong value raises whatever its constructor does
        raise UserError(f"{where}: not valid YAML: {error}") from error


def _check_size(root: yaml.Node | None) -> None:
    """Refuse what would grow when its aliases are followed, by how often or how deep."""
    sizes: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        if id(node) in open_nodes:
            raise yaml.YAMLError("a list or mapping that contains itself")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            pairs = isinstance(node, yaml.MappingNode)
            parts = [measure(n) for n in (itertools.chain(*inner) if pairs else inner)]
            open_nodes.remove(id(node))
            size, depth = 1 + sum(n for n, _ in parts), 1 + max((d for _, d in parts), default=0)
            if size > MOST_VALUES:
                raise yaml.YAMLError(f"more than {MOST_VALUES} values")
            if depth > DEEPEST_NODE:
                raise yaml.YAMLError(f"nested deeper than {DEEPEST_NODE} levels")
            sizes[id(node)] = size, depth
        return sizes[id(node)]

    if root is not None:
        measure(root)


def override(recipe: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Lay `key.subkey=value` assignments, whose values are YAML, over a recipe, the later winning.

    Raises:
        UserError: an assignment has no `=`, or its value is not YAML.
    """
    result = dict(recipe)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not equals or not all(parts):
            raise UserError(
                f"--set {shortened(assignment)}: write key=value, as in --set optimizer.lr=5e-4"
            )
        value = parsed(text, f"--set {shortened(assignment)}")
        result = merge(result, nested(".".join(parts), value))
    return result


def nested(key: str, value: Any) -> dict[str, Any]:
    """Return the mapping in which a dotted key has a value; what `sweep.vary` holds is one key."""
    parts = key.split(".", 2 if key.startswith(f"{SWEEP}.vary.") else -1)
    for part in reversed(parts):
        value = {part: value}
    return dict(value)


def merge(
    below: Mapping[str, Any], above: Mapping[str, Any], deep: int = DEEPEST
) -> dict[str, Any]:
    """Lay one mapping over another, key by key; an empty section changes nothing.

    Args:
        below: what is covered.
        above: what wins.
        deep: how many mappings within one another are merged; more are taken whole.
    """
    merged = {**below, **above}
    for key in below.keys() & above.keys() if deep > 1 else ():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            merged[key] = merge(below[key], above[key], deep - 1)
        elif isinstance(below[key], Mapping) and above[key] is None and deep == DEEPEST:
            merged[key] = below[key]
    return merged


def section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of a raw recipe, empty where there is none."""
    found = raw.get(name)
    return found if isinstance(found, Mapping) else {}
