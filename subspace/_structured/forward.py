"""Layers that never build their weight: the products with d and U theta themselves, in place of w's.

It changes nothing but time and memory: parameters, checkpoints, hooks and gradients are the same (to rounding, which is
the route's: set SUBSPACE_COSTS=typical for the same routes in every run and on every machine). A process forked after
torch has computed on several threads hangs, here as in torch's own layers: start others by "spawn".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from subspace._structured.normal_form import NormalForm, why_no_normal_form
from subspace.parametrization import Subspace, subspaces
from subspace.products import conv, linear
from subspace.products.layers import LAYERS, as_product
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
        The model. A layer whose weight is parametrized again afterwards, or no longer, goes by that weight. A route
        that a layer cannot take is a ValueError of its forward pass, naming those that it can.

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
            space.module.forward = StructuredForward(space, wanted.get(name, "auto"))
    return model


structured.__doc__ = (structured.__doc__ or "").replace("{routes}", table_of_routes().replace("\n", "\n    "))


def unstructured(model: nn.Module) -> nn.Module:
    """Undo `structured`: every layer builds its weight again.

    Args:
        model: Any model.

    Returns:
        The model.
    """
    for module in model.modules():
        if isinstance(vars(module).get("forward"), StructuredForward):
            del module.forward
    return model


class StructuredForward:
    """The forward of a layer that never builds its weight. form: None where d and U multiply x themselves."""

    def __init__(self, space: Subspace, route: str) -> None:
        self.space, self.route = space, route
        self.form = None if why_no_normal_form(space.parametrization) else NormalForm(space.parametrization)

    def __call__(self, x: Tensor) -> Tensor:
        module, space = self.space.module, self.space
        if not _is_alone(space) or self.builds(x):
            y: Tensor = type(module).forward(module, x)
            return y
        bias = cast("Tensor | None", module.bias)
        if self.form is None:
            y = space.parametrization.linear(space.theta, x)
            return y if bias is None else y + bias
        w = self.form(space.theta)
        if isinstance(module, nn.Linear):
            y = linear(x, w, self.route)
            return y if bias is None else y.add_(bias.to(y.dtype))
        seen, geometry = as_product(module, x)  # type: ignore[arg-type]
        y = conv(seen, w, geometry, self.route)
        if bias is not None:
            y = y.add_(bias.to(y.dtype).view(-1, *(1 for _ in geometry.kernel)))
        return y if seen.ndim == x.ndim else y.squeeze(0)

    def builds(self, x: Tensor) -> bool:
        """Whether w is built after all, as the faster way."""
        if self.form is not None or self.route not in ("auto", "dense"):
            return False
        return self.route == "dense" or not self.space.parametrization.is_linear_faster(x.numel() // x.shape[-1])


def structured_forward(module: nn.Module) -> StructuredForward | None:
    """The forward of a layer that goes without its weight; None for any other module."""
    forward = vars(module).get("forward")
    return forward if isinstance(forward, StructuredForward) and _is_alone(forward.space) else None


def is_structured(module: nn.Module) -> bool:
    """Whether the module is a layer that goes without its weight."""
    return structured_forward(module) is not None


def _is_alone(space: Subspace) -> bool:
    """Whether the tensor is d + U theta still: not parametrized again, nor anything else."""
    stacks = space.module._modules.get("parametrizations")
    stack = None if stacks is None else stacks._modules.get(space.name)
    return stack is not None and len(stack) == 1 and stack[0] is space.parametrization  # type: ignore[arg-type, index]


def unstructured_reason(space: Subspace) -> str | None:
    """Why a tensor's layer has to build it, in a few words; None if it need not."""
    module, built = space.module, space.parametrization
    layer = next((kind for kind in LAYERS if isinstance(module, kind)), None)
    if layer is None or space.name != "weight" or type(module).forward is not layer.forward:
        return "not the weight of a linear layer or convolution"
    if not _is_alone(space):
        return "parametrized again"
    if layer is nn.Linear and built.offset.has_fast_linear() and built.embedding.has_fast_linear():
        return None
    return why_no_normal_form(built)
