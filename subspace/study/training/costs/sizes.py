"""How many numbers a network has and trains, and the bytes it takes in a checkpoint and on disk."""

from __future__ import annotations

import io
from typing import Any

from safetensors.torch import save
from torch import Size, nn

import subspace
from subspace import is_default_target, subspaces


def stored(model: nn.Module) -> int:
    """The bytes a checkpoint holds of the re-parametrized tensors, theta and what no key rebuilds of U, and of the
    trained ones among those that recipes take and that are not re-parametrized, or not yet.
    """
    trained = (weight for weight in _plain(model) if weight.requires_grad)
    return subspace.summary(model).stored_bytes + sum(weight.nbytes for weight in trained)


def tensors(model: nn.Module) -> list[dict[str, Any]]:
    """Every re-parametrized tensor as a record has it.

    "name", "shape", "offset", "embedding", "numel", "dim" (the numbers that move it, alpha apart; a theta that several
    tensors share is in each one's) and "density", dim / numel.
    """
    rows = []
    for row, (_, space) in zip(subspace.summary(model).rows, subspaces(model), strict=True):
        numel, dim = space.shape.numel(), row.dim - space.embedding.alphas()
        named = {"name": row.name, "shape": [*row.shape], "offset": row.offset, "embedding": row.embedding}
        rows.append({**named, "numel": numel, "dim": dim, "density": dim / numel})
    return rows


def file_bytes(model: nn.Module, bits: int = 0) -> int:
    """The size of the file that `subspace.save` writes, or of a dense one for a model without a subspace.

    bits: of a number of theta; 0 for exact ones.
    """
    if next(subspaces(model), None) is None:
        return file_bytes_dense(model)
    subspace.save(model, file := io.BytesIO(), bits=bits or None)
    return file.tell()


def file_bytes_dense(model: nn.Module) -> int:
    """The size of the same network's file with plain tensors: its whole state_dict as safetensors' save_model has it.

    Of tensors that share memory the first by name is in the file, and the names of the other ones in its metadata.
    """
    kept: dict[tuple[int, Size], str] = {}
    tensors, tied = {}, {}
    for name, tensor in sorted(subspace.materialize(model).state_dict().items()):
        first = kept.setdefault((tensor.data_ptr(), tensor.shape), name) if tensor.numel() else name
        if first == name:
            tensors[name] = tensor.contiguous()
        else:
            tied[name] = first
    return len(save(tensors, tied or None))


def _plain(model: nn.Module) -> set[nn.Parameter]:
    """The tensors that recipes take and that are not re-parametrized."""
    named = ((module, *each) for module in model.modules() for each in module.named_parameters(recurse=False))
    return {parameter for module, name, parameter in named if is_default_target(module, name)}
