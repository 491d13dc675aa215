"""Which tensors of a model a recipe takes: by default every weight of a convolution or linear layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

Selection: TypeAlias = str | Sequence[str] | Callable[[str, Tensor], bool]
Owner: TypeAlias = tuple[nn.Module, str, nn.Parameter | None]  # None where it is parametrized already
Target: TypeAlias = tuple[nn.Module, str, nn.Parameter]

LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Bilinear,
)
ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def targets(model: nn.Module, include: Selection | None = None, exclude: Selection | None = None) -> dict[str, Target]:
    """(module, name, weight) of the chosen tensors, by qualified name, in the model's order.

    By default the `weight` of every linear and convolution layer, first and last included, and the projections of
    MultiheadAttention: never a bias, norm or embedding table. `include` replaces that choice and `exclude` narrows it.
    Each is a list of suffixes ("fc" for the default tensors of a module of that name, "fc.bias" for one tensor), a
    regular expression that matches a tensor's whole qualified name, or a callable (name, tensor) -> bool.

    Raises ValueError if nothing is chosen, if a suffix matches nothing, or if a chosen tensor is tied to another or
    parametrized already.
    """
    owners: dict[str, Owner] = {}
    for prefix, module in model.named_modules():
        if "parametrizations" not in prefix.split("."):
            names = [name for name, parameter in module._parameters.items() if parameter is not None]
            if is_parametrized(module):
                names += cast(nn.ModuleDict, module.parametrizations)
            for name in names:
                owners[f"{prefix}.{name}".lstrip(".")] = (module, name, module._parameters.get(name))
    usual = {q for q, (module, name, _) in owners.items() if _usual(module, name)}
    chosen = usual if include is None else _selected("include", include, owners, usual)
    if exclude is not None:
        chosen = chosen - _selected("exclude", exclude, owners, usual)
    if not chosen:
        raise ValueError(f"the model must have a tensor that is chosen, got none among {len(owners)}")
    for qualified in chosen:
        weight = owners[qualified][2]
        if weight is None:
            raise ValueError(f"{qualified} must not be parametrized yet, got one that is")
        if tied := [q for q, (_, _, other) in owners.items() if other is weight and q != qualified]:
            raise ValueError(f"{qualified} must not be tied to another tensor, got one that is also {tied[0]}")
    return {q: cast("Target", owner) for q, owner in owners.items() if q in chosen}


def _usual(module: nn.Module, name: str) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return name in ATTENTION
    return isinstance(module, LAYERS) and name == "weight"


def _selected(argument: str, selection: Selection, owners: dict[str, Owner], usual: set[str]) -> set[str]:
    if callable(selection):
        return {q for q, (_, _, weight) in owners.items() if weight is not None and selection(q, weight)}
    if isinstance(selection, str):
        return {q for q in owners if re.fullmatch(selection, q)}
    matches = {suffix: {q for q in owners if _ends(q, suffix, q in usual)} for suffix in selection}
    if missed := [suffix for suffix, names in matches.items() if not names]:
        raise ValueError(f"{argument} must name tensors of the model, got {missed[0]!r}, which none ends in")
    return set().union(*matches.values())


def _ends(qualified: str, suffix: str, usual: bool) -> bool:
    module = qualified.rpartition(".")[0]
    return f".{qualified}".endswith(f".{suffix}") or (usual and f".{module}".endswith(f".{suffix}"))
