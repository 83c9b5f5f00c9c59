"""Checkpoints: all that a run needs to go on where it was, to the bit."""

from cl_mofo.checkpoint.state import load_state, save_state
from cl_mofo.checkpoint.tree import Parts, Span

__all__ = ["Parts", "Span", "load_state", "save_state"]
