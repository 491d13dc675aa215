"""What the tensors of a model held when it was registered: its base, which a checkpoint need not hold again.

A checksum of each tensor is remembered by its module, so that copies of the model and wrapped ones know it, too.
"""

from __future__ import annotations

from hashlib import blake2b
from itertools import chain

import torch
from torch import Tensor, nn

COLUMNS = 4096
ROWS = 64
FACTOR = 1_000_003
REMEMBERED = "_subspace_first_values"  # of a module's own tensors, by name


def remember_values(module: nn.Module) -> None:
    """Remember what a module's own tensors hold, but for those that are remembered already."""
    known = vars(module).setdefault(REMEMBERED, {})
    for name, tensor in chain(module._parameters.items(), module._buffers.items()):
        if tensor is not None and name not in known:
            known[name] = checksum(tensor)


def forget_values(model: nn.Module) -> None:
    """Forget all that the modules of a model remember."""
    for module in model.modules():
        vars(module).pop(REMEMBERED, None)


def has_first_value(module: nn.Module, name: str, tensor: Tensor) -> bool:
    """Whether a module's tensor of this name certainly holds what was remembered of it."""
    known = vars(module).get(REMEMBERED, {}).get(name)
    return known is not None and known == checksum(tensor)


def has_changed(module: nn.Module, name: str, tensor: Tensor) -> bool:
    """Whether a module's tensor of this name certainly does not hold what was remembered of it."""
    known = vars(module).get(REMEMBERED, {}).get(name)
    return known is not None and known != checksum(tensor)


def checksum(tensor: Tensor) -> str | None:
    """Of the shape, the dtype and every bit; None for one without plain values. Takes one pass, where it lies."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    if not plain or tensor.is_meta or tensor.is_quantized or tensor.untyped_storage().nbytes() < tensor.nbytes:
        return None  # the last are expanded: a stand-in for a tensor
    numbers = tensor.detach().resolve_conj().resolve_neg().contiguous()
    numbers = torch.view_as_real(numbers) if numbers.is_complex() else numbers
    numbers = numbers.as_strided((numbers.numel(),), (1,)).view(torch.uint8)  # of one number or none strides may be 0
    whole = numbers[: len(numbers) // (8 * COLUMNS) * (8 * COLUMNS)]
    words = (whole.clone() if whole.storage_offset() % 8 else whole).view(torch.int64)
    sums = torch.zeros(COLUMNS, dtype=torch.int64, device=words.device)
    factors = torch.full((ROWS, 1), FACTOR, device=words.device).cumprod(0)  # modulo 2^64, as all that follows
    for block in words.split(ROWS * COLUMNS):  # type: ignore[no-untyped-call]  # for all at once takes twice the memory
        rows = block.view(-1, COLUMNS)
        sums = sums * factors[-1] + (rows * factors[: len(rows)]).sum(0)  # each row by a power: rows that swap differ
    digest = blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
    for part in (sums, numbers[len(whole) :]):
        digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()
