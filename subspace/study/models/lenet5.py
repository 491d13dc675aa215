"""LeNet-5 (LeCun et al., "Gradient-based learning applied to document recognition", 1998) with ReLU and no biases."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

from subspace import Key
from subspace.offsets import Gaussian


class LeNet5(nn.Module):
    """Images (n, 1, 28, 28) -> logits (n, 10); 61,210 weights in five tensors.

    | layer   | weight          | numbers | output        |
    |---------|-----------------|---------|---------------|
    | conv1   | (6, 1, 5, 5)    |     150 | (6, 28, 28)   | padded by 2, as if the image were 32 x 32
    | pool    |                 |         | (6, 14, 14)   |
    | conv2   | (16, 6, 5, 5)   |   2,400 | (16, 10, 10)  |
    | pool    |                 |         | (16, 5, 5)    |
    | conv3   | (120, 16, 5, 5) |  48,000 | (120, 1, 1)   |
    | fc1     | (82, 120)       |   9,840 | (82,)         |
    | fc2     | (10, 82)        |     820 | (10,)         |

    Pools average 2 x 2; a ReLU follows every weight but the last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2, bias=False)
        self.conv2 = nn.Conv2d(6, 16, 5, bias=False)
        self.conv3 = nn.Conv2d(16, 120, 5, bias=False)
        self.fc1 = nn.Linear(120, 82, bias=False)
        self.fc2 = nn.Linear(82, 10, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = avg_pool2d(relu(self.conv1(images)), 2)
        x = avg_pool2d(relu(self.conv2(x)), 2)
        x = relu(self.conv3(x)).flatten(1)
        logits: Tensor = self.fc2(relu(self.fc1(x)))
        return logits


def lenet5(key: Key) -> LeNet5:
    """A LeNet-5 with Kaiming-normal weights drawn from the key, each under its name."""
    with torch.device("meta"):  # torch's own initialisation would move the global generator
        model = LeNet5()
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(Gaussian(weight, key=key.fold(name))())
    return model
