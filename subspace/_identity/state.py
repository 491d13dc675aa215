"""The identity of a (d, U) as one uint8 tensor, the form that every way of keeping a state_dict takes.

It holds the classes with their arguments and keys, as JSON; the fingerprints of d and of U z; and of a U whose support
is not its key's, the support. Other tensors among the arguments are there by their shapes and in the fingerprints.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from subspace._base.index import check, is_sorted, pack, packed_bytes, unpack
from subspace._base.key import Key
from subspace._base.plug_in import PlugIn
from subspace._identity.fingerprint import Probe, fingerprint
from subspace.embeddings import Embedding
from subspace.offsets import Offset
from subspace.products.sparse_index import renew

HEAD = struct.Struct("<BI4d")  # FORMAT, length of the JSON, <r, d> and <r, U z> with their tolerances
FORMAT = 1
UNKNOWN = Probe(math.nan, math.nan)
Supports = dict[Embedding, Tensor]


@dataclass(frozen=True)
class Identity:
    """What is known of a (d, U).

    about: classes and arguments of "d" and "U", and of each support in them the "key" that it is of, or whether it is
    packed "in order". probes: of d and of U z, UNKNOWN on the meta device. packed: the supports that no key stands for.
    """

    about: dict[str, Any]
    probes: tuple[Probe, Probe]
    packed: Tensor

    @classmethod
    def of(cls, offset: Offset, embedding: Embedding, dtype: torch.dtype | None = None) -> Identity:
        """The identity of a d and U, for a w of the dtype."""
        about, packed = packed_supports(*describe(offset, embedding))
        has_values = type(offset.like) is Tensor and not offset.like.is_meta
        probes = fingerprint(offset, embedding, dtype) if has_values else {"d": UNKNOWN, "U": UNKNOWN}
        return cls(about, (probes["d"], probes["U"]), packed)

    def to_bytes(self) -> bytes:
        """What the tensor holds."""
        text = json.dumps(self.about).encode()
        head = HEAD.pack(FORMAT, len(text), *(number for probe in self.probes for number in probe))
        return head + text + self.packed.numpy().tobytes()

    @classmethod
    def from_tensor(cls, state: Any) -> Identity:
        """Of the bytes of `to_bytes`, rounded from whatever dtype it was kept in; ValueError for anything else."""
        try:
            content = state.detach().cpu()
            content = (content.round() if content.is_floating_point() else content).to(torch.uint8)
            data = content.numpy().tobytes()
            form, size, *numbers = HEAD.unpack_from(data)
            about = json.loads(data[HEAD.size : HEAD.size + size])
            known = form == FORMAT and about.keys() == {"shape", "d", "U", "supports"}
        except (AttributeError, TypeError, ValueError, RecursionError, RuntimeError, struct.error):
            known = False
        if not known:
            raise ValueError("its extra state must be as a state_dict holds it, got something else or changed numbers")
        return cls(about, (Probe(*numbers[:2]), Probe(*numbers[2:])), content[HEAD.size + size :])

    def supports(self, offset: Offset, embedding: Embedding) -> Supports:
        """The supports to be exchanged in a d and U so that they have this identity.

        Raises ValueError if they differ in anything else.
        """
        now, movable = describe(offset, embedding)
        for part in ("shape", "d", "U"):
            if why := _difference(part, self.about[part], now[part]):
                raise ValueError(why)
        found, packed = {}, self.packed
        for U, saved in zip(movable, self.about["supports"], strict=True):
            size = U.shape.numel()
            if "key" not in saved:
                length = packed_bytes(U.dim, size, ordered=saved["in order"])
                index, packed = unpack(packed[:length], U.dim, size, ordered=saved["in order"]), packed[length:]
                check(index, size)
                found[U] = index
            elif saved["key"] != str(U.key):
                raise ValueError(f"the key of U must be {U.key}, got {saved['key']}")
            elif not U.is_drawn():
                found[U] = U.random_index()
        return found

    def check(self, now: Identity, parts: str = "dU") -> None:
        """Raise ValueError if the fingerprints of d or U z differ, as those of pretrained weights do."""
        for part, saved, here in zip("dU", self.probes, now.probes, strict=True):
            known = math.isfinite(saved.value) and math.isfinite(here.value)
            if part in parts and known and not saved.agrees_with(here):
                raise ValueError(f"{part} must be the same numbers, got others: {here.value:.9g} for {saved.value:.9g}")


def exchange(supports: Supports) -> Supports:
    """Write supports into their embeddings; returns those that were there."""
    before = {}
    for U, index in supports.items():
        support = cast(Tensor, U.support())
        before[U] = support.clone()
        with torch.no_grad():
            support.copy_(index)
        renew(support)
    return before


@dataclass
class _Description:
    """Makes a plug-in's JSON, and collects the embeddings in it that have a support."""

    movable: list[Embedding] = field(default_factory=list)

    def of(self, value: Any) -> Any:
        if isinstance(value, Embedding) and value.support() is not None:
            self.movable.append(value)
            return {"class": type(value).__name__, "dim": value.dim}
        if isinstance(value, PlugIn):
            return {name: self.of(argument) for name, argument in _arguments(value).items()}
        if isinstance(value, list | tuple | nn.ModuleList):
            return [self.of(item) for item in value]
        if isinstance(value, Tensor):
            return {"tensor": [*value.shape]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return str(value) if isinstance(value, Key) else type(value).__name__


def packed_supports(about: dict[str, Any], movable: list[Embedding]) -> tuple[dict[str, Any], Tensor]:
    """The description with what is said of the supports, and those that no key stands for as uint8."""
    said, packed = [], [torch.empty(0, dtype=torch.uint8, device="cpu")]
    for U in movable:
        index = cast(Tensor, U.support())
        ordered = is_sorted(index) and not U.moves
        kept = not U.is_drawn() or U.moves
        said.append({"in order": ordered} if kept else {"key": str(U.key)})
        packed += [pack(index, U.shape.numel(), ordered=ordered)] if kept else []
    return about | {"supports": said}, torch.cat(packed)


def describe(offset: Offset, embedding: Embedding) -> tuple[dict[str, Any], list[Embedding]]:
    """The classes and arguments of d and U, and the embeddings in them that have a support."""
    description = _Description()
    about = {"shape": [*offset.shape], "d": description.of(offset), "U": description.of(embedding), "supports": []}
    return json.loads(json.dumps(about)), description.movable


def _arguments(part: PlugIn) -> dict[str, Any]:
    try:
        return part.describe()
    except ValueError:  # an argument that it does not keep
        return {"class": type(part).__name__}


def _difference(where: str, saved: Any, here: Any) -> str | None:
    """Where two descriptions differ first, as a sentence; None if nowhere."""
    if isinstance(saved, dict) and isinstance(here, dict) and saved.keys() == here.keys():
        pairs = [(f"{where}.{name}", saved[name], here[name]) for name in here]
    elif isinstance(saved, list) and isinstance(here, list) and len(saved) == len(here):
        pairs = [(f"{where}[{i}]", *both) for i, both in enumerate(zip(saved, here, strict=True))]
    else:
        return None if saved == here else f"{where} must be {here}, got {saved}"
    return next((why for each in pairs if (why := _difference(*each))), None)
