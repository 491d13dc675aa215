"""FixupResNet110 for CIFAR-10: residual branches without normalisation (Zhang et al., "Fixup", ICLR 2019).

3 x 18 basic blocks of widths 16, 32 and 64, with a scalar bias before and after every convolution and a scalar factor
at the end of every branch; shortcuts have no Parameters. Fixup's rule, for L = 54 branches of two layers: the last
convolution of a branch and the classifier start at 0, the first has variance 2 / (fan-out L), biases are 0 and factors
1. The stem is Kaiming-normal.

Under DCTpS a weight starts at alpha DCT, so `set_alphas` gives alpha what that rule asks for.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from subspace import Key, Subspace, subspaces
from subspace.embeddings import Direction, DirectSum
from subspace.offsets import Zero
from subspace.study.models.initial import drawn
from subspace.study.models.residual import Padded

BRANCHES = 54


class Shift(nn.Module):
    """x + bias, one number, at first 0."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(1))

    def draw(self, key: Key) -> None:
        """Set it."""
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Factor(nn.Module):
    """x * scale, one number, at first 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(1))

    def draw(self, key: Key) -> None:
        """Set it."""
        self.scale.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class FixupBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: (n, channels, h, w) -> (n, width, h / stride, w / stride)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.shift1a, self.shift1b, self.shift2a, self.shift2b = Shift(), Shift(), Shift(), Shift()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.factor = Factor()
        self.shortcut = None if channels == width else Padded(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shifted = self.shift1a(x)
        y = relu(self.shift1b(self.conv1(shifted)))
        y = self.shift2b(self.factor(self.conv2(self.shift2a(y))))
        return relu(y + (x if self.shortcut is None else self.shortcut(shifted)))  # as in the authors' code


class FixupResNet(nn.Module):
    """Images (n, in_channels, h, w) -> logits (n, num_classes)."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.shift1, self.shift2 = Shift(), Shift()
        self.blocks, channels = nn.Sequential(), 16
        for width in (16, 32, 64):
            for _ in range(BRANCHES // 3):
                self.blocks.append(FixupBlock(channels, width, width // channels))
                channels = width
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(relu(self.shift1(self.conv1(images))))
        logits: Tensor = self.fc(self.shift2(x.mean((2, 3))))
        return logits


def fixup_resnet110(key: Key, num_classes: int = 10, in_channels: int = 3) -> FixupResNet:
    """A FixupResNet110 by Fixup's rule, drawn from the key."""
    return drawn(lambda: FixupResNet(num_classes, in_channels), key, gain)


def gain(layer: str, weight: Tensor) -> float:
    """Fixup's rule as a gain: the variance of an entry is gain^2 / fan-in."""
    if layer == "fc" or layer.endswith("conv2"):
        return 0.0
    if layer == "conv1":
        return math.sqrt(2)
    return math.sqrt(2 * weight.shape[1] / (weight.shape[0] * BRANCHES))


@torch.no_grad()
def set_alphas(model: nn.Module, rule: Literal["authors", "norms"] = "authors") -> nn.Module:
    """Start a FixupResNet110 whose weights are alpha D + S at S = 0 and Fixup's rule for alpha; return the model.

    Last convolutions and classifier: 0; stem: 1. First convolutions, with t the expected norm of a filter of Fixup's
    Gaussian and c the mean norm of one of D: (t / c)^(1/2), as the authors of DCTpS have it, or t / c, which matches
    the norms. A weight with a full S and so no alpha starts there too. ValueError for another rule, model or weight.
    """
    if rule not in ("authors", "norms"):
        raise ValueError(f"rule must be authors or norms, got {rule!r}")
    if not isinstance(model, FixupResNet):
        raise ValueError(f"model must be a FixupResNet, got {type(model).__name__}")
    starts = [(space.theta, _start(name, space, rule)) for name, space in subspaces(model)]
    for theta, start in starts:
        theta.copy_(start)
    return model


def _start(name: str, space: Subspace, rule: str) -> Tensor:
    """The theta at which the weight is alpha D: (dim,)."""
    layer, offset, U = name.removesuffix(".weight"), space.parametrization.offset, space.parametrization.embedding
    along = U.embeddings[0] if isinstance(U, DirectSum) else U
    if isinstance(along, Direction):
        theta = torch.zeros_like(space.theta)
        theta[0] = _alpha(layer, along.offset(), rule)
        return theta
    if isinstance(offset, Zero) or U.dim < offset.shape.numel():
        raise ValueError(f"{name} must be alpha D + S, got {offset.label()} + {U.label()}")
    return U.coordinates((_alpha(layer, offset(), rule) - 1) * offset())


def _alpha(layer: str, d: Tensor, rule: str) -> float:
    scale, n = gain(layer, d), d[0].numel()
    if layer == "conv1" or scale == 0:
        return 1.0 if scale else 0.0
    match = scale / math.sqrt(n) * chi_mean(n) / d.flatten(1).norm(dim=1).mean().item()
    return match if rule == "norms" else math.sqrt(match)


def chi_mean(n: int) -> float:
    """The expected Euclidean norm of n independent standard normal numbers.

    >>> round(chi_mean(1), 4), round(chi_mean(2), 4)  # (2 / pi)^(1/2), (pi / 2)^(1/2)
    (0.7979, 1.2533)
    """
    return math.sqrt(2) * math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2))
