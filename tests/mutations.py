"""Malformed inputs made of valid ones: bytes flipped, cut, spliced, values swapped, nested deep."""

import json
import re
from random import Random
from typing import Any

NUMBERS = (
    *("0", "-0", "-1", "1", "2", "0.5", "1e-5", "1e400", "-1e400", "NaN", "-Infinity", ".nan"),
    *(".inf", "1e", "0x1F", "1:30", "9" * 30, "9" * 5000, "0x" + "f" * 300, "1_000", "2.0", "101"),
)
VALUES = (
    *("null", "~", "true", "false", "''", '""', '"x"', "[]", "{}", "[[]]", '{"a": 1}', "[1, 2]"),
    *('"\\ud800"', '"\\u0000"', '"\\u001b[2J"', '"\\u202e"', '"../../x"', '"' + "x" * 5000 + '"'),
    *("2020-01-01", "!!binary eA==", "!!set {a}", "!!python/name:os.system", "&a [*a]", "*a"),
    *("=1+1", "[bold]x[/]", "\\input{x}", "$x$", "mofo", "ewc+mofo", "FOMC", "trace-mini", "auto"),
)
BYTES = (
    *(b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xc3", b"\x1b[2J", b"\x7f", b"\r", b"\n", b"\t", b"{"),
    *(b"}", b"[", b"]", b",", b":", b'"', b"'", b"\\", b"\\u", b"\\ud83d", b"&a ", b"*a ", b"<<: "),
    *(b"- ", b"? ", b"|\n", b"%", b"#", b"---\n", b"...\n", b"!!", b"@", b"`"),
)
CODECS = ("utf-16", "utf-16-le", "utf-32", "latin-1", "utf-8-sig", "cp500")
_NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?")
_VALUE = re.compile(rb'"[^"\n]*"|\b(?:true|false|null)\b|-?\d[\d.eE+-]*|(?<=: )[^\n,{}\[\]]+')


def mutated(random: Random, seeds: list[bytes]) -> bytes:
    """Return one of the valid inputs after one to five changes."""
    data = random.choice(seeds)
    if random.random() < 0.3:
        data = of_tree(random, data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 5))):
        data = random.choice(CHANGES)(random, data, seeds)
    return data[:400_000]


def _part(random: Random, data: bytes) -> slice:
    start = random.randrange(len(data) + 1)
    return slice(start, start + min(random.choice((1, 2, 8, 64, 1000)), len(data) - start))


def _flip(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    if not data:
        return data
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def _cut(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _remove(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    part = _part(random, data)
    return data[: part.start] + data[part.stop :]


def _repeat(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    part = _part(random, data)
    return data[: part.stop] + data[part] * random.choice((1, 2, 50)) + data[part.stop :]


def _repeat_line(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    at = random.randrange(len(lines))
    lines.insert(random.randrange(len(lines) + 1), lines[at])
    return b"".join(lines)


def _splice(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    part, other = _part(random, data), random.choice(seeds)
    return data[: part.start] + other[_part(random, other)] + data[part.stop :]


def _insert(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + random.choice(BYTES) * random.choice((1, 1, 2)) + data[at:]


def _swap(pattern: re.Pattern[bytes], given: tuple[str, ...]) -> Any:
    def swap(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
        found = list(pattern.finditer(data))
        if not found:
            return data
        match = random.choice(found)
        return data[: match.start()] + random.choice(given).encode() + data[match.end() :]

    return swap


def _nest(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    opened, closed = random.choice(
        ((b"[", b"]"), (b'{"a": ', b"}"), (b"- ", b""), (b"[[], ", b"]"))
    )
    depth = random.choice((1, 5, 60, 900, 30_000))
    part = _part(random, data)
    closed *= random.choice((0, depth))
    return data[: part.start] + opened * depth + data[part] + closed + data[part.stop :]


def _encode(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    return data.decode("utf-8", "replace").encode(random.choice(CODECS), "replace")


CHANGES = (
    *(_flip, _cut, _remove, _repeat, _repeat_line, _splice, _insert, _nest, _encode),
    *(_swap(_NUMBER, NUMBERS), _swap(_VALUE, VALUES), _swap(_VALUE, NUMBERS)) * 3,
)


def of_tree(random: Random, data: bytes) -> bytes:
    """Return JSON with one value in the tree replaced, dropped or renamed; else the data."""
    try:
        tree = json.loads(data)
    except ValueError:
        return data
    holder: dict[str, Any] = {"root": tree}
    places: list[tuple[Any, Any]] = [(holder, "root")]
    for parent, key in places:
        child = parent[key]
        keys = range(len(child)) if isinstance(child, list) else child
        if isinstance(child, (list, dict)):
            places += [(child, inner) for inner in list(keys)[:100]]
    parent, key = random.choice(places)
    if random.random() < 0.2 and isinstance(parent, dict):
        parent[random.choice(("", "x", "tasks", "prompt", "seed", "op"))] = parent.pop(key)
    elif random.random() < 0.2 and isinstance(parent, list):
        del parent[key]
    else:
        parent[key] = value(random)
    return json.dumps(holder.get("root"), ensure_ascii=random.random() < 0.5).encode(
        "utf-8", "surrogatepass"
    )


def value(random: Random, depth: int = 3) -> Any:
    """Return a random value that JSON has, and some that only Python's has."""
    leaves: tuple[Any, ...] = (
        *(None, True, False, 0, 1, -1, 50, 100.5, 2**70, -(10**400), 1e308, float("nan")),
        *("", "x", "mofo", "\x1b[2J", "\ud800", "../../x", "a\nb", "=1", "\u202e", "x" * 3000),
    )
    kind = random.random()
    if depth == 0 or kind < 0.6:
        return random.choice(leaves)
    if kind < 0.8:
        return [value(random, depth - 1) for _ in range(random.randrange(4))]
    return {str(random.choice(leaves))[:9]: value(random, depth - 1) for _ in range(3)}
