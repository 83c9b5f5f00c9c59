"""Read a file that is one JSON list value by value, so that it may be larger than memory.

What is refused, and in which words, is what `json.loads` of the whole file would say.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from cl_mofo.untrusted import MIB, distinct

CHUNK = MIB
"""Bytes read at a time, at least; a longer value is read in growing pieces."""
LONGEST = 64 * MIB
"""Characters that one value of the list may have."""
_NEAR_END = 16
"""An error so close to the end of what was read may be for want of the rest, as of `-Infinity`."""
_SPACE = re.compile(r"[ \t\n\r]*")
_DIGITS = re.compile(r"[-+.eE\d]*", re.ASCII)


class MalformedError(ValueError):
    """The file is no JSON list; the text says what is wrong, and where."""


class Value(NamedTuple):
    """A value of the list, the byte of the file at which it starts, and its bytes."""

    value: Any
    start: int
    data: bytes


def values(file: BinaryIO, seen: Callable[[bytes], None] = lambda data: None) -> Iterator[Value]:
    """Yield the values of a JSON list in UTF-8, each as soon as it is read.

    Args:
        file: from its beginning on.
        seen: told every byte of the file in its order, such as a hash's `update`.

    Raises:
        MalformedError: the file is not UTF-8, not JSON, empty or no list; a value is nested too
            deep, longer than `LONGEST`, or an object that gives a key twice. What came before was
            yielded.
    """
    window = _Window(file, seen)
    first = window.peek()
    if not first:
        raise MalformedError("the file is empty")
    if first != "[":
        found = window.take("the value").value
        window.finish()
        raise MalformedError(f"a list of records was expected, not a {type(found).__name__}")
    window.skip()
    count = 0
    if window.peek() != "]":
        yield window.take(f"record {count}")
        while (mark := window.peek()) == ",":
            window.skip()
            window.peek()
            count += 1
            yield window.take(f"record {count}")
        if mark != "]":
            raise window.malformed("Expecting ',' delimiter", window.at)
    window.skip()
    window.finish()


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()


class _Window:
    """The part of a file's text that is not yet parsed, and where it lies."""

    def __init__(self, file: BinaryIO, seen: Callable[[bytes], None]) -> None:
        self.file, self.seen = file, seen
        self.text, self.at = "", 0
        self.begun = self.ended = False
        self.byte = self.read = 0
        self.lines = self.columns = 0
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.json = json.JSONDecoder(object_pairs_hook=distinct)

    def peek(self) -> str:
        """Go on to what is no space, and return it; nothing at the end of the file."""
        while True:
            end = _end(_SPACE, self.text, self.at)
            self.byte += end - self.at
            self.at = end
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._more()

    def skip(self) -> None:
        """Go on behind a bracket or comma."""
        self.at += 1
        self.byte += 1

    def take(self, what: str) -> Value:
        """Go on behind a value, and return it."""
        while True:
            try:
                value, end = self.json.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                short = error.msg.startswith("Unterminated") or (
                    error.pos > len(self.text) - _NEAR_END
                )
                if self.ended or not short:
                    raise self.malformed(error.msg, error.pos) from None
            except (RecursionError, ValueError) as error:
                raise MalformedError(f"not JSON that can be read: {what}: {error}") from None
            else:
                # A number that all of the text could belong to may go on behind it.
                if self.ended or _end(_DIGITS, self.text, end) < len(self.text):
                    found = Value(value, self.byte, self.text[self.at : end].encode())
                    self.at = end
                    self.byte += len(found.data)
                    return found
            if len(self.text) - self.at > LONGEST:
                raise MalformedError(f"{what} is longer than {LONGEST / MIB:g} Mi characters")
            self._more()

    def finish(self) -> None:
        """Read on to the end of the file, where only space may be."""
        if self.peek():
            raise self.malformed("Extra data", self.at)

    def malformed(self, what: str, at: int) -> MalformedError:
        """Return an error at a position of the text, as `json` numbers lines and columns."""
        line = self.lines + self.text.count("\n", 0, at) + 1
        newline = self.text.rfind("\n", 0, at)
        column = at - newline if newline >= 0 else self.columns + at + 1
        return MalformedError(f"line {line}, column {column}: {what}")

    def _more(self) -> None:
        passed = self.text[: self.at]
        self.lines += passed.count("\n")
        newline = passed.rfind("\n")
        self.columns = len(passed) - newline - 1 if newline >= 0 else self.columns + len(passed)
        kept = self.text[self.at :]
        self.at = 0
        data = self.file.read(max(CHUNK, len(kept)))
        self.ended = not data
        self.seen(data)
        at = self.read - len(self.decoder.getstate()[0])
        self.read += len(data)
        try:
            text = self.decoder.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            raise MalformedError(
                f"byte {at + error.start} is not UTF-8. Save the file as UTF-8"
            ) from None
        if text and not self.begun:
            self.begun = True
            if text.startswith("\ufeff"):
                text, self.byte = text[1:], 3
        self.text = kept + text
