"""Residual networks for small images (He et al., "Deep residual learning for image recognition", CVPR 2016).

The stem is a 3 x 3 convolution of stride 1 without pooling, as usual for 32 x 32, and the last maps are averaged, so
that images may be of any size. A batch-norm follows every convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


class Basic(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: (n, channels, h, w) -> (n, width, h / stride, w / stride)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.bn1(self.conv1(x)))
        return relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 and a shortcut: (n, channels, h, w) -> (n, 4 width, h / stride, w / stride)."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.bn1(self.conv1(x)))
        y = relu(self.bn2(self.conv2(y)))
        return relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class Padded(nn.Module):
    """The shortcut without Parameters (option A): every stride-th pixel, and zeros for the channels that are new."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.new, self.stride = width - channels, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return torch.cat([x, x.new_zeros(len(x), self.new, *x.shape[2:])], dim=1)


def projected(channels: int, width: int, stride: int) -> nn.Module:
    """The shortcut by a 1 x 1 convolution (option B)."""
    return nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))


class ResNet(nn.Module):
    """Images (n, in_channels, h, w) -> logits (n, num_classes).

    widths, blocks: of each stage; every stage but the first halves the image. shortcut(channels, width, stride): where
    the shape changes; elsewhere it is the identity.
    """

    def __init__(
        self,
        block: type[Basic] | type[Bottleneck],
        widths: Sequence[int],
        blocks: Sequence[int],
        num_classes: int,
        in_channels: int,
        shortcut: Callable[[int, int, int], nn.Module] = projected,
    ) -> None:
        super().__init__()
        channels = widths[0]
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.stages = nn.Sequential()
        for width, count in zip(widths, blocks, strict=True):
            stage = nn.Sequential()
            for number in range(count):
                stride = 2 if len(self.stages) and number == 0 else 1
                out = width * block.expansion
                same = stride == 1 and channels == out
                stage.append(block(channels, width, stride, nn.Identity() if same else shortcut(channels, out, stride)))
                channels = out
            self.stages.append(stage)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(relu(self.bn1(self.conv1(images))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits
