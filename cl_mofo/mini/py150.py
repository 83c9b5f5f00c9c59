"""Py150 in small: the next line of Python in TRACE's spelling, tokens apart and `<EOL>` for ends.

<s> class Cart ( object ) : <EOL> def __init__ ( self , price ) : <EOL> self . price = price
<EOL> def get_price ( self ) : <EOL>        -> return self . price
"""

from __future__ import annotations

from cl_mofo.mini.dice import Dice

NAME = "Py150"
CLASSES = ("Cart", "User", "Node", "Task", "Page", "Event", "Model", "Client", "Table", "Image")
FIELDS = (
    *("price", "name", "size", "color", "title", "value", "count", "path", "date", "owner"),
    *("item", "line", "word", "file", "key", "page"),
)
MODULES = ("json", "pickle", "yaml", "csv", "os", "sys", "re", "time")
LOADERS = ("json", "pickle", "yaml")


def _class(dice: Dice, fields: list[str]) -> list[str]:
    head = f"class {dice.pick(CLASSES)} ( object ) :"
    arguments = " , ".join(["self", *fields])
    return [head, f"def __init__ ( {arguments} ) :", *(f"self . {f} = {f}" for f in fields)]


def _getter(dice: Dice) -> list[str]:
    fields = dice.some(FIELDS, 2)
    field = dice.pick(fields)
    return [*_class(dice, fields), f"def get_{field} ( self ) :", f"return self . {field}"]


def _setter(dice: Dice) -> list[str]:
    fields = dice.some(FIELDS, 2)
    field = dice.pick(fields)
    lines = [*_class(dice, fields), f"def set_{field} ( self , {field} ) :"]
    return [*lines, f"self . {field} = {field}"]


def _append(dice: Dice) -> list[str]:
    field = dice.pick(FIELDS)
    head = f"class {dice.pick(CLASSES)} ( object ) :"
    start = ["def __init__ ( self ) :", f"self . {field}s = [ ]"]
    return [head, *start, f"def add ( self , {field} ) :", f"self . {field}s . append ( {field} )"]


def _load(dice: Dice) -> list[str]:
    imported = dice.some(LOADERS, 2)
    module = dice.pick(imported)
    imports = [f"import {name}" for name in imported]
    head = f"def {dice.pick(('load', 'read'))}_{module} ( {dice.pick(FIELDS)} ) :"
    file = dice.pick(("f", "source"))
    opened = f'with open ( path , "<STR_LIT>" ) as {file} :'
    return [*imports, head, opened, f"return {module} . load ( {file} )"]


def _fallback(dice: Dice) -> list[str]:
    first, second, module = dice.some(MODULES, 3)
    lines = [f"import {first} , {second}", "try :", f"import {module}", "except ImportError :"]
    return [*lines, f"{module} = None"]


def _count(dice: Dice) -> list[str]:
    field, key = dice.some(FIELDS, 2)
    lines = [f"def count_{field}s ( {field}s , {key} ) :", "total = <NUM_LIT:0>"]
    return [*lines, f"for {field} in {field}s :", f"if {field} == {key} :", "total += <NUM_LIT:1>"]


KINDS = (_getter, _setter, _append, _load, _fallback, _count)


def record(dice: Dice, index: int) -> dict[str, str]:
    """Return the record `index` of a split: its kind of line is `index` modulo 6."""
    lines = KINDS[index % len(KINDS)](dice)
    return {"prompt": f"<s> {' <EOL> '.join(lines[:-1])} <EOL>", "answer": lines[-1]}


def document(dice: Dice) -> str:
    """Return a text of the world: source code, one line a line."""
    pieces = ["\n".join(dice.pick(KINDS)(dice)) for _ in range(dice.number(1, 2))]
    return "\n".join(pieces)
