"""torch's own count of the FLOPs of what is computed; what torch leaves out, as elementwise functions, is left out.

For a model that is not structured, that is every pass with every W built. Three things are counted that torch does not,
or not rightly: a matrix times a vector, attention and an LSTM on a CPU, and the gradients of a convolution with groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from subspace import preserved


class Meter(AbstractContextManager["Meter"]):
    """Counts while it is entered, any number of times; `flops`: the total so far."""

    def __init__(self) -> None:
        self.before = 0
        self.counter: FlopCounterMode | None = None

    def __enter__(self) -> Meter:
        self.counter = FlopCounterMode(display=False, custom_mapping=dict(CORRECTED))
        self.counter.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        self.before, counter, self.counter = self.flops, self.counter, None
        if counter is not None:
            counter.__exit__(*exception)  # type: ignore[no-untyped-call]

    @property
    def flops(self) -> int:
        """FLOPs counted so far."""
        return self.before + (self.counter.get_total_flops() if self.counter else 0)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Not to count for a while, nor to be slowed by it."""
        counts = self.counter is not None
        if counts:
            self.__exit__(None, None, None)
        try:
            yield
        finally:
            if counts:
                self.__enter__()


def computed(model: nn.Module, loss: Callable[[nn.Module], Tensor], samples: int) -> float:
    """FLOPs per sample of a forward and a backward pass by torch's own products, measured on a loss over `samples`.

    Leaves the model as it is.
    """
    with evaluating(model), Meter() as meter:
        loss(model).backward()  # type: ignore[no-untyped-call]
    return meter.flops / samples


def computed_forward(model: nn.Module, inputs: Tensor) -> float:
    """FLOPs per sample of a forward pass of the inputs by torch's own products; leaves the model as it is."""
    with evaluating(model), Meter() as meter:
        model(inputs)
    return meter.flops / len(inputs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Passes in evaluation mode that leave the model and torch's generators as they are."""
    rnn = torch.backends.cudnn.flags(enabled=False)  # cudnn has no backward pass of an RNN in evaluation mode
    with preserved(model), rnn:
        model.eval()
        yield


def _matrix_times_vector(matrix: Size, *_: Any, **__: Any) -> int:
    return 2 * matrix.numel()


def _attention(query: Size, key: Size, value: Size, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(gradient: Size, query: Size, key: Size, value: Size, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


def _convolution_backward(gradient: Size, x: Size, weight: Size, *rest: Any, **_: Any) -> int:
    """Either gradient costs what the forward pass does; torch counts the weight's too often, once for every group."""
    _, _, _, _, transposed, _, _, output_mask = rest  # after bias, stride, padding and dilation; then groups
    positions = (x if transposed else gradient)[2:]
    return int(2 * x[0] * positions.numel() * weight.numel() * sum(output_mask[:2]))


def _lstm_layer(x: Size, weight_ih: Size, weight_hh: Size, *_: Any, **__: Any) -> int:
    """Two products a step and sequence; x: (length, n, inputs) or (n, length, inputs)."""
    return 2 * x[0] * x[1] * (weight_ih.numel() + weight_hh.numel())


def _lstm_layer_backward(x: Size, weight_ih: Size, weight_hh: Size, *_: Any, **__: Any) -> int:
    return 2 * _lstm_layer(x, weight_ih, weight_hh)


# Where torch's table is wrong, and what it lacks though it has the same of other devices.
ATEN = torch.ops.aten
CORRECTED = {
    ATEN.convolution_backward: _convolution_backward,
    ATEN.mv: _matrix_times_vector,
    ATEN.mkldnn_rnn_layer: _lstm_layer,
    ATEN.mkldnn_rnn_layer_backward: _lstm_layer_backward,
    ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
