"""Checkpoints of what was trained: theta, the other trained tensors, the buffers; of each (d, U), only how to build it.

One safetensors file. Its metadata holds, for every subspace, the classes of d and U with their arguments and keys; no
dense d, no U, and no index that a key can rebuild is in it. Pretrained and frozen weights are not in it either: load
them first. What is built again at loading is compared with the file's fingerprints, what is read, with its digest.
Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from subspace._base.meta import materialized_from_meta
from subspace._base.plug_in import PlugIn
from subspace._base.qualified import owner_of
from subspace._identity.fingerprint import Probe, probe
from subspace.checkpoint import schema
from subspace.checkpoint.description import TensorTable, decode, encode
from subspace.checkpoint.sealed import Place, check_readable, check_writable, read, write
from subspace.parametrization import (
    Registration,
    Subspace,
    SubspaceParametrization,
    prepare,
    share_theta,
    subspaces,
)


def save(model: nn.Module, path: Place) -> None:
    """Write the checkpoint of a model; the file appears whole or not at all.

    It holds theta, the other trained tensors and the buffers, and of each (d, U) only how to build it.

    Args:
        model: With registered subspaces.
        path: Of the file, or an open one, as an io.BytesIO.

    Raises:
        ValueError: If the model has no subspace or something that `load` would not give back equal, such as an extra
            state, a tensor that is sparse, or an argument of a plug-in that is a dict.
        OSError: If the file cannot be written; what was there is then as it was.
    """
    spaces = dict(subspaces(model))
    if not spaces:
        raise ValueError("model must have at least one registered subspace, got none")
    if own := [name for name, m in model.named_modules() if _has_extra_state(m)]:
        raise ValueError(f"all state must be in Parameters and buffers to be saved, got an extra state of {own[0]!r}")
    held = TensorTable()
    described = {name: _describe(name, space, held) for name, space in spaces.items()}
    ours = {id(space.theta) for space in spaces.values()}
    frozen = {}
    for name, tensor in _state(model, ours):
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            check_readable(name, tensor)
            frozen[name] = _finite(f"the frozen {name}", probe(tensor))
        else:
            check_writable(name, tensor)
            held[f"state:{name}"] = tensor
    about = {"spaces": described, "frozen": frozen}
    schema.check(about, held)
    write(path, about, held)


def load(model: nn.Module, path: Place, plugins: Sequence[type[PlugIn]] = ()) -> nn.Module:
    """Register on a plain model the subspaces of a checkpoint, with everything that was trained.

    The file is read once, and nothing of the model depends on it afterwards. A model on the meta device comes off it,
    to the CPU, without a dense weight ever being there.

    Args:
        model: Built as before `register`, with any pretrained or frozen weights loaded.
        path: Of a file that `save` wrote, or an open one.
        plugins: Classes of your own offsets and embeddings that the checkpoint names.

    Returns:
        The model.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is damaged or not a checkpoint, if the model's architecture differs, or if d, U or a frozen
            weight does not come out as it was saved; the model is then as it was.
    """
    if next(subspaces(model), None):
        raise ValueError("model must be plain, as before register, got one with registered subspaces")
    with _in_one_sentence():
        about, held = read(path)
        schema.check(about, held)
        with materialized_from_meta(model, about["spaces"], about["frozen"]):
            return _load(model, about, held, plugins)


@contextlib.contextmanager
def _in_one_sentence() -> Iterator[None]:
    """Whatever a file or a plug-in has to say, without line breaks and of less than 400 characters."""
    try:
        yield
    except ValueError as error:
        text = " ".join(str(error).split())
        raise ValueError(text if len(text) < 400 else f"{text[:390]} ...") from error


def _load(
    model: nn.Module, about: Mapping[str, Any], held: Mapping[str, Tensor], plugins: Sequence[type[PlugIn]]
) -> nn.Module:
    plan = {name: _plan(model, name, entry, held, plugins) for name, entry in about["spaces"].items()}
    weights = {id(registration.weight): name for name, registration in plan.items()}
    if tied := plan.keys() - weights.values():
        raise ValueError(
            f"{min(tied)} must not be tied to another tensor that the checkpoint registers, got one that is"
        )
    state = dict(_state(model, weights))
    _check_state(state, about, held)
    kinds = {(about["spaces"][name]["theta"], r.weight.device, r.dtype) for name, r in plan.items()}
    for theta, count in Counter(theta for theta, *_ in kinds).items():
        if count > 1:
            raise ValueError(f"the tensors of {theta} must be on one device and of one dtype, got {count}")

    shared: dict[str, list[Subspace]] = defaultdict(list)
    for name, registration in plan.items():
        theta = about["spaces"][name]["theta"]
        shared[theta].append(
            registration.commit(held[theta], torch.promote_types(held[theta].dtype, registration.dtype))
        )
    for group in shared.values():
        share_theta(group, group[0].theta)
    for name, tensor in state.items():
        if name in about["frozen"]:
            tensor.requires_grad_(False)
        else:
            tensor.data.copy_(held[f"state:{name}"])
    return model


def _describe(name: str, space: Subspace, held: TensorTable) -> dict[str, Any]:
    built = space.parametrization
    return {
        "theta": held.add(space.theta, f"theta:{name}"),
        "offset": _encoded(name, built.offset, held),
        "embedding": _encoded(name, built.embedding, held),
        "fingerprint": {part: _finite(f"{part} of {name}", value) for part, value in _probes(built).items()},
    }


def _encoded(name: str, part: PlugIn, held: TensorTable) -> Any:
    try:
        return encode(part, held)
    except ValueError as error:
        raise ValueError(f"{name} must have a d and U that can be saved, got {part.label()}: {error}") from error


def _has_extra_state(module: nn.Module) -> bool:
    ours = isinstance(module, SubspaceParametrization)
    return type(module).get_extra_state is not nn.Module.get_extra_state and not ours


def _probes(parametrization: SubspaceParametrization) -> Mapping[str, Probe]:
    return dict(zip("dU", parametrization.identity().probes, strict=True))


def _finite(what: str, probe: Probe) -> float:
    if not math.isfinite(probe.value):
        raise ValueError(f"{what} must be finite to be recognised at loading, got entries that are not")
    return probe.value


def _plan(
    model: nn.Module, name: str, entry: Mapping[str, Any], held: Mapping[str, Tensor], plugins: Sequence[type[PlugIn]]
) -> Registration:
    """d and U of one tensor, built and checked."""
    try:
        module, tensor_name = owner_of(model, name)
    except AttributeError:
        module, tensor_name = model, ""
    weight = module._parameters.get(tensor_name)
    if weight is None:
        raise ValueError(f"the model must have the checkpoint's tensor {name}, got none of that name")
    theta = held[entry["theta"]]
    if not theta.is_floating_point():
        raise ValueError(f"theta of {name} must be of a real floating-point dtype, got {theta.dtype}")
    with _naming(name):
        offset, embedding = (decode(entry[part], weight, held, plugins) for part in ("offset", "embedding"))
        registration = prepare(module, tensor_name, offset, embedding)
        if theta.shape != (embedding.dim,):
            raise ValueError(f"a theta of {len(theta)} for a dim of {embedding.dim}")
        found = _probes(registration.parametrization)
    for part, now in found.items():
        _compare(f"{part} of {name}", entry["fingerprint"][part], now)
    return registration


def _state(model: nn.Module, without: Container[int]) -> Iterator[tuple[str, Tensor]]:
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
            check_readable(name, tensor)
            _compare(f"the frozen {name}", about["frozen"][name], probe(tensor))
            continue
        check_writable(name, tensor)
        other = held[f"state:{name}"]
        rounded = tensor.is_floating_point() and other.is_floating_point()
        if tensor.shape != other.shape or not (rounded or tensor.dtype == other.dtype):
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
    except Exception as error:  # whatever a constructor says of arguments that it cannot take
        raise ValueError(f"{name} must fit the checkpoint's d and U, got: {error or type(error).__name__}") from error
