"""Models changed for a while, and then as they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Undo, at the end of the block, all that was done to a model.

    That is: any change of data, gradients, requires_grad, buffers, modes and torch's random state. A compiled model
    runs eagerly inside: it would be compiled again for gradients that it never needs otherwise.

    Args:
        model: Any module.
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(p, p.data, p.grad, p.requires_grad) for p in model.parameters()]
    buffers = [(m._buffers, n, b, b.clone()) for m in model.modules() for n, b in m._buffers.items() if b is not None]
    devices = {p.device for p, *_ in parameters if p.device.type not in ("cpu", "meta")}
    kind = next((device.type for device in devices), "cuda")
    eager = torch.compiler.set_stance("force_eager")
    with torch.random.fork_rng([device.index for device in devices], device_type=kind), eager:
        for p, *_ in parameters:
            p.grad = None
        try:
            yield
        finally:
            for p, data, grad, requires_grad in parameters:
                p.data, p.grad = data, grad
                p.requires_grad_(requires_grad)
            for owner, name, buffer, content in buffers:
                with torch.no_grad():
                    owner[name] = buffer.copy_(content)
            for module, training in modes:
                module.training = training


@contextmanager
def replaced(weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the weights named in `values` have these values inside the block."""
    before = {name: weights[name].data for name in values}
    try:
        for name, value in values.items():
            weights[name].data = value.detach()
        yield
    finally:
        for name, data in before.items():
            weights[name].data = data
