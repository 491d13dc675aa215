"""Processes that train one model together: what each finds in its own batch is averaged, so that all decide alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Group: TypeAlias = "ProcessGroup | Literal['auto'] | None"


def together(model: nn.Module, group: Group = "auto") -> ProcessGroup | None:
    """The processes that decide as one: None for one by itself.

    "auto" stands for those of DistributedDataParallel, if the model is in it, and else for all that there are.
    """
    if group is None or not dist.is_available() or not dist.is_initialized():
        return None
    if isinstance(group, str):
        if group != "auto":
            raise ValueError(f"group must be a process group, None or 'auto', got {group!r}")
        wrapper = _wrapper(model)
        group = dist.group.WORLD if wrapper is None else wrapper.process_group
    return group if dist.get_world_size(group) > 1 else None


def average(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """Make it its mean over the processes, in place; return it."""
    if group is not None:
        dist.all_reduce(tensor, group=group)
        tensor.div_(dist.get_world_size(group))
    return tensor


def require_same(tensors: Mapping[str, Tensor], what: str, group: ProcessGroup | None, device: torch.device) -> None:
    """Raise RuntimeError, in all processes, unless they have the same tensors to the bit; 16 bytes travel."""
    if group is None:
        return
    digest = hashlib.blake2b(digest_size=7)
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    number = int.from_bytes(digest.digest(), "big")
    ends = torch.tensor([number, -number], device=device)
    dist.all_reduce(ends, dist.ReduceOp.MAX, group=group)
    if int(ends[0]) != -int(ends[1]):
        raise RuntimeError(
            f"{what} must be the same in all processes, got others: "
            "give them the same model, or group=None where each has one of its own"
        )


@contextmanager
def unsynced(model: nn.Module) -> Iterator[None]:
    """Let a model in DistributedDataParallel run without a thought of the gradients that it would reduce."""
    wrapper: Any = _wrapper(model)
    if wrapper is None:
        yield
        return
    before = wrapper.require_forward_param_sync
    try:
        with wrapper.no_sync():
            yield
    finally:
        wrapper.require_forward_param_sync = before


def _wrapper(model: nn.Module) -> DistributedDataParallel | None:
    return next((module for module in model.modules() if isinstance(module, DistributedDataParallel)), None)
