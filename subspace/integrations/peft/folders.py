"""Folders as peft writes them: adapter_config.json and adapter_model.safetensors. Nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from subspace._base.files import write_atomically
from subspace._base.first_values import has_changed
from subspace._base.kinds import weight_matrices
from subspace._base.qualified import named_modules, owner_of
from subspace.integrations.peft.fourier_ft import FourierFTTuner
from subspace.integrations.peft.ia3 import IA3Tuner
from subspace.integrations.peft.lora import LoRATuner
from subspace.integrations.peft.shira import SHiRATuner
from subspace.integrations.peft.tuner import Fixed, Layer, Tuner
from subspace.methods.recipe import Start, freeze_others, register_sharing
from subspace.offsets import Pretrained
from subspace.parametrization import Subspace, subspaces

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
TUNERS: tuple[type[Tuner], ...] = (FourierFTTuner, SHiRATuner, IA3Tuner, LoRATuner)


def read(model: nn.Module, folder: str | os.PathLike[str], *, fixed: Fixed | None = None) -> nn.Module:
    """Register on a plain model the adapter of a local folder that peft has written, with its outputs to rounding.

    What the adapter holds besides, as a new head, is taken over and trains beside theta; all else is frozen. peft's
    files have no fingerprint: that the base is the one that was tuned cannot be checked.

    Args:
        model: The base, as it was given to peft.
        folder: With adapter_config.json and adapter_model.safetensors.
        fixed: Which factor of a LoRA adapter is not to train: "A", as in LoRA-FA, or "B".

    Returns:
        The model.

    Raises:
        FileNotFoundError: If the folder has no such files: names of repositories are not downloaded.
        ValueError: If the adapter is not of a tuner that is a (d, U) pair, or does not fit the model, which is then as
            it was.
    """
    config, tensors = _files(Path(folder))
    tuner = _tuner(config, fixed)
    layers, others = _sorted(tensors, tuner)
    starts = {name: _starts(model, name, own, tuner, config) for name, own in layers.items()}
    state = model.state_dict(keep_vars=True)
    if both := [name for own in starts.values() for name in own if name in others]:
        raise ValueError(f"the adapter must tune {both[0]} or hold it whole, got both")
    for name, tensor in others.items():
        if name not in state or state[name].shape != tensor.shape:
            got = "none of that name" if name not in state else f"one of shape {tuple(state[name].shape)}"
            raise ValueError(f"the model must have the adapter's {name}, of shape {tuple(tensor.shape)}, got {got}")
    freeze_others(register_sharing(model, starts.values()), others)
    for name, tensor in others.items():
        state[name].data.copy_(tensor)
        state[name].requires_grad_(isinstance(state[name], nn.Parameter))
    return model


def _starts(
    model: nn.Module, name: str, own: Mapping[str, Tensor], tuner: Tuner, config: Mapping[str, Any]
) -> dict[str, Start]:
    """d, U and theta of a layer's tensors, by their qualified names."""
    try:
        if missing := [suffix for suffix in tuner.suffixes if suffix not in own]:
            raise ValueError(f"the adapter must have its {missing[0]}, got none")
        pairs, theta = tuner.read(_layer(model, name), own, config)
        for _, U in pairs.values():
            if len(theta) != U.dim:
                raise ValueError(f"theta must have {U.dim} numbers, got {len(theta)}")
    except Exception as error:  # whatever numbers of a file may lead to
        raise ValueError(f"{name} must fit the adapter, got: {' '.join(str(error).split())}") from error
    return {f"{name}.{last}": (d, U, theta.to(d.like)) for last, (d, U) in pairs.items()}


def _files(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"folder must be a local one with {name}, got {os.fspath(folder)!r}")
    try:
        config, tensors = json.loads((folder / CONFIG).read_text()), from_safetensors((folder / WEIGHTS).read_bytes())
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"folder must have whole files of peft, got a damaged one ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG} must be a table, got {type(config).__name__}")
    return config, tensors


def _tuner(config: Mapping[str, Any], fixed: Fixed | None) -> Tuner:
    kind = next((kind for kind in TUNERS if kind.peft_type == config.get("peft_type")), None)
    if kind is None:
        known = ", ".join(kind.peft_type for kind in TUNERS)
        raise ValueError(f"peft_type must be of a tuner that is a (d, U) pair, {known}, got {config.get('peft_type')}")
    tuner = kind(fixed=fixed)
    tuner.check(config)
    return tuner


def _sorted(tensors: Mapping[str, Tensor], tuner: Tuner) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The tuner's tensors by their layers, and all others."""
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    others = {}
    for whole, tensor in tensors.items():
        if ".original_module." in whole:
            continue  # the base's own, beside one that was trained
        name = whole.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        suffix = next((suffix for suffix in tuner.suffixes if name.endswith(f".{suffix}")), None)
        if suffix is None:
            others[name] = tensor
        else:
            layers[name.removesuffix(f".{suffix}")][suffix] = tensor
    if not layers:
        raise ValueError(f"the adapter must have tensors of {tuner.peft_type}, got none")
    return layers, others


def _layer(model: nn.Module, name: str) -> Layer:
    module, _ = owner_of(model, f"{name}.weight")
    layout = weight_matrices(module, name.rpartition(".")[2]).get("weight")
    weight = module._parameters.get("weight")
    if layout is None or weight is None:
        raise ValueError(f"a layer with a plain weight matrix is wanted, got {type(module).__name__}")
    return Layer(name, module, weight, layout._replace(blocks=1))


def write(model: nn.Module, folder: str | os.PathLike[str], *, base: str | None = None, seed: int = 777) -> None:
    """Write a tuned model as an adapter that `peft.PeftModel.from_pretrained` loads, with equal outputs to rounding.

    What else was trained is written as peft's `modules_to_save`, whole modules.

    Args:
        model: Tuned by one tuner that peft has: SHiRA (`tune.sparse`), LoRA-FA and LoRA-XS (as LoRA, whose factors
            would both train in peft), IA3
            (`biases=True`), and FourierFT (of an adapter that was read).
        folder: Where to, made if it is not there.
        base: The name of the base for the configuration; by default what the model says, if it is transformers'.
        seed: Of FourierFT, from which peft draws the frequencies: its `random_loc_seed`.

    Raises:
        ValueError: If the model is tuned in another way, or peft's files cannot hold what was trained.
        OSError: If the folder cannot be written.
    """
    spaces = dict(subspaces(model))
    weights = {name.removesuffix(".weight"): space for name, space in spaces.items() if space.name == "weight"}
    tuner = _tuner_of(spaces, weights)(seed=seed)
    told = getattr(getattr(model, "config", None), "_name_or_path", None)
    config: dict[str, Any] = {
        "peft_type": tuner.peft_type,
        "base_model_name_or_path": base or told or None,
        "inference_mode": True,
        "target_modules": "|".join(map(re.escape, weights)),
    }
    tensors = tuner.write(weights, config)
    modules = _trained(model, [*spaces])
    config["modules_to_save"] = modules or None
    for name in modules:
        held = model.get_submodule(name).state_dict(prefix=f"{name}.")
        tensors |= {each: tensor.detach().cpu().clone() for each, tensor in held.items()}
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    named = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in tensors.items()}
    write_atomically(place / WEIGHTS, to_safetensors(named, {"format": "pt"}))
    write_atomically(place / CONFIG, json.dumps(config, indent=2).encode())


def _tuner_of(spaces: Mapping[str, Subspace], weights: Mapping[str, Subspace]) -> type[Tuner]:
    if not weights:
        raise ValueError("model must have at least one registered weight, got none")
    first = next(iter(weights.values())).embedding
    kind = next((kind for kind in TUNERS if kind().takes(first)), None)
    for name, space in spaces.items():
        if not isinstance(space.offset, Pretrained):
            raise ValueError(f"{name} must be the base's plus a delta, got d = {space.offset.label()}")
        of_a_layer = name.rpartition(".")[0] in weights and space.name in ("weight", "bias")
        if kind is None or not of_a_layer or not kind().takes(space.embedding):
            raise ValueError(f"{name} must have the U of one tuner of peft's, got {space.embedding.label()}")
    assert kind is not None
    return kind


def _trained(model: nn.Module, tuned: Sequence[str]) -> list[str]:
    """The modules that have tensors of their own which were trained, or are not what they were."""
    found = []
    for prefix, module in named_modules(model):
        if "parametrizations" in prefix.split(".") or not (names := [*_changed(module)]):
            continue
        first = f"{prefix}.{names[0]}".lstrip(".")
        if not prefix or any(name.startswith(f"{prefix}.") for name in tuned):
            raise ValueError(f"{first} must be as in the base, as peft's file has no place for it, got one that trains")
        found.append(prefix)
    return found


def _changed(module: nn.Module) -> Iterator[str]:
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and (tensor.requires_grad or has_changed(module, name, tensor)):
            yield name
