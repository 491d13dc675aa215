"""The contestants: one module in every design, and what is timed of each."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import subspace
from benchmarks import peers
from benchmarks.timing import Call

OTHERS = ("dense", "channels_last", "authors", "prune", "parametrized")


def variant(name: str, module: nn.Module, density: float) -> nn.Module:
    """A copy of a module in one design: one of `OTHERS`, or DCTpS by a route of `subspace.structured`.

    "parametrized" is DCTpS without `structured`. A route followed by ":channels_last" gets its input in that format.
    """
    module = copy.deepcopy(module)
    if name == "authors":
        return peers.authors(module, density)
    if name == "prune":
        return peers.pruned(module, density)
    if name in ("dense", "channels_last"):
        return _formatted(name, module)
    n = sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, peers.PRUNABLE))
    module = subspace.recipes.dctps(module, dim=max(1, round(density * n)), seed=0)
    route = name.partition(":")[0]
    return module if name == "parametrized" else subspace.structured(module, route=route)


def product(name: str, module: nn.Module, x: Tensor) -> Call:
    """A layer forward, then the gradients to x and to all that trains."""
    x = _formatted(name, x.detach().clone()).requires_grad_()
    with torch.no_grad():
        gy = torch.randn_like(module(x))
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    return lambda: torch.autograd.grad(module(x), wanted, gy)


def step(name: str, model: nn.Module, x: Tensor, adam: bool = False) -> Call:
    """A network's training step: forward, a loss, backward and, if told so, Adam's step."""
    x = _formatted(name, x)
    optimizer = torch.optim.Adam(model.parameters()) if adam else None

    def call() -> None:
        model.zero_grad()
        model(x).square().mean().backward()
        if optimizer:
            optimizer.step()

    return call


def _formatted(name: str, what: Any) -> Any:
    flat = isinstance(what, Tensor) and what.ndim != 4
    return what if flat or not name.endswith("channels_last") else what.to(memory_format=torch.channels_last)
