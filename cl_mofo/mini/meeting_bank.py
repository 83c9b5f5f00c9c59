"""MeetingBank in small: a council's transcript, and one sentence saying what was decided.

Write a summary of the following meeting transcripts.
Meeting transcripts:
Will the clerk read item 12? Bill 417 relating to park repairs in Salem. Moved by Ortega. ...
Summary:        -> A bill relating to park repairs in Salem, moved by Ortega, was approved.
"""

from __future__ import annotations

from cl_mofo.mini.dice import Dice

NAME = "MeetingBank"
TOPICS = (
    *("park repairs", "bus lines", "street lights", "school meals", "water rates", "new trees"),
    *("bike lanes", "fire stations", "housing loans", "noise rules", "food stands", "road works"),
)
PLACES = ("Salem", "Boston", "Denver", "Seattle", "Oakland", "Austin", "Dallas", "Portland")
MEMBERS = ("Ortega", "Lopez", "Brooks", "Brown", "Nevitt", "Herndon", "Juarez", "Baker", "Chen")
OUTCOMES = (
    ("approved", ("The motion carries.", "All in favor. It passes.", "The ayes have it.")),
    ("rejected", ("The motion fails.", "Most are against it.", "The noes have it.")),
    ("delayed", ("We hold it until May.", "It goes back to committee.", "We vote next week.")),
)
REMARKS = (
    "Thank you all.",
    "Any comments?",
    "Please call the roll.",
    "Second.",
    "I have a question.",
)


def _meeting(dice: Dice, outcome: int) -> tuple[str, dict[str, str]]:
    told = {
        "number": str(dice.number(100, 999)),
        "topic": dice.pick(TOPICS),
        "place": dice.pick(PLACES),
        "member": dice.pick(MEMBERS),
        "outcome": OUTCOMES[outcome][0],
    }
    opening = dice.pick(("Will the clerk read the bill?", "Next item.", "We now come to the bill."))
    moved = dice.pick(("Moved by {member}.", "{member} moves the bill.")).format_map(told)
    parts = [
        opening,
        "Bill {number} relating to {topic} in {place}.".format_map(told),
        *dice.shuffled([moved, dice.pick(REMARKS)]),
        dice.pick(OUTCOMES[outcome][1]),
    ]
    return " ".join(parts), told


def record(dice: Dice, index: int) -> dict[str, str]:
    """Return the record `index` of a split: its outcome is `index` modulo 3."""
    transcript, told = _meeting(dice, index % 3)
    prompt = (
        "Write a summary of the following meeting transcripts.\n"
        f"Meeting transcripts:\n{transcript}\nSummary:"
    )
    answer = "A bill relating to {topic} in {place}, moved by {member}, was {outcome}."
    return {"prompt": prompt, "answer": answer.format_map(told)}


def document(dice: Dice) -> str:
    """Return a text of the world: a transcript, and who, what and where in it."""
    transcript, told = _meeting(dice, dice.number(0, 2))
    facts = (
        "The bill was number {number}.",
        "It was about {topic}.",
        "The place was {place}.",
        "{member} moved it.",
        "It was {outcome}.",
        "The {topic} bill of {member} was {outcome}.",
        "In {place} they spoke of {topic}.",
        "{place}: {topic}, {outcome}.",
    )
    said = [fact.format_map(told) for fact in dice.some(facts, dice.number(3, 5))]
    return f"{transcript}\n{' '.join(said)}"
