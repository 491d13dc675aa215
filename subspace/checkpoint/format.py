"""Checkpoints of what was trained: theta, the other trained tensors, the buffers; of each (d, U), only how to build it.

One safetensors file. Its metadata holds, for every subspace, the classes of d and U with their arguments and keys; no
dense d, no U, and no index that a key can rebuild is in it. Weights that are frozen and hold what they held when the
model was registered are not in it either: load them first. What is built again at loading is compared with the file's
fingerprints, what is read, with its digest. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from subspace._base.first_values import has_first_value, remember_values
from subspace._base.meta import materialized_from_meta
from subspace._base.plug_in import PlugIn
from subspace._base.qualified import named_buffers, named_modules, named_parameters, owner_of
from subspace._base.sharded import is_in_parts, is_sharded, reshard, whole
from subspace._identity.fingerprint import Probe, probe
from subspace._structured.forward import is_structured, structured
from subspace.checkpoint import schema
from subspace.checkpoint.description import TensorTable, decode, encode
from subspace.checkpoint.names import Names, Renamed
from subspace.checkpoint.sealed import Place, check_readable, check_writable, put, read, to_bytes
from subspace.parametrization import (
    Registration,
    Subspace,
    SubspaceParametrization,
    prepare,
    require_thetas,
    share_theta,
    subspaces,
    taken_off,
)


def save(
    model: nn.Module, path: Place, *, base: Mapping[str, Tensor] | None = None, bits: int | None = None
) -> list[str]:
    """Write the checkpoint of a model; the file appears whole or not at all.

    It holds theta, the other tensors that train or differ from what they were when a recipe registered the model, and
    the buffers; of each (d, U) only how to build it. Names are those of the plain model, whatever wrappers of torch are
    around it. Processes that share one model (FSDP2) all call it: each gives its part, and the first one writes.

    Args:
        model: With registered subspaces.
        path: Of the file, or an open one, as an io.BytesIO.
        base: The state_dict of what will be there at loading: frozen tensors equal to these are left out as well. Give
            it where layers were registered one by one, of whose model `register` knows nothing.
        bits: Of a number of theta in the file, from 2 to 8: theta is quantised, and the file is entropy coded. No
            number moves by more than half a step, of which there is one for every 128 numbers: their largest magnitude
            over 2^(bits-1) - 1. What is not theta is exact. By default theta is exact too.

    Returns:
        The names of the tensors that are left out: loading finds them in the model, and checks them.

    Raises:
        ValueError: If the model has no subspace or something that `load` would not give back equal, such as an extra
            state, a tensor that is sparse, or an argument of a plug-in that is a dict; for other bits, and for a theta
            with numbers that are not finite to be quantised.
        OSError: If the file cannot be written; what was there is then as it was.
    """
    spaces = dict(subspaces(model))
    if not spaces:
        raise ValueError("model must have at least one registered subspace, got none")
    if own := [name for name, m in named_modules(model) if _has_extra_state(m)]:
        raise ValueError(f"all state must be in Parameters and buffers to be saved, got an extra state of {own[0]!r}")
    reshard(model)
    require_thetas(model)
    held = TensorTable()
    described = {name: _describe(name, space, held) for name, space in spaces.items()}
    frozen: dict[str, Probe] = {}
    for name, part in _state(model, {id(space.theta) for space in spaces.values()}):
        tensor = whole(part)
        check_readable(name, tensor)
        trains = part.requires_grad or not isinstance(part, nn.Parameter)
        known = None if trains or not _is_of_the_base(model, name, tensor, base or {}) else probe(tensor).rounded()
        if known and math.isfinite(known.value):
            frozen[name] = known
        else:
            check_writable(name, tensor)
            held[f"state:{name}"] = tensor
    about = {"spaces": described, "frozen": frozen}
    schema.check(about, held)
    sharded = is_in_parts(model)
    content = to_bytes(about, {name: whole(tensor) for name, tensor in held.items()}, bits)  # refused by all or none
    if not sharded or dist.get_rank() == 0:
        put(path, content)
    if sharded:
        dist.barrier()
    return list(frozen)


def load(
    model: nn.Module,
    path: Place,
    plugins: Sequence[type[PlugIn]] = (),
    *,
    prefix: Names = "",
    replace: bool = False,
) -> nn.Module:
    """Register on a plain model the subspaces of a checkpoint, with everything that was trained.

    The file is read once, and nothing of the model depends on it afterwards. A model on the meta device comes off it,
    to the CPU, without a dense weight ever being there.

    Args:
        model: Built as before `register`, with any pretrained or frozen weights loaded, in any floating-point dtype.
        path: Of a file that `save` wrote, or an open one.
        plugins: Classes of your own offsets and embeddings that the checkpoint names.
        prefix: Of the file's names in this model, as "base_model."; or a mapping of the beginnings of the file's names
            to those in this model, None for tensors to be left in the file. Other tensors of the model stay as they
            are.
        replace: Whether the model may have subspaces: the checkpoint's take their place, on weights that are d again.
            A model with structured layers is structured again, by the routes "auto".

    Returns:
        The model.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is damaged or not a checkpoint, if the model's architecture differs, or if d, U or a frozen
            weight does not come out as it was saved; the model is then as it was.
    """
    present = dict(subspaces(model))
    were_structured = any(is_structured(space.module) for space in present.values())
    if present and not replace:
        raise ValueError(
            "model must be plain, as before register, got one with registered subspaces: replace=True exchanges them"
        )
    if sharded := [name for name, tensor in named_parameters(model) if is_sharded(tensor)]:
        raise ValueError(f"model must be loaded before it is sharded, got {sharded[0]} in parts")
    with _in_one_sentence():
        about, held = read(path)
        schema.check(about, held)
        names = Renamed(prefix)
        about = {part: names.of_keys(about[part]) for part in ("spaces", "frozen")}
        state = names.of_keys({n.removeprefix("state:"): t for n, t in held.items() if n.startswith("state:")})
        off_meta = materialized_from_meta(model, about["spaces"], about["frozen"], names.reach)
        with taken_off(present.values()), off_meta:
            for name in present.keys() - about["spaces"].keys():
                module, last = owner_of(model, name)
                weight = cast(nn.Parameter, module._parameters[last])
                weight.data = weight.data.clone()  # which is d, and may be another model's too
            _load(model, about, held, state, names, plugins)
    if were_structured:
        structured(model)
    return model


@contextlib.contextmanager
def _in_one_sentence() -> Iterator[None]:
    """Whatever a file or a plug-in has to say, without line breaks and of less than 400 characters."""
    try:
        yield
    except ValueError as error:
        text = " ".join(str(error).split())
        raise ValueError(text if len(text) < 400 else f"{text[:390]} ...") from error


def _load(
    model: nn.Module,
    about: Mapping[str, Any],
    held: Mapping[str, Tensor],
    saved: Mapping[str, Tensor],
    names: Renamed,
    plugins: Sequence[type[PlugIn]],
) -> None:
    plan = {name: _plan(model, name, entry, held, plugins) for name, entry in about["spaces"].items()}
    weights = {id(registration.weight): name for name, registration in plan.items()}
    if tied := plan.keys() - weights.values():
        raise ValueError(
            f"{min(tied)} must not be tied to another tensor that the checkpoint registers, got one that is"
        )
    state = {name: tensor for name, tensor in _state(model, weights) if names.reach(name)}
    _check_state(state, saved, about["frozen"])
    kinds = {(about["spaces"][name]["theta"], r.weight.device, r.dtype) for name, r in plan.items()}
    for theta, count in Counter(theta for theta, *_ in kinds).items():
        if count > 1:
            raise ValueError(f"the tensors of {theta} must be on one device and of one dtype, got {count}")

    for _, module in named_modules(model):
        remember_values(module)
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
            tensor.data.copy_(saved[name])


def _describe(name: str, space: Subspace, held: TensorTable) -> dict[str, Any]:
    built = space.parametrization
    return {
        "theta": held.add(space.theta, f"theta:{name}"),
        "offset": _encoded(name, built.offset, held),
        "embedding": _encoded(name, built.embedding, held),
        "fingerprint": {part: _finite(f"{part} of {name}", value).rounded() for part, value in _probes(built).items()},
    }


def _encoded(name: str, part: PlugIn, held: TensorTable) -> Any:
    try:
        return encode(part, held)
    except ValueError as error:
        raise ValueError(f"{name} must have a d and U that can be saved, got {part.label()}: {error}") from error


def _has_extra_state(module: nn.Module) -> bool:
    ours = isinstance(module, SubspaceParametrization)
    return type(module).get_extra_state is not nn.Module.get_extra_state and not ours


def _is_of_the_base(model: nn.Module, name: str, tensor: Tensor, base: Mapping[str, Tensor]) -> bool:
    """Whether a tensor holds what it held at first, or what that of the base holds."""
    same = base.get(name)
    if same is not None and (same.shape, same.dtype) == (tensor.shape, tensor.dtype):
        return torch.equal(same.to(tensor.device), tensor)
    return has_first_value(*owner_of(model, name), tensor)


def _probes(parametrization: SubspaceParametrization) -> Mapping[str, Probe]:
    return dict(zip("dU", parametrization.identity().probes, strict=True))


def _finite(what: str, probe: Probe) -> Probe:
    if not math.isfinite(probe.value):
        raise ValueError(f"{what} must be finite to be recognised at loading, got entries that are not")
    return probe


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
        registration = prepare(module, tensor_name, offset, embedding, model)
        if theta.shape != (embedding.dim,):
            raise ValueError(f"a theta of {len(theta)} for a dim of {embedding.dim}")
        found = _probes(registration.parametrization)
    for part, now in found.items():
        _compare(f"{part} of {name}", entry["fingerprint"][part], now)
    return registration


def _state(model: nn.Module, without: Container[int]) -> Iterator[tuple[str, Tensor]]:
    """Every Parameter and persistent buffer but those with an id in `without`."""
    for name, tensor in (*named_parameters(model), *named_buffers(model)):
        if id(tensor) not in without:
            yield name, tensor


def _check_state(state: Mapping[str, Tensor], saved: Mapping[str, Tensor], frozen: Mapping[str, Any]) -> None:
    if different := sorted({*saved, *frozen}.symmetric_difference(state)):
        raise ValueError(f"the model must have the checkpoint's tensors, got a difference in {', '.join(different)}")
    for name, tensor in state.items():
        if name in frozen:
            check_readable(name, tensor)
            _compare(f"the frozen {name}", frozen[name], probe(tensor))
            continue
        check_writable(name, tensor)
        other = saved[name]
        rounded = tensor.is_floating_point() and other.is_floating_point()
        if tensor.shape != other.shape or not (rounded or tensor.dtype == other.dtype):
            raise ValueError(
                f"{name} must be {tuple(other.shape)} {other.dtype} as in the checkpoint, "
                f"got {tuple(tensor.shape)} {tensor.dtype}"
            )


def _compare(what: str, saved: Sequence[float], now: Probe) -> None:
    if not now.agrees_with(Probe(*saved)):
        raise ValueError(f"{what} must be as it was saved, with fingerprint {saved[0]:.9g}, got {now.value:.9g}")


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a constructor says of arguments that it cannot take
        raise ValueError(f"{name} must fit the checkpoint's d and U, got: {error or type(error).__name__}") from error
