"""A pass of a model, layer by layer: the FLOPs of structured products, of any network.

Every call of a linear layer or convolution counts by `products`. What else the pass computes, be it attention, the
subspaces of its projections, transposed convolutions or a model's own products, counts as torch counts it, with every W
built once a pass: no model is refused. Hooks tell the two apart, taking what the layers compute out of torch's count;
of the rest, what is the same for one sample and for two belongs to the step. Nothing is counted for the gradient of the
first layer's input, which needs none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Size, Tensor, cat, nn
from torch.nn.utils import parametrize

from subspace import SubspaceParametrization, subspaces
from subspace.products.flops import Flops
from subspace.study.training.costs.product_flops import layer
from subspace.study.training.costs.torch_flops import Meter, evaluating

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Read:
    """One use of a weight in a forward pass: at how many positions of a sample, and if its input needs a gradient."""

    shape: Size
    parametrization: SubspaceParametrization | None
    positions: int
    differentiated: bool
    groups: int = 1


@dataclass(frozen=True)
class Pass:
    """The reads, and what torch counts of the rest: a forward and a backward pass of all samples."""

    reads: list[Read]
    forward: float
    backward: float


def flops(model: nn.Module, inputs: Tensor) -> Flops:
    """The FLOPs of the model for one sample such as these inputs (b, ...); leaves the model as it is."""
    one = _pass(model, inputs)
    counted = sum(
        (layer(r.shape, r.parametrization, r.positions, r.differentiated, r.groups) for r in one.reads), Flops()
    )
    if not one.forward + one.backward:
        return counted
    two = _pass(model, cat([inputs, inputs]))
    forward, backward = two.forward - one.forward, two.backward - one.backward
    step = one.forward + one.backward - forward - backward
    return counted + Flops(forward / len(inputs), backward / len(inputs), step=step)


def reads(model: nn.Module, inputs: Tensor) -> list[Read]:
    """Every use of a linear layer or convolution in a forward pass of the inputs, which leaves the model as it is."""
    return _pass(model, inputs).reads


def _pass(model: nn.Module, inputs: Tensor) -> Pass:
    weights = {space.module: space.parametrization for _, space in subspaces(model) if space.name == "weight"}
    found: list[Read] = []
    meter, inside, start = Meter(), 0, 0

    def enter(module: nn.Module, *_: Any) -> None:
        nonlocal start
        start = meter.flops

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        nonlocal inside
        inside += meter.flops - start
        x: Tensor = next(iter([*args, *kwargs.values()]))
        shape = _shape(module)
        positions = output.numel() // (len(inputs) * shape[0])
        groups = int(getattr(module, "groups", 1))
        found.append(Read(shape, weights.get(module), positions, x.requires_grad, groups))
        return _free(module, x, output)

    layers = [module for module in model.modules() if isinstance(module, KINDS)]
    hooks = [module.register_forward_pre_hook(enter, prepend=True) for module in layers]
    hooks += [module.register_forward_hook(leave, with_kwargs=True) for module in layers]
    try:
        with evaluating(model), parametrize.cached(), meter:
            value = model(inputs).sum()
            forward = meter.flops - inside
            if value.requires_grad:
                value.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return Pass(found, forward, meter.flops - inside - forward)


def _shape(module: nn.Module) -> Size:
    """Of the weight, which is not read for it: a read of a parametrized one would compute it."""
    if isinstance(module, nn.Linear):
        return Size((module.out_features, module.in_features))
    return Size((module.out_channels, module.in_channels // module.groups, *module.kernel_size))  # type: ignore


def _free(module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
    """The output, with gradients that reach the input and the parameters through nothing that torch counts."""
    through = [t for t in (x, *module.parameters()) if t.requires_grad]
    return sum((0 * t.sum() for t in through), start=output.detach())
