"""Everything about a GPU in one command: the laws, the layers, convolutions, training steps, memory and errors.

Needs a checkout on the path and torch with CUDA, nothing else: `PYTHONPATH=. python -m benchmarks.gpu`. One line for
each target; the exit status is 1 after a miss or a failure.
"""

from __future__ import annotations

import argparse
import csv
import gc
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import subspace
from benchmarks import networks
from benchmarks.timing import Call, Times, captured, in_turns, interleave, ratio, spread
from subspace.products import Geometry, Weight, conv, linear
from subspace.products.geometry import LINEAR
from subspace.products.routes.triton import Triton
from subspace.products.weight import Needs

Row = dict[str, object]

SETS = 3  # of inputs, in turns, so that no call finds its input in a cache
TARGETS = {4096: 3.0, 8192: 6.0, 16384: 12.0}  # speed-up by size, 8192 rows, p = 1e-3, bfloat16
RESNET50 = 1.3


class Bench:
    """What was measured so far, and how many targets were missed."""

    def __init__(self, device: str, quick: bool) -> None:
        self.device, self.quick = device, quick
        self.rows: list[Row] = []
        self.misses = 0
        self.start = time.monotonic()

    def add(self, section: str, case: str, variant: str, **measured: object) -> None:
        """Keep a row and print it."""
        self.rows.append({"section": section, "case": case, "variant": variant, **measured})
        numbers = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in measured.items())
        print(f"[{time.monotonic() - self.start:5.0f} s] {section}: {case}: {variant}: {numbers}", flush=True)

    def times(
        self, section: str, case: str, times: Times, over: tuple[str, ...], target: float | None = None, **more: object
    ) -> None:
        """A row for every variant: milliseconds with quartiles, and how many times faster than the best of `over`.

        target: what the fastest of the others has to reach.
        """
        best = min((name for name in over if name in times), key=lambda name: spread(times[name]).median)
        for name, seconds in times.items():
            median, low, high = (1e3 * value for value in spread(seconds))
            speed = ratio(times, best, name)
            row = {"ms": median, "low": low, "high": high, "n": len(seconds), "over": best, "speed-up": speed.median}
            self.add(section, case, name, **row, **more)
        if target is not None:
            reached = max(ratio(times, best, name).median for name in times if name not in over)
            self.misses += reached < target
            print(f"TARGET {case}: {reached:.2f}x of {target:g}x: {'ok' if reached >= target else 'MISS'}", flush=True)


def laws(bench: Bench) -> None:
    """The tests that need a GPU; all that they say is printed where one fails."""
    folder = Path(__file__).parent.parent / "tests" / "gpu"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        "--show-capture=no",
        str(folder),
    ]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(12, os.cpu_count() or 1))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    lines = done.stdout.strip().splitlines()
    print(done.stdout if done.returncode else lines[-1], flush=True)
    bench.misses += done.returncode != 0
    bench.add("laws", "tests/gpu", "pytest", result=lines[-1] if lines else done.stderr[-200:])


def draw(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def weight(shape: tuple[int, ...], density: float, transform: str, device: str) -> Weight:
    """A DCTpS weight: alpha and S train."""
    n = torch.Size(shape).numel()
    k = max(1, round(density * n))
    index = torch.from_numpy(subspace.Key(0).distinct(n, k)).sort().values.to(device)
    scale, values = torch.ones(1, device=device), torch.randn(k, device=device)
    return Weight(scale.requires_grad_(), values.requires_grad_(), index, shape, transform)


GRAPH = ", in a graph"  # of a variant that is captured as a CUDA graph


def passes(
    name: str, product: Callable[[Tensor], Tensor], xs: list[Tensor], gys: list[Tensor], trained: list[Tensor]
) -> dict[str, Call]:
    """A forward and a backward pass with all gradients, the inputs in turns: as it is and, on a GPU, in a graph."""
    calls: list[Call] = [
        lambda x=x, gy=gy: torch.autograd.grad(product(x), [x, *trained], gy) for x, gy in zip(xs, gys, strict=True)
    ]
    found = {name: in_turns(calls)}
    if xs[0].is_cuda:
        found[name + GRAPH] = in_turns([captured(call) for call in calls])
    return found


def inputs(shape_x: tuple[int, ...], shape_y: tuple[int, ...], dtype: torch.dtype, device: str, last: bool = False):  # type: ignore[no-untyped-def]
    layout = torch.channels_last if last else torch.contiguous_format
    sets = [
        (draw(*shape_x, dtype=dtype, device=device), draw(*shape_y, dtype=dtype, device=device)) for _ in range(SETS)
    ]
    xs = [x.contiguous(memory_format=layout).requires_grad_() for x, _ in sets]
    return xs, [gy.contiguous(memory_format=layout) for _, gy in sets]


def linear_layers(bench: Bench) -> None:
    """q x q layers: nn.Linear, itself compiled, and DCTpS (and the Hadamard transform + S) by the routes there are."""
    for q, rows, densities, dtype in _linear_cases(bench):
        xs, gys = inputs((rows, q), (rows, q), dtype, bench.device)
        w = draw(q, q, dtype=dtype, device=bench.device).requires_grad_()
        calls = passes("nn.Linear", lambda x, w=w: F.linear(x, w), xs, gys, [w])
        if q == 4096 and rows == 8192 and dtype == torch.bfloat16:
            compiled = torch.compile(lambda x, w=w: F.linear(x, w))
            calls |= passes("compiled nn.Linear", compiled, xs, gys, [w])
        others = tuple(calls)
        for density in densities:
            mine = dict(calls)
            for transform in ("dct", "hadamard"):
                ours = weight((q, q), density, transform, bench.device)
                for route in _routes(bench, q, transform, density, dtype):
                    product = lambda x, ours=ours, route=route: linear(x, ours, route)  # noqa: E731
                    mine |= passes(f"{transform} + S, {route}", product, xs, gys, [ours.scale, ours.values])
            case = f"linear {q}, {rows} rows, p {density:g}, {str(dtype)[6:]}"
            whole = rows == 8192 and dtype == torch.bfloat16
            target = TARGETS.get(q) if whole and density == 1e-3 else None
            columns = {"q": q, "p": density} if whole else {}
            bench.times("linear", case, interleave(mine, rounds=7, seconds=3), others, target, **columns)


def kernels(bench: Bench) -> None:
    """The kernels alone, launched behind other work so that the host's share is hidden: 8192 rows, bfloat16."""
    if bench.device != "cuda":
        return
    from triton.testing import do_bench

    for q, density in itertools.product((1024, 2048, 4096, 8192, 16384), (1e-3, 1e-4)):
        x, dense_weight = (draw(n, q, dtype=torch.bfloat16, device="cuda") for n in (8192, q))
        both = lambda x=x, w=dense_weight: (x @ w, x.t() @ x)  # noqa: E731
        passes_of: dict[str, tuple[Call, Call]] = {"nn.Linear": (lambda x=x, w=dense_weight: F.linear(x, w), both)}
        for transform in ("dct", "hadamard", "zero"):
            w = weight((q, q), density, transform, "cuda")
            w = w._replace(scale=None) if transform == "zero" else w
            needs = Needs(True, transform != "zero", True)
            with torch.no_grad():
                passes_of[f"{transform} + S"] = (
                    lambda x=x, w=w: Triton().forward(x, w, LINEAR),
                    lambda x=x, w=w, needs=needs: Triton().backward(x, x, w, LINEAR, needs),
                )
        with torch.no_grad():
            for name, calls in passes_of.items():
                forward, backward = (1e3 * do_bench(call, return_mode="median") for call in calls)
                bench.add("kernels", f"{q}, p {density:g}", name, forward_us=forward, backward_us=backward)


def _linear_cases(bench: Bench) -> Iterator[tuple[int, int, tuple[float, ...], torch.dtype]]:
    if bench.device == "cpu":
        yield 256, 64, (1e-2,), torch.float32
        return
    half, single = torch.bfloat16, torch.float32
    if bench.quick:
        yield from ((q, 8192, (1e-3, 1e-4), half) for q in (4096, 8192, 16384))
        yield from [(4096, 8192, (1e-2,), half), (2048, 8192, (1e-3,), half), (1024, 8192, (1e-3,), half)]
        yield from [(4096, 2048, (1e-3,), half), (16384, 128, (1e-3,), half), (4096, 8192, (1e-3,), single)]
        return
    for q, rows in itertools.product((1024, 2048, 4096, 8192, 16384), (128, 2048, 8192)):
        yield q, rows, (1e-2, 1e-3, 1e-4), half
    for q in (1024, 4096, 8192):
        yield q, 8192, (1e-3,), single


def _routes(bench: Bench, q: int, transform: str, density: float, dtype: torch.dtype) -> list[str]:
    if bench.device == "cpu":
        return ["fft"]
    plain = ["dense"] if transform == "dct" and density == 1e-3 else []
    return ["triton", *(plain if dtype == torch.bfloat16 and q <= 4096 else [])]


CONVOLUTIONS = [  # C, C_out, kernel, stride, height: of ResNet50 at 224 x 224
    (64, 64, 3, 1, 56),
    (128, 128, 3, 1, 28),
    (256, 256, 3, 1, 14),
    (512, 512, 3, 1, 7),
    (256, 256, 3, 2, 28),
    (256, 64, 1, 1, 56),
    (512, 2048, 1, 1, 7),
    (1024, 256, 1, 1, 14),
]


def convolutions(bench: Bench) -> None:
    """Convolutions of ResNet50, batch 128, channels_last, p = 1e-3."""
    cases, batch = (CONVOLUTIONS[:1], 2) if bench.device == "cpu" else (CONVOLUTIONS, 128)
    dtype = torch.float32 if bench.device == "cpu" else torch.bfloat16
    for c, c_out, kernel, stride, size in cases:
        geometry = Geometry((kernel, kernel), (stride, stride), (kernel // 2,) * 2, (1, 1), 1)
        out = geometry.sizes((size, size))
        xs, gys = inputs((batch, c, size, size), (batch, c_out, *out), dtype, bench.device, last=True)
        w = draw(c_out, c, kernel, kernel, dtype=dtype, device=bench.device).requires_grad_()
        w = w.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        dense = lambda x, w=w, stride=stride, kernel=kernel: F.conv2d(x, w, None, stride, kernel // 2)  # noqa: E731
        calls = passes("nn.Conv2d", dense, xs, gys, [w])
        others = tuple(calls)
        ours = weight((c_out, c, kernel, kernel), 1e-3, "dct", bench.device)
        gpu = ("triton",) if max(c, c_out) >= 256 and bench.device == "cuda" else ()
        for route in ("dense", *(("bottleneck",) if kernel > 1 else gpu)):
            product = lambda x, ours=ours, g=geometry, route=route: conv(x, ours, g, route)  # noqa: E731
            calls |= passes(f"dct + S, {route}", product, xs, gys, [ours.scale, ours.values])
        case = f"{kernel}x{kernel} {c} -> {c_out} @{size}, stride {stride}, batch {batch}, {str(dtype)[6:]}"
        bench.times("convolutions", case, interleave(calls, rounds=7, seconds=2), others)


def _step(model: nn.Module, x: Tensor, autocast: bool) -> Call:
    """A step of Adam under autocast to bfloat16; it can be captured."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, capturable=x.is_cuda)

    def call() -> None:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast, cache_enabled=False):
            loss = model(x).float().square().mean()
        loss.backward()
        optimizer.step()

    return call


class Network(NamedTuple):
    """A network and a batch for it; density: of S. items: what a step goes through, images or tokens."""

    name: str
    build: Callable[[], nn.Module]
    x: Tensor
    density: float = 1e-3

    @property
    def items(self) -> int:
        return self.x.numel() if self.x.dtype == torch.int64 else len(self.x)

    def model(self, device: str, route: str | None) -> nn.Module:
        """The dense network, or for a route DCTpS by it."""
        torch.manual_seed(0)
        with torch.device(device):
            model = self.build()
        if route is not None:
            total = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d))
            model = subspace.recipes.dctps(model, dim=round(self.density * total), seed=0)
            model = subspace.structured(model, route)
        return model.to(memory_format=torch.channels_last) if self.x.ndim == 4 else model


def gpt(device: str) -> Network:
    tokens = torch.randint(0, 8192, (8, 1024), device=device)
    return Network("gpt of 12 layers, width 1024, 8 x 1024 tokens", networks.gpt, tokens)


def training_steps(bench: Bench) -> None:
    """Whole steps with Adam under autocast to bfloat16: dense beside DCTpS (p = 1e-3) by the router's choice."""
    if bench.device == "cpu":
        x = draw(8, 256, dtype=torch.float32, device="cpu")
        _steps(bench, Network("mlp", lambda: networks.mlp(256, 2), x), ("auto", "dense"))
        return
    images = draw(64, 3, 224, 224, dtype=torch.float32, device="cuda").contiguous(memory_format=torch.channels_last)
    resnet50 = Network("resnet50, 64 images of 224 x 224", lambda: networks.resnet50(1000, "imagenet"), images)
    for network in (resnet50, gpt("cuda"), Network("vit-b/16, 64 images", networks.vit_b16, images)):
        _steps(bench, network, ("auto", "dense"), RESNET50 if network is resnet50 else None)


def compiled_steps(bench: Bench) -> None:
    """The step of the GPT in `training_steps` once more, by torch.compile."""
    network = (
        gpt(bench.device) if bench.device == "cuda" else Network("mlp", lambda: networks.mlp(64, 2), torch.ones(8, 64))
    )
    _steps(bench, network, ("auto",), compiled=True)


def wide_mlp(bench: Bench) -> None:
    """Four layers of 16384, 2048 rows, bfloat16, a step of Adam: time and peak memory."""
    q, rows, route = (256, 8, "fft") if bench.device == "cpu" else (16384, 2048, "triton")
    x = draw(rows, q, dtype=torch.float32, device=bench.device)
    _steps(bench, Network("mlp of 4 x 16384, 2048 rows", lambda: networks.mlp(q, 4), x, 1e-4), (route,))


def _steps(
    bench: Bench, network: Network, routes: tuple[str, ...], target: float | None = None, compiled: bool = False
) -> None:
    """Time and peak memory of a step of the dense network and of DCTpS by each of the routes."""
    calls: dict[str, Call] = {}
    for route in (None, *routes):
        gc.collect()  # of graphs that are gone
        before = torch.cuda.memory_allocated()
        model = network.model(bench.device, route)
        variant = "dense" if route is None else f"DCTpS, {route}"
        if compiled:
            model, variant = torch.compile(model), f"{variant}, compiled"
        step = _step(model, network.x, autocast=bench.device == "cuda")
        if bench.device == "cuda":
            step()
            torch.cuda.reset_peak_memory_stats()
            step()
            peak = torch.cuda.max_memory_allocated() - before
            bench.add("memory", network.name, variant, peak_gb=peak / 1e9)
        calls |= {variant: step} | ({variant + GRAPH: captured(step)} if bench.device == "cuda" else {})
    others = tuple(variant for variant in calls if variant.startswith("dense"))
    case = f"{network.name}, p {network.density:g}"
    bench.times("training steps", case, interleave(calls, rounds=7, seconds=8), others, target, items=network.items)


def errors(bench: Bench) -> None:
    """Relative errors of the output against float64, beside nn.Linear's with the same weight in its type."""
    if bench.device != "cuda":
        return
    for q, dtype, transform in itertools.product((1024, 4096), (torch.bfloat16, torch.float32), ("dct", "hadamard")):
        ours, x = weight((q, q), 1e-3, transform, "cuda"), draw(256, q, dtype=dtype, device="cuda")
        identity = torch.eye(q, dtype=torch.float64, device="cuda")
        exact_weight = linear(identity, ours, "fft").detach().T
        exact = x.double() @ exact_weight.T
        for name, y in (("triton", linear(x, ours, "triton")), ("nn.Linear", F.linear(x, exact_weight.to(dtype)))):
            error = float((y.double() - exact).norm() / exact.norm())
            bench.add("errors", f"{transform} {q}, {str(dtype)[6:]}", name, error=error)


def stamp(device: str, module: str = "benchmarks.gpu") -> dict[str, object]:
    """The command, the card and the versions."""
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    card = torch.cuda.get_device_name() if device == "cuda" else "none"
    triton = __import__("triton").__version__ if device == "cuda" else "none"
    command = " ".join([f"python -m {module}", *sys.argv[1:]])
    versions = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton,
        "python": sys.version.split()[0],
    }
    return {"command": command, "card": card, **versions, "cores": os.cpu_count(), "commit": commit or "unknown"}


def write(out: Path, bench: Bench) -> None:
    """table.csv, stamp.json and, where there is matplotlib, speedup.png."""
    out.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in bench.rows for name in row))
    with (out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row in bench.rows:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})
    (out / "stamp.json").write_text(json.dumps(stamp(bench.device), indent=2) + "\n")
    if importlib.util.find_spec("matplotlib"):
        draw_speedups(bench, out / "speedup.png")


def draw_speedups(bench: Bench, path: Path) -> None:
    """How many times as fast as nn.Linear the layers of 8192 rows are, over their size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="tight")
    axes = figure.add_subplot(xlabel="q of a q x q layer, 8192 rows, bfloat16")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("times as fast as nn.Linear, forward and\nbackward, in CUDA graphs where faster")
    axes.set_title(str(stamp(bench.device)["card"]))
    for (transform, color), (p, style) in itertools.product(
        {"dct": "#0072B2", "hadamard": "#D55E00"}.items(), {1e-3: "-", 1e-4: "--"}.items()
    ):
        points = {
            row["q"]: row["speed-up"]
            for row in bench.rows
            if row["variant"] == f"{transform} + S, triton{GRAPH}" and row.get("p") == p
        }
        if points:
            sizes, speeds = zip(*sorted(points.items()), strict=True)
            axes.plot(sizes, speeds, style, color=color, marker="o", label=f"{transform} + S, p = {p:g}")
    axes.axhline(1, color="grey", linewidth=1)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


SECTIONS = {
    f.__name__: f
    for f in (laws, errors, kernels, linear_layers, convolutions, wide_mlp, training_steps, compiled_steps)
}


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes; about 2 minutes")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="some sections")
    parser.add_argument("--out", type=Path, help="folder for the table and the stamp")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: everything in miniature, a trial"
    )
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("a GPU must be there, got none (--device cpu tries the command itself)", file=sys.stderr)
        return 2
    bench = Bench(args.device, args.quick)
    print(json.dumps(stamp(bench.device)), flush=True)
    for name in args.only:
        try:
            SECTIONS[name](bench)
        except Exception:  # the others are worth having
            traceback.print_exc()
            bench.misses += 1
            print(f"FAILED {name}", flush=True)
        if args.out:
            write(args.out, bench)
    return int(bench.misses > 0)


if __name__ == "__main__":
    sys.exit(main())
