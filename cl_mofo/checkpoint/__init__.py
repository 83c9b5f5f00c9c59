"""Checkpoints: all that a run needs to go on where it was, to the bit."""

from cl_mofo.checkpoint.state import load_state, save_state

__all__ = ["load_state", "save_state"]
