"""Which Parameters of a module are weight matrices, and how each is one: a rule for each kind of module.

torch's own kinds are known by their class, those of other libraries by what they look like, so that none of them is
imported: a `weight` of two axes that is no embedding table and no norm's, and experts of three. Where their weights
have the inputs first, a bias says so, or the name of the class. What no rule knows is told by `set_layouts`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, cast

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from subspace._base.layout import STANDARD, Layout, checked
from subspace._base.qualified import named_parameters, owner_of

Layouts: TypeAlias = dict[str, Layout]  # of a module's weight matrices, by name
Rule: TypeAlias = Callable[[nn.Module, str], "Layouts | None"]  # of a module and its own name; None for other kinds

LINEAR = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TABLES = (nn.Embedding, nn.EmbeddingBag)
FUSED = re.compile(r"w?qkv(_proj)?|in_proj|c_attn", re.IGNORECASE)  # queries, keys and values, if all of one size
GATES = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3}
EXPERTS = Layout(outputs=(1,), inputs=(2,), batch=(0,))
EXPERTS_INPUTS_FIRST = Layout(outputs=(2,), inputs=(1,), batch=(0,))
INPUTS_FIRST = Layout(outputs=(1,), inputs=(0,))
DECLARED = "subspace_layouts"  # an attribute of modules, or of their class


def weight_matrices(module: nn.Module, name: str = "") -> Layouts:
    """How each weight matrix among a module's own Parameters is one.

    name: the module's own, without those of the modules it is in; some say by it what their weight holds.
    """
    known = next((layouts for rule in RULES if (layouts := rule(module, name)) is not None), {})
    return {**known, **getattr(module, DECLARED, {})}


def likely_layout(weight: Tensor) -> Layout:
    """How a Parameter that no rule knows is a matrix: as a convolution's weight, or of three axes as experts."""
    return EXPERTS if weight.ndim == 3 else STANDARD


def set_layouts(model: nn.Module, layouts: Mapping[str, Layout] | Callable[[str, Tensor], Layout | None]) -> nn.Module:
    """Tell how Parameters of a model are matrices; recipes then take them by default, and budgets count them so.

    A class of modules may say it for itself, by an attribute `subspace_layouts`, a dict of layouts by name.

    Args:
        model: Any module; its tensors stay as they are.
        layouts: By regular expression, which is to match a Parameter's whole qualified name; or (name, tensor) -> its
            layout, None to leave what is known of it.

    Returns:
        The model.

    Raises:
        ValueError: If an expression matches nothing, or a layout is none of the Parameter's shape. The model is then as
            it was.

    >>> import torch
    >>> class Experts(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.up = nn.Parameter(torch.randn(4, 8, 16))  # four experts, each 8 x 16, for x @ up[i]
    >>> model = set_layouts(nn.Sequential(Experts()), {r".*\\.up": Layout.parse("batch in out")})
    """
    parameters = dict(named_parameters(model, ties=True))
    if callable(layouts):
        told = {name: layout for name, p in parameters.items() if (layout := layouts(name, p)) is not None}
    else:
        told = {}
        for pattern, layout in layouts.items():
            if not (names := [name for name in parameters if re.fullmatch(pattern, name)]):
                raise ValueError(f"layouts must name tensors of the model, got {pattern!r}, which matches none")
            told |= dict.fromkeys(names, layout)
    told = {name: checked(layout, parameters[name].shape) for name, layout in told.items()}
    for qualified, layout in told.items():
        module, name = owner_of(model, qualified)
        setattr(module, DECLARED, {**getattr(module, DECLARED, {}), name: layout})
    return model


def _attention(module: nn.Module, name: str) -> Layouts | None:
    if not isinstance(module, nn.MultiheadAttention):
        return None
    return {
        "in_proj_weight": Layout(blocks=3),
        **dict.fromkeys(("q_proj_weight", "k_proj_weight", "v_proj_weight"), STANDARD),
    }


def _recurrent(module: nn.Module, name: str) -> Layouts | None:
    if not isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return None
    kind = getattr(module, "mode", type_before_parametrizations(module).__name__)
    gates = Layout(blocks=GATES.get(kind, 1))
    weights = [each for each in parameter_names(module) if each.startswith("weight_")]
    return {each: STANDARD if each.startswith("weight_hr") else gates for each in weights}


def _transposed(module: nn.Module, name: str) -> Layouts | None:
    return {"weight": INPUTS_FIRST} if isinstance(module, TRANSPOSED) else None


def _linear(module: nn.Module, name: str) -> Layouts | None:
    return {"weight": _fused(module, name, STANDARD)} if isinstance(module, LINEAR) else None


def _no_matrix(module: nn.Module, name: str) -> Layouts | None:
    """Tables, and torch's own modules that are none of the above."""
    kind = type_before_parametrizations(module)
    return {} if is_table(module) or kind.__module__.startswith("torch.nn.") else None


def _experts(module: nn.Module, name: str) -> Layouts | None:
    """Those of transformers, as of Mixtral (E, out, in) and of GPT-OSS (E, in, out)."""
    if not any("Experts" in kind.__name__ for kind in type(module).__mro__):
        return None
    layouts = {each: _of_experts(module, each) for each in parameter_names(module)}
    return {each: layout for each, layout in layouts.items() if layout is not None}


def _of_experts(module: nn.Module, name: str) -> Layout | None:
    weight, bias = plain_parameter(module, name), plain_parameter(module, f"{name}_bias")
    if weight is None:
        return EXPERTS if is_parametrized(module, name) else None
    if weight.ndim != 3:
        return None
    if bias is not None and bias.ndim == 2 and weight.shape[1] != weight.shape[2]:
        return EXPERTS_INPUTS_FIRST if bias.shape[1] == weight.shape[2] else EXPERTS
    return EXPERTS_INPUTS_FIRST if getattr(module, "is_transposed", False) else EXPERTS


def _like_linear(module: nn.Module, name: str) -> Layouts | None:
    """Others' linear layers, as transformers' Conv1D, whose weight has the inputs first."""
    weight, bias = plain_parameter(module, "weight"), plain_parameter(module, "bias")
    if weight is None:
        return {"weight": STANDARD} if is_parametrized(module, "weight") else None
    if weight.ndim != 2:
        return None
    n, m = weight.shape
    if bias is not None and n != m and bias.shape in ((n,), (m,)):
        inputs_first = len(bias) == m
    else:
        inputs_first = any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)
    return {"weight": _fused(module, name, INPUTS_FIRST if inputs_first else STANDARD)}


def _fused(module: nn.Module, name: str, layout: Layout) -> Layout:
    """The layout with three blocks, if the module is called as those are that hold queries, keys and values."""
    weight = plain_parameter(module, "weight")
    if weight is None or weight.ndim != 2 or not FUSED.fullmatch(name):
        return layout
    n_out, n_in = layout.fans(weight.shape)
    return layout._replace(blocks=3) if n_out == 3 * n_in else layout


def is_table(module: nn.Module) -> bool:
    """Whether a module looks rows up in its weight."""
    return isinstance(module, TABLES) or any("Embed" in kind.__name__ for kind in type(module).__mro__)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises, torch's own or one that is called so, and scales and shifts by its Parameters."""
    return any(kind.__name__.rstrip("0123456789d").endswith("Norm") for kind in type(module).__mro__)


def parameter_names(module: nn.Module) -> list[str]:
    """The names of a module's own Parameters, those that are parametrized included."""
    names = [name for name, parameter in module._parameters.items() if parameter is not None]
    return names + list(cast(nn.ModuleDict, module.parametrizations)) if is_parametrized(module) else names


def plain_parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    """A module's own Parameter that has a shape and is not parametrized."""
    parameter = module._parameters.get(name)
    return None if parameter is None or nn.parameter.is_lazy(parameter) else parameter


RULES: Sequence[Rule] = (_attention, _recurrent, _transposed, _linear, _no_matrix, _experts, _like_linear)
