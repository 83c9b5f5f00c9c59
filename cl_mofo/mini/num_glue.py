"""NumGLUE-cm and NumGLUE-ds in small: number problems that need a fact as well as a sum.

    Solve the following math problem.
    Question:
    Leah earns 6 dollars a day. How much does Leah earn in 4 days?
    Answer:                                     -> 24

NumGLUE-cm asks for everyday knowledge (a spider has 8 legs, a week has 7 days), NumGLUE-ds for
physics and chemistry (force is mass times acceleration, a carbon atom weighs 12).
"""

from __future__ import annotations

from collections.abc import Callable

from cl_mofo.mini.dice import Dice

CM_NAME = "NumGLUE-cm"
DS_NAME = "NumGLUE-ds"
PEOPLE = (
    *("Leah", "Jason", "Maria", "Ahmed", "Nina", "Oscar", "Ruth", "Sam"),
    *("Tom", "Vera", "Yuki", "Ivan", "Clara", "Diego", "Emma", "Felix"),
)
FRUITS = ("apples", "pears", "plums", "eggs", "nuts", "figs")
PARTS = {  # what it is: how many of what it has
    "spider": (8, "legs"),
    "dog": (4, "legs"),
    "hen": (2, "legs"),
    "bee": (6, "legs"),
    "car": (4, "wheels"),
    "bike": (2, "wheels"),
    "week": (7, "days"),
    "hand": (5, "fingers"),
}
BODIES = ("car", "train", "ball", "boat", "bird", "plane", "runner", "cart", "drone", "horse")
WEIGHTS = {"hydrogen": 1, "helium": 4, "carbon": 12, "nitrogen": 14, "oxygen": 16}
REACTIONS = {  # moles of the second formed from one mole of the first
    ("oxygen", "water"): 2,
    ("nitrogen", "ammonia"): 2,
    ("carbon", "soot"): 1,
    ("chlorine", "salt"): 2,
    ("sugar", "alcohol"): 4,
}
Problem = tuple[str, int, tuple[str, ...]]  # the question, its answer, the same told as facts


def _wages(dice: Dice) -> Problem:
    who, pay, days = dice.pick(PEOPLE), dice.number(2, 9), dice.number(2, 9)
    total = pay * days
    return (
        f"{who} earns {pay} dollars a day. How much does {who} earn in {days} days?",
        total,
        (
            f"{who} earns {pay} dollars a day. In {days} days {who} earns {total} dollars.",
            f"At {pay} dollars a day, {days} days bring {who} {total} dollars.",
            f"{pay} times {days} is {total}.",
        ),
    )


def _parts(dice: Dice) -> Problem:
    name, count = dice.pick(sorted(PARTS)), dice.number(2, 9)
    who = dice.pick(PEOPLE)
    each, part = PARTS[name]
    total = each * count
    return (
        f"{who} counts {count} {name}s. How many {part} are there?",
        total,
        (
            f"{who} counts {count} {name}s. That makes {total} {part}.",
            f"A {name} has {each} {part}, so {count} {name}s have {total} {part}.",
            f"{each} times {count} is {total}.",
        ),
    )


def _left(dice: Dice) -> Problem:
    who, what = dice.pick(PEOPLE), dice.pick(FRUITS)
    had = dice.number(3, 12)
    ate = dice.number(1, min(9, had - 1))
    left = had - ate
    return (
        f"{who} has {had} {what} and eats {ate}. How many {what} are left?",
        left,
        (
            f"{who} has {had} {what} and eats {ate}. Now {left} {what} are left.",
            f"Of {had} {what} {who} eats {ate} and keeps {left}.",
            f"{had} minus {ate} is {left}.",
        ),
    )


def _force(dice: Dice) -> Problem:
    body, mass, rate = dice.pick(BODIES), dice.number(2, 9), dice.number(2, 9)
    force = mass * rate
    return (
        f"A {body} of {mass} kg speeds up by {rate} m/s each second. What is the force in newtons?",
        force,
        (
            f"A {body} of {mass} kg speeds up by {rate} m/s each second. The force is {force}.",
            f"The force on {mass} kg at {rate} m/s each second is {force} newtons.",
            f"{mass} times {rate} is {force}.",
        ),
    )


def _speed(dice: Dice) -> Problem:
    body, speed, time = dice.pick(BODIES), dice.number(2, 9), dice.number(2, 9)
    way = speed * time
    return (
        f"A {body} moves {way} meters in {time} seconds. What is the speed in m/s?",
        speed,
        (
            f"A {body} moves {way} meters in {time} seconds. The speed is {speed} m/s.",
            f"In {time} seconds a {body} at {speed} m/s moves {way} meters.",
            f"{way} over {time} is {speed}.",
        ),
    )


def _weight(dice: Dice) -> Problem:
    who, (first, second) = dice.pick(PEOPLE), dice.some(sorted(WEIGHTS), 2)
    count = dice.number(1, 3)
    total = count * WEIGHTS[first] + WEIGHTS[second]
    return (
        f"{who} builds a molecule of {count} {first} and 1 {second}. What does it weigh?",
        total,
        (
            f"{who} builds a molecule of {count} {first} and 1 {second}. It weighs {total}.",
            f"The weight of 1 {second} and {count} {first} is {total}.",
            f"{count * WEIGHTS[first]} plus {WEIGHTS[second]} is {total}.",
        ),
    )


def _moles(dice: Dice) -> Problem:
    source, product = dice.pick(sorted(REACTIONS))
    who, moles = dice.pick(PEOPLE), dice.number(1, 9)
    formed = REACTIONS[source, product] * moles
    return (
        f"{who} uses {moles} moles of {source}. How many moles of {product} are formed?",
        formed,
        (
            f"{who} uses {moles} moles of {source} and {formed} moles of {product} are formed.",
            f"{moles} moles of {source} give {formed} moles of {product}.",
        ),
    )


CM_KINDS: tuple[Callable[[Dice], Problem], ...] = (_wages, _parts, _left)
DS_KINDS: tuple[Callable[[Dice], Problem], ...] = (_force, _speed, _weight, _moles)


def _record(problem: Problem) -> dict[str, str]:
    question, answer, _ = problem
    prompt = f"Solve the following math problem.\nQuestion:\n{question}\nAnswer:"
    return {"prompt": prompt, "answer": str(answer)}


def cm_record(dice: Dice, index: int) -> dict[str, str]:
    """Return record `index` of a NumGLUE-cm split: its kind of problem is `index` modulo 3."""
    return _record(CM_KINDS[index % len(CM_KINDS)](dice))


def ds_record(dice: Dice, index: int) -> dict[str, str]:
    """Return record `index` of a NumGLUE-ds split: its kind of problem is `index` modulo 4."""
    return _record(DS_KINDS[index % len(DS_KINDS)](dice))


def document(dice: Dice) -> str:
    """Return a text of the world: solved sums, and the facts behind them, in sentences."""
    lines = []
    for _ in range(dice.number(2, 4)):
        question, answer, facts = dice.pick(CM_KINDS + DS_KINDS)(dice)
        lines.append(dice.pick((*facts, f"{question} It is {answer}.")))
    return "\n".join(lines)
