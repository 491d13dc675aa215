"""Layers that never build their weight: the products with d and U theta themselves, in place of w's.

It changes nothing but time and memory: parameters, checkpoints, hooks and gradients are the same (to rounding, which is
the route's: set SUBSPACE_COSTS=typical for the same routes in every run and on every machine). A process forked after
torch has computed on several threads hangs, here as in torch's own layers: start others by "spawn".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import ParametrizationList

from subspace._base.autocast import as_autocast
from subspace._base.exporting import is_exporting
from subspace._structured.normal_form import NormalForm, why_no_normal_form
from subspace.parametrization import Subspace, SubspaceParametrization, subspaces
from subspace.products import LINEAR
from subspace.products.bindings import Bindings
from subspace.products.geometry import in_last_format
from subspace.products.layers import LAYERS, Layer, as_product
from subspace.products.product import check_input, multiply_by
from subspace.products.routes import NAMES, table_of_routes


def structured(model: nn.Module, route: str | Mapping[str, str] = "auto") -> nn.Module:
    """Rebind the forward of every linear layer and convolution that can do without its weight.

    Those are the instances of nn.Linear, Conv1d, Conv2d and Conv3d with a registered `weight` that is a sum of a DCT or
    Hadamard part, fixed or scaled by theta, and a sparse one (`products`); and linear layers whose offset and embedding
    have a fast `linear` each, as RankOne and FourierFT do. `summary` says of every tensor which, and `routes` what it
    costs.

    {routes}

    Args:
        model: With registered subspaces. Its parameters, checkpoints, hooks and gradients stay the same.
        route: One of these for all layers, or by the weight's qualified name ("auto" where not named).

    Returns:
        The model. A layer whose weight is parametrized again afterwards, or no longer, goes by that weight, and so does
        one whose forward somebody has replaced before; whoever wraps it afterwards wraps the products. A route that a
        layer cannot take is a ValueError of its forward pass, naming those that it can.

    Raises:
        ValueError: For an unknown route or name, and for a model without a subspace.

    >>> import torch
    >>> from subspace import recipes
    >>> net = recipes.dctps(nn.Sequential(nn.Linear(64, 64)), density=0.01)
    >>> x = torch.randn(2, 64)
    >>> torch.allclose(net(x), structured(net)(x), atol=1e-5)
    True
    """
    spaces = dict(subspaces(model))
    if not spaces:
        raise ValueError("model must have at least one registered subspace, got none")
    wanted = route if isinstance(route, Mapping) else dict.fromkeys(spaces, route)
    for name, each in wanted.items():
        if name not in spaces:
            raise ValueError(f"route must name registered tensors, such as {next(iter(spaces))!r}, got {name!r}")
        if each not in NAMES:
            raise ValueError(f"route must be one of {', '.join(NAMES)}, got {each!r}")
    for name, space in spaces.items():
        if unstructured_reason(space) is None:
            space.parametrization.products = Products(space.parametrization, wanted.get(name, "auto"))
            type(space.module).forward = forward_by_products
    return model


structured.__doc__ = (structured.__doc__ or "").replace("{routes}", table_of_routes().replace("\n", "\n    "))


def unstructured(model: nn.Module) -> nn.Module:
    """Undo `structured`: every layer builds its weight again.

    Args:
        model: Any model.

    Returns:
        The model.
    """
    for _, space in subspaces(model):
        space.parametrization.products = None
        for kind in type(space.module).__mro__:
            if vars(kind).get("forward") is forward_by_products:
                del kind.forward  # type: ignore[attr-defined]
    return model


class Products:
    """How a layer multiplies by d and U theta in place of w. form: None where d and U multiply x themselves."""

    def __init__(self, parametrization: SubspaceParametrization, route: str) -> None:
        self.route = route
        self.form = None if why_no_normal_form(parametrization) else NormalForm(parametrization)
        self.bindings = None if self.form is None else Bindings(self.form)

    def builds(self, parametrization: SubspaceParametrization, x: Tensor) -> bool:
        """Whether w is built after all, as the faster way: for d and U with products of their own, by their FLOPs."""
        if self.form is not None or self.route not in ("auto", "dense"):
            return False
        rows = x.numel() // x.shape[-1]  # none: a product of one's own need not know what to do then
        return self.route == "dense" or not rows or not parametrization.is_linear_faster(rows)


def forward_by_products(module: Layer, input: Tensor) -> Tensor:
    """The forward of a structured layer: it belongs to the class that torch makes for each parametrized module.

    So it is there for whatever calls or wraps the layer's forward afterwards, and in copies. A program that is exported
    multiplies by w where d and U have products of their own, which are no operators of torch's.
    """
    stack = _alone(module)
    products = None if stack is None else _first(stack).products
    if stack is None or products is None or (products.form is None and is_exporting()):
        return _plain_forward(type(module))(module, input)
    if products.builds(_first(stack), input):
        return _plain_forward(type(module))(module, input)
    theta, bias = stack.original, module.bias
    _first(stack).lineage.check(theta)
    if products.form is None:
        y = _first(stack).linear(theta, as_autocast(input))
        return y if bias is None else y + bias.to(y.dtype)
    seen, geometry = (input, LINEAR) if isinstance(module, nn.Linear) else as_product(module, input)
    if _first(stack).is_channels_last:  # as for torch, y has the format of x or that of w
        seen = in_last_format(seen)
    check_input(seen, products.form.shape, geometry)
    y = multiply_by(seen, products.form, (theta,), geometry, products.route, products.bindings)
    if bias is not None:
        y = _add(y, bias.view(-1, *(1 for _ in geometry.kernel)))
    return y if seen.ndim == input.ndim else y.squeeze(0)


def _add(y: Tensor, bias: Tensor) -> Tensor:
    """y + bias in the dtype of y, in place of y where that may be: not where vmap has more of bias than of y."""
    bias = bias.to(y.dtype)
    return y + bias if torch._C._are_functorch_transforms_active() else y.add_(bias)


def products_of(module: nn.Module) -> Products | None:
    """How a layer goes without its weight; None for any other module."""
    stack = _alone(module)
    if stack is None or type(module).forward is not forward_by_products:
        return None
    return cast("Products | None", _first(stack).products)


def is_structured(module: nn.Module) -> bool:
    """Whether the module is a layer that goes without its weight."""
    return products_of(module) is not None


def _alone(module: nn.Module) -> ParametrizationList | None:
    """The parametrizations of a module's weight, if that is d + U theta: not parametrized again, nor anything else."""
    stacks = module._modules.get("parametrizations")
    stack = None if stacks is None else stacks._modules.get("weight")
    if stack is None or len(stack._modules) != 1 or not isinstance(stack._modules["0"], SubspaceParametrization):
        return None
    return cast(ParametrizationList, stack)


def _first(stack: ParametrizationList) -> SubspaceParametrization:
    return cast(SubspaceParametrization, stack._modules["0"])


def _plain_forward(kind: type[nn.Module]) -> Callable[..., Tensor]:
    """The forward of a class apart from this one."""
    forwards = (vars(base)["forward"] for base in kind.__mro__ if "forward" in vars(base))
    found: Callable[..., Tensor] = next(forward for forward in forwards if forward is not forward_by_products)
    return found


def unstructured_reason(space: Subspace) -> str | None:
    """Why a tensor's layer has to build it, in a few words; None if it need not."""
    module, built = space.module, space.parametrization
    layer = next((kind for kind in LAYERS if isinstance(module, kind)), None)
    if layer is None or space.name != "weight" or _plain_forward(type(module)) is not layer.forward:
        return "not the weight of a linear layer or convolution"
    inner = (vars(module).get("_conv_forward"), getattr(type(module), "_conv_forward", None))  # of convolutions
    if inner != (None, getattr(layer, "_conv_forward", None)):
        return "its _conv_forward was replaced"
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention reads the weight and never calls the layer"
    if _alone(module) is None:
        return "parametrized again"
    if built.products is None and "forward" in vars(module):
        return "its forward was replaced before"
    if layer is nn.Linear and built.offset.has_fast_linear() and built.embedding.has_fast_linear():
        return None
    return why_no_normal_form(built)
