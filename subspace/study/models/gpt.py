"""A small GPT: a causal transformer of characters, all of whose weights are in matrices that recipes take.

Radford et al., "Language models are unsupervised multitask learners", 2019, with what makes nothing but matrices train:
no biases, layer norms without a gain, rotary positions (Su et al., "RoFormer", 2021), characters as one-hot vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, one_hot, scaled_dot_product_attention

from subspace import Key
from subspace.study.models.initialisation import initialise


class Block(nn.Module):
    """Causal attention, then an MLP, each after a layer norm and added to its input: (n, t, width) -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(normed(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y: Tensor = x + self.fc2(gelu(self.fc1(normed(x))))
        return y


class GPT(nn.Module):
    """Characters (n, t) in int64 -> the logits of the next ones, (n, num_classes, t)."""

    def __init__(self, num_classes: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.table = nn.Linear(num_classes, width, bias=False)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.fc = nn.Linear(width, num_classes, bias=False)

    def forward(self, characters: Tensor) -> Tensor:
        x = self.table(one_hot(characters, self.num_classes).to(torch.get_default_dtype()))
        logits: Tensor = self.fc(normed(self.blocks(x))).transpose(1, 2)
        return logits


def normed(x: Tensor) -> Tensor:
    """Each vector (..., width) with mean 0 and variance 1."""
    return layer_norm(x, x.shape[-1:])


def rotated(x: Tensor) -> Tensor:
    """Queries or keys (..., t, 2 m) with every pair of numbers turned by the place times a frequency of its own."""
    t, m = x.shape[-2], x.shape[-1] // 2
    frequencies = 10_000.0 ** (-torch.arange(m, device=x.device) / m)
    angles = torch.arange(t, device=x.device)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :m], x[..., m:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def gpt(key: Key, num_classes: int = 128, width: int = 96, depth: int = 3, heads: int = 3) -> GPT:
    """The model drawn from the key; ValueError for a number below 1, or a width that heads do not divide in pairs."""
    for name, value in {"width": width, "depth": depth, "heads": heads}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1 for gpt, got {value!r}")
    if width % (2 * heads):
        raise ValueError(f"width must be a multiple of twice the heads, {2 * heads}, for gpt, got {width}")
    return initialise(lambda: GPT(num_classes, width, depth, heads), key)
