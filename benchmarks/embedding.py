"""U theta at scale, forward only: the block SRHT beside a stored and a redrawn Gaussian; FourierFT as peft computes it.

FourierFT is timed forward and backward to x and theta, the frozen layer that it is added to left out of both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import subspace
from benchmarks import peers
from benchmarks.report import Row, options, rows, show, write
from benchmarks.timing import Call, interleave
from subspace.embeddings import SRHT, FourierFT


def dense(numel: int, dim: int) -> dict[str, Call]:
    """U theta by a U that is stored, by one redrawn with torch's generator, and by the SRHT."""
    srht, theta = SRHT(torch.empty(numel), dim, key=subspace.Key(0)), torch.randn(dim)
    block = torch.randn(min(numel, max(1, (1 << 20) // dim)), dim)
    U = block.repeat(-(-numel // len(block)), 1)[:numel]  # as fast to read as one drawn throughout, and sooner there

    def redrawn() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.cat([block.normal_(generator=generator) @ theta for _ in range(-(-numel // len(block)))])[:numel]

    return {"stored": lambda: U @ theta, "redrawn": redrawn, "srht": lambda: srht(theta)}


def fourier_ft(n: int, batch: int, dim: int, scaling: float = 150.0) -> dict[str, Call]:
    """x (U theta)^T of an n x n layer through the dense spectrum and weight, as in peft, and in factors."""
    U = FourierFT(torch.empty(n, n), dim, key=subspace.Key(0), scale=scaling)
    index = U.frequencies @ torch.tensor([n, 1])
    theta, x = nn.Parameter(torch.randn(dim)), torch.randn(batch, n, requires_grad=True)
    gy = torch.randn(batch, n)
    products = {
        "peft": lambda: peers.dense_fourier_ft(theta, index, (n, n), scaling, x),
        "factored": lambda: U.linear(theta, x),
    }

    def call(product: Callable[[], Tensor]) -> object:
        return torch.autograd.grad(product(), (x, theta), gy)

    return {name: partial(call, product) for name, product in products.items()}


def main() -> None:
    """Measure, print, write."""
    parser = options(__doc__, rounds=5)
    parser.add_argument("--numel", type=int, default=1_000_000, help="rows of U")
    parser.add_argument("--dim", type=int, default=1_000, help="columns of U, and of FourierFT's theta")
    parser.add_argument("--width", type=int, default=4096, help="n of FourierFT's n x n layer")
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 128, 1024])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table: list[Row] = []
    times = interleave(dense(args.numel, args.dim), args.rounds, args.seconds)
    table += rows(times, ["stored", "redrawn"], case=f"U theta {args.numel}x{args.dim}", batch=1)
    for batch in args.batches:
        times = interleave(fourier_ft(args.width, batch, args.dim), args.rounds, args.seconds)
        table += rows(times, ["peft"], case=f"FourierFT {args.width}x{args.width}", batch=batch)
    for row in table:
        show(row)
    write(args.out, table)


if __name__ == "__main__":
    main()
