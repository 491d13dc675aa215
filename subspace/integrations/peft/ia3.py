"""IA3: a factor for each output of a layer, its bias included, or for each input of a feedforward one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from subspace.embeddings import ColumnScale, Embedding, RowScale
from subspace.embeddings.row_scale import of_outputs
from subspace.integrations.peft.tuner import Config, Layer, Pairs, Tensors, Tuner
from subspace.offsets import Pretrained
from subspace.parametrization import Subspace, subspaces


class IA3Tuner(Tuner):
    """theta = l - 1, shared by a layer's weight and its bias."""

    peft_type = "IA3"
    suffixes = ("ia3_l",)
    options = frozenset({"feedforward_modules", "init_ia3_weights"})

    def read(self, layer: Layer, tensors: Tensors, config: Config) -> tuple[Pairs, Tensor]:
        weight, bias, theta = layer.weight, layer.module._parameters.get("bias"), tensors["ia3_l"].flatten() - 1
        if _matches(config.get("feedforward_modules"), layer.name):
            if getattr(layer.module, "groups", 1) != 1:
                raise ValueError("a feedforward layer must have one group of channels, got more")
            d = Pretrained(weight)
            return {"weight": (d, ColumnScale(d, scale=1.0, layout=layer.layout))}, theta
        own = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        return of_outputs(own, layer.layout), theta

    def takes(self, embedding: Embedding) -> bool:
        return isinstance(embedding, RowScale | ColumnScale)

    def write(self, spaces: Mapping[str, Subspace], config: dict[str, Any]) -> dict[str, Tensor]:
        feedforward, written = [], {}
        for name, space in spaces.items():
            U = cast("RowScale | ColumnScale", space.embedding)
            factors = 1 + U.factors(space.theta.detach()).cpu()
            shape = [1, -1] + [1] * (len(space.shape) - 2)
            if isinstance(U, ColumnScale):
                feedforward.append(name)
            else:
                _require_scaled_bias(name, space)
                shape = [-1, 1] if len(space.shape) == 2 else shape
            written[f"{name}.ia3_l"] = factors.reshape(shape)
        config.update(feedforward_modules="|".join(map(re.escape, feedforward)) or [])
        return written


def _require_scaled_bias(name: str, space: Subspace) -> None:
    """Raise ValueError for a bias that peft would scale and this layer does not."""
    own = dict(subspaces(space.module))
    bias = getattr(space.module, "bias", None)
    if bias is None or ("bias" not in own and not bool(bias.any())):
        return
    if "bias" not in own or own["bias"].theta is not space.theta or not isinstance(own["bias"].embedding, RowScale):
        raise ValueError(f"{name}.bias must be scaled with its outputs, as peft does, got one that is not")


def _matches(selection: Any, name: str) -> bool:
    """As peft decides which layers are feedforward ones."""
    if isinstance(selection, str):
        return re.fullmatch(selection, name) is not None
    return any(name.endswith(suffix) for suffix in selection or ())
