"""LeNet-5 (LeCun et al., "Gradient-based learning applied to document recognition", 1998) with ReLU and no biases.

With `norm` there is a batch-norm after every weight but the last; `width` times as many channels make it larger.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

from subspace import Key
from subspace.study.models.initialisation import initialise


class LeNet5(nn.Module):
    """Images (n, c, 28, 28) or (n, c, 32, 32) -> logits (n, classes); 61,210 weights for MNIST, 61,510 for CIFAR-10.

    | layer   | weight          | numbers | output        |
    |---------|-----------------|---------|---------------|
    | conv1   | (6, c, 5, 5)    |   150 c | (6, 28, 28)   | 28 x 28 images are padded by 2, as if they were 32 x 32
    | pool    |                 |         | (6, 14, 14)   |
    | conv2   | (16, 6, 5, 5)   |   2,400 | (16, 10, 10)  |
    | pool    |                 |         | (16, 5, 5)    |
    | conv3   | (120, 16, 5, 5) |  48,000 | (120, 1, 1)   |
    | fc1     | (82, 120)       |   9,840 | (82,)         |
    | fc2     | (classes, 82)   |   820 * | (classes,)    | * for ten classes

    Pools average 2 x 2; a ReLU follows every weight but the last.
    """

    def __init__(self, num_classes: int, in_channels: int, image_size: int, norm: bool, width: float) -> None:
        super().__init__()
        sizes = [max(1, round(width * size)) for size in (6, 16, 120, 82)]
        self.conv1 = nn.Conv2d(in_channels, sizes[0], 5, padding=(32 - image_size) // 2, bias=False)
        self.conv2 = nn.Conv2d(sizes[0], sizes[1], 5, bias=False)
        self.conv3 = nn.Conv2d(sizes[1], sizes[2], 5, bias=False)
        self.fc1 = nn.Linear(sizes[2], sizes[3], bias=False)
        self.fc2 = nn.Linear(sizes[3], num_classes, bias=False)
        kinds = (nn.BatchNorm2d, nn.BatchNorm2d, nn.BatchNorm2d, nn.BatchNorm1d)
        self.norms = nn.ModuleList(kind(n) if norm else nn.Identity() for kind, n in zip(kinds, sizes, strict=True))

    def forward(self, images: Tensor) -> Tensor:
        norm1, norm2, norm3, norm4 = self.norms
        x = avg_pool2d(relu(norm1(self.conv1(images))), 2)
        x = avg_pool2d(relu(norm2(self.conv2(x))), 2)
        x = relu(norm3(self.conv3(x))).flatten(1)
        logits: Tensor = self.fc2(relu(norm4(self.fc1(x))))
        return logits


def lenet5(
    key: Key, num_classes: int = 10, in_channels: int = 1, image_size: int = 28, norm: bool = False, width: float = 1
) -> LeNet5:
    """A LeNet-5 with Kaiming-normal weights drawn from the key.

    norm: with batch-norms. width: of all layers, against LeNet-5's. ValueError for images of another size, or a width
    that is not positive.
    """
    if image_size not in (28, 32):
        raise ValueError(f"image_size must be 28 or 32 for lenet5, got {image_size}")
    if not 0 < width < math.inf:
        raise ValueError(f"width must be positive for lenet5, got {width}")
    return initialise(lambda: LeNet5(num_classes, in_channels, image_size, norm, width), key)
