"""The class that torch makes for each parametrized module: how it is copied, pickled, loaded and kept as it is."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from subspace._base.sharded import is_sharded
from subspace.parametrization.handle import own_spaces
from subspace.parametrization.parametrization import THETA_AND_EXTRA, SubspaceParametrization
from subspace.parametrization.stack import stack_of

if TYPE_CHECKING:
    pass


def give_own_methods(kind: type[nn.Module]) -> None:
    """Give the class that torch has made for a parametrized module what it lacks.

    It has no name to be found by, whence torch refuses to pickle the module; and its properties are of that module, so
    that removing the parametrizations of a copy that shares the class would destroy the original's, and `cached()`
    would give one the other's weights.
    """
    own: Any = kind
    own.__deepcopy__, own.__reduce__ = _deepcopy, _reduce
    own.register_parameter, own._load_from_state_dict = _register_parameter, _load_from_state_dict
    if "__getstate__" in vars(kind):  # which raises
        del own.__getstate__


def _base(module: nn.Module) -> Any:
    """The class of a module before torch made one for its parametrizations; `fully_shard` puts another on top."""
    kinds = type(module).__mro__
    return next(below for kind, below in pairwise(kinds) if "__reduce__" in vars(kind))


def _load_from_state_dict(module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    others[-1].extend(_refused(module, state, prefix))  # errors whatever `strict` says
    _base(module)._load_from_state_dict(module, state, prefix, *others)


def _refused(module: nn.Module, state: dict[str, Any], prefix: str) -> Iterator[str]:
    """What of a state_dict does not belong to the subspaces of a module: it is taken out, and said why."""
    for name, stack in cast(nn.ModuleDict, module.parametrizations).items():
        first = cast(nn.ModuleList, stack)[0]
        if not isinstance(first, SubspaceParametrization):
            continue
        tensor, theta, extra = f"{prefix}{name}", *(f"{prefix}parametrizations.{name}.{n}" for n in THETA_AND_EXTRA)
        if state.pop(tensor, None) is not None:
            yield (
                f"{tensor} must come as the theta of its d + U theta, got dense values: load them before `register`, "
                f"or assign them to the module's {name}, which takes the nearest point of the subspace"
            )
        try:
            if extra in state:
                first.checked(state[extra])
            elif theta in state:
                warnings.warn(
                    f"the state_dict should have {extra}, without which nothing tells whether theta of {tensor} is of "
                    "the same d and U, got none",
                    stacklevel=2,
                )
        except ValueError as error:
            yield f"{tensor} must get a theta of its own d and U, got one of another: {error}"
            state[theta], state[extra] = stack_of(module, name).original.detach(), first.get_extra_state()


def _deepcopy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a parametrized module, with a class of its own."""
    for stale in _computed(module):
        memo[id(stale)] = stale.detach()
    replica = memo[id(module)] = _empty(*_make_up(module))
    replica.__dict__ = copy.deepcopy(module.__dict__, memo)
    for mine, its in zip(_stacks(module), _stacks(replica), strict=True):
        if isinstance(mine[0], SubspaceParametrization):
            mine[0].lineage.add(its[0].lineage, its.original)
    return replica


def _stacks(module: nn.Module) -> list[Any]:
    """The parametrizations of each of a module's tensors."""
    return list(cast(nn.ModuleDict, module.parametrizations).values())


def _reduce(module: nn.Module) -> tuple[Any, ...]:
    """A parametrized module for pickle: how to make it and its class, and its state."""
    base, names, methods = _make_up(module)
    state = base.__getstate__(module)
    if stale := _computed(module):
        ids = {id(tensor) for tensor in stale}
        state["_flat_weights"] = [w.new_empty(0) if id(w) in ids else w for w in state["_flat_weights"]]
    return _empty, (base, names, methods), state


def _make_up(module: nn.Module) -> tuple[Any, list[str], dict[str, Any]]:
    """The class below that of a parametrized module, the names of what is parametrized, and the methods on top."""
    methods = {name: method for name, method in vars(type(module)).items() if isinstance(method, FunctionType)}
    return _base(module), list(cast(nn.ModuleDict, module.parametrizations)), methods


def _empty(base: type[nn.Module], names: Sequence[str], methods: dict[str, Any]) -> nn.Module:
    """A parametrized module without its state."""
    kind: type[nn.Module] = type(f"Parametrized{base.__name__}", (base,), dict(methods))
    module = kind.__new__(kind)
    for name in names:
        parametrize._inject_property(module, name)
    return module


def _computed(module: nn.Module) -> list[Tensor]:
    """The weights that an RNN has computed for its last forward pass, of which it makes new ones at the next."""
    return [w for w in getattr(module, "_flat_weights", []) if isinstance(w, Tensor) and not w.is_leaf]


def _register_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    """As torch's, but what is registered here is not replaced: quantisers, fusions and torch's prune try to."""
    if parameter is not None and is_sharded(parameter) and not is_sharded(module._parameters.get(name)):
        raise ValueError(
            f"a module with a tensor d + U theta must stay whole, got a DTensor for its {name}: "
            "fully_shard shards theta, and tensor parallelism is for materialize(model)"
        )
    if name in (names := [name for name, _ in own_spaces(module)]):
        raise ValueError(f"{name} must stay d + U theta, got a Parameter in its place: call materialize(model) first")
    if isinstance(parameter, Tensor) and parameter.grad_fn is not None:
        raise ValueError(
            f"{name} must be a Parameter, got what is computed from {names}: call materialize(model) first"
        )
    _base(module).register_parameter(module, name, parameter)
