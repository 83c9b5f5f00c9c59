"""MoFO, usable alone in any training script: it knows tensors and nothing else of this package.

Two files are excepted, which know nothing of it either: `compiled.py` needs `cl_mofo/cachedir.py`,
`triton_step.py` needs `cl_mofo/transfer.py`.

- `selection.py`: which entries of a tensor move
- `sharded.py`: the same for tensors that are spread over ranks
- `shards.py`: what of such tensors a parameter holds
- `adamw.py`: how an entry moves
- `nonfinite.py`: whether a step may be taken at all
- `options.py`: what a parameter group may say
- `step.py`: one tensor's step, in two halves, between which lies its selection
- `work.py`: the parameters of a step, and the selections of all of them
- `pure.py`: the step of any parameters, in torch and numpy alone
- `native.py`: the step of whole tensors on a CPU, in C: `native.c`, which `compiled.py` compiles
- `triton_step.py`: the step of whole tensors on a GPU, by the kernels in `triton_kernels.py`
- `triton_layout.py`: how the tables of these kernels are laid out
- `triton_parts.py`: what several of these kernels do
- `paths.py`: the ways to compute a step; `pure.py` is the last of them
- `mofo.py`: the optimizer: all of these, for every tensor of every group
- `groups.py`: the parameter groups of the authors' runs
- `reference.py`: the same step for one tensor, slow and obviously right; the tests' yardstick

Where a faster way comes in: `MoFO.step` makes a `Work` of each parameter that has a gradient (its
group's options, the gradient, which tensors it holds, its state), looks at the gradients, makes the
states that are missing, and then asks each of its `Path`s in turn:

    for path in paths():
        path.step([item for item in what is left if path.takes(item)], discard)

`Path.step` does all there is to do for these parameters: count the step, update the moments, select
and move. `Pure` comes last and takes what is left. A new way is a class with `takes` and `step` in
a file of its own and an entry in `paths()`. What it needs of an item: `item.param`, `item.grad`,
`item.state` ("step": 0-d float32, "exp_avg", "exp_avg_sq": row-major), `item.options` ("lr",
"betas", "eps", "weight_decay", "decay"), `item.counts` ([k], the number of entries that move; None
for all) and `item.shards` (`ranks` is None and there is one piece where a tensor is whole).
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
