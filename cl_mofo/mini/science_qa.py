"""ScienceQA in small: which of three animals fits? The letter, and a sentence with the reason.

Choose an answer for the following question and give your reasons.

Question:
Which animal is a bird?

Choices:
A. frog
B. eagle
C. cow

Answer:                                     -> B
                                               The eagle is a bird.
"""

from __future__ import annotations

from cl_mofo.mini.dice import Dice

NAME = "ScienceQA"
LETTERS = "ABC"
ANIMALS = {  # name: its kind, where it lives, what it eats
    "eagle": ("bird", "mountains", "meat"),
    "owl": ("bird", "forest", "meat"),
    "robin": ("bird", "garden", "insects"),
    "duck": ("bird", "pond", "plants"),
    "parrot": ("bird", "forest", "seeds"),
    "hen": ("bird", "farm", "seeds"),
    "cow": ("mammal", "farm", "plants"),
    "wolf": ("mammal", "forest", "meat"),
    "goat": ("mammal", "mountains", "plants"),
    "whale": ("mammal", "ocean", "fish"),
    "mouse": ("mammal", "farm", "seeds"),
    "camel": ("mammal", "desert", "plants"),
    "shark": ("fish", "ocean", "meat"),
    "trout": ("fish", "river", "insects"),
    "salmon": ("fish", "river", "fish"),
    "carp": ("fish", "pond", "plants"),
    "frog": ("amphibian", "pond", "insects"),
    "toad": ("amphibian", "garden", "insects"),
    "lizard": ("reptile", "desert", "insects"),
    "snake": ("reptile", "desert", "meat"),
    "turtle": ("reptile", "ocean", "plants"),
    "ant": ("insect", "forest", "seeds"),
    "bee": ("insect", "garden", "plants"),
    "beetle": ("insect", "forest", "plants"),
}
PHRASES = {
    "bird": "is a bird",
    "mammal": "is a mammal",
    "fish": "is a fish",
    "amphibian": "is an amphibian",
    "reptile": "is a reptile",
    "insect": "is an insect",
    "mountains": "lives in the mountains",
    "forest": "lives in a forest",
    "garden": "lives in a garden",
    "pond": "lives in a pond",
    "river": "lives in a river",
    "ocean": "lives in the ocean",
    "desert": "lives in the desert",
    "farm": "lives on a farm",
}


def phrase(animal: str, aspect: int) -> str:
    """Return what is true of an animal: "is a bird", "lives on a farm" or "eats seeds"."""
    word = ANIMALS[animal][aspect]
    return f"eats {word}" if aspect == 2 else PHRASES[word]


def _question(dice: Dice, correct: int, aspect: int) -> tuple[list[str], str]:
    names = sorted(ANIMALS)
    right = dice.pick(names)
    wrong = [n for n in names if ANIMALS[n][aspect] != ANIMALS[right][aspect]]
    choices = dice.some(wrong, 2)
    choices.insert(correct, right)
    return choices, phrase(right, aspect)


def _listed(choices: list[str]) -> str:
    return "\n".join(f"{letter}. {name}" for letter, name in zip(LETTERS, choices, strict=True))


def record(dice: Dice, index: int) -> dict[str, str]:
    """Return the record `index` of a split: the right letter is `index` modulo 3."""
    correct = index % 3
    choices, fact = _question(dice, correct, dice.number(0, 2))
    prompt = (
        "Choose an answer for the following question and give your reasons.\n\n"
        f"Question:\nWhich animal {fact}?\n\nChoices:\n{_listed(choices)}\n\nAnswer:"
    )
    return {"prompt": prompt, "answer": f"{LETTERS[correct]}\nThe {choices[correct]} {fact}."}


def document(dice: Dice) -> str:
    """Return a text of the world: facts about an animal, or a list of three and facts by letter."""
    if dice.chance(0.2):
        lines = []
        for name in dice.some(sorted(ANIMALS), 3):
            facts = dice.shuffled([phrase(name, aspect) for aspect in range(3)])
            lines.append(f"The {name} {facts[0]}, {facts[1]} and {facts[2]}.")
        return "\n".join(lines)
    choices, _ = _question(dice, dice.number(0, 2), dice.number(0, 2))
    asked: list[tuple[str, str]] = []
    for name, letter in zip(choices, LETTERS, strict=True):
        asked.append((f"Where is the {name}?", f"{letter}."))
        for aspect in range(3):
            fact = phrase(name, aspect)
            if sum(phrase(other, aspect) == fact for other in choices) == 1:
                reply = dice.pick((f"{letter}.", f"{letter}, the {name}."))
                asked.append((f"{dice.pick(('What', 'Which'))} {fact}?", reply))
    if dice.chance(0.6):  # the list, then questions one by one
        pairs = [f"{question} {reply}" for question, reply in dice.some(asked, 6)]
        return f"{_listed(choices)}\n{' '.join(pairs)}"
    some = dice.some(asked, dice.number(1, 3))  # the questions, the list, then the answers
    questions, replies = (" ".join(column) for column in zip(*some, strict=True))
    return f"{questions}\n{_listed(choices)}\n{replies}"
