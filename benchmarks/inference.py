"""A linear layer for 1 to 16 rows, forward only: DCTpS beside nn.Linear, itself compiled, and dynamically in int8."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

import subspace
from benchmarks.report import Row, options, rows, show, write
from benchmarks.timing import Call, interleave

OVER = ("dense", "compiled", "int8")


def contest(size: int, density: float) -> dict[str, Any]:
    """The layers by name; all of one size, without a bias."""
    dense = nn.Linear(size, size, bias=False).eval()
    ours = subspace.recipes.dctps(nn.Sequential(nn.Linear(size, size, bias=False)), density=density, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there will be another way to quantize
        quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(dense), {nn.Linear})
    return {
        "dense": dense,
        "compiled": torch.compile(dense),
        "int8": quantized,
        "auto": subspace.structured(ours).eval(),
    }


def megabytes(ours: nn.Module, name: str, size: int) -> float:
    """What a file of the layer holds: a weight, one of a byte each, or theta and the support's key."""
    if name == "auto":
        return 4e-6 * sum(parameter.numel() for parameter in ours.parameters())
    return (1e-6 if name == "int8" else 4e-6) * size * size


def main() -> None:
    """Measure, print, write."""
    parser = options(__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--density", type=float, default=1e-3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.backends.quantized.engine = "x86" if "x86" in torch.backends.quantized.supported_engines else "qnnpack"
    table: list[Row] = []
    with torch.inference_mode():
        for size in args.sizes:
            layers = contest(size, args.density)
            for batch in args.batches:
                x = torch.randn(batch, size)
                calls: dict[str, Call] = {name: lambda layer=layer, x=x: layer(x) for name, layer in layers.items()}
                found = rows(
                    interleave(calls, args.rounds, args.seconds), OVER, size=size, batch=batch, density=args.density
                )
                for row in found:
                    row["MB"] = megabytes(layers["auto"], str(row["variant"]), size)
                    show(row)
                table += found
    write(args.out, table)


if __name__ == "__main__":
    main()
