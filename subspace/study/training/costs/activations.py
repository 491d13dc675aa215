"""The bytes of activations: what a forward pass leaves for the backward pass, measured on a real one.

In a network with few trained numbers this, and no longer the weights, is what a training step holds.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from subspace import preserved


def activation_bytes(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> int:
    """The bytes that autograd keeps of a forward pass in training mode; leaves the model as it is.

    Args:
        model: any network, structured or not.
        loss: of the model on a batch, whose samples count where a layer keeps them.

    Returns:
        The sum over storages, each once, of all tensors that are saved for the backward pass, a W that is built in the
        pass included. What two passes share is no activation: parameters, buffers and tables that are kept.
    """
    with preserved(model):
        model.train()
        first = _saved(model, loss)  # held while the second runs, so that no address is used again
        second = _saved(model, loss)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in second.items() if address not in first)


def _saved(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> dict[int, Tensor]:
    """The tensors that a pass saves, one for each storage, by its address."""
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        parts = (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,)
        for part in parts:
            found.setdefault(part.untyped_storage().data_ptr(), part.detach())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(model)
    return found
