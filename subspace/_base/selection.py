"""Which tensors of a model a recipe takes: by default every weight matrix, of whatever kind of module."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn

from subspace._base.bitsandbytes_weights import is_of_bitsandbytes
from subspace._base.kinds import likely_layout, parameter_names, plain_parameter, weight_matrices
from subspace._base.layout import STANDARD, Layout
from subspace._base.qualified import named_modules, named_parameters
from subspace._base.quantised import is_quantised
from subspace._base.sharded import is_sharded

Selection: TypeAlias = str | Sequence[str] | Callable[[str, Tensor], bool]


class Target(NamedTuple):
    """A tensor that a recipe takes: its module, its name there, how it is a matrix, and itself."""

    module: nn.Module
    name: str
    layout: Layout
    weight: nn.Parameter


class Owner(NamedTuple):
    """A module's own tensor. layout: None if it is no weight matrix; weight: None where it is parametrized already."""

    module: nn.Module
    name: str
    layout: Layout | None
    weight: nn.Parameter | None


def targets(model: nn.Module, include: Selection | None = None, exclude: Selection | None = None) -> dict[str, Target]:
    """Choose the tensors of a model that a recipe takes.

    By default all that are weight matrices and train: the `weight` of every linear and convolution layer, first and
    last included, also of other libraries; the matrices of attention, recurrent layers and experts; and those that
    `set_layouts` told of. Never a bias, norm or embedding table, nor what was frozen. Of tensors that are tied to one
    another one is chosen, the first that would be by itself; `summary` says what is left out, and why.

    Args:
        model: Any module.
        include: Replaces the default choice: a list of suffixes ("fc" for the default tensors of a module of that name,
            "fc.bias" for one tensor), a regular expression that matches a tensor's whole qualified name, or a callable
            (name, tensor) -> bool. What it names is taken if it was frozen, too.
        exclude: Narrows the choice; of the same kinds.

    Returns:
        Module, name there, layout and weight of each chosen tensor, by qualified name, in the model's order.

    Raises:
        ValueError: If nothing is chosen, if a suffix matches nothing, or if a chosen tensor is parametrized already.
    """
    return targets_without(model, (), include, exclude)


def targets_without(
    model: nn.Module, names: Collection[str], include: Selection | None, exclude: Selection | None
) -> dict[str, Target]:
    """The `targets` but those of these qualified names."""
    owners = tensor_owners(model)
    matrices = {name for name, owner in owners.items() if owner.layout is not None}
    default = {name for name in matrices if why_not_trained(owners[name].weight) is None}
    chosen = default if include is None else _selected("include", include, owners, matrices)
    if exclude is not None:
        chosen = chosen - _selected("exclude", exclude, owners, matrices)
    chosen = chosen.difference(names)
    if bytes_ := [name for name in owners if name in default & chosen and is_of_bitsandbytes(owners[name].weight)]:
        raise ValueError(
            f"{bytes_[0]} must be a tensor of its shape, got bytes: call subspace.from_bitsandbytes(model)"
        )
    if not chosen:
        frozen = len(matrices) if include is None and exclude is None and matrices else 0
        why = f": {frozen} are frozen, and can be named by include" if frozen else ""
        raise ValueError(f"the model must have a tensor that is chosen, got none among {len(owners)}{why}")
    groups: dict[int, list[str]] = defaultdict(list)  # of names of one tensor
    for name in owners:
        if name in chosen:
            if owners[name].weight is None:
                raise ValueError(f"{name} must not be parametrized yet, got one that is")
            if is_sharded(owners[name].weight):
                raise ValueError(
                    f"{name} must be whole to be chosen, got a DTensor: register before sharding the model"
                )
            groups[id(owners[name].weight)].append(name)
    first = {min(group, key=lambda name: name not in matrices) for group in groups.values()}
    return {
        name: Target(owner.module, owner.name, owner.layout or likely_layout(owner.weight), owner.weight)
        for name, owner in owners.items()
        if name in first and owner.weight is not None
    }


def tensor_owners(model: nn.Module) -> dict[str, Owner]:
    """Every Parameter of a model by qualified name, under each if it is tied; without those of d and U."""
    owners: dict[str, Owner] = {}
    for prefix, module in named_modules(model):
        if "parametrizations" not in prefix.split("."):
            layouts = weight_matrices(module, prefix.rpartition(".")[2])
            for name in parameter_names(module):
                weight = module._parameters.get(name)
                owners[f"{prefix}.{name}".lstrip(".")] = Owner(module, name, layouts.get(name), weight)
    return owners


def why_not_trained(weight: Tensor | None) -> str | None:
    """Why a weight matrix is not taken by default, in a word; None if it is."""
    if weight is None or nn.parameter.is_lazy(weight):
        return None  # which is refused
    if is_of_bitsandbytes(weight):
        return None  # which is refused, too
    if not weight.is_floating_point():
        return "not floating-point"
    return None if weight.requires_grad or is_quantised(weight) else "frozen"  # quantisers let no gradient through


def is_default_target(module: nn.Module, name: str) -> bool:
    """Whether recipes take a module's tensor of this name unless they are told otherwise, or it is frozen."""
    return name in weight_matrices(module)


def layouts_of(model: nn.Module) -> dict[str, Layout]:
    """How every plain Parameter of a model is a matrix, as far as is known, by qualified name."""
    owners = tensor_owners(model)
    return {
        name: owner.layout or (STANDARD if weight is None else likely_layout(weight))
        for name, owner in owners.items()
        for weight in [plain_parameter(owner.module, owner.name)]
    }


def within(model: nn.Module, selection: Selection | None) -> set[str]:
    """The Parameters that are named, or are anywhere in a module that is; ValueError for a suffix of none.

    selection: as the `include` of `targets`, but that a suffix stands for all that is in a module of that name; None
    for nothing.
    """
    if selection is None:
        return set()
    parameters = dict(named_parameters(model, ties=True))
    if callable(selection):
        return {name for name, parameter in parameters.items() if selection(name, parameter)}
    if isinstance(selection, str):
        return _matching("also_train", selection, parameters)
    found = {suffix: {name for name in parameters if f".{suffix}." in f".{name}."} for suffix in selection}
    if missed := [suffix for suffix, names in found.items() if not names]:
        raise ValueError(f"also_train must name tensors of the model, got {missed[0]!r}, which none is in")
    return set().union(*found.values())


def _selected(argument: str, selection: Selection, owners: Mapping[str, Owner], default: set[str]) -> set[str]:
    if callable(selection):
        plain = {name: owner.weight for name, owner in owners.items()}
        return {name for name, weight in plain.items() if weight is not None and selection(name, weight)}
    if isinstance(selection, str):
        return _matching(argument, selection, owners)
    matches = {suffix: {name for name in owners if _ends(name, suffix, name in default)} for suffix in selection}
    if missed := [suffix for suffix, names in matches.items() if not names]:
        raise ValueError(f"{argument} must name tensors of the model, got {missed[0]!r}, which none ends in")
    return set().union(*matches.values())


def _matching(argument: str, expression: str, names: Iterable[str]) -> set[str]:
    """The names that a regular expression matches, whole; ValueError if there are none."""
    found = {name for name in names if re.fullmatch(expression, name)}
    if not found:
        told = f"got {expression!r}, which matches none; suffixes want a list"
        raise ValueError(f"{argument} must match whole names of tensors of the model, {told}")
    return found


def _ends(qualified: str, suffix: str, default: bool) -> bool:
    module = qualified.rpartition(".")[0]
    return f".{qualified}".endswith(f".{suffix}") or (default and f".{module}".endswith(f".{suffix}"))
