"""The constants of the cost model, measured once per machine, in about a second for a family of problems.

They are kept in the user's cache folder, by processor, threads, torch's version and the compiled kernels. The
environment variable SUBSPACE_COSTS names another file to read and write, or "typical" for constants that ship with the
package: choices are then the same everywhere. (`python -m subspace.kernels.calibration` prints this machine's.)
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

from subspace.kernels import native
from subspace.kernels.conv import conv
from subspace.kernels.conv import routes as conv_routes
from subspace.kernels.costs import Problem, counts
from subspace.kernels.geometry import Geometry
from subspace.kernels.linear import linear
from subspace.kernels.linear import routes as linear_routes

Constants = dict[str, list[float]]  # by route
TYPICAL = Path(__file__).with_name("typical.json")
REPEATS = 3
LINEAR = [(64, 64, 256), (256, 256, 32), (256, 256, 512), (1024, 1024, 8), (1024, 1024, 128), (512, 4096, 64)]
CONV = {  # N, C, C_out, height and width; the largest do not fit into a cache
    "pointwise": [
        (8, 32, 32, 16),
        (32, 24, 144, 32),
        (8, 128, 128, 8),
        (32, 512, 512, 4),
        (32, 64, 256, 32),
        (32, 96, 24, 32),
    ],
    "conv": [(8, 32, 32, 16), (8, 64, 64, 32), (8, 128, 128, 8), (8, 512, 512, 4), (8, 64, 256, 16), (32, 3, 64, 32)],
    "grouped": [
        (8, 32, 32, 16),
        (32, 96, 96, 32),
        (8, 128, 128, 8),
        (32, 960, 960, 4),
        (32, 192, 192, 16),
        (8, 16, 16, 32),
    ],
}


def constants(family: str, dtype: torch.dtype, device: str) -> Constants:
    """Seconds per count of every route of a family, as `costs.counts` orders them."""
    return _constants(family, dtype, device, torch.get_num_threads())


@functools.lru_cache(maxsize=256)
def _constants(family: str, dtype: torch.dtype, device: str, threads: int) -> Constants:
    path = _path()
    if path == TYPICAL:
        known: Constants = json.loads(path.read_text())["typical"][family]
        return known
    name = f"{machine(device, threads)}, {str(dtype).removeprefix('torch.')}"
    table = _read(path)
    found = table.get(name, {}).get(family)
    if found is None:
        found = measured(family, dtype, device)
        table = _read(path)  # which others may have written meanwhile
        table.setdefault(name, {})[family] = found
        _write(path, table)
    return found


def machine(device: str, threads: int) -> str:
    """What the constants depend on."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{device}: {_processor()}, {threads} threads, torch {torch.__version__}, kernels {native.status()}"


def measured(family: str, dtype: torch.dtype, device: str) -> Constants:
    """Time all routes of the family on some problems and fit their constants, none of them negative."""
    rows: dict[str, list[tuple[tuple[float, ...], float]]] = {}
    for problem in samples(family, dtype, device):
        for route, seconds in timed(problem).items():
            rows.setdefault(route, []).append((counts(problem, route), seconds))
    return {route: _fit(found) for route, found in rows.items()}


def _fit(found: list[tuple[tuple[float, ...], float]]) -> list[float]:
    """Least squares of the relative errors."""
    a = np.array([count for count, _ in found]) / np.array([[seconds] for _, seconds in found])
    scale = a.max(axis=0)
    scale[scale == 0] = 1
    solution: list[float] = (nnls(a / scale, np.ones(len(found)))[0] / scale).tolist()
    return solution


def samples(family: str, dtype: torch.dtype, device: str) -> Iterator[Problem]:
    """Small problems of a family, of two densities each."""
    kind, _, layout = family.partition(", ")
    for n, density in enumerate((1e-3, 2e-2) * (len(LINEAR) // 2)):
        if kind == "linear":
            n_out, n_in, rows = LINEAR[n]
            yield Problem(kind, (n_out, n_in), round(density * n_out * n_in), "dct", (rows, n_in), dtype, device)
            continue
        batch, channels, n_out, size = CONV[kind][n]
        groups = channels if kind == "grouped" else 1
        shape = (channels if groups > 1 else n_out, channels // groups, *((1, 1) if kind == "pointwise" else (3, 3)))
        sizes = (1, 1), tuple((t - 1) // 2 for t in shape[2:]), (1, 1)
        k = max(1, round(density * math.prod(shape)))
        yield Problem(
            "conv", shape, k, "dct", (batch, channels, size, size), dtype, device, bool(layout), *sizes, groups
        )


def timed(problem: Problem, repeats: int = REPEATS) -> dict[str, float]:
    """Seconds of a forward and a backward pass by every possible route, the least of some, the routes in turns."""
    layout = torch.channels_last if problem.channels_last else torch.contiguous_format
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(problem.device, enabled=False):
        x = torch.ones(problem.x_shape, dtype=problem.dtype, device=problem.device)
        x = x.contiguous(memory_format=layout if x.ndim == 4 else torch.contiguous_format).requires_grad_()
        scale = None if problem.transform == "zero" else torch.ones(1, dtype=x.dtype, device=x.device).requires_grad_()
        values = torch.ones(problem.k, dtype=x.dtype, device=x.device).requires_grad_()
        index = torch.linspace(0, math.prod(problem.shape) - 1, problem.k, dtype=torch.float64).long().to(x.device)
        best: dict[str, float] = {}
        for _ in range(1 + repeats):  # the first warms up
            for route in possible(problem, x):
                start = _now(x)
                if problem.kind == "linear":
                    y = linear(x, scale, values, index, problem.shape, problem.transform, route)
                else:
                    what = problem.stride, problem.padding, problem.dilation, problem.groups
                    y = conv(x, scale, values, index, problem.shape, problem.transform, *what, route)
                y.backward(torch.ones_like(y))  # type: ignore[no-untyped-call]
                best[route] = min(best[route], _now(x) - start) if route in best else math.inf
    return best


def possible(problem: Problem, x: torch.Tensor) -> list[str]:
    """The routes that can do this."""
    if problem.kind == "linear":
        return linear_routes(x, problem.shape, problem.transform)
    geometry = Geometry(problem.shape[2:], problem.stride, problem.padding, problem.dilation, problem.groups)
    return conv_routes(x, problem.shape, problem.transform, geometry)


def _now(x: torch.Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()


def _path() -> Path:
    chosen = os.environ.get("SUBSPACE_COSTS")
    if chosen:
        return TYPICAL if chosen == "typical" else Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "subspace" / "costs.json"


def _read(path: Path) -> dict[str, dict[str, Constants]]:
    try:
        table: dict[str, dict[str, Constants]] = json.loads(path.read_text())
    except (OSError, ValueError):  # missing, or damaged: it is only a cache
        return {}
    return table


def _write(path: Path, table: dict[str, dict[str, Constants]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(table, file, indent=1)
        os.replace(file.name, path)
    except OSError:  # a read-only home: measured again in the next process
        return


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = dict.fromkeys(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return ", ".join(names) or platform.machine()


def main() -> None:
    """Print constants of this machine for every family, as `typical.json` holds them."""
    kinds = [kind + layout for kind in ("pointwise", "conv", "grouped") for layout in ("", ", channels_last")]
    found = {family: measured(family, torch.float32, "cpu") for family in ["linear", *kinds]}
    print(json.dumps({"typical": found}, indent=1))


if __name__ == "__main__":
    main()
