"""Networks to compare methods on: functions from a `Key` to a freshly initialised model."""

from subspace.study.models.lenet5 import lenet5

__all__ = ["lenet5"]
