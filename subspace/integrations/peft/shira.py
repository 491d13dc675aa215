"""SHiRA: single entries of a weight. peft wants r (n_out + n_in) of them in every layer, for one r."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from subspace.embeddings import Embedding, Sparse
from subspace.integrations.peft.tuner import Config, Layer, Pairs, Tensors, Tuner
from subspace.offsets import Pretrained
from subspace.parametrization import Subspace


class SHiRATuner(Tuner):
    """An adapter of fewer entries than peft's count is filled up with zeros at other places."""

    peft_type = "SHIRA"
    suffixes = ("shira_weight", "shira_indices")
    options = frozenset({"r", "mask_type", "random_seed", "init_weights"})

    def read(self, layer: Layer, tensors: Tensors, config: Config) -> tuple[Pairs, Tensor]:
        rows, columns = tensors["shira_indices"].long()
        U = Sparse(layer.weight, index=rows * layer.weight.shape[1] + columns)
        return {"weight": (Pretrained(layer.weight), U)}, tensors["shira_weight"]

    def takes(self, embedding: Embedding) -> bool:
        return isinstance(embedding, Sparse)

    def write(self, spaces: Mapping[str, Subspace], config: dict[str, Any]) -> dict[str, Tensor]:
        r = max(1, *(-(-space.embedding.dim // sum(space.shape)) for space in spaces.values()))
        written = {}
        for name, space in spaces.items():
            (n_out, n_in), theta, index = space.shape, space.theta.detach().cpu(), space.embedding.support()
            if not isinstance(space.module, nn.Linear):
                raise ValueError(f"{name} must be a Linear for SHiRA, got {type(space.module).__bases__[0].__name__}")
            if (wanted := r * (n_out + n_in)) > n_out * n_in:
                raise ValueError(f"{name} must have room for {wanted} entries, r = {r}, got {n_out * n_in}")
            assert index is not None
            places = index.cpu()
            free = torch.ones(n_out * n_in, dtype=torch.bool).index_fill(0, places, False).nonzero().squeeze(1)
            places = torch.cat([places, free[: wanted - len(places)]])
            written[f"{name}.shira_weight"] = torch.cat([theta, theta.new_zeros(wanted - len(theta))])
            written[f"{name}.shira_indices"] = torch.stack([places // n_in, places % n_in]).int()
        config.update(r=r, mask_type="random")
        return written
