"""Fine-tuning of pretrained models, one function for each tuner: w = d + U theta, d the present weights, theta = 0.

Each function re-parametrizes the chosen tensors of a model in place and returns the model, whose output is at first
that of the base to the bit: to rounding if the base is quantised, as d is then dequantised, or if the model is made
`structured`, whose products sum in another order. Nothing but theta trains, unless `also_train` names it. Chosen are
by default the weight matrices that are not frozen, as of `targets`, without those that are tied to an embedding table.
theta is of float32 at least, also beside weights of half precision. The columns of U have length 1, where not said
otherwise: a step of theta moves w as far as one of w's own would, and one learning rate does for all tuners and sizes.
On an error the model is as it was. Make the optimizer afterwards; `save` writes theta and what else trains, and no
weight of the base.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict

from torch import Tensor, nn

from subspace import recipes
from subspace._base.key import Key
from subspace._base.qualified import named_parameters
from subspace._base.selection import Selection, Target, targets_without, tensor_owners, within
from subspace.embeddings import SRHT, Circulant, Embedding, FourierFT, Haar, Hashed, LowRank, RowScale
from subspace.embeddings.row_scale import of_outputs
from subspace.methods.budgets import Budget, divide, entries, epl
from subspace.methods.coefficients import BasisRule
from subspace.methods.groups import Groups
from subspace.methods.recipe import Start, freeze_others, register_all, register_sharing, zeros
from subspace.methods.saliencies.base import Objective, Saliency
from subspace.offsets import Pretrained

if TYPE_CHECKING:
    from typing_extensions import Unpack

Rule = Callable[[str, Target, Pretrained, Key], Embedding]  # U of a tensor: its name, itself, d and a key of its own


class Options(TypedDict, total=False):
    """What every tuner takes.

    Attributes:
        include: Which tensors, as of `targets`: suffixes such as ["query", "value"], a regular expression or a
            callable. It also takes what is frozen, or tied to an embedding table.
        exclude: Which tensors not.
        also_train: What trains as it is beside theta: a new head, as ["classifier"], or ["bias", "LayerNorm"]; suffixes
            of modules or tensors, or the other kinds of `include`. It is not chosen, and what was frozen stays so. By
            default nothing does.
        seed: Of everything random, folded with each tensor's qualified name; 0 by default.
    """

    include: Selection | None
    exclude: Selection | None
    also_train: Selection | None
    seed: int


class _Choice:
    """What of a model is tuned, by what keys, and what trains beside it; arguments as of `Options`."""

    def __init__(
        self,
        model: nn.Module,
        include: Selection | None = None,
        exclude: Selection | None = None,
        also_train: Selection | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.seed = model, seed
        self.free = within(model, also_train)
        if self.free and not any(
            p.requires_grad for name, p in named_parameters(model, ties=True) if name in self.free
        ):
            raise ValueError(f"also_train must name tensors that train, got {len(self.free)} that are frozen")
        left = self.free if include is not None else self.free | _tied_to_tables(model)
        self.targets = targets_without(model, left, include, exclude)

    def divide(self, density: float | None, dim: int | None, budget: Budget) -> dict[str, int]:
        """The numbers of theta of each tensor."""
        each = self.targets.values()
        shapes, layouts = [target.weight.shape for target in each], [target.layout for target in each]
        total = entries(sum(shape.numel() for shape in shapes), density, dim)
        return dict(zip(self.targets, divide(budget, shapes, total, layouts), strict=True))

    def register(self, rule: Rule) -> nn.Module:
        """Register all tensors or none, freeze the others, and return the model."""
        starts = {}
        for name, target in self.targets.items():
            try:
                d = Pretrained(target.weight)
                U = rule(name, target, d, Key(self.seed).fold(name).fold("U"))
            except ValueError as error:
                raise ValueError(f"{name} cannot be tuned: {error}") from error
            starts[name] = d, U, zeros(target.weight, U.dim)
        return freeze_others(register_all(self.model, starts), self.free)

    def takes(self, name: str, _: Tensor) -> bool:
        """Whether a tensor is chosen, as an `include`."""
        return name in self.targets

    def frees(self, name: str, _: Tensor) -> bool:
        """Whether a tensor trains as it is, as an `also_train`."""
        return name in self.free


def _tied_to_tables(model: nn.Module) -> set[str]:
    """The matrices whose tensor is also one that is no weight matrix, as a head's that is the embedding table."""
    owners = tensor_owners(model)
    tables = {id(owner.weight) for owner in owners.values() if owner.layout is None and owner.weight is not None}
    return {name for name, owner in owners.items() if owner.layout is not None and id(owner.weight) in tables}


def sparse(
    model: nn.Module,
    *,
    density: float | None = None,
    dim: int | None = None,
    objective: Objective | None = None,
    saliency: Saliency | None = None,
    budget: Budget | None = None,
    groups: Groups | None = None,
    **options: Unpack[Options],
) -> nn.Module:
    """Sparse fine-tuning (SHiRA, Bhardwaj et al. 2024): U sparse, at random, by gradient or by magnitude.

    Args:
        model: Its tensors are registered in place.
        density: The fraction in (0, 1] of all the chosen weights that train; or give dim.
        dim: How many of them train.
        objective: A function of the model that returns one number, as a loss: U is where its gradient is largest.
        saliency: Another score, as `methods.magnitude`, which needs no objective. Without both, U is random.
        budget: How the total is divided among the tensors: EPL by default for a random U; otherwise all compete.
        groups: How the entries of a tensor are spread inside it, as `methods.rows`.
        options: `include`, `exclude`, `also_train` and `seed`, as of `Options`.

    Returns:
        The model.

    Raises:
        TypeError: If not exactly one of density and dim is given, or the saliency needs an objective.
        ValueError: If one of them is out of range, if a quantised weight is to be scored, or as `targets`.

    >>> net = sparse(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2)), dim=100, also_train=["1"])
    >>> [(name, p.numel()) for name, p in net.named_parameters() if p.requires_grad]
    [('0.parametrizations.weight.original', 100), ('1.weight', 128), ('1.bias', 2)]
    """
    size: dict[str, Any] = {"density": density, "dim": dim, "budget": budget, "groups": groups}
    return _sparse(_Choice(model, **options), objective=objective, saliency=saliency, **size)


def basis(
    model: nn.Module,
    *,
    density: float | None = None,
    dim: int | None = None,
    transform: BasisRule = Haar,
    objective: Objective | None = None,
    saliency: Saliency | None = None,
    budget: Budget | None = None,
    **options: Unpack[Options],
) -> nn.Module:
    """Sparse coefficients in an orthonormal basis, by default Haar's wavelets (WaveFT, Bilican et al. 2025).

    Each of several matrices in one tensor has coefficients of its own, as many as it happens to be drawn.

    Args:
        model: Its tensors are registered in place.
        density: How many coefficients train, as a fraction in (0, 1] of all the chosen weights; or give dim.
        dim: How many of them train.
        transform: weight -> a `Transform`, as `embeddings.Haar`, `embeddings.DCT` and `embeddings.Hadamard`.
        objective: As of `sparse`.
        saliency: As of `sparse`, of coefficients.
        budget: As of `sparse`.
        options: `include`, `exclude`, `also_train` and `seed`, as of `Options`.

    Returns:
        The model.

    Raises:
        TypeError: As `sparse`.
        ValueError: As `sparse`.

    >>> from subspace.embeddings import DCT
    >>> net = basis(nn.Linear(64, 64), dim=100, transform=DCT)
    """
    size: dict[str, Any] = {"density": density, "dim": dim, "budget": budget, "basis": transform}
    return _sparse(_Choice(model, **options), objective=objective, saliency=saliency, **size)


def _sparse(choice: _Choice, **sizes: Any) -> nn.Module:
    chosen: dict[str, Any] = {"include": choice.takes, "also_train": choice.frees, "seed": choice.seed}
    return recipes.sparse_finetuning(choice.model, **sizes, **chosen)


def fourier_ft(
    model: nn.Module,
    *,
    density: float | None = None,
    dim: int | None = None,
    scale: float | None = None,
    budget: Budget = epl,
    **options: Unpack[Options],
) -> nn.Module:
    """FourierFT (Gao et al., ICML 2024): waves of a few random frequencies; convolutions, too, as matrices of patches.

    Each of several matrices in one tensor has waves of its own, as many as it happens to be drawn.

    Args:
        model: Its tensors are registered in place.
        density: How many frequencies train, as a fraction of all the chosen weights; or give dim. A tensor has about
            half as many as it has weights.
        dim: How many of them train.
        scale: By default every wave has length 1; a number is peft's `scaling`.
        budget: How the total is divided among the tensors.
        options: `include`, `exclude`, `also_train` and `seed`, as of `Options`.

    Returns:
        The model.

    Raises:
        TypeError: If not exactly one of density and dim is given.
        ValueError: If one of them is out of range, for a tensor or altogether, or as `targets`.

    >>> net = fourier_ft(nn.Conv2d(8, 16, 3), dim=100)
    """
    choice = _Choice(model, **options)
    counts = choice.divide(density, dim, budget)
    return choice.register(lambda name, target, _, key: _waves(target, counts[name], key, scale))


def hashed(
    model: nn.Module,
    *,
    density: float | None = None,
    dim: int | None = None,
    budget: Budget = epl,
    **options: Unpack[Options],
) -> nn.Module:
    """Shared numbers (Chen et al., ICML 2015; the map of Uni-LoRA, 2025): each is added at random places, or taken off.

    Args:
        model: Its tensors are registered in place.
        density: How many numbers train, as a fraction in (0, 1] of all the chosen weights; or give dim.
        dim: How many numbers train.
        budget: How they are divided among the tensors.
        options: `include`, `exclude`, `also_train` and `seed`, as of `Options`.

    Returns:
        The model.

    Raises:
        TypeError: If not exactly one of density and dim is given.
        ValueError: If one of them is out of range, for a tensor or altogether, or as `targets`.

    >>> net = hashed(nn.Linear(64, 64), density=0.02)
    """
    choice = _Choice(model, **options)
    counts = choice.divide(density, dim, budget)
    return choice.register(lambda name, target, _, key: Hashed(target.weight, counts[name], key=key))


def srht(
    model: nn.Module, *, density: float | None = None, dim: int | None = None, **options: Unpack[Options]
) -> nn.Module:
    """Direct intrinsic dimension (DID, Aghajanyan et al. 2020): one theta for all tensors, U a fast random rotation.

    Its sibling SAID, which multiplies each tensor's part by a trained number, is bilinear: `methods.said`.

    Args:
        model: Its tensors are registered in place; of one dtype, or of half precision and float32, and on one device.
        density: The length of theta as a fraction in (0, 1] of the number of the chosen weights; or give dim.
        dim: The length of theta.
        options: `include`, `exclude`, `also_train` and `seed`, as of `Options`.

    Returns:
        The model.

    Raises:
        TypeError: If not exactly one of density and dim is given.
        ValueError: If one of them is out of range, if tensors are on several devices, or as `targets`.

    >>> net = srht(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2)), dim=50)
    >>> net[0].parametrizations.weight.original is net[1].parametrizations.weight.original
    True
    """
    choice = _Choice(model, **options)
    return recipes.random_subspace(
        model,
        density=density,
        dim=dim,
        seed=choice.seed,
        offset=lambda weight, _: Pretrained(weight),
        embedding=SRHT,
        include=choice.takes,
        also_train=choice.frees,
    )


def lora_xs(model: nn.Module, rank: int, **options: Unpack[Options]) -> nn.Module:
    """LoRA-XS (Banaei et al. 2024): a rank x rank matrix between the first singular vectors of each weight.

    The frames are orthonormal; the paper's outer one is multiplied by the singular values.

    Args:
        model: Its tensors are registered in place; each of several matrices in one tensor has its own.
        rank: The number of singular vectors.
        options: `include`, `exclude`, `also_train` and `seed`, as of `Options`.

    Returns:
        The model.

    Raises:
        ValueError: If rank is more than that of a weight, or as `targets`.

    >>> net = lora_xs(nn.Linear(64, 32), 4)
    >>> net.parametrizations.weight.original.shape
    torch.Size([16])
    """

    def rule(name: str, target: Target, d: Pretrained, key: Key) -> Embedding:
        _require_rank(rank, min(_fans(target)))
        return LowRank(target.weight, rank, rank, offset=d, layout=target.layout)

    return _Choice(model, **options).register(rule)


def lora_fa(model: nn.Module, rank: int, **options: Unpack[Options]) -> nn.Module:
    """LoRA-FA (Zhang et al. 2023): B of B A trains; A, of random orthonormal rows, is fixed.

    Args:
        model: Its tensors are registered in place; each of several matrices in one tensor has its own B.
        rank: The columns of B.
        options: `include`, `exclude`, `also_train` and `seed`, as of `Options`.

    Returns:
        The model.

    Raises:
        ValueError: If rank is more than the inputs of a weight, or as `targets`.

    >>> net = lora_fa(nn.Linear(64, 32), 4)
    >>> net.parametrizations.weight.original.shape
    torch.Size([128])
    """

    def rule(name: str, target: Target, d: Pretrained, key: Key) -> Embedding:
        _require_rank(rank, _fans(target)[1])
        return LowRank(target.weight, None, rank, key=key, layout=target.layout)

    return _Choice(model, **options).register(rule)


def ia3(model: nn.Module, *, biases: bool = False, **options: Unpack[Options]) -> nn.Module:
    """IA3 (Liu et al., NeurIPS 2022): w = diag(1 + theta) d, a factor for each output, from 1.

    The columns of U are the rows of d, of their own lengths.

    Args:
        model: Its tensors are registered in place. The paper's are keys, values and the inner layer of each block: name
            them by include.
        biases: Whether a factor scales the output with its bias, as in peft; by default it scales the weight alone.
        options: `include`, `exclude`, `also_train` and `seed`, as of `Options`.

    Returns:
        The model.

    Raises:
        ValueError: If a row of a weight is zero, or as `targets`.

    >>> net = ia3(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2)), include=["0"])
    >>> net[0].parametrizations.weight.original.shape
    torch.Size([32])
    """
    choice = _Choice(model, **options)
    if not biases:
        return choice.register(lambda name, target, d, key: RowScale(d, scale=1.0, layout=target.layout))
    groups = [_of_outputs(name, target, choice.free) for name, target in choice.targets.items()]
    return freeze_others(register_sharing(model, groups), choice.free)


def circulant(model: nn.Module, block: int | None = None, **options: Unpack[Options]) -> nn.Module:
    """C3A (Chen et al. 2024): circulant blocks, numel / block numbers for each tensor.

    Args:
        model: Its tensors are registered in place; each matrix of several in one tensor has its own blocks.
        block: The length of a block, which divides the outputs and the inputs of every weight; by default the largest
            that does, for each.
        options: `include`, `exclude`, `also_train` and `seed`, as of `Options`.

    Returns:
        The model.

    Raises:
        ValueError: If the block does not divide a weight's outputs or inputs, or as `targets`.

    >>> net = circulant(nn.Linear(64, 32))
    >>> net.parametrizations.weight.original.shape
    torch.Size([64])
    """

    def rule(name: str, target: Target, d: Pretrained, key: Key) -> Embedding:
        b = math.gcd(*_fans(target)) if block is None else block
        return Circulant(target.weight, b, layout=target.layout)

    return _Choice(model, **options).register(rule)


def _waves(target: Target, dim: int, key: Key, scale: float | None) -> FourierFT:
    return FourierFT(target.weight, dim, key=key, scale=scale, layout=target.layout)


def _of_outputs(name: str, target: Target, free: set[str]) -> dict[str, Start]:
    """d, U and theta of a weight and of its layer's bias, unless that trains as it is."""
    same_name = target.name.replace("weight", "bias", 1)  # as in_proj_bias, bias_ih_l0
    bias = None if same_name == target.name else target.module._parameters.get(same_name)
    beside = f"{name.removesuffix(target.name)}{same_name}"
    own = {name: target.weight} if bias is None or beside in free else {name: target.weight, beside: bias}
    try:
        return {each: (d, U, zeros(d.like, U.dim)) for each, (d, U) in of_outputs(own, target.layout).items()}
    except ValueError as error:
        raise ValueError(f"{name} cannot be tuned: {error}") from error


def _fans(target: Target) -> tuple[int, int]:
    return target.layout.fans(target.weight.shape)


def _require_rank(rank: int, most: int) -> None:
    if not 1 <= rank <= most:
        raise ValueError(f"rank must be in [1, {most}], got {rank}")
