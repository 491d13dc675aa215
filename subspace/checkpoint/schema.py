"""What a checkpoint's metadata must look like before anything is built of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from subspace._base.index import packed_bytes

DEEPEST = 16  # levels of arguments in arguments
PARTS = 8  # offsets and embeddings for each number of theta: a sum of directions, rescaled, has four


def check(about: Any, held: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `about` is of the form that a checkpoint has, with tensors that are held.

    No class is looked up. What is built afterwards is bounded by the tensors of the file: an embedding says no larger
    dim than its theta has numbers, and has no more parts. `save` asks as well, so that `load` never finds it too late.
    """
    spaces, frozen = (_of(dict, about, name) for name in ("spaces", "frozen"))
    for name, value in frozen.items():
        _must(_is_probe(value), f"fingerprint of {name}")
    for name, entry in spaces.items():
        _space(name, entry, held)


def _space(name: str, entry: Any, held: Mapping[str, Tensor]) -> None:
    theta = held.get(_of(str, entry, "theta"))
    _must(theta is not None and theta.ndim == 1, f"theta of {name}")
    fingerprint = _of(dict, entry, "fingerprint")
    _must(fingerprint.keys() == {"d", "U"}, f"fingerprint of {name}")
    _must(all(map(_is_probe, fingerprint.values())), f"fingerprint of {name}")
    room = 0 if theta is None else len(theta)
    for kind in ("offset", "embedding"):
        part = _of(dict, entry, kind)
        _must(part.get("kind") == kind, f"{kind} of {name}")
        parts, dim = _size(part, held, DEEPEST)
        _must(parts <= PARTS * (room + 1), f"number of parts in the {kind} of {name}")
        _must(dim <= room, f"dim of {name}, for a theta of {room}")


def _size(value: Any, held: Mapping[str, Tensor], levels: int) -> tuple[int, int]:
    """How many offsets and embeddings are in an argument, itself included, and how many numbers of theta they want."""
    _must(levels > 0, "depth of the arguments")
    if isinstance(value, dict) and len(value) == 1:
        tag, content = next(iter(value.items()))
        _must(tag in TAGS and TAGS[tag](content, held), f"argument {tag!r}")
        inner = content if tag == "tuple" else []
    elif isinstance(value, dict):
        _must(value.keys() == {"kind", "class", "arguments"}, "argument")
        _must(_of(str, value, "kind") in ("offset", "embedding") and bool(_of(str, value, "class")), "kind of a part")
        inner = list(_of(dict, value, "arguments").values())
    else:
        inner = value if isinstance(value, list) else []
    sizes = [_size(item, held, levels - 1) for item in inner]
    parts, dim = sum(parts for parts, _ in sizes), sum(dim for _, dim in sizes)
    if not isinstance(value, dict) or len(value) == 1:
        return parts, dim
    own = value["arguments"].get("dim", 0) if value["kind"] == "embedding" else 0
    _must(type(own) is int and own >= 0, "dim")
    return parts + 1, max(dim, own)  # an embedding of embeddings has theirs


def _is_probe(value: Any) -> bool:
    return isinstance(value, list | tuple) and [type(number) for number in value] == [float, float]


def _is_key(content: Any, held: Mapping[str, Tensor]) -> bool:
    return isinstance(content, list) and bool(content) and type(content[0]) is int and _words(content[1:])


def _words(content: list[Any]) -> bool:
    return all(isinstance(word, str) for word in content)


def _is_places(content: Any, held: Mapping[str, Tensor]) -> bool:
    """[name of the packed tensor, how many, size, in order or not], of no more places than the tensor can have."""
    if not (isinstance(content, list) and [type(item) for item in content] == [str, int, int, bool]):
        return False
    name, k, size, ordered = content
    packed = held.get(name)
    if packed is None or packed.dtype != torch.uint8 or packed.ndim != 1 or not 0 < k <= size:
        return False
    return len(packed) == packed_bytes(k, size, ordered=ordered)


TAGS: dict[str, Callable[[Any, Mapping[str, Tensor]], bool]] = {
    "key": _is_key,
    "tensor": lambda content, held: isinstance(content, str) and content in held,
    "places": _is_places,
    "tuple": lambda content, held: isinstance(content, list),
}


def _of(kind: type, value: Any, name: str) -> Any:
    """value[name], of that type."""
    _must(isinstance(value, dict) and isinstance(value.get(name), kind), name)
    return value[name]


def _must(good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"the {what} must be such as a checkpoint can have, got another")
