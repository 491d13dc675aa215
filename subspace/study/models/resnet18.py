"""ResNet18 for small images (He et al., CVPR 2016): 11.2 million weights in 21 tensors."""

from __future__ import annotations

from subspace import Key
from subspace.study.models.initialisation import initialise
from subspace.study.models.residual import Basic, ResNet


def resnet18(key: Key, num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """A ResNet18 with 1 x 1 convolutions as shortcuts, Kaiming-normal weights drawn from the key."""
    return initialise(lambda: ResNet(Basic, (64, 128, 256, 512), (2, 2, 2, 2), num_classes, in_channels), key)
