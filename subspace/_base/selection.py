"""Which tensors of a model a recipe takes: by default every weight of a convolution or linear layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, cast

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from subspace._base.layout import STANDARD, Layout
from subspace._base.qualified import named_modules

Selection: TypeAlias = str | Sequence[str] | Callable[[str, Tensor], bool]
Owner: TypeAlias = tuple[nn.Module, str, nn.Parameter | None]  # None where it is parametrized already

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
LAYOUTS: dict[type[nn.Module], Layout] = dict.fromkeys(  # of weights; all others are STANDARD
    (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), Layout(outputs=(1,), inputs=(0,))
)


class Target(NamedTuple):
    """A tensor that a recipe takes: its module, its name there, and itself."""

    module: nn.Module
    name: str
    weight: nn.Parameter

    @property
    def layout(self) -> Layout:
        """How the tensor is the matrix of its module's map."""
        kind = next((kind for kind in LAYOUTS if isinstance(self.module, kind)), None)
        return STANDARD if kind is None or self.name != "weight" else LAYOUTS[kind]


def targets(model: nn.Module, include: Selection | None = None, exclude: Selection | None = None) -> dict[str, Target]:
    """Choose the tensors of a model that a recipe takes.

    By default the `weight` of every linear and convolution layer, first and last included, and the projections of
    MultiheadAttention: never a bias, norm or embedding table.

    Args:
        model: Any module.
        include: Replaces the default choice: a list of suffixes ("fc" for the default tensors of a module of that name,
            "fc.bias" for one tensor), a regular expression that matches a tensor's whole qualified name, or a callable
            (name, tensor) -> bool.
        exclude: Narrows the choice; of the same kinds.

    Returns:
        Module, name there and weight of each chosen tensor, by qualified name, in the model's order.

    Raises:
        ValueError: If nothing is chosen, if a suffix matches nothing, or if a chosen tensor is tied to another or
            parametrized already.
    """
    owners: dict[str, Owner] = {}
    for prefix, module in named_modules(model):
        if "parametrizations" not in prefix.split("."):
            names = [name for name, parameter in module._parameters.items() if parameter is not None]
            if is_parametrized(module):
                names += cast(nn.ModuleDict, module.parametrizations)
            for name in names:
                owners[f"{prefix}.{name}".lstrip(".")] = (module, name, module._parameters.get(name))
    default = {qualified for qualified, (module, name, _) in owners.items() if is_default_target(module, name)}
    chosen = default if include is None else _selected("include", include, owners, default)
    if exclude is not None:
        chosen = chosen - _selected("exclude", exclude, owners, default)
    if not chosen:
        raise ValueError(f"the model must have a tensor that is chosen, got none among {len(owners)}")
    for qualified in chosen:
        weight = owners[qualified][2]
        if weight is None:
            raise ValueError(f"{qualified} must not be parametrized yet, got one that is")
        if tied := [name for name, (_, _, other) in owners.items() if other is weight and name != qualified]:
            raise ValueError(f"{qualified} must not be tied to another tensor, got one that is also {tied[0]}")
    return {name: Target(*cast("Target", owner)) for name, owner in owners.items() if name in chosen}


def is_default_target(module: nn.Module, name: str) -> bool:
    """Whether recipes take a module's tensor of this name unless they are told otherwise."""
    if isinstance(module, nn.MultiheadAttention):
        return name in ATTENTION
    return isinstance(module, LAYERS) and name == "weight"


def _selected(argument: str, selection: Selection, owners: dict[str, Owner], default: set[str]) -> set[str]:
    if callable(selection):
        return {name for name, (_, _, weight) in owners.items() if weight is not None and selection(name, weight)}
    if isinstance(selection, str):
        return {name for name in owners if re.fullmatch(selection, name)}
    matches = {suffix: {name for name in owners if _ends(name, suffix, name in default)} for suffix in selection}
    if missed := [suffix for suffix, names in matches.items() if not names]:
        raise ValueError(f"{argument} must name tensors of the model, got {missed[0]!r}, which none ends in")
    return set().union(*matches.values())


def _ends(qualified: str, suffix: str, default: bool) -> bool:
    module = qualified.rpartition(".")[0]
    return f".{qualified}".endswith(f".{suffix}") or (default and f".{module}".endswith(f".{suffix}"))
