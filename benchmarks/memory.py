"""Peak memory of a layer, of a network's training step and of training a wide MLP, each in a process of its own.

"held" is what the process keeps once the module is built; "peak" is the most it takes above what it had before, while
it computes: forward, backward and, but for the layer, Adam's step. "dense" is what the weights, their gradients and,
but for the layer, Adam's two moments take by themselves, "floor" what x, y and their gradients do. Linux only: VmHWM of
/proc/self/status, reset by clear_refs.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import subspace
from benchmarks.networks import NETWORKS
from benchmarks.report import Row, options, write
from benchmarks.timing import Call
from benchmarks.variants import OTHERS, step, variant

MB = 1e6
STEPS = 3  # of the MLP


def linear(name: str, width: int, batch: int, density: float) -> Call:
    """Forward and backward through a width x width layer; x, y and their gradients are made within."""
    layer = variant(name, nn.Linear(width, width, bias=False), density)

    def call() -> None:
        x = torch.randn(batch, width, requires_grad=True)
        y = layer(x)
        y.backward(torch.ones_like(y))

    return call


def network(name: str, of: str, batch: int, density: float) -> Call:
    """A training step of a network, with Adam."""
    make, shape = NETWORKS[of]
    return step(name, variant(name, make(), density), torch.randn(batch, *shape), adam=True)


def mlp(name: str, width: int, depth: int, batch: int, density: float) -> Call:
    """Steps of Adam with a DCTpS MLP that never exists densely: it is built on the meta device."""
    with torch.device("meta"):
        layers = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())]
    model = subspace.recipes.dctps(nn.Sequential(*layers), density=density, seed=0)
    model = subspace.structured(subspace.initialize(model, device="cpu", seed=0), route=name)
    train = step(name, model, torch.randn(batch, width), adam=True)
    return lambda: [train() for _ in range(STEPS)]


CASES: dict[str, Callable[..., Call]] = {"linear": linear, "network": network, "mlp": mlp}


def measure(build: Callable[[], Call]) -> dict[str, float]:
    """What is held and the peak, in MB, above what the process had before it built the module."""
    set_up()
    before = settled()
    call = build()
    held = settled() - before
    Path("/proc/self/clear_refs").write_text("5")
    call()
    return {"held MB": held / MB, "peak MB": (status("VmHWM") - before) / MB}


def set_up() -> None:
    """A small network's step, so that what is set up once for a process (libraries, the cost model) is not counted."""
    convolutions = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 1)
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(4 * 8 * 8, 8))
    step("auto", variant("auto", model, 0.1), torch.randn(2, 4, 8, 8), adam=True)()


def settled() -> int:
    """Resident bytes, once all that is free has gone back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return status("VmRSS")


def status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status must have a line {field}, got none")
    return 1024 * int(found[1])


def apart(case: str, threads: int, wheels_only: bool = False, **arguments: object) -> dict[str, float]:
    """`measure` a case in a process of its own, with or without the compiled kernels."""
    command = [sys.executable, "-m", "benchmarks.memory", "--threads", str(threads)]
    command += ["--child", json.dumps({"case": case, **arguments}), *["--wheels-only"] * wheels_only]
    root = Path(__file__).parent.parent
    out = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(json.loads(out.splitlines()[-1]))


def compare(case: str, names: list[str], dense: float, floor: float, args: Any, **arguments: object) -> list[Row]:
    """A row for each variant, ours with and without the compiled kernels; `dense` and `floor` in MB."""
    table: list[Row] = []
    for name in names:
        for wheels_only in sorted({args.wheels_only, args.wheels_only or name not in OTHERS}):
            row: Row = {"case": case, **arguments, "variant": name, "wheels only": wheels_only}
            row |= {"floor MB": floor, "dense MB": dense}
            row |= apart(case, args.threads, wheels_only, name=name, **arguments)
            print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
            table.append(row)
    return table


def main() -> None:
    """Measure, print, write."""
    parser = options(__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--width", type=int, default=8192, help="of the layer")
    parser.add_argument("--batch", type=int, default=128, help="of the layer and the MLP")
    parser.add_argument("--density", type=float, default=1e-3, help="of the layer and the network")
    parser.add_argument("--network", choices=NETWORKS, default="resnet50")
    parser.add_argument("--network-batch", type=int, default=32)
    parser.add_argument("--mlp-width", type=int, default=16384)
    parser.add_argument("--mlp-depth", type=int, default=4)
    parser.add_argument("--mlp-density", type=float, default=1e-4)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        arguments = json.loads(args.child)
        build = CASES[arguments.pop("case")]
        print(json.dumps(measure(lambda: build(**arguments))))
        return
    table: list[Row] = []
    names = ["dense", "authors", "auto"]
    if "linear" in args.cases:
        floor = 4 * 4 * args.batch * args.width / MB
        shape = {"width": args.width, "batch": args.batch, "density": args.density}
        table += compare("linear", names, 4 * 2 * args.width**2 / MB, floor, args, **shape)
    if "network" in args.cases:
        weights = sum(p.numel() for p in NETWORKS[args.network][0]().parameters())
        shape = {"of": args.network, "batch": args.network_batch, "density": args.density}
        table += compare("network", names, 4 * 4 * weights / MB, math.nan, args, **shape)
    if "mlp" in args.cases:
        weights = args.mlp_depth * args.mlp_width**2
        shape = {"width": args.mlp_width, "depth": args.mlp_depth, "batch": args.batch, "density": args.mlp_density}
        table += compare("mlp", ["auto"], 4 * 4 * weights / MB, math.nan, args, **shape)
    write(args.out, table)


if __name__ == "__main__":
    main()
