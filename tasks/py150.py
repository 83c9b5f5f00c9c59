"""Py150: write the next line of a Python file.

    <s> import os , sys <EOL> import time <EOL> ... if e . args [ <NUM_LIT:0> ] == <NUM_LIT:1> :
    <EOL> cli . close ( ) <EOL>                                               -> return True

Files come as tokens between spaces, <EOL> for a line's end, literals as <STR_LIT>, <NUM_LIT:0> and
the like. The score compares characters, after literals are resolved in both texts as TRACE does.

Source: Raychev, Bielik and Vechev, "Probabilistic Model for Code with Decision Trees", OOPSLA 2016,
as prepared by CodeXGLUE (Lu et al., 2021); as in TRACE, Wang et al., arXiv 2310.06762.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cl_mofo.evaluation.metrics import similarity
from cl_mofo.task import Task

PLAIN = {"<NUM_LIT>": "0", "<STR_LIT>": "", "<CHAR_LIT>": ""}
VALUED = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)


def resolve_literals(code: str) -> str:
    """Return the code with each `<..._LIT:value>` as its value, `<NUM_LIT>` as 0, others empty.

    A line that is one `<STR_LIT>` thus becomes the empty string, which scores 0 even if it is
    right: so it is in TRACE.
    """
    for placeholder, value in PLAIN.items():
        code = code.replace(placeholder, value)
    # Each literal is replaced everywhere, in the order of the text before the first replacement:
    # for a literal within a literal this differs from replacing each match where it stands.
    for literal in VALUED.finditer(code):
        code = code.replace(literal[0], literal[1])
    return code


def measure(
    predictions: Sequence[str], references: Sequence[str], sources: Sequence[str] | None
) -> Mapping[str, float]:
    """Return the mean edit similarity of the lines, in percent."""
    written = [resolve_literals(line) for line in predictions]
    right = [resolve_literals(line) for line in references]
    return {"similarity": similarity(written, right)}


TASK = Task(
    name="Py150",
    suite="trace",
    position=4,
    language="python",
    epochs=5,
    headline="similarity",
    metrics=("similarity",),
    prompt_tokens=1024,
    answer_tokens=128,  # lines have up to 143 characters, 65 of Llama's tokens
    measure=measure,
    source="Raychev et al., OOPSLA 2016; CodeXGLUE, 2021; TRACE, arXiv 2310.06762",
    sample={
        "prompt": "<s> import os , sys <EOL> import time <EOL> ... "
        "if e . args [ <NUM_LIT:0> ] == <NUM_LIT:1> : <EOL> cli . close ( ) <EOL>",
        "answer": "return True",
    },
)
