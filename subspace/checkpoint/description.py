"""Offsets and embeddings as JSON and back: class, arguments, keys; tensors that no key rebuilds are held apart."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from subspace import embeddings, offsets
from subspace._base.index import is_sorted, pack, unpack
from subspace._base.key import Key
from subspace._base.plug_in import PlugIn
from subspace.offsets import Offset


class TensorTable(dict[str, Tensor]):
    """Tensors by name, each only once."""

    def add(self, tensor: Tensor, name: str | None = None) -> str:
        """The name under which `tensor` is held, by default the next free number."""
        for known, other in self.items():
            if other is tensor:
                return known
        name = str(len(self)) if name is None else name
        self[name] = tensor
        return name


def encode(value: Any, held: TensorTable) -> Any:
    """A description, or any argument in one, as JSON; its tensors go to `held`.

    Raises ValueError where `decode` would not give it back equal.
    """
    if isinstance(value, PlugIn):
        return _encode_plug_in(value, held)
    if isinstance(value, Key):
        return {"key": [value.seed, *value.path]}
    if isinstance(value, Tensor):
        return _encode_tensor(value, held)
    if isinstance(value, tuple):
        return {"tuple": [encode(item, held) for item in value]}
    if isinstance(value, list | nn.ModuleList):
        return [encode(item, held) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        "an argument must be None, a number, a string, a Key, a tensor, an offset or embedding, or a list or tuple of "
        f"such to be saved, got {type(value).__name__}"
    )


def _encode_tensor(value: Tensor, held: TensorTable) -> Any:
    if value.dtype != torch.int64 or value.ndim != 1 or not len(value):
        return {"tensor": held.add(value)}
    low, high = (int(bound) for bound in value.aminmax())
    if low < 0 or high >= 1 << 48:
        return {"tensor": held.add(value)}
    packed = pack(value, high + 1, ordered=(ordered := is_sorted(value)))
    return {"places": [held.add(packed), len(value), high + 1, ordered]}


def _encode_plug_in(value: PlugIn, held: TensorTable) -> Any:
    arguments = value.describe()
    name = arguments.pop("class")
    parameters = inspect.signature(type(value)).parameters
    for argument in arguments:
        kind = parameters[argument].kind if argument in parameters else None
        if kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            raise ValueError(
                f"{name} must take each of its arguments by name to be saved, got {argument}, which is not"
            )
    return {
        "kind": "offset" if isinstance(value, Offset) else "embedding",
        "class": name,
        "arguments": {argument: encode(each, held) for argument, each in arguments.items()},
    }


def decode(value: Any, like: Tensor, held: Mapping[str, Tensor], plugins: Sequence[type[PlugIn]] = ()) -> Any:
    """What `encode` described, built for the tensor `like`; classes are this package's and `plugins`, no others."""
    if isinstance(value, list):
        return [decode(item, like, held, plugins) for item in value]
    if not isinstance(value, dict):
        return value
    if "key" in value:
        seed, *path = value["key"]
        return Key(seed, tuple(path))
    if "tensor" in value:
        return held[value["tensor"]].to(like.device)
    if "places" in value:
        name, k, size, ordered = value["places"]
        return unpack(held[name], k, size, ordered=ordered).to(like.device)
    if "tuple" in value:
        return tuple(decode(item, like, held, plugins) for item in value["tuple"])
    known = _classes(value["kind"], plugins)
    if value["class"] not in known:
        raise ValueError(f"{value['kind']} must be one of {sorted(known)}, got {value['class']!r}: pass it in plugins=")
    cls = known[value["class"]]
    arguments = {name: decode(each, like, held, plugins) for name, each in value["arguments"].items()}
    if "like" in inspect.signature(cls).parameters:
        arguments["like"] = like
    return cls(**arguments)


def _classes(kind: str, plugins: Sequence[type[PlugIn]]) -> dict[str, type[PlugIn]]:
    package = offsets if kind == "offset" else embeddings
    ours = [cast("type[PlugIn]", getattr(package, name)) for name in package.__all__]
    return {cls.__name__: cls for cls in (*ours, *(p for p in plugins if issubclass(p, Offset) == (kind == "offset")))}
