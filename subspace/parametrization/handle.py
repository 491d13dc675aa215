"""The registered tensors of a model, and one theta for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from torch import Size, Tensor, nn

from subspace._base.qualified import named_modules
from subspace.embeddings import Embedding
from subspace.offsets import Offset
from subspace.parametrization.parametrization import SubspaceParametrization
from subspace.parametrization.stack import kind_of, set_apart, stack_of

if TYPE_CHECKING:
    pass


class Subspace(NamedTuple):
    """A handle on one parametrized tensor; it holds no state."""

    module: nn.Module
    name: str
    parametrization: SubspaceParametrization

    @property
    def theta(self) -> Tensor:
        """The trained numbers: (dim,), a Parameter; of dim 0 a buffer."""
        return cast(Tensor, stack_of(self.module, self.name).original)

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


def subspaces(model: nn.Module) -> Iterator[tuple[str, Subspace]]:
    """The registered tensors of a model, in its order.

    Args:
        model: Any module.

    Yields:
        The qualified name of a tensor in the plain model, as "layer1.weight", whatever wrappers of torch are around its
            parts, and the handle on it.
    """
    for prefix, module in named_modules(model):
        for name, parametrization in own_spaces(module):
            yield f"{prefix}.{name}".lstrip("."), Subspace(module, name, parametrization)


def own_spaces(module: nn.Module) -> Iterator[tuple[str, SubspaceParametrization]]:
    """The registered tensors of one module; a wrapper may have the attributes of what it wraps, never its children."""
    if isinstance(stacks := module._modules.get("parametrizations"), nn.ModuleDict):
        for name, stack in stacks.items():
            if isinstance(first := cast(nn.ModuleList, stack)[0], SubspaceParametrization):
                yield name, first


def require_thetas(model: nn.Module) -> None:
    """Raise ValueError unless each theta has the shape of its own, as under `fully_shard`, but not inside an FSDP1."""
    for name, space in subspaces(model):
        wanted, got = (space.parametrization.dim,), tuple(space.theta.shape)
        if got != wanted:
            raise ValueError(
                f"theta of {name} must have shape {wanted}, got a part, {got}: "
                "shard by fully_shard, or do this inside FullyShardedDataParallel.summon_full_params"
            )


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
        if kind_of(old) != kind_of(theta):
            raise ValueError(
                f"theta must be {tuple(old.shape)} {old.dtype} on {old.device} for {space.name}, "
                f"got {tuple(theta.shape)} {theta.dtype} on {theta.device}"
            )
    stacks = [stack_of(space.module, space.name) for space in spaces]
    for stack in stacks:
        stack.original = theta
        if len(spaces) > 1:
            set_apart(stack)
    for stack in stacks[1:]:
        stack.keeper = (stacks[0],)
