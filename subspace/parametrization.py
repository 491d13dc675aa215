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
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Size, Tensor, nn
from torch.nn.utils import parametrize

from subspace.embeddings import Embedding
from subspace.offsets import Offset


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
        type(module).__deepcopy__ = _deepcopy  # type: ignore[attr-defined]
        return Subspace(module, name, parametrization)


def prepare(module: nn.Module, name: str, offset: Offset, embedding: Embedding) -> Registration:
    """Check everything that `register` checks of a module, raising what it raises; touches nothing."""
    parametrization = SubspaceParametrization(offset, embedding)
    if parametrize.is_parametrized(module, name):
        raise ValueError(f"{name} must not be parametrized yet, got one that is")
    parameters = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    if name not in parameters:
        raise ValueError(f"name must be one of {sorted(parameters)}, got {name!r}")
    weight = parameters[name]
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
        if parametrize.is_parametrized(module):
            for name, parametrization in cast(nn.ModuleDict, module.parametrizations).items():
                if isinstance(first := cast(nn.ModuleList, parametrization)[0], SubspaceParametrization):
                    yield f"{prefix}.{name}".lstrip("."), Subspace(module, name, first)


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


class _Sharing(parametrize.ParametrizationList):
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
        The copy. A Parameter of it requires a gradient if its theta did.
    """
    return unregister(copy.deepcopy(model))


def unregister(model: nn.Module) -> nn.Module:
    """Put plain dense Parameters in place of the subspaces of a model, in place, one after the other.

    A pretrained d is not written into: it may be another model's too.

    Args:
        model: With any number of subspaces.

    Returns:
        The model. A Parameter of it requires a gradient if its theta did. Make a new optimizer.
    """
    for _, space in list(subspaces(model)):
        with torch.no_grad():
            weight = nn.Parameter(getattr(space.module, space.name).clone(), space.theta.requires_grad)
        vars(space.module).pop("forward", None)  # one that `structured` bound would look for theta
        stack = _original(space.module, space.name)
        stack.original, stack.is_tensor = weight, True  # in place of theta, which may be shared
        parametrize.remove_parametrizations(space.module, space.name, leave_parametrized=False)
    return model


@contextmanager
def at_offset(spaces: Sequence[Subspace]) -> Iterator[None]:
    """Let every w be its d inside the block: another theta, of zeros, is in the place of its own."""
    stacks = [_original(space.module, space.name) for space in spaces]
    thetas = [stack.original for stack in stacks]
    try:
        for stack, theta in zip(stacks, thetas, strict=True):
            stack.original = nn.Parameter(torch.zeros_like(theta), requires_grad=False)
        yield
    finally:
        for stack, theta in zip(stacks, thetas, strict=True):
            stack.original = theta


def _original(module: nn.Module, name: str) -> Any:
    return cast(nn.ModuleDict, module.parametrizations)[name]


def _deepcopy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a parametrized module, with its own class.

    torch injects a class per module, whose properties remember that module; a plain deepcopy shares it, so that
    removing the copy's parametrizations would destroy the original's, and `cached()` would give one the other's
    weights.
    """
    for stale in getattr(module, "_flat_weights", []):  # an RNN's computed weights of its last forward pass
        if isinstance(stale, Tensor) and not stale.is_leaf:
            memo[id(stale)] = stale.detach()
    names = list(cast(nn.ModuleDict, module.parametrizations))
    own = {key: value for key, value in vars(type(module)).items() if key not in names}
    replica: nn.Module = module.__new__(type(type(module).__name__, type(module).__bases__, own))
    memo[id(module)] = replica
    replica.__dict__ = copy.deepcopy(module.__dict__, memo)
    for name in names:
        parametrize._inject_property(replica, name)
    return replica
