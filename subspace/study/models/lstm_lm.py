"""A language model of characters: layers of LSTM on one-hot characters, and a linear layer.

So every weight is in a matrix that recipes take, and none in a table of embeddings beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import one_hot

from subspace import Key
from subspace.study.models.initialisation import initialise, uniform


class LSTMLanguageModel(nn.Module):
    """Characters (n, t) in int64 -> the logits of the next ones, (n, num_classes, t); the state is 0 at the start."""

    def __init__(self, num_classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.recurrent = nn.LSTM(num_classes, width, depth, batch_first=True)
        self.fc = nn.Linear(width, num_classes)

    def draw(self, key: Key) -> None:
        """Set the LSTM's weights from the key, uniform within (fan-in)^-1/2, and its biases to 0."""
        for name, parameter in self.recurrent.named_parameters():
            if name.startswith("weight"):
                parameter.copy_(uniform(parameter, parameter, key.fold(name)))
            else:
                parameter.zero_()

    def forward(self, characters: Tensor) -> Tensor:
        x = one_hot(characters, self.num_classes).to(self.fc.bias.dtype)
        logits: Tensor = self.fc(self.recurrent(x)[0]).transpose(1, 2)
        return logits


def lstm_lm(
    key: Key, num_classes: int = 128, input_shape: Sequence[int] = (64,), width: int = 128, depth: int = 1
) -> LSTMLanguageModel:
    """The model drawn from the key; ValueError for what is no text, and for a width or depth below 1."""
    if len(input_shape) != 1:
        raise ValueError(f"data must be text for lstm_lm, such as stdlib, got inputs of shape {tuple(input_shape)}")
    for name, value in {"width": width, "depth": depth}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1 for lstm_lm, got {value!r}")
    return initialise(lambda: LSTMLanguageModel(num_classes, width, depth), key)
