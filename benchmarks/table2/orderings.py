"""Which of the paper's orderings the table's runs show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from cl_mofo.report import RunResults
from cl_mofo.report.paper import PaperFigures, paper_table, strategy_key
from cl_mofo.report.text import ABSENT, markdown_table

CLAIMS = (
    ("MoFO above Default FT", "mofo", "sequential"),
    ("HFT above Default FT", "hft", "sequential"),
    ("GEM above Default FT", "gem", "sequential"),
    ("EWC above Default FT", "ewc", "sequential"),
    ("Replay above Default FT", "replay", "sequential"),
    ("MoFO above HFT", "mofo", "hft"),
    ("MoFO above GEM", "mofo", "gem"),
    ("MoFO above EWC", "mofo", "ewc"),
    ("GEM + MoFO above GEM", "gem+mofo", "gem"),
    ("EWC + MoFO above EWC", "ewc+mofo", "ewc"),
    ("Replay + MoFO above Replay", "replay+mofo", "replay"),
    ("Replay above MoFO", "replay", "mofo"),
)
"""What the paper's Table 2 shows in OP and in BWT: (text, better, worse)."""


def orderings(runs: Sequence[RunResults]) -> str:
    """Say of each of the paper's orderings what these runs show."""
    figures, body = paper(), []
    for text, better, worse in CLAIMS:
        for name in ("OP", "BWT"):
            printed = getattr(figures[better], name.lower()) - getattr(figures[worse], name.lower())
            apart = differences(runs, better, worse, name.lower())
            shown = ", ".join(f"{value:+.1f}" for value in apart) or ABSENT
            body.append([f"{text}, {name}", f"{printed:+.1f}", shown, verdict(apart, printed)])
    head = ["the paper's ordering", "there", "here, seed by seed", "reproduced"]
    return (
        f"{markdown_table(head, body)}\n\nDifferences in points, between runs of the same seed. "
        "Reproduced: `yes` if the sign is the paper's in every seed, of three or more; `in the "
        "mean` if the mean's is; else `no`. `one seed` tells that there is no more. Between equal "
        "strategies three seeds have the paper's sign all by chance in one case of eight."
    )


def paper() -> dict[str, PaperFigures]:
    """Return the paper's figures by the names that the claims have for its rows."""
    rows = paper_table()
    return {name: rows[strategy_key(name)] for claim in CLAIMS for name in claim[1:]}


def verdict(apart: Sequence[float], printed: float) -> str:
    """Say whether differences have the sign of the paper's."""
    if not apart:
        return "not measured"
    agree = [value * printed > 0 for value in apart]
    if fmean(apart) * printed <= 0:
        return "no" if len(apart) > 1 else "no (one seed)"
    if len(apart) == 1:
        return "yes (one seed)"
    return "yes" if all(agree) and len(apart) > 2 else "in the mean"


def differences(runs: Iterable[RunResults], one: str, other: str, name: str) -> list[float]:
    """Return by how much a strategy's OP or BWT is above another's, seed by seed."""
    found: dict[str, dict[int, float]] = {one: {}, other: {}}
    for run in runs:
        if run.finished and run.strategy in found:
            found[run.strategy][run.seed] = getattr(run, name)[-1]
    return [found[one][s] - found[other][s] for s in sorted(found[one].keys() & found[other])]
