"""Checkpoints of what was trained: theta, the other trained tensors, the buffers; of each (d, U), only how to build it.

One safetensors file. Its metadata holds, for every subspace, the classes of d and U with their arguments and keys; no
dense d, no U, and no index that a key can rebuild is in it. Pretrained and frozen weights are not in it either: load
them first. What is built again at loading is compared with the file's fingerprints, what is read, with its digest.
Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from subspace.description import Held, decode, encode
from subspace.fingerprint import Probe, fingerprint, probe
from subspace.fixed import Fixed
from subspace.meta import off_meta
from subspace.parametrization import Subspace, SubspaceParametrization, check, register, subspaces, tie

FORMAT = 2


def save(model: nn.Module, path: str | os.PathLike[str] | BinaryIO) -> None:
    """Write the model's checkpoint; the file appears whole or not at all. path: or an open file, as an io.BytesIO.

    Raises ValueError if the model has no subspace, OSError if the file cannot be written.
    """
    spaces = dict(subspaces(model))
    if not spaces:
        raise ValueError("model must have at least one registered subspace, got none")
    held = Held()
    described = {name: _describe(name, space, held) for name, space in spaces.items()}
    ours = {id(t) for space in spaces.values() for t in (space.theta, *space.parametrization.buffers())}
    frozen = {}
    for name, tensor in _state(model, ours):
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            frozen[name] = probe(tensor).value
        else:
            held.hold(tensor, f"state:{name}")
    about = {
        "format": FORMAT,
        "version": version("torch-subspace"),
        "spaces": described,
        "frozen": frozen,
        "digest": _digest(held),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in held.items()}
    content = to_safetensors(tensors, {"subspace": json.dumps(about)})
    if isinstance(path, str | os.PathLike):
        _write(Path(path), content)
    else:
        path.write(content)


def load(model: nn.Module, path: str | os.PathLike[str] | BinaryIO, plugins: Sequence[type[Fixed]] = ()) -> nn.Module:
    """Register on a plain model the subspaces of a checkpoint, with everything that was trained; return the model.

    model: built as before `register`, with any pretrained or frozen weights loaded. path: or an open file. plugins:
    classes of your own offsets and embeddings that the checkpoint names. Raises OSError if there is no such file, and
    ValueError if it is damaged or not a checkpoint, if the model's architecture differs, or if d, U or a frozen weight
    does not come out as it was saved; the model is then as it was.

    A model on the meta device comes off it, to the CPU, without a dense weight ever being there.
    """
    if next(subspaces(model), None):
        raise ValueError("model must be plain, as before register, got one with registered subspaces")
    about, held = _read(path)
    with off_meta(model, about["spaces"], about["frozen"]):
        return _load(model, about, held, plugins)


def _load(
    model: nn.Module, about: Mapping[str, Any], held: Mapping[str, Tensor], plugins: Sequence[type[Fixed]]
) -> nn.Module:
    plan = {name: _plan(model, name, entry, held, plugins) for name, entry in about["spaces"].items()}
    weights = {id(module._parameters[name]) for module, name, _ in plan.values()}
    state = dict(_state(model, weights))
    _check_state(state, about, held)

    shared = defaultdict(list)
    for name, (module, tensor_name, built) in plan.items():
        theta = about["spaces"][name]["theta"]
        shared[theta].append(register(module, tensor_name, built.offset, built.embedding, held[theta]))
    for group in shared.values():
        tie(group, group[0].theta)
    for name, tensor in state.items():
        if name in about["frozen"]:
            tensor.requires_grad_(False)
        else:
            tensor.data.copy_(held[f"state:{name}"])
    return model


def _describe(name: str, space: Subspace, held: Held) -> dict[str, Any]:
    built = space.parametrization
    return {
        "theta": held.hold(space.theta, f"theta:{name}"),
        "offset": encode(built.offset, held),
        "embedding": encode(built.embedding, held),
        "fingerprint": {part: probe.value for part, probe in fingerprint(built).items()},
    }


def _plan(
    model: nn.Module, name: str, entry: Mapping[str, Any], held: Mapping[str, Tensor], plugins: Sequence[type[Fixed]]
) -> tuple[nn.Module, str, SubspaceParametrization]:
    """(module, tensor's name, d and U), built and checked."""
    prefix, _, tensor_name = name.rpartition(".")
    module = dict(model.named_modules()).get(prefix)
    weight = None if module is None else module._parameters.get(tensor_name)
    if module is None or weight is None:
        raise ValueError(f"the model must have the checkpoint's tensor {name}, got none of that name")
    theta = held[entry["theta"]]
    if theta.dtype != weight.dtype:
        raise ValueError(f"{name} must be {theta.dtype} as in the checkpoint, got {weight.dtype}")
    with _naming(name):
        built = SubspaceParametrization(
            decode(entry["offset"], weight, held, plugins), decode(entry["embedding"], weight, held, plugins)
        )
        check(module, tensor_name, built)
    for part, now in fingerprint(built).items():
        _compare(f"{part} of {name}", entry["fingerprint"][part], now)
    return module, tensor_name, built


def _state(model: nn.Module, without: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Every Parameter and persistent buffer but those with an id in `without`."""
    persistent = model.state_dict(keep_vars=True).keys()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if id(tensor) not in without and name in persistent:
            yield name, tensor


def _check_state(state: Mapping[str, Tensor], about: Mapping[str, Any], held: Mapping[str, Tensor]) -> None:
    saved = {name.removeprefix("state:") for name in held if name.startswith("state:")} | set(about["frozen"])
    if different := sorted(saved.symmetric_difference(state)):
        raise ValueError(f"the model must have the checkpoint's tensors, got a difference in {', '.join(different)}")
    for name, tensor in state.items():
        if name in about["frozen"]:
            _compare(f"the frozen {name}", about["frozen"][name], probe(tensor))
            continue
        other = held[f"state:{name}"]
        if (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
            raise ValueError(
                f"{name} must be {tuple(other.shape)} {other.dtype} as in the checkpoint, "
                f"got {tuple(tensor.shape)} {tensor.dtype}"
            )


def _compare(what: str, saved: float, now: Probe) -> None:
    if not abs(saved - now.value) <= now.tolerance:
        raise ValueError(f"{what} must be as it was saved, with fingerprint {saved:.9g}, got {now.value:.9g}")


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{name} must fit the checkpoint's d and U, got: {error}") from error


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        numbers = torch.cat([tensors[name].detach().cpu().flatten()])  # a copy: the stride of a single one may be 0
        digest.update(numbers.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: str | os.PathLike[str] | BinaryIO) -> tuple[dict[str, Any], dict[str, Tensor]]:
    named = os.fspath(path) if isinstance(path, str | os.PathLike) else "the file"
    expected = f"{named} must be a checkpoint written by subspace.save, got"
    if isinstance(path, str | os.PathLike):
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{expected} no such file")
        content = Path(path).read_bytes()
    else:
        content = path.read()
    try:
        tensors = from_safetensors(content)
    except SafetensorError as error:
        raise ValueError(f"{expected} a damaged or foreign file ({error})") from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])  # checked by safetensors, just now
    metadata = header.get("__metadata__") or {}
    if "subspace" not in metadata:
        raise ValueError(f"{expected} another safetensors file")
    try:
        about = json.loads(metadata["subspace"])
        form, maker, digest = about["format"], about["version"], about["digest"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{expected} damaged metadata") from None
    if form != FORMAT:
        raise ValueError(f"{expected} format {form}, of version {maker}; this one reads {FORMAT}")
    if digest != _digest(tensors):
        raise ValueError(f"{expected} tensors that differ from its digest")
    return about, tensors


def _write(path: Path, content: bytes) -> None:
    """Write by way of a temporary file beside it, so that `path` is never half written."""
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise OSError(error.errno, f"path must be writable, got {error.strerror}", str(path)) from error
        raise
