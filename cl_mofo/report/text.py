"""Figures and names as text: in a terminal, in Markdown, in LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

ABSENT = "–"
"""Stands where there is no figure."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "–": "--",
    "·": r"\textperiodcentered{}",
    "±": r"$\pm$",
    # After the \\ that ends a row, a bare [ or * would be read as its argument.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def number(value: float | None) -> str:
    """Return a percent with one decimal, or a dash."""
    return ABSENT if value is None else f"{round(value, 1) + 0.0:.1f}"  # + 0.0 turns -0.0 into 0.0


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it stands, also inside a table's cell.

    GitHub's Markdown makes links of bare addresses and of names after an "@"; here it does not.
    """
    return re.sub(r"([\\`*_{}\[\]<>|~&$#!@]|(?<=:)/(?=/)|(?<=www)\.)", r"\\\1", text, flags=re.I)


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, its first column to the left, the others to the right."""
    rows = [[escape_markdown(cell) for cell in row] for row in (head, *body)]
    rows.insert(1, ["---", *["---:"] * (len(head) - 1)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def escape_latex(text: str) -> str:
    """Return text that LaTeX prints as it stands, also at the start of a table's row."""
    return "".join(_LATEX.get(character, character) for character in text)


def inert(text: str) -> str:
    """Return text for a cell of CSV: what a spreadsheet would compute has a "'" in front."""
    return f"'{text}" if text.lstrip()[:1] in tuple("=+-@＝＋－＠") else text


def break_name(name: str, width: int = 7) -> str:
    """Break a task's name into lines that keep a column narrow: `MeetingBank` at its capital.

    It is broken where capitals, digits, hyphens, underscores or spaces begin or end; a part longer
    than `width` stays whole.
    """
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[-_ ]+|[^A-Za-z\d\-_ ]+", name)
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
