"""The targets of the products that never build W, and how each is measured in seconds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

import subspace
from benchmarks import conv, embedding, linear, memory, network
from benchmarks.timing import Spread, Times, best, interleave, ratio, sample, spread
from benchmarks.variants import step, variant

OURS = ["auto", "auto:channels_last"]


class Target(NamedTuple):
    """A bound on one of the quantities of a group: wheels only and with compiled kernels, None where there is none.

    Of "x" at least so many, of every other unit at most.
    """

    name: str
    key: str
    wheels_only: float | None
    native: float | None
    unit: str = "x"


class Group(NamedTuple):
    """What is measured together, in the same rounds, and the targets for it."""

    measure: Callable[[], dict[str, Spread]]
    targets: Sequence[Target]


def linear_layer(n: int, densities: list[float], others: list[str]) -> dict[str, Spread]:
    """The speed-up over the others at each density, as "dense 0.001"."""
    times = interleave(linear.contest((n, n), 128, densities, ["auto"], others), seconds=4)
    return {f"{other} {p:g}": ratio(times, other, f"auto {p:g}") for other in others for p in densities}


def conv_layer(text: str) -> dict[str, Spread]:
    """The speed-up over the dense layer and over the better of its formats."""
    calls = conv.contest(conv.parsed(text), 32, 1e-3, ["dense", "channels_last", *OURS])
    return faster(interleave(calls, rounds=5, seconds=1))


def whole(of: str) -> dict[str, Spread]:
    """The speed-up of a network's step, each warmed up with two images only."""
    models, x = network.models(of, 1e-3, ["dense", "channels_last", "authors", *OURS]), network.images(of, 32)
    for name, model in models.items():
        step(name, model, x[:2])()
    return faster(interleave({name: step(name, model, x) for name, model in models.items()}, rounds=2, warm=False))


def faster(times: Times) -> dict[str, Spread]:
    """How many times faster the better of our formats is than each other and than the better dense one."""
    ours = best(times, OURS)
    speed = {name: ratio(times, name, ours) for name in times}
    return speed | {"best": speed[best(times, ["dense", "channels_last"])]}


def layer_memory() -> dict[str, Spread]:
    """MB at the peak above the activation floor."""
    n, batch = 8192, 128
    found = memory.apart("linear", torch.get_num_threads(), name="auto", width=n, batch=batch, density=1e-3)
    return {"extra": single(found["peak MB"] - 16 * batch * n / memory.MB)}


def srht() -> dict[str, Spread]:
    """The speed-up of U theta; redrawing takes seconds, and is done once."""
    calls = embedding.dense(1_000_000, 1_000)
    redrawn = calls.pop("redrawn")
    times = interleave(calls, rounds=5)
    once = sample(redrawn, 1) / spread(times["srht"]).median
    return {"stored": ratio(times, "stored", "srht"), "redrawn": single(once)}


def errors(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> dict[str, Spread]:
    """The rms error of y and of the gradient to x, against float64, over that of the dense layer in float32."""
    dense = make()
    exact = variant("parametrized", copy.deepcopy(dense).double(), 1e-3)
    for _, space in subspace.subspaces(exact):
        space.theta.data[1:] = torch.randn(len(space.theta) - 1)  # numbers that float32 has
    ours = subspace.structured(copy.deepcopy(exact).float())
    dense.weight = nn.Parameter(exact.weight.detach().float())
    x = torch.randn(shape)
    gy = torch.randn_like(dense(x))

    def outcome(module: nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
        given = x.to(dtype).requires_grad_()
        y = module(given)
        return [y.detach(), *torch.autograd.grad(y, given, gy.to(dtype))]

    reference = outcome(exact, torch.float64)
    wrong = [[(a - b).norm() for a, b in zip(outcome(m, torch.float32), reference, strict=True)] for m in (ours, dense)]
    return {name: single(float(a / b)) for name, a, b in zip(("y", "gx"), *wrong, strict=True)}


def single(value: float) -> Spread:
    """What is measured once."""
    return Spread(value, value, value)


EQUAL = 1.05  # two roundings that are as good as each other differ by a few per cent
NARROW = ["3x3 3->64 @32", "1x1 24->144 @32", "1x1 64->256 @32", "1x1 96->24 @32", "3x3 144->144 @32 g144"]

GROUPS = [
    Group(
        lambda: linear_layer(4096, [1e-2, 1e-3, 1e-4], ["dense", "authors"]),
        [
            Target("linear 4096^2, p = 1e-3, over nn.Linear", "dense 0.001", 12, 60),
            Target("linear 4096^2, p = 1e-3, over the authors", "authors 0.001", 20, 90),
            Target("linear 4096^2, p = 1e-2, over nn.Linear", "dense 0.01", 8, 20),
            Target("linear 4096^2, p = 1e-4, over nn.Linear", "dense 0.0001", 25, 90),
        ],
    ),
    *(
        Group(
            partial(linear_layer, n, [1e-3], ["dense"]),
            [Target(f"linear {n}^2, p = 1e-3, over nn.Linear", "dense 0.001", wheels_only, native)],
        )
        for n, wheels_only, native in ((1024, 3, 14), (512, 1.5, 7), (256, 0.95, 2.5))
    ),
    Group(layer_memory, [Target("peak memory, linear 8192^2, above the activations", "extra", 24, 12, "MB")]),
    *(
        Group(partial(conv_layer, text), [Target(f"conv {text}, over nn.Conv2d", "dense", wheels_only, native)])
        for text, wheels_only, native in (
            ("3x3 64->64 @32", 2, 4),
            ("3x3 256->256 @8", 4, 8),
            ("3x3 512->512 @4", 5, 10),
            ("1x1 256->1024 @8", 1.6, 5),
            ("1x1 2048->512 @4", 1.6, 5),
        )
    ),
    *(
        Group(partial(conv_layer, text), [Target(f"conv {text}, over the better dense", "best", 0.95, 0.95)])
        for text in NARROW
    ),
    *(
        Group(
            partial(whole, of),
            [
                Target(f"{of} step, over {name}", key, wheels_only, native)
                for name, key, wheels_only, native in zip(
                    ("NCHW", "channels_last", "the authors"),
                    ("dense", "channels_last", "authors"),
                    *bounds,
                    strict=True,
                )
            ],
        )
        for of, bounds in (
            ("resnet50", ((1.5, 1.3, 2.5), (2.5, 2.1, 4.2))),
            ("mobilenetv2", ((1.0, 0.95, 1.8), (1.2, 1.0, 2.0))),
        )
    ),
    Group(
        srht,
        [
            Target("block SRHT 1e6 x 1e3, over a stored U", "stored", 60, None),
            Target("block SRHT 1e6 x 1e3, over a redrawn Gaussian", "redrawn", 1000, None),
        ],
    ),
    *(
        Group(
            partial(errors, make, shape),
            [Target(f"rms error of {key}, {name}", key, EQUAL, EQUAL, "x dense") for key in ("y", "gx")],
        )
        for name, make, shape in (
            ("linear 1024^2", partial(nn.Linear, 1024, 1024, bias=False), (128, 1024)),
            ("conv 3x3 256->256", partial(nn.Conv2d, 256, 256, 3, padding=1, bias=False), (8, 256, 8, 8)),
        )
    ),
]
