"""ResNet20 for CIFAR-10 (He et al., CVPR 2016, section 4.2): 6 n + 2 layers, n = 3; 268,336 weights in 20 tensors."""

from __future__ import annotations

from subspace import Key
from subspace.study.models.initialisation import initialise
from subspace.study.models.residual import Basic, Padded, ResNet


def resnet20(key: Key, num_classes: int = 10, in_channels: int = 3, blocks: int = 3, width: int = 16) -> ResNet:
    """A ResNet20 with shortcuts that have no Parameters (option A), Kaiming-normal weights drawn from the key.

    blocks: of every stage, n, for other depths: 6 n + 2. width: of the first stage; the others have twice and four
    times as many channels. ValueError for either below 1.
    """
    if min(blocks, width) < 1:
        raise ValueError(f"blocks and width must be at least 1 for resnet20, got {blocks} and {width}")
    widths = (width, 2 * width, 4 * width)
    return initialise(lambda: ResNet(Basic, widths, (blocks,) * 3, num_classes, in_channels, Padded), key)
