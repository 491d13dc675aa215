"""Deltas as the files of `save` hold them, checked against the base that they were trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from subspace._base.dtypes import at_least_float32
from subspace._base.plug_in import PlugIn
from subspace._base.qualified import named_buffers, named_parameters
from subspace._identity.fingerprint import Probe, fingerprint, probe
from subspace.checkpoint import schema
from subspace.checkpoint.description import decode
from subspace.checkpoint.names import Names, Renamed
from subspace.checkpoint.sealed import Place, digest, read
from subspace.embeddings import Embedding, Identity
from subspace.offsets import Pretrained


class Part(NamedTuple):
    """What a delta adds to one tensor: U of the numbers at `place` in its theta."""

    embedding: Embedding
    place: slice

    def of(self, theta: Tensor) -> Tensor:
        """The numbers of this tensor: (..., all) -> (..., dim)."""
        return theta[..., self.place].to(self.embedding.like.device)


Form = Mapping[str, Part]  # by the qualified names of the base's tensors


class Delta(NamedTuple):
    """form: the same object for all deltas of the same U. theta: all numbers, those of one tensor after the other's."""

    form: Form
    theta: Tensor


class Reader:
    """Reads deltas of one base; what many of them have in common is built and checked once."""

    def __init__(self, base: nn.Module) -> None:
        self.tensors: dict[str, Tensor] = dict((*named_parameters(base, ties=True), *named_buffers(base)))
        self._forms: dict[str, Form] = {}
        self._probes: dict[str, Probe] = {}

    def read(self, path: Place, plugins: Sequence[type[PlugIn]] = (), prefix: Names = "") -> Delta:
        """The delta of a file; raises OSError without one, ValueError for a delta of another base."""
        about, held = read(path)
        schema.check(about, held)
        names = Renamed(prefix)
        spaces, frozen = (names.of_keys(about[part]) for part in ("spaces", "frozen"))
        state = names.of_keys({n.removeprefix("state:"): t for n, t in held.items() if n.startswith("state:")})
        for name, saved in frozen.items():
            self._compare(name, f"the frozen {name}", saved)
        changed = dict(self._changed(state))
        thetas = list(dict.fromkeys(entry["theta"] for entry in spaces.values()))
        rest = {name: tensor for name, tensor in held.items() if not name.startswith(("theta:", "state:"))}
        key = digest(json.dumps([spaces, list(changed)]), rest)
        if key not in self._forms:
            self._forms[key] = self._form(spaces, held, plugins, changed)
        numbers = [held[name] for name in thetas] + [difference.flatten() for difference in changed.values()]
        return Delta(self._forms[key], torch.cat(numbers))

    def tensor(self, name: str) -> Tensor:
        """The base's tensor of that name."""
        if name not in self.tensors:
            raise ValueError(f"the base must have the delta's tensor {name}, got none of that name")
        return self.tensors[name]

    def _changed(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """What else was trained, as differences from the base."""
        for name, value in sorted(state.items()):
            mine = self.tensor(name)
            rounded = value.is_floating_point() and mine.is_floating_point()
            if value.shape != mine.shape or not (rounded or value.dtype == mine.dtype):
                raise ValueError(
                    f"{name} must be {tuple(value.shape)} {value.dtype} as in the delta, "
                    f"got {tuple(mine.shape)} {mine.dtype}"
                )
            base = mine.detach().cpu()
            if torch.equal(value.to(base.dtype), base):
                continue
            if not (rounded and isinstance(mine, nn.Parameter)):
                raise ValueError(f"the buffer {name} must be as the base has it in a delta, got another")
            wide = at_least_float32(base.dtype)  # a difference in half precision would not come out as it was
            yield name, value.to(wide) - base.to(wide)

    def _form(
        self,
        spaces: Mapping[str, Any],
        held: Mapping[str, Tensor],
        plugins: Sequence[type[PlugIn]],
        changed: Mapping[str, Tensor],
    ) -> Form:
        form, places, end = {}, {}, 0
        for name, entry in spaces.items():
            embedding = self._embedding(name, entry, held, plugins)
            theta = entry["theta"]
            if theta not in places:
                places[theta] = slice(end, end := end + len(held[theta]))
            form[name] = Part(embedding, places[theta])
        for name, difference in changed.items():
            form[name] = Part(Identity(self.tensor(name)), slice(end, end := end + difference.numel()))
        return form

    def _embedding(
        self, name: str, entry: Mapping[str, Any], held: Mapping[str, Tensor], plugins: Sequence[type[PlugIn]]
    ) -> Embedding:
        """U of one tensor, once d and U have come out as they were saved."""
        weight, kind = self.tensor(name), entry["offset"]["class"]
        if kind != Pretrained.__name__:
            raise ValueError(f"{name} must be the base's weight plus a delta, got d = {kind}")
        try:
            embedding: Embedding = decode(entry["embedding"], weight, held, plugins)
            if embedding.dim != len(held[entry["theta"]]):
                raise ValueError(f"a theta of {len(held[entry['theta']])} for a dim of {embedding.dim}")
            found = fingerprint(Pretrained(weight), embedding, weight.dtype)
        except Exception as error:  # whatever a constructor says of arguments that it cannot take
            raise ValueError(f"{name} must fit the delta's U, got: {error or type(error).__name__}") from error
        for part, now in found.items():
            _equal(f"{part} of {name}", entry["fingerprint"][part], now)
        return embedding

    def _compare(self, name: str, what: str, saved: Sequence[float]) -> None:
        if name not in self._probes:
            self._probes[name] = probe(self.tensor(name))
        _equal(what, saved, self._probes[name])


def _equal(what: str, saved: Sequence[float], now: Probe) -> None:
    if not now.agrees_with(Probe(*saved)):
        raise ValueError(
            f"{what} must be as the delta was saved with, of fingerprint {saved[0]:.9g}, got {now.value:.9g}"
        )
