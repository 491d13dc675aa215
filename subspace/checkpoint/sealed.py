"""One file of tensors and of a description in JSON, sealed by a digest of both, and whole or not there at all.

A safetensors file, whose metadata holds the JSON text and the digest; where thetas are quantised, that file `packed`.
It is read once, into private memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from subspace._base.files import write_atomically
from subspace._base.version import VERSION
from subspace.checkpoint import packed

FORMAT = 4
SAVED = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


Place = str | os.PathLike[str] | BinaryIO  # a path, or an open file


def put(path: Place, content: bytes) -> None:
    """Write the content of a file, whole or not at all; raises OSError if it cannot be written."""
    if isinstance(path, str | os.PathLike):
        write_atomically(Path(path), content)
    else:
        path.write(content)


def to_bytes(about: Mapping[str, Any], tensors: Mapping[str, Tensor], bits: int | None = None) -> bytes:
    """The content of a file of plain tensors and what is said about them; bits: of a number of its thetas, quantised.

    Raises ValueError if a tensor is not one that `read` gives back equal, or quantised.
    """
    if bits is not None:
        parts = packed.take_apart(about, tensors, bits)
        return packed.to_bytes(to_bytes(parts.about, parts.tensors), parts)
    text = json.dumps({"format": FORMAT, "version": VERSION, **about})
    held = _apart({name: _plain(name, tensor) for name, tensor in tensors.items()})
    return to_safetensors(held, {"subspace": text, "digest": digest(text, held)})


def read(path: Place) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `to_bytes` was given, on the CPU; raises OSError where there is no file, ValueError where it is not that."""
    named = os.fspath(path) if isinstance(path, str | os.PathLike) else "the file"
    expected = f"{named} must be a checkpoint written by subspace.save, got"
    if not isinstance(path, str | os.PathLike):
        content = path.read()
    elif os.path.isfile(path):
        content = Path(path).read_bytes()  # once, into memory of our own: the file may change at any moment
    else:
        raise FileNotFoundError(f"{expected} no such file")
    try:
        is_packed = content.startswith(packed.MAGIC)
        content, *numbers = packed.from_bytes(content) if is_packed else (content,)
        tensors = from_safetensors(content)
        metadata = _metadata(content)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{expected} a damaged or foreign file ({error})") from error
    if "subspace" not in metadata:
        raise ValueError(f"{expected} another safetensors file")
    try:
        about = json.loads(metadata["subspace"])
        form, maker = about["format"], about["version"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(f"{expected} damaged metadata") from None
    if form != FORMAT:
        raise ValueError(f"{expected} format {form}, of version {maker}; this one reads {FORMAT}")
    if metadata.get("digest") != digest(metadata["subspace"], tensors):
        raise ValueError(f"{expected} content that differs from its digest")
    try:
        return about, packed.put_together(packed.Parts(about, tensors, *numbers)) if is_packed else tensors
    except ValueError as error:
        raise ValueError(f"{expected} a damaged one: {error}") from error


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Of the metadata's text and of every tensor's name, dtype, shape and content."""
    digest = blake2b(json.dumps(text).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), tensor.shape]).encode())
        numbers = torch.cat([tensor.flatten()])  # a copy: the stride of a single one may be 0
        digest.update(numbers.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, which its `load` leaves out."""
    size = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + size]).get("__metadata__") or {}
    return metadata


def check_readable(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless the values of the tensor can be read one by one."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        got = "on the meta device" if tensor.is_meta else f"of {tensor.dtype}, {tensor.layout}"
        raise ValueError(f"{name} must be a plain tensor of numbers, got one {got}")


def check_writable(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless values can be written into the tensor one by one."""
    check_readable(name, tensor)
    if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        raise ValueError(f"{name} must be a tensor with memory for each entry, got one that is expanded")


def _plain(name: str, tensor: Tensor) -> Tensor:
    """The tensor as a file holds it: on the CPU, contiguous, and with its values written out."""
    check_readable(name, tensor)
    if tensor.dtype not in SAVED:
        raise ValueError(f"{name} must be of a dtype that a file can hold, got {tensor.dtype}")
    return tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of which no two share memory, as safetensors wants them."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return tensors
