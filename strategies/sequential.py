"""Sequential fine-tuning: AdamW on one task after another, and nothing against forgetting.

The baseline every table starts from ("Default FT" in the MoFO paper, "SeqFT" in TRACE).

Cost: none beyond AdamW's two moments per parameter.
"""

from cl_mofo.strategy import Strategy


class Sequential(Strategy):
    """Leave the loop as it is."""

    name = "sequential"
    phases = frozenset({"optimizer"})
