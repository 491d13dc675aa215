"""The list that torch keeps for each parametrized tensor: what may follow d + U theta, and a theta that is shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from subspace.parametrization.parametrization import SubspaceParametrization

if TYPE_CHECKING:
    from typing_extensions import Self


def stack_of(module: nn.Module, name: str) -> Any:
    return cast(nn.ModuleDict, module.parametrizations)[name]


class Stack(parametrize.ParametrizationList):
    """The parametrizations of a tensor that is d + U theta, or a function of that."""

    def append(self, module: nn.Module) -> Stack:
        """Put another on top, which torch does not always check; ValueError if it takes no weight to a weight."""
        kind = type(module).__name__
        with torch.no_grad():
            weight = self()
            try:
                found = module(weight)
            except Exception as error:
                raise ValueError(f"{kind} must map a weight to one, to follow a subspace, got: {error}") from error
        if not (isinstance(found, Tensor) and (found.shape, found.dtype) == (weight.shape, weight.dtype)):
            got = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{kind} must give a weight of {tuple(weight.shape)} {weight.dtype}, got {got}")
        super().append(module)
        return self


def set_apart(stack: Any) -> None:
    stack.__class__, stack.is_tensor, stack.ntensors = Apart, False, 1


class Apart(Stack):
    """That of a tensor whose theta cannot become the weight: it is also another's, or of another dtype.

    As one of several originals theta is not overwritten where torch's `remove_parametrizations` leaves the weight. A
    state_dict has a shared one once, as safetensors and Hugging Face's Trainer want it.
    """

    keeper: tuple[Apart, ...] = ()  # the first tensor that a shared theta belongs to, for all the others

    @property
    def original0(self) -> Tensor:
        return self.original

    def right_inverse(self, value: Tensor) -> None:
        first, *others = cast("list[SubspaceParametrization]", list(self))
        with torch.no_grad():
            for other in reversed(others):
                value = other.right_inverse(value)
            self.original.copy_(first.nearest(value))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        others = {_storage(t) for n, t in destination.items() if n.endswith(".original")} if self.keeper else ()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if _storage(self.original) in others:
            del destination[f"{prefix}original"]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if self.keeper and (name := f"{prefix}original") not in state_dict:
            self.original = self.keeper[0].original  # another one, where it was assigned
            if name in missing_keys:
                missing_keys.remove(name)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.keeper and kind_of(theta := self.keeper[0].original) == kind_of(self.original):
            self.original = theta  # to or from the meta device torch makes a Parameter for each module
        return self


def _storage(tensor: Tensor) -> object:
    return tensor.untyped_storage()._cdata


def kind_of(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device
