"""MobileNetV2 for CIFAR (Sandler et al., "Inverted residuals and linear bottlenecks", CVPR 2018).

As in the experiments of DCTpS: the strides of the stem and of the second stage are 1, activations are ReLU, and a block
of stride 1 that changes its channels has a 1 x 1 convolution as shortcut. The last maps, 4 x 4 for 32 x 32 images, are
averaged. 2,261,824 weights in 58 tensors, for ten classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from subspace import Key
from subspace.study.models.initialisation import initialise
from subspace.study.models.residual import projected

# expansion, channels, blocks, stride of the first
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class Inverted(nn.Module):
    """1 x 1 to more channels, 3 x 3 in each alone, 1 x 1 to few: (n, channels, h, w) -> (n, out, h / stride, ...)."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = expansion * channels
        self.conv1 = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.conv3 = nn.Conv2d(wide, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module | None = None
        if stride == 1:
            self.shortcut = nn.Identity() if channels == out else projected(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.bn1(self.conv1(x)))
        y = relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = y if self.shortcut is None else y + self.shortcut(x)
        return out


class MobileNetV2(nn.Module):
    """Images (n, in_channels, h, w) -> logits (n, num_classes)."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.blocks, channels = nn.Sequential(), 32
        for expansion, out, count, first in STAGES:
            for number in range(count):
                self.blocks.append(Inverted(channels, out, expansion, 1 if number else first))
                channels = out
        self.conv2 = nn.Conv2d(channels, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.fc = nn.Linear(1280, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(relu(self.bn1(self.conv1(images))))
        x = relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def mobilenet_v2(key: Key, num_classes: int = 10, in_channels: int = 3) -> MobileNetV2:
    """A MobileNetV2 with Kaiming-normal weights drawn from the key."""
    return initialise(lambda: MobileNetV2(num_classes, in_channels), key)
