"""VGG19 with batch-norm and one linear layer, for small images: 20 million weights in 17 tensors.

Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015; batch-norm and
the single linear layer as usual in the pruning literature.
"""

from __future__ import annotations

from torch import Tensor, nn

from subspace import Key
from subspace.study.models.initialisation import initialise

STAGES = ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4))  # width, in those of the first stage, and convolutions


class VGG(nn.Module):
    """Images (n, in_channels, h, w) of at least 16 x 16 -> logits (n, num_classes); the last maps are averaged."""

    def __init__(self, num_classes: int, in_channels: int, narrowest: int) -> None:
        super().__init__()
        self.features, channels = nn.Sequential(), in_channels
        for number, (times, count) in enumerate(STAGES):
            width = times * narrowest
            if number:
                self.features.append(nn.MaxPool2d(2))
            for _ in range(count):
                self.features.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
                self.features.append(nn.BatchNorm2d(width))
                self.features.append(nn.ReLU())
                channels = width
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(images).mean((2, 3)))
        return logits


def vgg19(key: Key, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> VGG:
    """A VGG19 with Kaiming-normal weights drawn from the key; width: of the first stage, the last ones have 8 times it.

    ValueError for a width below 1.
    """
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"width must be an integer of at least 1 for vgg19, got {width!r}")
    return initialise(lambda: VGG(num_classes, in_channels, width), key)
