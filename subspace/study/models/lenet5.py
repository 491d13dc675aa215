"""LeNet-5 (LeCun et al., "Gradient-based learning applied to document recognition", 1998) with ReLU and no biases."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

from subspace import Key
from subspace.study.models.initial import drawn


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

    def __init__(self, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5, padding=(32 - image_size) // 2, bias=False)
        self.conv2 = nn.Conv2d(6, 16, 5, bias=False)
        self.conv3 = nn.Conv2d(16, 120, 5, bias=False)
        self.fc1 = nn.Linear(120, 82, bias=False)
        self.fc2 = nn.Linear(82, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = avg_pool2d(relu(self.conv1(images)), 2)
        x = avg_pool2d(relu(self.conv2(x)), 2)
        x = relu(self.conv3(x)).flatten(1)
        logits: Tensor = self.fc2(relu(self.fc1(x)))
        return logits


def lenet5(key: Key, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> LeNet5:
    """A LeNet-5 with Kaiming-normal weights drawn from the key; ValueError for images of another size."""
    if image_size not in (28, 32):
        raise ValueError(f"image_size must be 28 or 32 for lenet5, got {image_size}")
    return drawn(lambda: LeNet5(num_classes, in_channels, image_size), key)
