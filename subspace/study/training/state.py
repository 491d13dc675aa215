"""What a run goes on from after a crash, as bytes. Generators are not in it, as every epoch seeds them anew.

A model is kept as `subspace.save` has it, so what is kept of d and U is a key or an index.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn

import subspace

State = dict[str, Any]


def pack(state: State) -> bytes:
    """A state of tensors, numbers, text and containers of them, as bytes."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def unpack(content: bytes) -> State:
    """The state that `pack` was given, on the CPU; no code in it is run."""
    state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def model_bytes(model: nn.Module) -> Tensor:
    """A model with subspaces as the bytes of its checkpoint, (n,) uint8."""
    subspace.save(model, file := io.BytesIO())
    return torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)


def restore_model(model: nn.Module, content: Tensor) -> nn.Module:
    """The plain model, built as it was, with the subspaces and all that was trained of a `model_bytes`."""
    return subspace.load(model, io.BytesIO(content.numpy().tobytes()))
