"""What a model trains, as an optimizer's parameter groups: theta, what else is decayed, and what is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from subspace._base.kinds import is_norm
from subspace.parametrization import subspaces

NAMES = ("theta", "matrices", "kernels", "rest")


def parameter_groups(model: nn.Module, **options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Sort the Parameters of a model into groups with rates and decays of their own.

    Weight decay acts on theta, not on w: it pulls w to d, a pruned network's to 0, a pretrained one's back to the
    pretrained weights, and alpha of DCTpS to 1. So theta is decayed as a weight is, though it has one axis only.

    | name | what | decayed |
    | --- | --- | --- |
    | theta | the thetas, alpha among their numbers (but see `add_alpha_group`) | yes |
    | matrices | what else has two axes | yes |
    | kernels | what else has more | yes |
    | rest | biases, norms, and what else has fewer axes | no |

    Args:
        model: Any module, before or after `structured`.
        options: For each name the options of its group, as theta={"lr": 0.01, "weight_decay": 0.0}. What is not given
            is the optimizer's default; the rest has a "weight_decay" of 0.

    Returns:
        The groups in this order, each with its "name"; none that is empty. A Parameter that requires no gradient is in
        no group, one of several modules in one.

    Raises:
        TypeError: For another name.

    >>> import torch
    >>> from subspace import recipes
    >>> net = recipes.dctps(nn.Sequential(nn.Linear(100, 10)), density=0.01)
    >>> optimizer = torch.optim.AdamW(parameter_groups(net, theta={"lr": 0.01}), lr=0.001, weight_decay=0.1)
    >>> [(group["name"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    [('theta', 0.01, 0.1), ('rest', 0.001, 0.0)]
    """
    if unknown := options.keys() - set(NAMES):
        raise TypeError(f"options must be for groups named {', '.join(NAMES)}, got some for {min(unknown)!r}")
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in NAMES}
    for name, parameter in _sorted(model):
        groups[name].append(parameter)
    defaults = {"rest": {"weight_decay": 0.0}}
    return [
        {"params": parameters, "name": name, **defaults.get(name, {}), **options.get(name, {})}
        for name, parameters in groups.items()
        if parameters
    ]


def _sorted(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every Parameter that is trained, once, and the name of its group."""
    seen = set()
    thetas = {id(space.theta) for _, space in subspaces(model)}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            if id(parameter) in thetas:
                yield "theta", parameter
            elif parameter.ndim < 2 or "bias" in name or is_norm(module):
                yield "rest", parameter
            else:
                yield "matrices" if parameter.ndim == 2 else "kernels", parameter
