"""What a training checkpoint of another library need not hold, and what it has to hold besides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from subspace._base.first_values import checksum, has_first_value
from subspace.parametrization import subspaces


class Moves(Protocol):
    """What is called after every step of the optimizer: `methods.RigL`, `methods.SET`, `methods.GradualPruning`."""

    def step(self, objective: Callable[[nn.Module], Tensor] | None = None) -> None:
        """Count a step, and move U if it is due."""

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""


MakeMover = Callable[[nn.Module, Optimizer], Moves]  # as lambda model, optimizer: RigL(model, optimizer, t_end=1000)


def of_the_base(model: nn.Module) -> set[str]:
    """The frozen Parameters that hold what they held when the model was registered, by their names in a state_dict.

    Raises ValueError for a model without registered subspaces.
    """
    if next(subspaces(model), None) is None:
        raise ValueError("model must have at least one registered subspace, got none: apply a recipe first")
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name, parameter in module._parameters.items()
        if parameter is not None and not parameter.requires_grad and has_first_value(module, name, parameter)
    }


def record(model: nn.Module, mover: Moves | None) -> dict[str, Any]:
    """What a checkpoint holds besides the states of the model and of the optimizer."""
    return {"model": _checksums(model), "mover": mover and mover.state_dict()}


def resume(model: nn.Module, mover: Moves | None, recorded: Mapping[str, Any]) -> None:
    """Let a mover go on from what was recorded.

    Raises ValueError unless the model, its base included, is as it was then, to the bit, and moved or not as now.
    """
    saved, now = recorded["model"], _checksums(model)
    if others := sorted(name for name in {*saved, *now} if saved.get(name) != now.get(name)):
        raise ValueError(
            f"the model must be as the checkpoint left it, on the same base, got another {others[0]}: "
            "load the base and apply the recipe as before"
        )
    if (mover is None) != (recorded["mover"] is None):
        wanted, got = ("no mover", "one") if recorded["mover"] is None else ("a mover", "none")
        raise ValueError(f"training must go on with {wanted}, as the checkpoint was made, got {got}")
    if mover is not None:
        mover.load_state_dict(recorded["mover"])


def _checksums(model: nn.Module) -> dict[str, str | None]:
    return {name: checksum(parameter) for name, parameter in model.named_parameters()}
