"""The convolutional network of MNIST-1D (Greydanus, "Scaling down deep learning", 2020): 5,210 numbers with biases."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from subspace import Key
from subspace.study.models.initialisation import initialise


class Conv1dNet(nn.Module):
    """Signals (n, in_channels, length) -> logits (n, num_classes): three convolutions of stride 2, one linear layer."""

    def __init__(self, num_classes: int, in_channels: int, length: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(in_channels, channels, 5, stride=2, padding=1)
        self.conv2 = nn.Conv1d(channels, channels, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(channels, channels, 3, stride=2, padding=1)
        last = (length - 1) // 2  # of conv1; the others halve, rounding up
        self.fc = nn.Linear(channels * -(-last // 4), num_classes)

    def forward(self, signals: Tensor) -> Tensor:
        x = relu(self.conv1(signals))
        x = relu(self.conv2(x))
        logits: Tensor = self.fc(relu(self.conv3(x)).flatten(1))
        return logits


def conv1d(key: Key, num_classes: int = 10, input_shape: Sequence[int] = (1, 40), channels: int = 25) -> Conv1dNet:
    """The network with Kaiming-normal weights drawn from the key; ValueError for what is no signal of 3 or more."""
    if len(input_shape) != 2 or input_shape[1] < 3:
        raise ValueError(f"input_shape must be (channels, length of at least 3) for conv1d, got {tuple(input_shape)}")
    return initialise(lambda: Conv1dNet(num_classes, input_shape[0], input_shape[1], channels), key)
