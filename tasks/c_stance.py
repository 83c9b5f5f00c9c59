"""C-STANCE: what does a Chinese microblog post think of a target?

    判断以下文本对指定对象的态度，选择一项：A.支持，B.反对，C.中立。输出A，B或者C。
    文本：
    太久没上班了在电脑面前做了半个小时就背疼的不行了我还是适合躺着还有就是那些出门不带口罩的人是想吓死谁
    对象：
    口罩
    态度：                                                                    -> A

Zero-shot stance detection: the targets of the test set do not occur in training. A supports, B is
against, C is neutral; an answer is the letter alone.

Source: Zhao, Li and Caragea, "C-STANCE: A Large Dataset for Chinese Zero-Shot Stance Detection",
ACL 2023; as in TRACE, Wang et al., arXiv 2310.06762.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cl_mofo.evaluation.metrics import accuracy, differs
from cl_mofo.task import Task


def measure(
    predictions: Sequence[str], references: Sequence[str], sources: Sequence[str] | None
) -> Mapping[str, float]:
    """Return the exact-match accuracy of the letters, in percent."""
    return {"accuracy": accuracy(predictions, references)}


TASK = Task(
    name="C-STANCE",
    suite="trace",
    position=1,
    language="zh",
    epochs=5,
    headline="accuracy",
    metrics=("accuracy",),
    prompt_tokens=1024,
    answer_tokens=16,  # one letter; the room shows what a model says instead
    measure=measure,
    settled=differs,
    source="Zhao et al., ACL 2023; TRACE, arXiv 2310.06762",
    sample={
        "prompt": "判断以下文本对指定对象的态度，选择一项：A.支持，B.反对，C.中立。"
        "输出A，B或者C。\n文本：\n太久没上班了在电脑面前做了半个小时就背疼的不行了我还是适合躺着"
        "还有就是那些出门不带口罩的人是想吓死谁\n对象：\n口罩\n态度：",
        "answer": "A",
    },
)
