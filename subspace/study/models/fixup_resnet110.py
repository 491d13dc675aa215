"""FixupResNet110 for CIFAR-10: residual branches without normalisation (Zhang et al., "Fixup", ICLR 2019).

3 x 18 basic blocks of widths 16, 32 and 64, with a scalar bias before and after every convolution and a scalar factor
at the end of every branch; shortcuts have no Parameters. Fixup's rule, for L = 54 branches of two layers: the last
convolution of a branch and the classifier start at 0, the first has variance 2 / (fan-out L), biases are 0 and factors
1. The stem has no rule: Fixup's code leaves it at torch's default, uniform with variance 1 / (3 fan-in), and it is
Kaiming-normal here, as all convolutions of the other networks, unless `stem` says otherwise.

Under DCTpS a weight starts at alpha DCT; `methods.alphas` gives alpha what that rule asks for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from subspace import Key
from subspace.study.models.initialisation import initialise, uniform
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
    """Two 3 x 3 convolutions and a shortcut: (n, channels, h, w) -> (n, width, h / stride, w / stride)."""

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
        return relu(y + (x if self.shortcut is None else self.shortcut(shifted)))  # as in Fixup's code


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


def fixup_resnet110(key: Key, num_classes: int = 10, in_channels: int = 3, stem: str = "kaiming") -> FixupResNet:
    """A FixupResNet110 by Fixup's rule, drawn from the key; stem: "kaiming", or "torch" for torch's default.

    ValueError for another.
    """
    if stem not in ("kaiming", "torch"):
        raise ValueError(f"stem must be kaiming or torch, got {stem!r}")
    model = initialise(lambda: FixupResNet(num_classes, in_channels), key, gain)
    if stem == "torch" and not model.conv1.weight.is_meta:
        with torch.no_grad():
            model.conv1.weight.copy_(uniform(model.conv1.weight, model.conv1.weight, key.fold("conv1.weight")))
    return model


def gain(layer: str, weight: Tensor) -> float:
    """Fixup's rule as a gain: the variance of an entry is gain^2 / fan-in."""
    if layer == "fc" or layer.endswith("conv2"):
        return 0.0
    if layer == "conv1":
        return math.sqrt(2)
    return math.sqrt(2 * weight.shape[1] / (weight.shape[0] * BRANCHES))
