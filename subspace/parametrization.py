"""w = d + U theta on any tensor of any module, through `torch.nn.utils.parametrize`.

The tensor's own Parameter becomes theta, re-shaped in place: optimizers, state_dict, autocast, torch.func,
torch.compile and DistributedDataParallel need to know nothing of it. This is the only file that knows parametrize's
internals.

Two rules follow from that. Register before the optimizer's first step: its state would keep the weight's old shape. And
every read of a parametrized tensor computes it: where a forward pass reads one twice, wrap it in
`torch.nn.utils.parametrize.cached()`. With `torch.func.functional_call`, override theta
(`parametrizations.weight.original`), not the weight: an override of the weight would be projected onto the subspace.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any, NamedTuple, cast

import torch
from torch import Size, Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.utils import parametrize

from subspace.embeddings import Embedding
from subspace.offsets import Offset

WRAPPERS = (OptimizedModule, nn.DataParallel, nn.parallel.DistributedDataParallel)  # of whole models


class SubspaceParametrization(nn.Module):
    """theta -> d + U theta; its right inverse is w -> U^+ (w - d), the nearest point of the subspace."""

    def __init__(self, offset: Offset, embedding: Embedding) -> None:
        if offset.shape != embedding.shape:
            raise ValueError(
                f"offset and embedding must have one shape, got {tuple(offset.shape)} and {tuple(embedding.shape)}"
            )
        super().__init__()
        self.offset, self.embedding = offset, embedding
        self.start: Tensor | None = None  # of a theta on the meta device, for `initialize`
        self.first: Tensor | None = None  # theta, while `register` hands it over
        self.products: Any = None  # how a structured layer goes without w

    @property
    def dim(self) -> int:
        """The length of theta."""
        return self.embedding.dim

    def forward(self, theta: Tensor) -> Tensor:
        """d + U theta: (dim,) -> shape."""
        return self.offset() + self.embedding(theta)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """U^+ (w - d): shape -> (dim,)."""
        if self.first is not None:
            return self.first
        return self.embedding.coordinates(weight - self.offset())

    def linear(self, theta: Tensor, x: Tensor) -> Tensor:
        """x w^T, for a w of two axes: (dim,), (..., n_in) -> (..., n_out)."""
        return self.offset.linear(x) + self.embedding.linear(theta, x)


class Subspace(NamedTuple):
    """A handle on one parametrized tensor; it holds no state."""

    module: nn.Module
    name: str
    parametrization: SubspaceParametrization

    @property
    def theta(self) -> nn.Parameter:
        """The trained numbers: (dim,)."""
        return cast(nn.Parameter, _original(self.module, self.name).original)

    @property
    def offset(self) -> Offset:
        """d."""
        return self.parametrization.offset

    @property
    def embedding(self) -> Embedding:
        """U."""
        return self.parametrization.embedding

    @property
    def shape(self) -> Size:
        """The weight's."""
        return self.parametrization.offset.shape


class Registration(NamedTuple):
    """A subspace that `prepare` has found to fit a module's Parameter."""

    module: nn.Module
    name: str
    parametrization: SubspaceParametrization
    weight: nn.Parameter

    def commit(self, theta: Tensor | None = None) -> Subspace:
        """Register it; raises ValueError for a theta of another shape, the module then as it was."""
        module, name, parametrization, weight = self
        with torch.no_grad():
            if theta is None:
                fresh = weight.new_empty(parametrization.dim)
                theta = fresh if weight.is_meta else parametrization.right_inverse(weight)
            start = theta.detach().to(weight)
        if start.shape != (parametrization.dim,):
            raise ValueError(f"theta must have shape ({parametrization.dim},), got {tuple(start.shape)}")
        if start.is_meta and not theta.is_meta:
            parametrization.start = theta.detach().to("cpu", start.dtype, copy=True)
        weight.grad = None  # of the old shape
        parametrization.first = start.clone(memory_format=torch.contiguous_format)
        parametrize.register_parametrization(module, name, parametrization, unsafe=True)
        parametrization.first = None
        weight.requires_grad_(True)
        _original(module, name).__class__ = _Stack
        _give_own_methods(type(module))
        return Subspace(module, name, parametrization)


def prepare(module: nn.Module, name: str, offset: Offset, embedding: Embedding) -> Registration:
    """Check everything that `register` checks of a module, raising what it raises; touches nothing."""
    parametrization = SubspaceParametrization(offset, embedding)
    if parametrize.is_parametrized(module, name):
        raise ValueError(
            f"{name} must not be parametrized yet, got one that is: register the subspace first, or on the tensor that "
            f"module.parametrizations.{name} starts from"
        )
    parameters = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    if name not in parameters:
        computed = isinstance(getattr(module, name, None), Tensor)
        got = f"{name!r}, a buffer or what a hook computes (weight_norm, prune)" if computed else repr(name)
        raise ValueError(f"name must be one of {sorted(parameters)}, got {got}")
    weight = parameters[name]
    if weight._backward_hooks:
        raise ValueError(
            f"{name} must have no gradient hook, which would be given theta's gradient, got one: remove it"
        )
    if nn.parameter.is_lazy(weight):
        raise ValueError(f"{name} must have a shape, got one that is not initialized: run a forward pass first")
    if not weight.is_floating_point():
        raise TypeError(f"{name} must be a real floating-point tensor, got {weight.dtype}")
    if tied := [n for n, p in parameters.items() if p is weight and n != name]:
        raise ValueError(f"{name} must not be tied to another tensor, got one that is also {tied[0]}")
    if weight.shape != offset.shape:
        raise ValueError(
            f"offset and embedding must have {name}'s shape {tuple(weight.shape)}, got {tuple(offset.shape)}"
        )
    for part in (offset, embedding):
        if (part.like.dtype, part.like.device) != (weight.dtype, weight.device):
            raise ValueError(
                f"{type(part).__name__} must be of {name}'s {weight.dtype} on {weight.device}, "
                f"got {part.like.dtype} on {part.like.device}"
            )
    return Registration(module, name, parametrization, weight)


def register(
    module: nn.Module, name: str, offset: Offset, embedding: Embedding, theta: Tensor | None = None
) -> Subspace:
    """Make a module's Parameter equal to d + U theta, with theta trained in its place.

    The Parameter object stays the same one, re-shaped to (dim,), without its gradient and requiring one. On the meta
    device, where nothing has values, it keeps those of a real `theta` for `initialize`.

    Args:
        module: Any module, of any class.
        name: Of one of its own Parameters, as "weight".
        offset: d, made for this Parameter.
        embedding: U, made for this Parameter.
        theta: Where training starts: (dim,). By default U^+ (w - d), the point of the subspace nearest to the present
            weight.

    Returns:
        A handle on the registered tensor.

    Raises:
        ValueError: If the module has no such Parameter, or it is parametrized already, or under two names, or its
            shape, dtype or device is not that of `offset` and `embedding`, or theta has another shape. The module is
            then as it was. A Parameter tied to one of another module cannot be seen from here; `recipes` refuse it.
        TypeError: If the Parameter is not real floating-point.

    >>> from subspace import Key
    >>> from subspace.offsets import DCT
    >>> from subspace.embeddings import Sparse
    >>> layer = nn.Linear(100, 100)
    >>> space = register(layer, "weight", DCT(layer.weight), Sparse(layer.weight, 10, key=Key(0)))
    >>> space.theta.shape, layer.weight.shape
    (torch.Size([10]), torch.Size([100, 100]))
    """
    return prepare(module, name, offset, embedding).commit(theta)


def subspaces(model: nn.Module) -> Iterator[tuple[str, Subspace]]:
    """The registered tensors of a model, in its order.

    Args:
        model: Any module.

    Yields:
        The qualified name of a tensor, as "layer1.weight", and the handle on it.
    """
    for prefix, module in model.named_modules():
        for name, parametrization in _own(module):
            yield f"{prefix}.{name}".lstrip("."), Subspace(module, name, parametrization)


def _own(module: nn.Module) -> Iterator[tuple[str, SubspaceParametrization]]:
    """The registered tensors of one module; a wrapper may have the attributes of what it wraps, never its children."""
    if isinstance(stacks := module._modules.get("parametrizations"), nn.ModuleDict):
        for name, stack in stacks.items():
            if isinstance(first := cast(nn.ModuleList, stack)[0], SubspaceParametrization):
                yield name, first


def share(model: nn.Module, theta: nn.Parameter) -> None:
    """Make one theta that of every subspace of a model: ordinary weight tying; its gradient is the sum of theirs.

    Make the optimizer afterwards. FSDP2 refuses a Parameter of several groups: give `fully_shard` the option
    ignored_params={theta} and all-reduce theta.grad, dim numbers, after the backward pass.

    Args:
        model: With subspaces of one dim, dtype and device.
        theta: The Parameter: (dim,).

    Raises:
        ValueError: If the dim, dtype or device of a subspace differs from theta's, or there is no subspace. The model
            is then as it was.
    """
    spaces = [space for _, space in subspaces(model)]
    if not spaces:
        raise ValueError("model must have at least one registered subspace, got none")
    share_theta(spaces, theta)


def share_theta(spaces: Sequence[Subspace], theta: nn.Parameter) -> None:
    """Make `theta` that of these subspaces; raises as `share`."""
    for space in spaces:
        old = space.theta
        if (old.shape, old.dtype, old.device) != (theta.shape, theta.dtype, theta.device):
            raise ValueError(
                f"theta must be {tuple(old.shape)} {old.dtype} on {old.device} for {space.name}, "
                f"got {tuple(theta.shape)} {theta.dtype} on {theta.device}"
            )
    for space in spaces:
        stack = _original(space.module, space.name)
        stack.original = theta
        if len(spaces) > 1:
            stack.__class__, stack.is_tensor, stack.ntensors = _Sharing, False, 1


class _Stack(parametrize.ParametrizationList):
    """The parametrizations of a tensor that is d + U theta, or a function of that."""

    def append(self, module: nn.Module) -> _Stack:
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


class _Sharing(_Stack):
    """That of a tensor whose theta is also another's.

    As one of several originals theta is not overwritten where torch's `remove_parametrizations` leaves the weight.
    """

    @property
    def original0(self) -> Tensor:
        return self.original

    def right_inverse(self, value: Tensor) -> None:
        with torch.no_grad():
            self.original.copy_(cast(SubspaceParametrization, self[0]).right_inverse(value))


def materialize(model: nn.Module) -> nn.Module:
    """A copy of a model with plain dense Parameters in place of its subspaces.

    Args:
        model: With any number of subspaces; it stays as it is.

    Returns:
        The copy, of what torch.compile, DataParallel or DistributedDataParallel have wrapped. A Parameter of it
        requires a gradient if its theta did; other parametrizations on top of a subspace stay.

    Raises:
        ValueError: For a model that `fully_shard` has sharded, which cannot be copied.
    """
    while isinstance(model, WRAPPERS):
        model = cast(nn.Module, model._orig_mod if isinstance(model, OptimizedModule) else model.module)
    if any(type(module).__name__.startswith("FSDP") for module in model.modules()):
        raise ValueError("model must be whole to be copied, got one sharded by fully_shard")
    dense = copy.deepcopy(model)
    for _, space in list(subspaces(dense)):
        stack = _original(space.module, space.name)
        with torch.no_grad():
            weight = nn.Parameter(space.parametrization(space.theta), space.theta.requires_grad)
        weight.data = weight.clone(memory_format=torch.contiguous_format)
        stack.__class__ = parametrize.ParametrizationList
        stack.original, stack.is_tensor = weight, True  # in place of theta, which may be shared
        if len(stack) == 1:
            parametrize.remove_parametrizations(space.module, space.name, leave_parametrized=False)
        else:
            del stack[0]
    return dense


def _original(module: nn.Module, name: str) -> Any:
    return cast(nn.ModuleDict, module.parametrizations)[name]


def _give_own_methods(kind: type[nn.Module]) -> None:
    """Give the class that torch has made for a parametrized module what it lacks.

    It has no name to be found by, whence torch refuses to pickle the module; and its properties are of that module, so
    that removing the parametrizations of a copy that shares the class would destroy the original's, and `cached()`
    would give one the other's weights.
    """
    own: Any = kind
    own.__deepcopy__, own.__reduce__, own.register_parameter = _deepcopy, _reduce, _register_parameter
    if "__getstate__" in vars(kind):  # which raises
        del own.__getstate__


def _deepcopy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a parametrized module, with a class of its own."""
    for stale in _computed(module):
        memo[id(stale)] = stale.detach()
    replica = memo[id(module)] = _empty(*_make_up(module))
    replica.__dict__ = copy.deepcopy(module.__dict__, memo)
    return replica


def _reduce(module: nn.Module) -> tuple[Any, ...]:
    """A parametrized module for pickle: how to make it and its class, and its state."""
    base, names, methods = _make_up(module)
    state = base.__getstate__(module)  # type: ignore[no-untyped-call]
    if stale := _computed(module):
        ids = {id(tensor) for tensor in stale}
        state["_flat_weights"] = [w.new_empty(0) if id(w) in ids else w for w in state["_flat_weights"]]
    return _empty, (base, names, methods), state


def _make_up(module: nn.Module) -> tuple[type[nn.Module], list[str], dict[str, Any]]:
    """The class below that of a parametrized module, the names of what is parametrized, and the methods on top."""
    methods = {name: method for name, method in vars(type(module)).items() if isinstance(method, FunctionType)}
    return type(module).__bases__[0], list(cast(nn.ModuleDict, module.parametrizations)), methods


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
    if name in (names := [name for name, _ in _own(module)]):
        raise ValueError(f"{name} must stay d + U theta, got a Parameter in its place: call materialize(model) first")
    if isinstance(parameter, Tensor) and parameter.grad_fn is not None:
        raise ValueError(
            f"{name} must be a Parameter, got what is computed from {names}: call materialize(model) first"
        )
    nn.Module.register_parameter(module, name, parameter)
