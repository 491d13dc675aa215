"""w = d + U theta on any tensor of any module, through `torch.nn.utils.parametrize`.

The tensor's own Parameter becomes theta, re-shaped in place: optimizers, state_dict, autocast, torch.func,
torch.compile and DistributedDataParallel need to know nothing of it. This is the only file that knows parametrize's
internals.

Two rules follow from that. Register before the optimizer's first step: its state would keep the weight's old shape. And
every read of a parametrized tensor computes it: where a forward pass reads one twice, wrap it in
`torch.nn.utils.parametrize.cached()`. With `torch.func.functional_call`, override theta
(`parametrizations.weight.original`), not the weight: an override of the weight would be projected onto the subspace.

theta has a dtype of its own, float32 for a weight of half precision: in bfloat16 a step of 1e-3 from 1 is no step at
all. d + U theta is summed in float32 at least, and rounded once. A theta without numbers (dim 0) is no Parameter but a
buffer: some optimizers divide by their Parameters' lengths.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from subspace._base.autocast import without_autocast
from subspace._base.dtypes import at_least_float32
from subspace._base.first_values import forget_values, remember_values
from subspace._base.lineage import Lineage
from subspace._base.qualified import named_modules
from subspace._base.sharded import is_sharded, sharded_modules
from subspace._base.ties import Tie, other_owners, owned_by, require_tieable, restore_ties, tie, ties
from subspace._base.written import warn_if_written
from subspace._identity.members import check_members, signs_of
from subspace._identity.state import Identity, Supports, exchange
from subspace.embeddings import Embedding
from subspace.offsets import Offset

if TYPE_CHECKING:
    from typing_extensions import Self

WRAPPERS = (OptimizedModule, nn.DataParallel, nn.parallel.DistributedDataParallel)  # of whole models

WRITTEN = (
    "what was written in place into a registered tensor is lost: it is d + U theta, computed at every read; write into "
    "theta, or assign the module's attribute, which takes the nearest point of the subspace"
)


class SubspaceParametrization(nn.Module):
    """theta -> d + U theta; its right inverse is w -> U^+ (w - d), the nearest point of the subspace.

    Args:
        offset: d.
        embedding: U.
        dtype: Of w; by default the one that d and U are computed in, float32 at least.
    """

    def __init__(self, offset: Offset, embedding: Embedding, dtype: torch.dtype | None = None) -> None:
        if offset.shape != embedding.shape:
            raise ValueError(
                f"offset and embedding must have one shape, got {tuple(offset.shape)} and {tuple(embedding.shape)}"
            )
        super().__init__()
        self.offset, self.embedding = offset, embedding
        self.like = offset.like.new_empty(0, dtype=dtype)  # carries w's dtype
        self.column = _column_of(offset, embedding)
        self.start: Tensor | None = None  # of a theta on the meta device, for `initialize`
        self.first: Tensor | None = None  # theta, while `register` hands it over
        self.products: Any = None  # how a structured layer goes without w
        self._identity: tuple[object, Identity, bytes] | None = None
        self._sign()
        self.lineage = Lineage()

    @property
    def dim(self) -> int:
        """The length of theta."""
        return self.embedding.dim

    def forward(self, theta: Tensor) -> Tensor:
        """d + U theta, rounded once: (dim,) -> shape."""
        self.check_members()
        self.lineage.check(theta)
        with without_autocast(theta):
            wide = self._wide(theta)
            if self.column is None:
                w = self.offset() + self.embedding(wide)
            else:  # d is built once
                at, length = self.column
                w = self.embedding(wide + F.pad(wide.new_full((1,), length), (at, self.dim - 1 - at)))
            w = w.to(self.like.dtype)
        warn_if_written(w, WRITTEN)
        return w

    def nearest(self, weight: Tensor) -> Tensor:
        """U^+ (w - d), the theta of the nearest point: shape -> (dim,), in float32 at least."""
        self.lineage.end()  # what is assigned is of this U
        with without_autocast(weight):
            return self.embedding.coordinates(self._wide(weight) - self.offset())

    def right_inverse(self, weight: Tensor) -> Tensor:
        """As `nearest`, in the dtype of w, as torch has it."""
        return self.nearest(weight).to(weight.dtype) if self.first is None else self.first

    def linear(self, theta: Tensor, x: Tensor) -> Tensor:
        """x w^T, for a w of two axes: (dim,), (..., n_in) -> (..., n_out)."""
        self.check_members()
        return self.offset.linear(x) + self.embedding.linear(self._wide(theta), x)

    def is_linear_faster(self, rows: int) -> bool:
        """Whether `linear` and its gradients take less than building w, its product and gradients, for that many rows.

        By their FLOPs, with what a plug-in says of its pace; where one says nothing, its product is the faster one.
        """
        d, U, entries = self.offset, self.embedding, self.offset.shape.numel()
        if (of_U := U.flops()) is None:
            return True
        structure, of_d = d.structure(), d.flops()
        if structure is not None and structure.matrix is not None:
            fixed = 4.0 * entries
        elif of_d is not None:
            fixed = of_d.training * U.pace
        else:
            return True
        built = 6.0 * entries * rows + 2 * U.build_flops() * U.pace
        return rows * (fixed + of_U.training * U.pace) <= built

    def _wide(self, tensor: Tensor) -> Tensor:
        """The tensor in the dtype that d and U are computed in."""
        return tensor.to(self.embedding.like.dtype)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.like = fn(self.like)
        self._identity = None  # it names tensors that may be gone
        self._hold_signs()
        return self

    def check_members(self) -> None:
        """Raise ValueError under vmap for members of several d and U, which would all get those of this module."""
        signs = cast(Tensor, self._buffers["signs"])
        if torch._C._functorch.is_batchedtensor(signs):
            check_members(signs, self._signs, self.embedding)

    def _sign(self) -> None:
        self._signs = signs_of(self.offset, self.embedding)
        self._hold_signs()

    def _hold_signs(self) -> None:
        device = "cpu" if self.offset.like.is_meta else self.offset.like.device
        signs = torch.tensor(self._signs, dtype=torch.float32, device=device)
        self.register_buffer("signs", signs, persistent=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_identity": None}

    def get_extra_state(self) -> Tensor:
        """What identifies d and U, and a support that no key stands for: (n,) uint8, a copy."""
        content = torch.from_numpy(np.frombuffer(self._known()[1], np.uint8).copy())
        return content if self.offset.like.is_meta else content.to(self.offset.like.device)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over the support; raises ValueError, with all as it was, if d and U differ in anything else."""
        if self.like.is_meta and isinstance(state, Tensor) and not state.is_meta:  # theta has been assigned there
            self._apply(lambda t: torch.empty_like(t, device=state.device) if t.is_meta else t)
        exchange(self.checked(state))
        self._sign()
        self.lineage.end()

    def checked(self, state: Tensor) -> Supports:
        """The supports in an extra state; raises ValueError unless d, and U with them, are the ones that it is of."""
        saved = Identity.from_tensor(state)
        supports = saved.supports(self.offset, self.embedding)
        saved.check(self.identity(), "d" if supports else "dU")
        before = exchange(supports)
        try:
            saved.check(self.identity())
        finally:
            exchange(before)
        return supports

    def identity(self) -> Identity:
        """What tells this d and U from others."""
        return self._known()[0]

    def _known(self) -> tuple[Identity, bytes]:
        """The identity, and as bytes, found once for as long as nothing is written to what d and U hold."""
        tensors = [t for part in self.modules() for t in vars(part).values() if isinstance(t, Tensor)]
        if any(t.is_inference() for t in tensors):  # which count no versions
            found = Identity.of(self.offset, self.embedding, self.like.dtype)
            return found, found.to_bytes()
        supports = [U.moves for U in self.modules() if isinstance(U, Embedding)]
        plain = [t for t in tensors if type(t) is Tensor and t.layout == torch.strided]
        stamp = [(id(t), t._version) for t in tensors], [t.data_ptr() for t in plain], supports
        if self._identity is None or self._identity[0] != stamp:
            found = Identity.of(self.offset, self.embedding, self.like.dtype)
            self._identity = stamp, found, found.to_bytes()
        return self._identity[1:]


THETA_AND_EXTRA = ("original", "0._extra_state")


def _column_of(offset: Offset, embedding: Embedding) -> tuple[int, float] | None:
    """Which column of U d is a multiple of, and which, where both say that they are of one transform; else None."""
    d, at = offset.structure(), 0
    for U in embedding.parts():
        line = U.direction()
        along = None if line is None else line.offset.structure()
        if d and line and along and along.gain and not d.is_zero and d.has_transform_of(along):
            return at, d.gain / (along.gain * line.scale)
        at += U.dim
    return None


class Subspace(NamedTuple):
    """A handle on one parametrized tensor; it holds no state."""

    module: nn.Module
    name: str
    parametrization: SubspaceParametrization

    @property
    def theta(self) -> Tensor:
        """The trained numbers: (dim,), a Parameter; of dim 0 a buffer."""
        return cast(Tensor, _original(self.module, self.name).original)

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
    tied: Sequence[Tie] = ()  # other owners of the Parameter

    @property
    def dtype(self) -> torch.dtype:
        """Of theta, by default."""
        return at_least_float32(self.weight.dtype)

    def commit(self, theta: Tensor | None = None, dtype: torch.dtype | None = None) -> Subspace:
        """Register it; raises ValueError for a theta of another shape, the module then as it was."""
        module, name, parametrization, weight, tied = self
        with torch.no_grad():
            if theta is None:
                fresh = weight.new_empty(parametrization.dim)
                theta = fresh if weight.is_meta else parametrization.nearest(weight)
            start = theta.detach().to(weight.device, dtype or self.dtype)
        if start.shape != (parametrization.dim,):
            raise ValueError(f"theta must have shape ({parametrization.dim},), got {tuple(start.shape)}")
        if start.is_meta and not theta.is_meta:
            parametrization.start = theta.detach().to("cpu", start.dtype, copy=True)
        remember_values(module)
        for other in tied:
            tie(*other, module, name)
        weight.grad = None  # of the old shape
        parametrization.first = start.clone(memory_format=torch.contiguous_format)
        _set_data(weight, parametrization.first)
        parametrize.register_parametrization(module, name, parametrization, unsafe=True)
        parametrization.first = None
        weight.requires_grad_(True)
        if getattr(module, "sparse", False):  # of an embedding table
            module.sparse = False  # type: ignore[assignment]
        _give_own_methods(type(module))
        stack = _original(module, name)
        stack.__class__ = _Stack
        if not parametrization.dim:
            del stack.original
            stack.register_buffer("original", start)
        if start.dtype != parametrization.like.dtype:
            _set_apart(stack)
        return Subspace(module, name, parametrization)


def _set_data(parameter: nn.Parameter, values: Tensor) -> None:
    """Give a Parameter other values, of any shape and dtype; it stays the same object."""
    if is_traceable_wrapper_subclass(parameter):
        torch.utils.swap_tensors(parameter, nn.Parameter(values, parameter.requires_grad))
    else:
        parameter.data = values


def prepare(
    module: nn.Module, name: str, offset: Offset, embedding: Embedding, model: nn.Module | None = None
) -> Registration:
    """Check everything that `register` checks of a module, raising what it raises; touches nothing."""
    parametrization = SubspaceParametrization(offset, embedding)
    if parametrize.is_parametrized(module, name):
        raise ValueError(
            f"{name} must not be parametrized yet, got one that is: register the subspace first, or on the tensor that "
            f"module.parametrizations.{name} starts from"
        )
    if ties(module):
        raise ValueError(f"{name} must not be of a module with a tied tensor, got one with {next(iter(ties(module)))}")
    weight = module._parameters.get(name)
    if weight is None:
        known = sorted(each for each, parameter in module._parameters.items() if parameter is not None)
        computed = isinstance(getattr(module, name, None), Tensor)
        got = f"{name!r}, a buffer or what a hook computes (weight_norm, prune)" if computed else repr(name)
        raise ValueError(f"name must be one of {known}, got {got}")
    _require_usable(name, weight)
    tied = _tied(module, name, weight, model)
    if weight.shape != offset.shape:
        raise ValueError(
            f"offset and embedding must have {name}'s shape {tuple(weight.shape)}, got {tuple(offset.shape)}"
        )
    for part in (offset, embedding):
        if (part.like.dtype, part.like.device) != (at_least_float32(weight.dtype), weight.device):
            raise ValueError(
                f"{type(part).__name__} must be of {name}'s {weight.dtype} on {weight.device}, "
                f"got {part.like.dtype} on {part.like.device}"
            )
    parametrization.like = torch.empty(0, dtype=weight.dtype, device=weight.device)
    return Registration(module, name, parametrization, weight, tied)


def _require_usable(name: str, weight: nn.Parameter) -> None:
    if weight._backward_hooks:
        raise ValueError(
            f"{name} must have no gradient hook, which would be given theta's gradient, got one: remove it"
        )
    if nn.parameter.is_lazy(weight):
        raise ValueError(f"{name} must have a shape, got one that is not initialized: run a forward pass first")
    if not weight.is_floating_point():
        raise TypeError(f"{name} must be a real floating-point tensor, got {weight.dtype}")
    if is_sharded(weight):
        raise ValueError(f"{name} must be whole to be registered, got a DTensor: register before the model is sharded")


def _tied(module: nn.Module, name: str, weight: nn.Parameter, model: nn.Module | None) -> list[Tie]:
    """The other owners of a Parameter, which are to read the weight of this one; ValueError for those that cannot."""
    if model is None:
        if other := next(other_owners(module, name), None):
            got = f"{other[1]} of {type(other[0]).__name__}"
            raise ValueError(f"{name} must not be tied without model=, the model of both, got one that is also {got}")
        return []
    tied = [place for place in owned_by(model, weight) if place != (module, name)]
    for other in tied:
        require_tieable(*other)
    return tied


def register(
    module: nn.Module,
    name: str,
    offset: Offset,
    embedding: Embedding,
    theta: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    model: nn.Module | None = None,
) -> Subspace:
    """Make a module's Parameter equal to d + U theta, with theta trained in its place.

    The Parameter object stays the same one, re-shaped to (dim,), without its gradient and requiring one. On
    the meta device, where nothing has values, it keeps those of a real `theta` for `initialize`. An embedding table's
    `sparse` is turned off, as the gradient to theta is dense.

    Args:
        module: Any module, of any class.
        name: Of one of its own Parameters, as "weight".
        offset: d, made for this Parameter.
        embedding: U, made for this Parameter.
        theta: Where training starts: (dim,). By default U^+ (w - d), the point of the subspace nearest to the present
            weight.
        dtype: Of theta: by default float32, or float64 for a weight of that. A later `model.to(dtype)` casts theta too.
        model: Where the Parameter may be tied to others, as an embedding table to a head: they then read the same w.

    Returns:
        A handle on the registered tensor.

    Raises:
        ValueError: If the module has no such Parameter, or it is parametrized already, or its shape or device is not
            that of `offset` and `embedding`, or one of them is of float64 and another not, or theta has another shape,
            or it is tied and there is no `model`. The module is then as it was.
        TypeError: If the Parameter is not real floating-point.

    >>> from subspace import Key
    >>> from subspace.offsets import DCT
    >>> from subspace.embeddings import Sparse
    >>> layer = nn.Linear(100, 100)
    >>> space = register(layer, "weight", DCT(layer.weight), Sparse(layer.weight, 10, key=Key(0)))
    >>> space.theta.shape, layer.weight.shape
    (torch.Size([10]), torch.Size([100, 100]))
    """
    return prepare(module, name, offset, embedding, model).commit(theta, dtype)


def subspaces(model: nn.Module) -> Iterator[tuple[str, Subspace]]:
    """The registered tensors of a model, in its order.

    Args:
        model: Any module.

    Yields:
        The qualified name of a tensor in the plain model, as "layer1.weight", whatever wrappers of torch are around its
            parts, and the handle on it.
    """
    for prefix, module in named_modules(model):
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

    A state_dict has it once, with the first of them. Make the optimizer afterwards. FSDP2 refuses a Parameter of
    several groups: shard the whole model as one, or give `fully_shard` the option ignored_params={theta} and, after the
    backward pass, make theta.grad, dim numbers, its mean over the processes by an all-reduce.

    Args:
        model: With subspaces of one dim, dtype and device.
        theta: The Parameter: (dim,).

    Raises:
        ValueError: If the dim, dtype or device of a subspace's theta differs, or there is no subspace, or theta has no
            numbers. The model is then as it was.
    """
    spaces = [space for _, space in subspaces(model)]
    if not spaces:
        raise ValueError("model must have at least one registered subspace, got none")
    if not len(theta):
        raise ValueError("theta must have at least one number to be shared, got none")
    share_theta(spaces, theta)


def share_theta(spaces: Sequence[Subspace], theta: Tensor) -> None:
    """Make `theta` that of these subspaces; raises as `share`."""
    for space in spaces:
        old = space.theta
        if _kind(old) != _kind(theta):
            raise ValueError(
                f"theta must be {tuple(old.shape)} {old.dtype} on {old.device} for {space.name}, "
                f"got {tuple(theta.shape)} {theta.dtype} on {theta.device}"
            )
    stacks = [_original(space.module, space.name) for space in spaces]
    for stack in stacks:
        stack.original = theta
        if len(spaces) > 1:
            _set_apart(stack)
    for stack in stacks[1:]:
        stack.keeper = (stacks[0],)


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


def _set_apart(stack: Any) -> None:
    stack.__class__, stack.is_tensor, stack.ntensors = _Apart, False, 1


class _Apart(_Stack):
    """That of a tensor whose theta cannot become the weight: it is also another's, or of another dtype.

    As one of several originals theta is not overwritten where torch's `remove_parametrizations` leaves the weight. A
    state_dict has a shared one once, as safetensors and Hugging Face's Trainer want it.
    """

    keeper: tuple[_Apart, ...] = ()  # the first tensor that a shared theta belongs to, for all the others

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
        if self.keeper and _kind(theta := self.keeper[0].original) == _kind(self.original):
            self.original = theta  # to or from the meta device torch makes a Parameter for each module
        return self


def _storage(tensor: Tensor) -> object:
    return tensor.untyped_storage()._cdata


def _kind(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def materialize(model: nn.Module) -> nn.Module:
    """A copy of a model with plain dense Parameters in place of its subspaces.

    Args:
        model: With any number of subspaces; it stays as it is.

    Returns:
        The copy, of what torch.compile, DataParallel or DistributedDataParallel have wrapped. A Parameter of it
        requires a gradient if its theta did, or, of a theta without numbers, any other's; other parametrizations on
        top of a subspace stay.

    Raises:
        ValueError: As `unregister`.
    """
    while isinstance(model, WRAPPERS):
        model = cast(nn.Module, model._orig_mod if isinstance(model, OptimizedModule) else model.module)
    require_whole(model)
    return unregister(copy.deepcopy(model))


def unregister(model: nn.Module) -> nn.Module:
    """Put plain dense Parameters in place of the subspaces of a model, in place, one after the other.

    A pretrained d is not written into: it may be another model's too.

    Args:
        model: With any number of subspaces.

    Returns:
        The model. A Parameter of it requires a gradient if its theta did, or, of a theta without numbers, any other's.
        Other parametrizations on top of a subspace stay. Make a new optimizer.

    Raises:
        ValueError: For a model that `fully_shard` has sharded: it holds no whole theta.
    """
    require_whole(model)
    spaces = [space for _, space in subspaces(model)]
    any_trains = any(space.theta.requires_grad for space in spaces)
    for space in spaces:
        trains = space.theta.requires_grad if len(space.theta) else any_trains
        stack = _original(space.module, space.name)
        with torch.no_grad():
            weight = nn.Parameter(space.parametrization(space.theta), trains)
        weight.data = weight.clone(memory_format=torch.contiguous_format)
        stack.__class__ = parametrize.ParametrizationList
        stack.original, stack.is_tensor = weight, True  # in place of theta, which may be shared
        if len(stack) == 1:
            parametrize.remove_parametrizations(space.module, space.name, leave_parametrized=False)
        else:
            del stack[0]
    restore_ties(model)
    forget_values(model)
    return model


def require_whole(model: nn.Module, what: str = "to become dense") -> None:
    """Raise ValueError for a model that `fully_shard` has sharded."""
    if next(sharded_modules(model), None) is not None:
        raise ValueError(f"model must be whole {what}, got one sharded by fully_shard")


@contextmanager
def at_offset(spaces: Sequence[Subspace]) -> Iterator[None]:
    """Let every w be its d inside the block: another theta, of zeros, is in the place of its own."""
    stacks = [_original(space.module, space.name) for space in spaces if space.parametrization.dim]
    thetas = [stack.original for stack in stacks]
    try:
        for stack, theta in zip(stacks, thetas, strict=True):
            stack.original = nn.Parameter(torch.zeros_like(theta), requires_grad=False)
        yield
    finally:
        for stack, theta in zip(stacks, thetas, strict=True):
            stack.original = theta


@contextmanager
def taken_off(spaces: Iterable[Subspace]) -> Iterator[None]:
    """Let tensors be plain Parameters that hold d, for good unless the block fails: then they are as they were.

    Raises ValueError for a tensor that is parametrized again.
    """
    taken: list[Callable[[], None]] = []
    try:
        for space in spaces:
            taken.append(_take_off(space))
        yield
    except BaseException:
        for put_back in reversed(taken):
            put_back()
        raise


def _take_off(space: Subspace) -> Callable[[], None]:
    """Take one off; returns what puts it back."""
    module, name, kind, stack = space.module, space.name, type(space.module), _original(space.module, space.name)
    stacks = cast(nn.ModuleDict, module.parametrizations)
    order = dict(stacks._modules)
    if len(stack) > 1:
        raise ValueError(f"{name} must not be parametrized again to be replaced, got one that is")
    with torch.no_grad():
        weight = nn.Parameter(space.offset(), space.theta.requires_grad)
    del stacks[name]
    if stacks:
        delattr(kind, name)
    else:
        module.__class__ = kind.__bases__[0]
        del module.parametrizations
    module.register_parameter(name, weight)

    def put_back() -> None:
        del module._parameters[name]
        module.__class__, stacks._modules = kind, order
        module.parametrizations = stacks
        if not hasattr(kind, name):
            parametrize._inject_property(module, name)

    return put_back


def _original(module: nn.Module, name: str) -> Any:
    return cast(nn.ModuleDict, module.parametrizations)[name]


def _give_own_methods(kind: type[nn.Module]) -> None:
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
            state[theta], state[extra] = _original(module, name).original.detach(), first.get_extra_state()


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
    if name in (names := [name for name, _ in _own(module)]):
        raise ValueError(f"{name} must stay d + U theta, got a Parameter in its place: call materialize(model) first")
    if isinstance(parameter, Tensor) and parameter.grad_fn is not None:
        raise ValueError(
            f"{name} must be a Parameter, got what is computed from {names}: call materialize(model) first"
        )
    _base(module).register_parameter(module, name, parameter)
