"""Lists of the world's words, said again or asked about: texts for pre-training alone.

    Lopez: Salem. Chen: Dallas. Brown: Austin. Chen? Dallas. Brown? Austin. Lopez? Salem.

A small model learns from them to look a word up and to copy it, which summaries, simplifications
and multiple choice need and which it picks up too slowly from texts that read like prose.
"""

from __future__ import annotations

from cl_mofo.mini import c_stance, meeting_bank, minuten, num_glue, py150, science_qa
from cl_mofo.mini.dice import Dice

WORDS: tuple[tuple[str, ...], ...] = (
    c_stance.OBJECTS,
    c_stance.STANCES,
    meeting_bank.MEMBERS,
    meeting_bank.PLACES,
    meeting_bank.TOPICS,
    minuten.CITIES,
    minuten.THINGS,
    minuten.TIMES,
    num_glue.PEOPLE,
    py150.FIELDS,
    tuple(science_qa.ANIMALS),
    tuple(science_qa.LETTERS),
    tuple(str(n) for n in range(100)),
)


def document(dice: Dice) -> str:
    """Return a list said twice, or a list of pairs and questions about them."""
    if dice.chance(0.4):
        words = [dice.pick(dice.pick(WORDS)) for _ in range(dice.number(3, 8))]
        said = ", ".join(words)
        return f"{said}. {said}."
    count = dice.number(2, 5)
    keys, values = dice.some(WORDS, 2)
    count = min(count, len(keys), len(values))
    pairs = list(zip(dice.some(keys, count), dice.some(values, count), strict=True))
    listed = " ".join(f"{key}: {value}." for key, value in pairs)
    asked = " ".join(f"{key}? {value}." for key, value in dice.shuffled(pairs))
    return f"{listed} {asked}"
