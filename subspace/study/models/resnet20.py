"""ResNet20 for CIFAR-10 (He et al., CVPR 2016, section 4.2): 6 n + 2 layers, n = 3; 268,336 weights in 20 tensors."""

from __future__ import annotations

from subspace import Key
from subspace.study.models.initial import drawn
from subspace.study.models.residual import Basic, Padded, ResNet


def resnet20(key: Key, num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """A ResNet20 with shortcuts that have no Parameters (option A), Kaiming-normal weights drawn from the key."""
    return drawn(lambda: ResNet(Basic, (16, 32, 64), (3, 3, 3), num_classes, in_channels, Padded), key)
