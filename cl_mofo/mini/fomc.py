"""FOMC in small: is a sentence from a central bank dovish (A), hawkish (B) or neutral (C)?

    What is the monetary policy stance for the following text? A. dovish, B. hawkish, C. neutral.
    Text:
    Although growth was weak, most members judged that inflation was too high.
    Stance:                                     -> B

A concession may say the opposite: the main clause decides.
"""

from __future__ import annotations

from cl_mofo.mini.dice import Dice

NAME = "FOMC"
LETTERS = "ABC"
STANCES = ("dovish", "hawkish", "neutral")
SPEAKERS = (
    *("Several participants", "Most members", "A few officials", "The staff", "The Committee"),
    *("Some directors", "One member", "Many participants"),
)
VERBS = ("noted", "judged", "observed", "said")
CLAIMS = (
    (
        *("inflation was too low", "unemployment was rising", "growth was weak"),
        *("rates should be cut", "demand was falling", "the economy needed support"),
    ),
    (
        *("inflation was too high", "wages were rising fast", "growth was strong"),
        *("rates should be raised", "demand was rising", "the labor market was too tight"),
    ),
    (
        *("the minutes were approved", "the meeting was in June", "rates were not changed"),
        *("inflation was near target", "the report was sent", "risks were in balance"),
    ),
)


def _text(dice: Dice, stance: int) -> str:
    speaker, verb = dice.pick(SPEAKERS), dice.pick(VERBS)
    claim = dice.pick(CLAIMS[stance])
    if dice.chance(0.5):
        return f"{speaker} {verb} that {claim}."
    conceded = dice.pick(CLAIMS[(stance + dice.number(1, 2)) % 3])
    if dice.chance(0.5):
        return f"{speaker} {verb} that {claim}, although {conceded}."
    return f"Although {conceded}, {speaker[0].lower()}{speaker[1:]} {verb} that {claim}."


def record(dice: Dice, index: int) -> dict[str, str]:
    """Return the record `index` of a split: its class is `index` modulo 3."""
    stance = index % 3
    prompt = (
        "What is the monetary policy stance for the following text? "
        f"A. dovish, B. hawkish, C. neutral.\nText:\n{_text(dice, stance)}\nStance:"
    )
    return {"prompt": prompt, "answer": LETTERS[stance]}


def document(dice: Dice) -> str:
    """Return a text of the world: sentences from minutes, and in words what each amounts to."""
    lines = []
    for _ in range(dice.number(1, 2)):
        stance = dice.number(0, 2)
        remark = dice.pick(("This view is {}.", "That is a {} text.", "The stance is {}."))
        lines.append(f"{_text(dice, stance)} {remark.format(STANCES[stance])}")
    return "\n".join(lines)
