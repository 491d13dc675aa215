"""The pictures of the pages, made of the library's own tensors: `python docs/scripts/pictures.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from subspace import Key, recipes, subspaces
from subspace.embeddings import SRHT, Direction, Embedding, FourierFT, Identity, Sparse
from subspace.embeddings import Gaussian as GaussianEmbedding
from subspace.offsets import DCT, Gaussian, Hadamard, Offset, RankOne, SignedDCT, Zero
from subspace.products.parts.factors import factors

FOLDER = Path(__file__).resolve().parents[1] / "pictures"
ROWS, COLUMNS = 24, 32


def show(axes: Axes, matrix: Tensor, title: str = "", limit: float | None = None) -> None:
    """A matrix in colours: white is 0, red positive, blue negative."""
    top = limit or float(matrix.abs().max()) or 1.0
    axes.imshow(matrix.detach(), cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest", aspect="auto")
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])


def decomposition() -> Figure:
    """A layer of DCTpS after some training: w, and the parts that it is the sum of."""
    torch.manual_seed(0)
    layer = nn.Linear(COLUMNS, ROWS, bias=False)
    recipes.dctps(layer, density=0.06, seed=1)
    ((_, space),) = subspaces(layer)
    with torch.no_grad():
        space.theta[0] = 0.7 - 1
        space.theta[1:] = 0.35 * torch.randn(len(space.theta) - 1)
    direction, sparse = space.parametrization.embedding.parts()
    parts = [
        (layer.weight, f"w: {ROWS * COLUMNS} weights"),
        (space.offset() + direction(space.theta[:1]), "alpha D: 1 number"),
        (sparse(space.theta[1:]), f"S: {sparse.dim} numbers"),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(6.6, 2.2))
    limit = float(layer.weight.detach().abs().max())
    for place, (matrix, title) in zip(axes, parts, strict=True):
        show(place, matrix, title, limit)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.85, bottom=0.03, wspace=0.2)
    for left, right, sign in ((axes[0], axes[1], "="), (axes[1], axes[2], "+")):
        middle = (left.get_position().x1 + right.get_position().x0) / 2
        figure.text(middle, 0.45, sign, fontsize=20, ha="center", va="center")
    return figure


def offsets() -> Figure:
    """The offsets at a weight of 24 x 32."""
    w, key = torch.empty(ROWS, COLUMNS), Key(0)
    every: list[Offset] = [
        Zero(w),
        DCT(w),
        SignedDCT(w, key=key),
        Hadamard(w),
        Gaussian(w, key=key),
        RankOne(w, key=key),
    ]
    return gallery([(type(d).__name__, d()) for d in every])


def embeddings() -> Figure:
    """What one number of theta does to w: a column of U, in the shape of the weight."""
    w, key = torch.empty(ROWS, COLUMNS), Key(0)
    every: list[Embedding] = [
        Identity(w),
        Sparse(w, 100, key=key),
        GaussianEmbedding(w, 100, key=key),
        SRHT(w, 100, key=key),
        FourierFT(w, 100, key=key),
        Direction(DCT(w)),
    ]
    return gallery([(type(U).__name__, U(one(U.dim))) for U in every])


def one(dim: int) -> Tensor:
    """The theta whose middle number is 1 and all others 0."""
    return torch.eye(dim)[dim // 2]


def gallery(pictures: list[tuple[str, Tensor]]) -> Figure:
    """Named matrices in two rows, each with its own colours."""
    figure, axes = plt.subplots(2, math.ceil(len(pictures) / 2), figsize=(6.6, 3.8))
    for place, (name, matrix) in zip(axes.flat, pictures, strict=True):
        show(place, matrix, name)
    figure.tight_layout()
    return figure


def convolution() -> Figure:
    """The DCT of a 3 x 3 convolution of 64 channels, and the two thin convolutions that it is."""
    channels, taps = 64, 9
    d = DCT(torch.empty(channels, channels, 3, 3, dtype=torch.float64))
    found = factors(channels, channels, taps, 1e-6)
    r = len(found.basis)
    figure, axes = plt.subplot_mosaic("aaab;cddd", figsize=(7.4, 5.4))
    show(axes["a"], d.matrix(), f"D: {channels} outputs x {taps} taps of {channels} channels")
    every = torch.linalg.svdvals(channel_parts(channels, taps))
    axes["b"].semilogy(range(1, len(every) + 1), every, ".", color="0.6")
    axes["b"].semilogy(range(1, r + 1), every[:r], ".", color="C3")
    axes["b"].axhline(1e-6 * float(every[0]), color="black", linewidth=0.8)
    axes["b"].set_title(f"{r} singular values", fontsize=10)
    show(axes["c"], found.basis, f"1 x 1: {channels} to {r}")
    show(axes["d"], found.kernel().transpose(1, 2).reshape(channels, -1), f"then 3 x 3: {r} to {channels} channels")
    for tap in range(1, taps):
        axes["a"].axvline(tap * channels - 0.5, color="black", linewidth=0.8)
        axes["d"].axvline(tap * r - 0.5, color="black", linewidth=0.8)
    figure.tight_layout()
    return figure


def channel_parts(channels: int, taps: int) -> Tensor:
    """What depends on the channel in a DCT of as many outputs: the cosines and sines of its part of the angle."""
    q = channels * taps
    numbers = torch.arange(channels, dtype=torch.float64)
    angle = math.pi * numbers[:, None] * (2 * numbers + 1) / (2 * q)
    scale = torch.full((channels, 1), math.sqrt(2 / q), dtype=torch.float64)
    scale[0] = math.sqrt(1 / q)
    return torch.cat([scale * angle.cos(), scale * angle.sin()])


PICTURES: dict[str, Callable[[], Figure]] = {
    "decomposition": decomposition,
    "offsets": offsets,
    "embeddings": embeddings,
    "convolution": convolution,
}


def main() -> None:
    """Draw all of them anew."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        figure = draw()
        figure.savefig(FOLDER / f"{name}.png", dpi=180)
        plt.close(figure)


if __name__ == "__main__":
    main()
