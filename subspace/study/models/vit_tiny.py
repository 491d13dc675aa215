"""A vision transformer for small images, of DeiT-Tiny's width, depth and heads, on patches of 4 x 4.

Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021; Touvron et al., "Training data-efficient image
transformers", ICML 2021. The queries, keys and values are one linear layer, so that a recipe finds every weight in a
linear layer or a convolution. Weights are Kaiming-normal like those of all networks here; class token and positions
are normal with standard deviation 0.02, as theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from subspace import Key
from subspace.study.models.initialisation import initialise


class Tokens(nn.Module):
    """Patches (n, t, width) -> (n, 1 + t, width): the class token before them, and to each what says its position."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + count, width))

    def draw(self, key: Key) -> None:
        """Set both from the key."""
        for name, parameter in self.named_parameters():
            numbers = key.fold(name).normal(parameter.numel(), dtype="float32")
            parameter.copy_(0.02 * torch.from_numpy(numbers).reshape(parameter.shape))

    def forward(self, patches: Tensor) -> Tensor:
        return torch.cat([self.start.expand(len(patches), -1, -1), patches], dim=1) + self.positions


class Block(nn.Module):
    """Attention, then an MLP, each after a layer-norm and added to its input: (n, t, width) -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y: Tensor = x + self.fc2(gelu(self.fc1(self.norm2(x))))
        return y


class ViT(nn.Module):
    """Images (n, in_channels, size, size) -> logits (n, num_classes), read off the class token."""

    def __init__(
        self, num_classes: int, in_channels: int, size: int, patch: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.tokens = Tokens((size // patch) ** 2, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(self.patches(images).flatten(2).transpose(1, 2))
        logits: Tensor = self.fc(self.norm(self.blocks(x))[:, 0])
        return logits


def vit_tiny(
    key: Key,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    patch: int = 4,
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
) -> ViT:
    """A ViT drawn from the key; ValueError for images that patches do not fill, or a width that heads do not divide."""
    for name, value in {"patch": patch, "width": width, "depth": depth, "heads": heads}.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1 for vit_tiny, got {value!r}")
    if not isinstance(image_size, int) or image_size < 1 or image_size % patch:
        raise ValueError(f"image_size must be a multiple of patch, {patch}, for vit_tiny, got {image_size}")
    if width % heads:
        raise ValueError(f"width must be a multiple of heads, {heads}, got {width}")
    return initialise(lambda: ViT(num_classes, in_channels, image_size, patch, width, depth, heads), key)
