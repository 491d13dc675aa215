"""A checkpoint's file with its thetas quantised, and all of it entropy coded.

After eight bytes that name it and a digest come three streams of zlib: the checkpoint without its thetas, as a plain
file has it, the steps, and the codes. Numbers go through Huffman's coder alone, which comes within 1 to 5 % of the
entropy of independent ones, and takes at most `bits` of each, its tables apart.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from hashlib import blake2b
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from subspace._base.index import pack, unpack
from subspace.checkpoint.quantised import Quantised, blocks, quantise

MAGIC, DIGEST = b"subspace", 16
LARGEST = 100  # times its stream that the checkpoint without thetas may be: no small file becomes a large one
PLACES, VALUES = "apart:places", "apart:values"  # of the numbers that are kept as they are
FLOATS = {str(dtype): dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
Tensors = Mapping[str, Tensor]


class Parts(NamedTuple):
    """A checkpoint whose thetas are apart: its description and other tensors, and the thetas' steps and codes."""

    about: dict[str, Any]
    tensors: dict[str, Tensor]
    steps: Tensor
    codes: Tensor


def theta_names(about: Mapping[str, Any]) -> list[str]:
    """The names of a checkpoint's thetas, each once."""
    return list(dict.fromkeys(entry["theta"] for entry in about["spaces"].values()))


def take_apart(about: Mapping[str, Any], tensors: Tensors, bits: int) -> Parts:
    """The checkpoint with its thetas quantised; ValueError for bits that are none, and for a theta that cannot be."""
    names, parts = theta_names(about), []
    for name in names:
        try:
            parts.append(quantise(tensors[name], bits))
        except ValueError as error:
            raise ValueError(f"{name} cannot be quantised: {error}") from None
    lengths = [len(part.codes) for part in parts]
    starts = accumulate(lengths[:-1], initial=0)
    places = torch.cat([part.places + start for part, start in zip(parts, starts, strict=True)])
    rest = {name: tensor for name, tensor in tensors.items() if name not in names}
    if len(places):
        rest |= {PLACES: pack(places, sum(lengths)), VALUES: torch.cat([part.values for part in parts])}
    thetas = [[name, len(part.codes), str(part.values.dtype)] for name, part in zip(names, parts, strict=True)]
    packed = {"bits": bits, "apart": len(places), "thetas": thetas}
    steps, codes = (torch.cat([part[i] for part in parts]) for i in (1, 0))
    return Parts({**about, "packed": packed}, rest, steps, codes)


def put_together(parts: Parts) -> dict[str, Tensor]:
    """The checkpoint's tensors, thetas included; ValueError where the parts do not fit one another."""
    names, lengths, dtypes = _described(parts.about)
    apart = parts.about["packed"]["apart"]
    if len(parts.codes) != sum(lengths) or len(parts.steps) != sum(map(blocks, lengths)):
        raise ValueError(f"{sum(lengths)} quantised numbers must be in the file, got {len(parts.codes)}")
    rest = dict(parts.tensors)
    values, content = rest.pop(VALUES, torch.empty(0)), rest.pop(PLACES, torch.empty(0, dtype=torch.uint8))
    places = unpack(content, apart, sum(lengths))
    if values.shape != places.shape or (len(places) and int(places[-1]) >= sum(lengths)):
        raise ValueError(f"the numbers that are kept exactly must have places among {sum(lengths)}, got others")
    first = first_block = 0
    for name, k, dtype in zip(names, lengths, dtypes, strict=True):
        mine = (places >= first) & (places < first + k)
        steps = parts.steps[first_block : first_block + blocks(k)]
        kept = Quantised(parts.codes[first : first + k], steps, places[mine] - first, values[mine].to(FLOATS[dtype]))
        rest[name] = kept.numbers()
        first, first_block = first + k, first_block + blocks(k)
    return rest


def _described(about: Mapping[str, Any]) -> tuple[list[str], list[int], list[str]]:
    """The names, lengths and dtypes of the thetas; ValueError where they are not such as `take_apart` describes."""
    packed = about.get("packed")
    rows, apart = (packed.get("thetas"), packed.get("apart")) if isinstance(packed, dict) else (None, None)
    if not isinstance(rows, list) or not all(map(_is_theta, rows)) or not _is_count(apart):
        raise ValueError("the thetas must be such as a packed checkpoint has, got others")
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def _is_theta(row: Any) -> bool:
    kinds = [type(item) for item in row] if isinstance(row, list) else []
    return kinds == [str, int, str] and row[1] >= 0 and row[2] in FLOATS


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def to_bytes(content: bytes, parts: Parts) -> bytes:
    """The file, of the content of a plain one without the thetas."""
    rest = zlib.compress(content, 9)
    rest = rest if len(content) <= LARGEST * len(rest) else zlib.compress(content, 0)
    body = b"".join([rest, *(_coded(numbers) for numbers in (parts.steps, parts.codes))])
    return MAGIC + blake2b(body, digest_size=DIGEST).digest() + body


def from_bytes(file: bytes) -> tuple[bytes, Tensor, Tensor]:
    """What `to_bytes` was given: the content, the steps and the codes; ValueError for a damaged file."""
    digest, body = file[len(MAGIC) :][:DIGEST], file[len(MAGIC) + DIGEST :]
    if blake2b(body, digest_size=DIGEST).digest() != digest:
        raise ValueError("content that differs from its digest")
    content, body = _decoded(body, LARGEST)
    steps, body = _decoded(body, 8)  # a Huffman code takes a bit at least
    codes, body = _decoded(body, 8)
    if body or len(steps) % 2:
        raise ValueError("content of another length")
    return content, _numbers(steps, torch.bfloat16), _numbers(codes, torch.int8)


def _coded(numbers: Tensor) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(numbers.view(torch.uint8).numpy().tobytes()) + coder.flush()


def _decoded(body: bytes, most: int) -> tuple[bytes, bytes]:
    """What the stream at the start of the body holds, and the rest of the body; most: times the stream's length."""
    decoder = zlib.decompressobj()
    try:
        content = decoder.decompress(body, most * len(body) + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not decoder.eof:
        raise ValueError("a stream that does not end")
    return content, decoder.unused_data


def _numbers(content: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
