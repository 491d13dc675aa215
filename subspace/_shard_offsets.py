"""A dense d in parts: what `fully_shard` leaves whole in every process, as it is no Parameter."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from subspace._base.sharded import is_sharded, reshard
from subspace._structured.forward import Products
from subspace.offsets import Offset
from subspace.parametrization import require_thetas, subspaces


def shard_offsets(model: nn.Module) -> nn.Module:
    """Let each process hold its rows alone of every dense d of a model that `fully_shard` has sharded.

    Those are the pretrained weights and a `Gaussian` that is kept; any other d is rebuilt, from nothing, by each
    process. d is split as theta is, and gathered when it is needed: by layers that are `structured` for
    the forward and again for the backward pass, so that none holds it in between, as `fully_shard` itself does with
    Parameters; by others where w is built. Outputs, gradients, files and state_dicts stay the same; whatever reads d
    is called by all processes.

    Args:
        model: After `fully_shard`; called by all processes.

    Returns:
        The model.

    Raises:
        ValueError: If no Parameter of the model is sharded.
    """
    reshard(model)
    require_thetas(model)
    like: Any = next(filter(is_sharded, model.parameters()), None)
    if like is None:
        raise ValueError("model must have a Parameter that fully_shard has sharded, got none")
    for _, space in subspaces(model):
        with space.parametrization.same_identity():
            for part in space.parametrization.modules():
                if isinstance(part, Offset) and part.dense:
                    _shard(part, part.dense, space.theta if is_sharded(space.theta) else like)
        if (products := space.parametrization.products) is not None:
            space.parametrization.products = Products(space.parametrization, products.route)
    return model


def _shard(offset: Offset, name: str, like: Any) -> None:
    """Split what an offset holds as `like` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    d = getattr(offset, name)
    if type(d) is Tensor:  # neither None nor quantised, nor in parts already
        parts = distribute_tensor(d, like.device_mesh, like.placements, src_data_rank=None)
        mine = parts.to_local().clone()  # or it would be a view of all
        held = DTensor.from_local(
            mine, like.device_mesh, like.placements, run_check=False, shape=d.shape, stride=d.stride()
        )
        setattr(offset, name, held)
