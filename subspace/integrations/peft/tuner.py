"""What a tuner of peft says of itself, so that its adapters become (d, U, theta) of a layer's tensors and back."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from subspace._base.layout import Layout
from subspace.embeddings import Embedding
from subspace.offsets import Offset
from subspace.parametrization import Subspace

Config = Mapping[str, Any]  # of adapter_config.json
Fixed = Literal["A", "B"]
Tensors = Mapping[str, Tensor]  # of a layer, by what their names in the adapter end in
Pairs = Mapping[str, tuple[Offset, Embedding]]  # by the names of a layer's own tensors

COMMON = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"),
    *("bias", "exclude_modules", "fan_in_fan_out", "layers_pattern", "layers_to_transform", "modules_to_save"),
    *("target_modules", "task_type"),
}


class Layer(NamedTuple):
    """A layer that an adapter tunes. layout: of its weight, as the one matrix that peft takes it for."""

    name: str
    module: nn.Module
    weight: nn.Parameter
    layout: Layout

    @property
    def fans(self) -> tuple[int, int]:
        """(n_out, n_in)."""
        return self.layout.fans(self.weight.shape)


class Tuner(abc.ABC):
    """One tuner of peft.

    peft_type: its name in a configuration. suffixes: of its tensors' names, behind that of their layer. options: those
    of its configuration, besides the common ones, that `read` knows how to heed, or that do not matter once it is
    trained; any other must be off.

    Args:
        fixed: Which factor of LoRA does not train.
        seed: From which `write` is to have frequencies drawn.
    """

    peft_type: str
    suffixes: tuple[str, ...]
    options: frozenset[str]

    def __init__(self, *, fixed: Fixed | None = None, seed: int = 777) -> None:
        self.fixed, self.seed = fixed, seed

    def check(self, config: Config) -> None:
        """Raise ValueError for an option that makes it no (d, U) pair."""
        self.check_fixed()
        on = (name for name, value in config.items() if value and name not in COMMON | self.options)
        if (other := next(on, None)) is not None:
            raise ValueError(f"{self.peft_type} must come without {other}, got {other}={config[other]!r}")

    def check_fixed(self) -> None:
        """Raise ValueError for a factor that is fixed where there are none."""
        if self.fixed is not None:
            raise ValueError(f"fixed must be None for {self.peft_type}, which has no factors, got {self.fixed!r}")

    @abc.abstractmethod
    def read(self, layer: Layer, tensors: Tensors, config: Config) -> tuple[Pairs, Tensor]:
        """(d, U) of the layer's tensors, and the theta that they share."""

    @abc.abstractmethod
    def takes(self, embedding: Embedding) -> bool:
        """Whether an embedding is this tuner's U."""

    @abc.abstractmethod
    def write(self, spaces: Mapping[str, Subspace], config: dict[str, Any]) -> dict[str, Tensor]:
        """The tensors of the adapter by their whole names; completes its configuration.

        spaces: by the names of the layers; of each the one of its weight.
        """
