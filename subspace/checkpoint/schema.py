"""What a checkpoint's metadata must look like before anything is built of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

DEEPEST = 16  # levels of arguments in arguments
PARTS = 8  # offsets and embeddings for each number of theta: a sum of directions, rescaled, has four


def check(about: Any, held: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `about` is of the form that `save` writes, with tensors that are held.

    No class is looked up. What is built afterwards is bounded by the tensors of the file: an embedding says no larger
    dim than its theta has numbers, and has no more parts.
    """
    spaces, frozen = (_of(dict, about, name) for name in ("spaces", "frozen"))
    for name, value in frozen.items():
        _must(isinstance(value, float), f"fingerprint of {name}")
    for name, entry in spaces.items():
        _space(name, entry, held)


def _space(name: str, entry: Any, held: Mapping[str, Tensor]) -> None:
    theta = held.get(_of(str, entry, "theta"))
    _must(theta is not None and theta.ndim == 1, f"theta of {name}")
    fingerprint = _of(dict, entry, "fingerprint")
    _must(fingerprint.keys() == {"d", "U"}, f"fingerprint of {name}")
    _must(all(isinstance(value, float) for value in fingerprint.values()), f"fingerprint of {name}")
    room = 0 if theta is None else len(theta)
    for kind in ("offset", "embedding"):
        part = _of(dict, entry, kind)
        _must(part.get("kind") == kind, f"{kind} of {name}")
        parts = list(_parts(part, held, DEEPEST))
        _must(len(parts) <= PARTS * (room + 1), f"number of parts in the {kind} of {name}")
        dims = [arguments["dim"] for arguments in parts if "dim" in arguments]
        _must(all(type(dim) is int and dim >= 0 for dim in dims), f"dim of {name}")
        _must(sum(dims) <= room, f"dim of {name}, for a theta of {room}")


def _parts(value: Any, held: Mapping[str, Tensor], levels: int) -> Iterator[dict[str, Any]]:
    """The arguments of every offset and embedding in an argument, itself included."""
    _must(levels > 0, "depth of the arguments")
    if isinstance(value, list):
        for item in value:
            yield from _parts(item, held, levels - 1)
    elif isinstance(value, dict) and len(value) == 1:
        tag, content = next(iter(value.items()))
        _must(tag in TAGS and TAGS[tag](content, held), f"argument {tag!r}")
        if tag == "tuple":
            yield from _parts(content, held, levels - 1)
    elif isinstance(value, dict):
        _must(value.keys() == {"kind", "class", "arguments"}, "argument")
        _must(_of(str, value, "kind") in ("offset", "embedding"), "kind of a part")
        arguments = _of(dict, value, "arguments")
        _of(str, value, "class")
        yield arguments
        for argument in arguments.values():
            yield from _parts(argument, held, levels - 1)


def _is_key(content: Any, held: Mapping[str, Tensor]) -> bool:
    return isinstance(content, list) and bool(content) and type(content[0]) is int and _words(content[1:])


def _words(content: list[Any]) -> bool:
    return all(isinstance(word, str) for word in content)


TAGS: dict[str, Callable[[Any, Mapping[str, Tensor]], bool]] = {
    "key": _is_key,
    "tensor": lambda content, held: isinstance(content, str) and content in held,
    "tuple": lambda content, held: isinstance(content, list),
}


def _of(kind: type, value: Any, name: str) -> Any:
    """value[name], of that type."""
    _must(isinstance(value, dict) and isinstance(value.get(name), kind), name)
    return value[name]


def _must(good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"the checkpoint's {what} must be as subspace.save writes it, got something else")
