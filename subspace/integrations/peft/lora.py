"""LoRA with one factor fixed: LoRA-FA, and what else is of low rank between fixed frames."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from subspace.embeddings import Embedding, LowRank
from subspace.integrations.peft.tuner import Config, Layer, Pairs, Tensors, Tuner
from subspace.offsets import Pretrained
from subspace.parametrization import Subspace

OF_THE_BASE_AS_IT_IS = (True, False, "gaussian", "orthogonal", "eva")  # other starts change d


class LoRATuner(Tuner):
    """B A is linear in what trains if one of the two is fixed, which the file does not say: so somebody has to.

    The fixed one, say A = T Q^T with orthonormal columns Q, is the frame Q, and theta = alpha / r B T.
    """

    peft_type = "LORA"
    suffixes = ("lora_A.weight", "lora_B.weight")
    options = frozenset(
        {"r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights"}
        | {"ensure_weight_tying", "megatron_core", "qalora_group_size", "eva_config"}
    )

    def check(self, config: Config) -> None:
        super().check(config)
        if config.get("init_lora_weights", True) not in OF_THE_BASE_AS_IT_IS:
            start = config["init_lora_weights"]
            raise ValueError(f"LORA must start from the base as it is, got init_lora_weights={start!r}")

    def check_fixed(self) -> None:
        if self.fixed not in ("A", "B"):
            raise ValueError(
                "LORA trains both factors, which is not linear in theta: "
                f"fixed must be 'A' or 'B' to train the other alone, got {self.fixed!r}"
            )

    def read(self, layer: Layer, tensors: Tensors, config: Config) -> tuple[Pairs, Tensor]:
        if getattr(layer.module, "groups", 1) != 1:
            raise ValueError("a layer must have one group of channels, got more")
        A, B = (tensors[suffix].double() for suffix in self.suffixes)
        alpha, r = _by_pattern(config.get("alpha_pattern"), layer.name, config["lora_alpha"]), len(A)
        A = A.flatten(1) if A.ndim == 2 else layer.layout.to_matrix(A)
        B = B.flatten(1) * alpha / (r**0.5 if config.get("use_rslora") else r)
        Q, R = torch.linalg.qr(A.T if self.fixed == "A" else B)
        if int(torch.linalg.matrix_rank(R)) < r:
            raise ValueError(f"{self.fixed} must have rank {r} to be a frame, got less")
        frame = Q.to(tensors["lora_A.weight"].dtype)
        d = Pretrained(layer.weight)
        if self.fixed == "A":
            return {"weight": (d, LowRank(layer.weight, None, frame, layout=layer.layout))}, (B @ R.T).flatten()
        return {"weight": (d, LowRank(layer.weight, frame, None, layout=layer.layout))}, (R @ A).flatten()

    def takes(self, embedding: Embedding) -> bool:
        return isinstance(embedding, LowRank) and embedding.matrices == 1 and len(embedding.shape) == 2

    def write(self, spaces: Mapping[str, Subspace], config: dict[str, Any]) -> dict[str, Tensor]:
        ranks: dict[str, int] = {}
        written: dict[str, Tensor] = {}
        for name, space in spaces.items():
            U = cast(LowRank, space.embedding)
            R = space.theta.detach().cpu().reshape(U.rows_of_theta, U.columns_of_theta)
            L, M = (None if frame is None else frame.cpu().to(R) for frame in (U.L, U.M))
            if M is not None:
                A, B = M.T, R if L is None else L @ R
            else:
                A, B = (R, L) if L is not None else (torch.eye(len(R.T)).to(R), R)
            written |= {f"{name}.lora_A.weight": A.contiguous(), f"{name}.lora_B.weight": B.contiguous()}
            ranks[name] = len(A)
        common = max(ranks.values())
        pattern = {name: rank for name, rank in ranks.items() if rank != common}
        config.update(r=common, lora_alpha=common, rank_pattern=pattern, alpha_pattern=pattern)
        return written


def _by_pattern(pattern: Mapping[str, Any] | None, name: str, otherwise: Any) -> Any:
    """As peft looks up what differs between layers."""
    found = (value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", name))
    return next(found, otherwise)
