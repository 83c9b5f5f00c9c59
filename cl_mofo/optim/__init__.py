"""MoFO, usable alone in any training script: it knows tensors and nothing else of this package.

- `selection.py`: which entries of a tensor move
- `sharded.py`: the same for tensors that are spread over ranks
- `shards.py`: what of such tensors a parameter holds
- `adamw.py`: how an entry moves
- `nonfinite.py`: whether a step may be taken at all
- `options.py`: what a parameter group may say
- `step.py`: one tensor's step, in two halves, between which lies its selection
- `work.py`: the selections of all tensors of a step
- `mofo.py`: the optimizer: all of these, for every tensor of every group
- `groups.py`: the parameter groups of the authors' runs
- `reference.py`: the same step for one tensor, slow and obviously right; the tests' yardstick
"""

from cl_mofo.optim.groups import authors_groups
from cl_mofo.optim.mofo import MoFO
from cl_mofo.optim.nonfinite import GradientCheck, NonFiniteGradientError
from cl_mofo.optim.shards import Piece, Shards

__all__ = [
    "GradientCheck",
    "MoFO",
    "NonFiniteGradientError",
    "Piece",
    "Shards",
    "authors_groups",
]
