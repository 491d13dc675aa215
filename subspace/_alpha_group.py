"""alpha of w = alpha d + S in a parameter group of its own.

alpha is a number of theta, so that there is one Parameter to share, move, save and shard for each weight; but an
optimizer knows rates and decays of whole Parameters. So it is given a second one that stands for theta's alphas: it
takes their values and gradients just before a step, and what it has become is written to theta just after.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from subspace._base.sharded import reshard, whole, write
from subspace.parametrization import Subspace, require_thetas, subspaces


def add_alpha_group(
    optimizer: torch.optim.Optimizer, model: nn.Module, **options: Any
) -> list[torch.utils.hooks.RemovableHandle]:
    """Give the alphas of a model a parameter group of their own, named "alpha", in the optimizer that trains theta.

    They are then trained as a Parameter of their own would be, for every optimizer that treats numbers one by one (SGD,
    Adam and AdamW, RMSprop, ...): with the group's rate, decay and state, not theta's. Weight decay pulls them to where
    they start. Schedulers see the group; the optimizer's state_dict has it: add it before loading one. Add it before
    the first step.

    Args:
        optimizer: That trains the thetas.
        model: With at least one alpha, as of `recipes.dctps`, that trains.
        options: Of the group, as lr=0.001, weight_decay=0.1; what is not given is the optimizer's default.

    A copy or pickle of the optimizer is refused: make another, and load its state_dict. That is also what to keep in
    place of `torch.distributed.checkpoint`'s `get_optimizer_state_dict`, which takes Parameters of the model alone.

    Returns:
        The handles of the two hooks on the optimizer's steps.

    Raises:
        ValueError: If the model has no alpha that trains, if the optimizer does not train a theta of one or has such a
            group already, and for optimizers of one group (LBFGS) or that keep other values between steps (those with
            `eval()`, as schedule-free ones). The optimizer is then as it was.

    >>> from subspace import parameter_groups, recipes
    >>> net = recipes.dctps(nn.Sequential(nn.Linear(100, 10)), density=0.01)
    >>> optimizer = torch.optim.AdamW(parameter_groups(net), lr=0.001, weight_decay=0.1)
    >>> _ = add_alpha_group(optimizer, net, lr=0.01, weight_decay=0.5)
    >>> [(group["name"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    [('theta', 0.001, 0.1), ('rest', 0.001, 0.0), ('alpha', 0.01, 0.5)]
    """
    kind = type(optimizer)
    if issubclass(kind, torch.optim.LBFGS) or hasattr(optimizer, "eval"):
        raise ValueError(f"optimizer must step each Parameter in place, by groups, got {kind.__name__}")
    if any(group.get("name") == "alpha" for group in optimizer.param_groups):
        raise ValueError("optimizer must have no group named 'alpha' yet, got one")
    reshard(model)
    require_thetas(model)
    alphas = list(_alphas(model))
    if not alphas:
        raise ValueError("model must have an alpha that trains, got none")
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if any(id(alpha.theta) not in trained for alpha in alphas):
        raise ValueError("optimizer must train every theta that has an alpha, got one without")
    optimizer.add_param_group({"params": [alpha.own for alpha in alphas], "name": "alpha", **options})

    steps = _Steps(alphas)
    return [optimizer.register_step_pre_hook(steps.begin), optimizer.register_step_post_hook(steps.end)]


class _Steps(NamedTuple):
    """The hooks on an optimizer's steps."""

    alphas: list[_Alphas]

    def take(self) -> None:
        for alpha in self.alphas:
            alpha.take()

    def begin(self, _: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take what theta has; where the step has a closure, once that has made the gradients."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args begin with the optimizer
        if closure is None:
            return self.take()

        def taking() -> Any:
            loss = closure()
            self.take()
            return loss

        return ((args[0], taking, *args[2:]), kwargs) if len(args) > 1 else (args, kwargs | {"closure": taking})

    def end(self, *_: Any) -> None:
        for alpha in self.alphas:
            alpha.give()


class _Alphas(NamedTuple):
    """Those of one theta. at: their places in it. own: the Parameter that stands for them."""

    theta: Tensor
    at: Tensor
    own: nn.Parameter

    @torch.no_grad()
    def take(self) -> None:
        gradient = self.theta.grad
        self.own.copy_(whole(self.theta)[self.at])
        self.own.grad = None if gradient is None else whole(gradient)[self.at]

    @torch.no_grad()
    def give(self) -> None:
        write(self.theta, self.at, self.own)
        self.own.grad = None


def _alphas(model: nn.Module) -> Iterator[_Alphas]:
    """Of every theta that trains and has some."""
    places: dict[Tensor, set[int]] = {}
    for _, space in subspaces(model):
        if space.theta.requires_grad and (at := _places(space)):
            places.setdefault(space.theta, set()).update(at)
    for theta, found in places.items():
        index = torch.tensor(sorted(found), device=theta.device)
        own = nn.Parameter(whole(theta.detach())[index])
        for way in ("__deepcopy__", "__reduce_ex__"):
            setattr(own, way, _refuse_copy)  # a copied optimizer has no hooks, and would train alpha as theta
        yield _Alphas(theta, index, own)


def _refuse_copy(_: Any) -> None:
    raise TypeError("an optimizer with a group of alphas must not be copied: make another, and load its state_dict")


def _places(space: Subspace) -> list[int]:
    """The places of alphas in theta."""
    parts = space.embedding.parts()
    starts = accumulate((U.dim for U in parts), initial=0)
    return [start for U, start in zip(parts, starts, strict=False) if U.direction() is not None]
