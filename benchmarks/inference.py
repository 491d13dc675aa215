"""A linear layer on 1 to 16 rows, forward only: DCTpS beside nn.Linear, itself compiled and in int8; both exported.

What is exported by torch.onnx is run by ONNX Runtime; of the structured layer it is a small program that builds w at
every call. MB are those of the files: a checkpoint of d and U, torch's of every weight, or the program.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

import subspace
from benchmarks.report import Row, options, rows, show, write
from benchmarks.timing import Call, interleave

OVER = ("dense", "compiled", "int8")


def contest(size: int, density: float) -> dict[str, nn.Module]:
    """The layers by name; all of one size, without a bias."""
    dense = nn.Sequential(nn.Linear(size, size, bias=False)).eval()
    ours = subspace.recipes.dctps(nn.Sequential(nn.Linear(size, size, bias=False)), density=density, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there will be another way to quantize
        quantized = torch.ao.quantization.quantize_dynamic(dense, {nn.Linear})
    return {
        "dense": dense,
        "compiled": torch.compile(dense),
        "int8": quantized,
        "auto": subspace.structured(ours).eval(),
    }


def saved(name: str, layer: nn.Module, folder: Path) -> float:
    """MB of the file that holds a layer."""
    path = folder / f"{name}.pt"
    if name == "auto":
        subspace.save(layer, path)
    else:
        torch.save(layer.state_dict(), path)
    return path.stat().st_size / 1e6


def exported(layer: nn.Module, x: Tensor, threads: int, folder: Path) -> tuple[Callable[[Tensor], Any], float]:
    """What runs the exported layer for rows like x, and MB of its files."""
    folder.mkdir()
    batch = torch.export.Dim("batch", min=1, max=1024)
    with torch.inference_mode(False):
        torch.onnx.export(layer, (x,), folder / "net.onnx", dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "net.onnx", settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x.numpy()}), sum(f.stat().st_size for f in folder.iterdir()) / 1e6


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
    for size in args.sizes:
        layers = contest(size, args.density)
        with tempfile.TemporaryDirectory() as name, torch.inference_mode():
            table += measured(layers, size, args, Path(name))
    write(args.out, table)


def measured(layers: dict[str, nn.Module], size: int, args: Any, folder: Path) -> list[Row]:
    """The rows of one size."""
    megabytes = {name: saved(name, layer, folder) for name, layer in layers.items()}
    run: dict[str, Callable[[Tensor], Any]] = dict(layers)
    for name in ("dense", "auto"):
        made = exported(layers[name], torch.randn(2, size), args.threads, folder / name)
        run[f"{name}, exported"], megabytes[f"{name}, exported"] = made
    table: list[Row] = []
    for batch in args.batches:
        x = torch.randn(batch, size)
        calls: dict[str, Call] = {name: lambda call=call, x=x: call(x) for name, call in run.items()}
        times = interleave(calls, args.rounds, args.seconds)
        for row in rows(times, OVER, size=size, batch=batch, density=args.density):
            row["MB"] = megabytes[str(row["variant"])]
            show(row)
            table.append(row)
    return table


if __name__ == "__main__":
    main()
