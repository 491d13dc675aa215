"""Tied tensors: where one owner of a Parameter is parametrized, the others read the weight that it computes.

A module that reads another's tensor has no Parameter of that name any more but a property, so that theta is there once:
for optimizers, in a state_dict and in files.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

TIES = "_subspace_ties"  # an attribute of modules: their tensors that are another's, by name
TIED = "_subspace_tied"  # an attribute of the class of a module that reads another's tensor

Tie = tuple[nn.Module, str]  # the module that has the tensor, and its name there


def tie(module: nn.Module, name: str, source: nn.Module, source_name: str) -> None:
    """Let a module's tensor be another's from now on; raises as `require_tieable`."""
    require_tieable(module, name)
    del module._parameters[name]
    vars(module)[TIES] = {**ties(module), name: (source, source_name)}
    module.__class__ = _class_of_its_own(type(module))
    setattr(type(module), name, _reader(name))


def require_tieable(module: nn.Module, name: str) -> None:
    """Raise ValueError for a tensor that cannot be read from another module.

    That is one of a recurrent layer, which keeps its weights in a list too, or of a module with parametrized tensors,
    whose class is its own already.
    """
    if isinstance(module, nn.RNNBase):
        raise ValueError(f"{name} must not be tied in a recurrent layer, got a tied one of {type(module).__name__}")
    if is_parametrized(module):
        kind = type_before_parametrizations(module).__name__
        raise ValueError(f"{name} must not be tied in a module with parametrized tensors, got a tied one of {kind}")


def ties(module: nn.Module) -> dict[str, Tie]:
    """The tensors of a module that are another's, by name."""
    found: dict[str, Tie] = vars(module).get(TIES, {})
    return found


def restore_ties(model: nn.Module) -> None:
    """Give every module that reads another's tensor its Parameter back, where that is a plain Parameter again."""
    for module in model.modules():
        for name, (source, source_name) in list(ties(module).items()):
            if (weight := source._parameters.get(source_name)) is not None:
                del ties(module)[name]
                delattr(type(module), name)
                module.register_parameter(name, weight)
                if not ties(module):
                    module.__class__ = _plain_class(module)


def owned_by(model: nn.Module, weight: Tensor) -> list[Tie]:
    """All the modules of a model that have a Parameter, each with its name there: several where it is tied."""
    return [(module, name) for module in model.modules() for name, p in module._parameters.items() if p is weight]


def other_owners(module: nn.Module, name: str) -> Iterator[Tie]:
    """Where a module's Parameter is as well: in itself, and in the modules of any model of this process."""
    weight = module._parameters[name]
    yield from ((module, other) for other, tensor in module._parameters.items() if tensor is weight and other != name)
    if weight is None or not _is_held_elsewhere(weight):
        return  # a search takes a twentieth of a second
    for each in gc.get_objects():
        if issubclass(type(each), nn.Module) and each is not module:
            yield from (
                (each, other) for other, tensor in vars(each).get("_parameters", {}).items() if tensor is weight
            )


def _is_held_elsewhere(weight: nn.Parameter) -> bool:
    """Whether something refers to a Parameter besides one module and the variables of running functions."""
    held, frame = sys.getrefcount(weight) - 2, sys._getframe()  # but for the module, and the call
    while frame is not None:
        held -= sum(value is weight for value in frame.f_locals.values())
        frame = frame.f_back  # type: ignore[assignment]
    return held > 0


def _reader(name: str) -> property:
    def read(module: nn.Module) -> Tensor:
        source, source_name = vars(module)[TIES][name]
        weight: Tensor = getattr(source, source_name)
        return weight

    def write(module: nn.Module, value: Tensor) -> None:
        source, source_name = vars(module)[TIES][name]
        setattr(source, source_name, value)

    return property(read, write)


def _class_of_its_own(base: type[nn.Module]) -> type[nn.Module]:
    if TIED in vars(base):
        return base
    own = {TIED: True, "__reduce_ex__": _reduce, "__module__": base.__module__}
    return type(f"Tied{base.__name__}", (base,), own)


def _plain_class(module: nn.Module) -> type[nn.Module]:
    return next(kind for kind in type(module).__mro__ if TIED not in vars(kind))


def _reduce(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """How copies and pickles are made, which know classes by name."""
    return _rebuild, (_plain_class(module), tuple(ties(module))), vars(module)


def _rebuild(kind: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    own = _class_of_its_own(kind)
    for name in names:
        setattr(own, name, _reader(name))
    return own.__new__(own)
