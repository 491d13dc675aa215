"""ResNet50 for small images (He et al., CVPR 2016): 23.7 million weights in 54 tensors, for 100 classes."""

from __future__ import annotations

from subspace import Key
from subspace.study.models.initialisation import initialise
from subspace.study.models.residual import Bottleneck, ResNet


def resnet50(key: Key, num_classes: int = 100, in_channels: int = 3) -> ResNet:
    """A ResNet50 with 1 x 1 convolutions as shortcuts, Kaiming-normal weights drawn from the key."""
    return initialise(lambda: ResNet(Bottleneck, (64, 128, 256, 512), (3, 4, 6, 3), num_classes, in_channels), key)
