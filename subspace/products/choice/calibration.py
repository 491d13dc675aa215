"""The constants of the cost model: those that ship with the package, and better ones, measured once per machine.

On a CPU a process measures a family of problems when the first of them comes up, within a second for all families
together, whatever their dtype: where the constants that ship say that it would take longer, for what is over time, and
while other programs take turns on the processor, those are used. On a GPU, whose kernels take longer than that to
compile, they are, unless `python -m subspace.products` has measured, which does so for all families of a device. What
is measured is kept in the user's cache folder, by processor, threads, torch's and this package's version and the
compiled kernels. Nothing depends on that file: what is not there, or not as it was written, is measured again, and
where it cannot be written, in every process. The environment variable SUBSPACE_COSTS names another file to read and
write, or "typical" for the constants that ship.

Measured constants differ a little from one measurement to the next, and with them the routes and so the last bits of
results. With SUBSPACE_COSTS=typical the choices are the same on every machine and in every run.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

from subspace._base.files import write_atomically
from subspace._base.machine import cpu_name
from subspace._base.version import VERSION
from subspace.products.choice.router import Constants, predict
from subspace.products.form import Layout
from subspace.products.geometry import Geometry, last_format
from subspace.products.native import load
from subspace.products.problem import Problem
from subspace.products.routes.base import Route
from subspace.products.weight import Needs, Weight

Routes = tuple[Route, ...]
Table = dict[str, dict[str, dict[str, list[float]]]]  # by machine, family and route
COUNTS = 3  # raised with every change of what any `Route.counts` counts, or of what is measured
TYPICAL = Path(__file__).with_name("typical.json")
REPEATS = 2
QUIET = 0.7  # of the seconds of a measurement its thread must have had the processor, or others' turns are in them
SECONDS = 0.8  # that a process measures for on a CPU, all families together: with the last call, within a second
LINEAR = [(64, 64, 16), (256, 256, 32), (128, 128, 2048), (1024, 1024, 8), (1024, 1024, 128), (512, 4096, 64)]
LINEAR_ON_GPU = [
    (256, 256, 4096),
    (1024, 1024, 1024),
    (1024, 1024, 8192),
    (4096, 4096, 256),
    (4096, 4096, 8192),
    (2048, 8192, 4096),
]
BESIDE_TRANSFORM = [(n, (1e-3, 2e-2)[n % 2]) for n in range(len(LINEAR))]  # problems, and densities of S
BESIDE_GIVEN = [(n, density) for n in range(len(LINEAR)) for density in (2e-3, 2e-1)]  # of which w may be the faster
BATCHES_ON_GPU = 8  # times as many images, or a GPU would have nothing to do
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

KINDS = ("linear", *(kind + layout for kind in CONV for layout in ("", ", channels_last")))
FAMILIES = (*KINDS, *(f"{kind}, given" for kind in KINDS))


def constants(routes: Routes, family: str, dtype: torch.dtype, device: str) -> Constants:
    """Seconds per count of the routes of a family, as `Route.counts` orders them."""
    return _constants(routes, family, dtype, device, torch.get_num_threads())


@functools.lru_cache(maxsize=256)
def _constants(routes: Routes, family: str, dtype: torch.dtype, device: str, threads: int) -> Constants:
    path = _path()
    if path == TYPICAL:
        return typical(family, dtype, device)
    found = _read(path).get(machine(device, threads, dtype), {}).get(family, {})
    if {route: len(each) for route, each in found.items()} == _sizes(routes, family, dtype, device):
        return found
    try:
        found = _SECONDS.measure(routes, family, dtype, device)
    except TimeoutError:
        return typical(family, dtype, device)
    keep(family, dtype, device, found)
    return found


def keep(family: str, dtype: torch.dtype, device: str, found: Constants) -> None:
    """Write down what was measured, for every later process; never over the constants that ship."""
    if (path := _path()) == TYPICAL:
        return
    table = _read(path)  # others may have written to it since
    name = machine(device, torch.get_num_threads(), dtype)
    table.setdefault(name, {})[family] = {route: list(each) for route, each in found.items()}
    _write(path, table)


def typical(family: str, dtype: torch.dtype, device: str) -> dict[str, list[float]]:
    """The constants that ship, of a CPU and of a GPU, an H200, whose float32's stand for its float64's.

    Other devices are thought of as GPUs.
    """
    known: dict[str, dict[str, dict[str, list[float]]]] = json.loads(TYPICAL.read_text())
    if device == "cpu":
        return known[_name(dtype)][family]
    return known["cuda " + _name(torch.float32 if dtype == torch.float64 else dtype)][family]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _Allowance:
    """The seconds that measurements may take yet."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def measure(self, routes: Routes, family: str, dtype: torch.dtype, device: str) -> dict[str, list[float]]:
        """`measure` in the time that is left; TimeoutError where that is too short, or other programs take turns."""
        if device != "cpu":
            raise TimeoutError(f"{family} takes longer than {SECONDS} seconds on {device}")
        if self.left < _expected(routes, family, dtype):
            raise TimeoutError(f"{family} takes longer than what is left of {SECONDS} seconds")
        start, computing = time.perf_counter(), time.thread_time()
        try:
            found = measure(routes, family, dtype, device, start + self.left)
        finally:
            seconds = time.perf_counter() - start
            self.left -= seconds
        if time.thread_time() - computing < QUIET * seconds:
            raise TimeoutError(f"{family} was measured beside other programs")
        return found


_SECONDS = _Allowance(SECONDS)


def _expected(routes: Routes, family: str, dtype: torch.dtype) -> float:
    """The seconds of `measure`, by the constants that ship."""
    known, problems = typical(family, dtype, "cpu"), list(samples(family, dtype, "cpu"))
    each = [predict(p, r, known) for p in problems for r in routes if r.name in known and r.supports(p)]
    return (1 + REPEATS) * sum(each)


def _sizes(routes: Routes, family: str, dtype: torch.dtype, device: str) -> dict[str, int]:
    """How many constants each route of the family has."""
    problems = list(samples(family, dtype, device))
    return {r.name: len(r.counts(problem)) for problem in problems for r in routes if r.supports(problem)}


def machine(device: str, threads: int, dtype: torch.dtype) -> str:
    """What the constants depend on."""
    versions = f"torch {torch.__version__}, subspace {VERSION}, counts {COUNTS}, {_name(dtype)}"
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, {versions}"
    return f"{device}: {cpu_name()}, {threads} threads, {versions}, kernels {load.status()}"


def measure(
    routes: Routes, family: str, dtype: torch.dtype, device: str, until: float = math.inf
) -> dict[str, list[float]]:
    """Time all routes of the family on some problems and fit their constants, none of them negative.

    Raises TimeoutError once `time.perf_counter()` is over `until`.
    """
    rows: dict[str, list[tuple[tuple[float, ...], float]]] = {}
    for problem in samples(family, dtype, device):
        possible = [route for route in routes if route.supports(problem)]
        for route, seconds in zip(possible, time_routes(possible, problem, until=until).values(), strict=True):
            rows.setdefault(route.name, []).append((route.counts(problem), seconds))
    return {name: _fit(found) for name, found in rows.items()}


def _fit(found: list[tuple[tuple[float, ...], float]]) -> list[float]:
    """Least squares of the relative errors."""
    a = np.array([count for count, _ in found]) / np.array([[seconds] for _, seconds in found])
    scale = a.max(axis=0)
    scale[scale == 0] = 1
    solution: list[float] = (scipy.optimize.nnls(a / scale, np.ones(len(found)))[0] / scale).tolist()
    return solution


def samples(family: str, dtype: torch.dtype, device: str) -> Iterator[Problem]:
    """Small problems of a family, of two densities."""
    kind, *rest = family.split(", ")
    gpu, transform = device == "cuda", "given" if "given" in rest else "dct"
    for n, density in BESIDE_GIVEN if transform == "given" else BESIDE_TRANSFORM:
        if kind == "linear":
            n_out, n_in, rows = (LINEAR_ON_GPU if gpu else LINEAR)[n]
            yield Problem((n_out, n_in), round(density * n_out * n_in), transform, (rows, n_in), dtype, device)
            continue
        batch, channels, n_out, size = CONV[kind][n]
        groups = channels if kind == "grouped" else 1
        kernel = (1, 1) if kind == "pointwise" else (3, 3)
        shape = (channels if groups > 1 else n_out, channels // groups, *kernel)
        geometry = Geometry(kernel, (1, 1), tuple((t - 1) // 2 for t in kernel), (1, 1), groups)
        k = max(1, round(density * math.prod(shape)))
        batch *= BATCHES_ON_GPU if gpu else 1
        last = "channels_last" in rest
        yield Problem(shape, k, transform, (batch, channels, size, size), dtype, device, last, geometry)


def time_routes(
    routes: Sequence[Route], problem: Problem, repeats: int = REPEATS, until: float = math.inf
) -> dict[str, float]:
    """Seconds of a forward and a backward pass by each of the routes, the least of some, the routes in turns.

    Those that bind their products are timed bound, as layers call them.
    On a GPU they are captured: what each launch costs depends on the program, and large layers and graphs hide it.
    Raises TimeoutError once `time.perf_counter()` is over `until`.
    """
    options = {"dtype": problem.dtype, "device": problem.device}
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(problem.device, enabled=False):
        x = torch.ones(problem.x_shape, **options)  # type: ignore[call-overload]
        if problem.channels_last:
            x = x.contiguous(memory_format=last_format(x))
        scale = None if problem.transform == "zero" else x.new_ones(1)
        index = torch.linspace(0, problem.entries - 1, problem.k, dtype=torch.float64).long().to(x.device)
        given = x.new_ones(problem.shape) if problem.transform == "given" else None
        w = Weight(scale, x.new_ones(problem.k), index, problem.shape, problem.transform, matrix=given)
        calls = {route.name: _both_passes(route, x, w, problem) for route in routes}
        if x.is_cuda:
            calls = {name: _captured(call) for name, call in calls.items()}
        best = dict.fromkeys(calls, math.inf)
        for _ in range(1 + repeats):  # the first warms up
            for name, call in calls.items():
                if time.perf_counter() > until:
                    raise TimeoutError(f"{problem.family} took too long")
                with _Clock(x) as clock:
                    call()
                best[name] = min(best[name], clock.seconds)
    return best


def _both_passes(route: Route, x: torch.Tensor, w: Weight, problem: Problem) -> Callable[[], None]:
    """What makes a forward and a backward pass: bound to a theta where the route binds its product."""
    geometry, layout = problem.geometry, Layout(1 + problem.k, 0.0, 1.0, at=0, first=1)
    if problem.transform == "given":
        layout = Layout(problem.k, 1.0, 0.0, at=None, first=0)
    is_bound = x.dtype == torch.float32 and not x.is_cuda
    bound, theta = route.bind(problem, layout, w) if is_bound else None, x.new_ones(layout.dim)

    def call() -> None:
        if bound is None:
            y = route.forward(x, w, geometry)
            route.backward(torch.ones_like(y), x, w, geometry, Needs(True, w.scale is not None, True))
            return
        size = geometry.sizes(problem.x_shape[2:]) if geometry.kernel else ()
        y = x.new_empty(problem.x_shape[0], problem.shape[0], *size)
        if problem.channels_last:
            y = y.contiguous(memory_format=last_format(x))
        bound.forward(x, theta, y)
        bound.backward(torch.ones_like(y), x, theta, torch.empty_like(x), torch.empty_like(theta))

    return call


def _captured(call: Callable[[], None]) -> Callable[[], None]:
    call()  # which sets up what cannot be captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        call()
    return graph.replay


class _Clock:
    """Seconds of what is within; on a GPU, its own, from event to event."""

    def __init__(self, x: torch.Tensor) -> None:
        self.on_gpu, self.seconds = x.is_cuda, 0.0

    def __enter__(self) -> _Clock:
        if self.on_gpu:
            self.first, self.last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            self.first.record()
        else:
            self.start = time.perf_counter()
        return self

    def __exit__(self, *raised: object) -> None:
        if self.on_gpu:
            self.last.record()
            self.last.synchronize()
            self.seconds = self.first.elapsed_time(self.last) / 1000
        else:
            self.seconds = time.perf_counter() - self.start


def _path() -> Path | None:
    """The file of the cache; None where the user has no folder for it."""
    if chosen := os.environ.get("SUBSPACE_COSTS"):
        return TYPICAL if chosen == "typical" else Path(chosen)
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "subspace" / "costs.json"
    try:
        return Path.home() / ".cache" / "subspace" / "costs.json"
    except RuntimeError:  # a user without a home, as in some containers
        return None


def _read(path: Path | None) -> Table:
    """What of the cache is as it was written."""
    try:
        table = json.loads(path.read_bytes()) if path else {}
    except (OSError, ValueError, RecursionError):  # missing, or damaged: it is only a cache
        return {}
    names = _dictionaries(table)
    return {
        name: {
            family: found
            for family, found in _dictionaries(families).items()
            if all(map(_are_constants, found.values()))
        }
        for name, families in names.items()
    }


def _dictionaries(value: Any) -> dict[str, Any]:
    """What of a dictionary is one itself."""
    return {k: v for k, v in value.items() if isinstance(v, dict)} if isinstance(value, dict) else {}


def _are_constants(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, float) and 0 <= each < math.inf for each in value)


def _write(path: Path | None, table: Table) -> None:
    if path is not None:
        with contextlib.suppress(OSError, ValueError):  # a read-only home, or a full disk: measured again next time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(table, indent=1).encode())
