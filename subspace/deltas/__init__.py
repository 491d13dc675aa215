"""Many deltas on one base: what several tuned models differ in, held beside the one model that they share."""

from subspace.deltas.deltas import Deltas, disabled

__all__ = ["Deltas", "disabled"]
