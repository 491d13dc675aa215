"""A tuned linear layer whose w is never built (`structured`) beside the same layer that builds it: d pretrained.

"frozen" is nn.Linear with nothing that trains but its bias, the least that any tuner of it can cost.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.report import Row, options, rows, show, write
from benchmarks.timing import interleave
from subspace import structured, tune


def contest(size: int, density: float) -> dict[str, nn.Module]:
    """The layers by name."""
    base = nn.Sequential(nn.Linear(size, size))
    built = tune.sparse(copy.deepcopy(base), density=density, also_train=["bias"])
    base[0].weight.requires_grad_(False)
    return {"frozen": base, "built": built, "structured": structured(copy.deepcopy(built))}


def train(layer: nn.Module, x: Tensor, gy: Tensor) -> object:
    """Forward and backward, with the gradients to x and to what trains."""
    return torch.autograd.grad(layer(x), [x, *(p for p in layer.parameters() if p.requires_grad)], gy)


@torch.no_grad()
def infer(layer: nn.Module, x: Tensor) -> object:
    """Forward."""
    return layer(x)


def main() -> None:
    """Measure, print, write."""
    parser = options(__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128, 256, 768, 3072])
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 128, 1024], help="rows of x")
    parser.add_argument("--density", type=float, default=0.01)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table: list[Row] = []
    for size in args.sizes:
        layers = contest(size, args.density)
        for batch in args.batches:
            x, gy = torch.randn(batch, size, requires_grad=True), torch.randn(batch, size)
            for layer in layers.values():
                train(layer, x, gy)  # the first of which may measure the routes
            for passes, call in (("both", partial(train, gy=gy)), ("forward", infer)):
                times = interleave({k: partial(call, m, x) for k, m in layers.items()}, args.rounds, args.seconds)
                for row in rows(times, ("built",), size=size, batch=batch, passes=passes):
                    show(row)
                    table.append(row)
    write(args.out, table)


if __name__ == "__main__":
    main()
