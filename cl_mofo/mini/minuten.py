"""20Minuten in small: a stiff German notice, said again in plain words.

Provide a simplified version of the following paragraph in German.

Paragraph:
Wie die Behörden mitteilen, wird die Brücke in Bern ab Mai infolge eines Unwetters saniert.

Simplification:     -> Die Brücke in Bern wird ab Mai repariert. Grund: ein Sturm.
"""

from __future__ import annotations

from cl_mofo.mini.dice import Dice

NAME = "20Minuten"
THINGS = ("Brücke", "Schule", "Strasse", "Bibliothek", "Kirche", "Post", "Halle", "Buslinie")
CITIES = ("Bern", "Basel", "Chur", "Genf", "Luzern", "Zug", "Aarau", "Olten")
TIMES = ("Mai", "Juni", "Juli", "August", "Montag", "Freitag", "Herbst", "Winter")
SOURCES = ("Wie die Behörden mitteilen,", "Nach Angaben der Stadt", "Gemäss einem Bericht")
ACTIONS = (  # the stiff word and the plain one, both after "wird"
    ("umfassend saniert", "repariert"),
    ("vorübergehend stillgelegt", "geschlossen"),
    ("wieder in Betrieb genommen", "geöffnet"),
    ("erheblich erweitert", "grösser"),
    ("einer Kontrolle unterzogen", "geprüft"),
)
REASONS = (
    ("infolge eines Unwetters", "ein Sturm"),
    ("aufgrund von Personalmangel", "zu wenig Leute"),
    ("wegen finanzieller Engpässe", "zu wenig Geld"),
    ("angesichts hoher Nachfrage", "viele Gäste"),
    ("aus Sicherheitsgründen", "die Gefahr"),
)


def _notice(dice: Dice, action: int) -> tuple[str, dict[str, str]]:
    reason = dice.pick(REASONS)
    told = {
        "source": dice.pick(SOURCES),
        "thing": dice.pick(THINGS),
        "city": dice.pick(CITIES),
        "time": dice.pick(TIMES),
        "stiff": ACTIONS[action][0],
        "plain": ACTIONS[action][1],
        "because": reason[0],
        "reason": reason[1],
    }
    notice = dice.pick(
        (
            "{source} wird die {thing} in {city} ab {time} {because} {stiff}.",
            "{source} wird {because} die {thing} in {city} ab {time} {stiff}.",
        )
    )
    return notice.format_map(told), told


def record(dice: Dice, index: int) -> dict[str, str]:
    """Return the record `index` of a split: what happens is `index` modulo 5."""
    notice, told = _notice(dice, index % len(ACTIONS))
    prompt = (
        "Provide a simplified version of the following paragraph in German.\n\n"
        f"Paragraph:\n{notice}\n\nSimplification:"
    )
    answer = "Die {thing} in {city} wird ab {time} {plain}. Grund: {reason}."
    return {"prompt": prompt, "answer": answer.format_map(told)}


def document(dice: Dice) -> str:
    """Return a text of the world: a notice, and talk about it."""
    notice, told = _notice(dice, dice.number(0, len(ACTIONS) - 1))
    facts = (
        "Es geht um die {thing}.",
        "Der Ort ist {city}.",
        "Das beginnt im {time}.",
        "Sie wird {plain}.",
        "Warum? {reason}.",
        "In {city} wird die {thing} {plain}.",
        "{stiff} heisst {plain}.",
        "{because} heisst: {reason}.",
        "Ab {time} wird sie {plain}, denn es gibt {reason}.",
    )
    said = [fact.format_map(told) for fact in dice.some(facts, dice.number(3, 5))]
    return f"{notice}\n{' '.join(said)}"
