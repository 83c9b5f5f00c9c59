"""How well answers are: scores of one task, and figures over a sequence of tasks.

Importing this loads neither torch nor transformers.
"""

from cl_mofo.evaluation.matrix import ResultMatrix, figure
from cl_mofo.evaluation.scoring import mark_unfinished, score

__all__ = ["ResultMatrix", "figure", "mark_unfinished", "score"]
