"""Kinds of modules, and by hand how each holds its weight matrices; a new rule of `subspace._base.kinds` is a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from subspace import Layout, set_layouts
from tests.support.strategies import numbers

N, M = 4, 6  # inputs and outputs


@dataclass(frozen=True)
class Kind:
    """A module, one of its tensors, and the matrices that it is: of (outputs, inputs), each.

    by_hand: what the module computes of the input, with these matrices in place of the tensor.
    """

    name: str
    make: Callable[[], nn.Module]
    tensor: str
    matrices: Callable[[Tensor], list[Tensor]]
    by_hand: Callable[[nn.Module, list[Tensor]], Tensor]
    call: Callable[[nn.Module], Tensor] = lambda module: module(X)


class Conv1D(nn.Module):
    """As transformers has it: x W + b."""

    def __init__(self, nf: int, nx: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class Router(nn.Module):
    """Somebody's linear layer, which is none of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(M, N))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


class Experts(nn.Module):
    """Three experts of (out, in), as Mixtral's."""

    def __init__(self, biases: bool = False) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, M, N))
        self.up_bias = nn.Parameter(torch.randn(3, M)) if biases else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("bi,eoi->beo", x, self.up)
        return y if self.up_bias is None else y + self.up_bias


class ExpertsFromTheRight(nn.Module):
    """Three experts of (in, out), as GPT-OSS'; the biases say which axis is which."""

    def __init__(self, biases: bool = True) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, N, M))
        self.is_transposed = not biases
        self.up_bias = nn.Parameter(torch.randn(3, M)) if biases else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("bi,eio->beo", x, self.up)
        return y if self.up_bias is None else y + self.up_bias


class Named(nn.Module):
    """A raw Parameter with the axes in an order of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(N, 2, M))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,ieo->beo", x, self.table)


class Declared(Named):
    """One that says for itself how its Parameter is a matrix."""

    subspace_layouts = {"table": Layout.parse("in batch out")}  # noqa: RUF012


X = numbers(0, 5, N)
SEQUENCE = numbers(1, 5, 2, N)


def _called(name: str, module: nn.Module) -> nn.Module:
    return nn.ModuleDict({name: module})


def _rows(count: int) -> Callable[[Tensor], list[Tensor]]:
    return lambda w: list(w.chunk(count))


def _linear(module: nn.Module, matrices: list[Tensor]) -> Tensor:
    bias = getattr(module, "bias", None)
    y = torch.cat([X @ m.T for m in matrices], dim=1)
    return y if bias is None else y + bias


def _inside(name: str) -> dict[str, Callable[..., Tensor]]:
    return {"call": lambda module: module[name](X), "by_hand": lambda module, ms: _linear(module[name], ms)}


def _experts(module: nn.Module, matrices: list[Tensor]) -> Tensor:
    y = torch.stack([X @ m.T for m in matrices], dim=1)
    bias = getattr(module, "up_bias", None)
    return y if bias is None else y + bias


def _attention(module: nn.Module, matrices: list[Tensor]) -> Tensor:
    x, heads = SEQUENCE.transpose(0, 1), module.num_heads
    parts = [x @ m.T + b for m, b in zip(matrices, module.in_proj_bias.chunk(3), strict=True)]
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in parts)
    y = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return module.out_proj(y).transpose(0, 1)


def _lstm(module: nn.Module, ih: list[Tensor], hh: list[Tensor]) -> Tensor:
    biases = [a + b for a, b in zip(module.bias_ih_l0.chunk(4), module.bias_hh_l0.chunk(4), strict=True)]
    h = c = torch.zeros(2, M, dtype=torch.float64)
    outputs = []
    for x in SEQUENCE:
        i, f, g, o = (x @ a.T + h @ b.T + bias for a, b, bias in zip(ih, hh, biases, strict=True))
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs)


def _gru(module: nn.Module, ih: list[Tensor], hh: list[Tensor]) -> Tensor:
    h, outputs = torch.zeros(2, M, dtype=torch.float64), []
    a, b = module.bias_ih_l0.chunk(3), module.bias_hh_l0.chunk(3)
    for x in SEQUENCE:
        r, z, n = (x @ m.T + bias for m, bias in zip(ih, a, strict=True))
        hr, hz, hn = (h @ m.T + bias for m, bias in zip(hh, b, strict=True))
        z = (z + hz).sigmoid()
        h = (1 - z) * (n + (r + hr).sigmoid() * hn).tanh() + z * h
        outputs.append(h)
    return torch.stack(outputs)


def _projected(module: nn.Module, hr: Tensor) -> Tensor:
    """An LSTM whose state is projected from M numbers to 3."""
    biases = module.bias_ih_l0 + module.bias_hh_l0
    h, c, outputs = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, M, dtype=torch.float64), []
    for x in SEQUENCE:
        i, f, g, o = (x @ module.weight_ih_l0.T + h @ module.weight_hh_l0.T + biases).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh() @ hr.T
        outputs.append(h)
    return torch.stack(outputs)


SEQUENTIAL = {"call": lambda module: module(SEQUENCE)[0]}
SELF_ATTENTION = {"call": lambda module: module(SEQUENCE, SEQUENCE, SEQUENCE)[0]}
TAPS = numbers(2, 5, N, 2)  # of a signal, seen whole by a filter


KINDS = [
    Kind("linear", lambda: nn.Linear(N, M), "weight", lambda w: [w], _linear),
    Kind("others-linear", Router, "weight", lambda w: [w], _linear),
    Kind("conv1d-of-transformers", lambda: Conv1D(M, N), "weight", lambda w: [w.T], _linear),
    Kind("conv1d-without-bias", lambda: Conv1D(M, N, bias=False), "weight", lambda w: [w.T], _linear),
    Kind("conv1d-square", lambda: Conv1D(N, N), "weight", lambda w: [w.T], _linear),
    Kind(
        "convolution",
        lambda: nn.Conv1d(N, M, 2),
        "weight",
        lambda w: [w.transpose(1, 2).flatten(1)],
        lambda module, ms: (TAPS.transpose(1, 2).flatten(1) @ ms[0].T + module.bias).unsqueeze(2),
        lambda module: module(TAPS),
    ),
    Kind(
        "transposed-convolution",
        lambda: nn.ConvTranspose1d(N, M, 2, stride=2),
        "weight",
        lambda w: [w.permute(1, 2, 0).flatten(1)],
        lambda module, ms: torch.stack([X @ m.T for m in ms[0].split(N, dim=1)], 2) + module.bias[:, None],
        lambda module: module(X.unsqueeze(2)),
    ),
    Kind("qkv", lambda: _called("qkv", nn.Linear(N, 3 * N)), "qkv.weight", _rows(3), **_inside("qkv")),
    Kind(
        "c_attn",
        lambda: _called("c_attn", Conv1D(3 * N, N)),
        "c_attn.weight",
        lambda w: list(w.T.chunk(3)),
        **_inside("c_attn"),
    ),
    Kind("qkv-of-unequal-sizes", lambda: _called("qkv", nn.Linear(N, M)), "qkv.weight", _rows(1), **_inside("qkv")),
    Kind(
        "attention",
        lambda: nn.MultiheadAttention(N, 2),
        "in_proj_weight",
        _rows(3),
        _attention,
        **SELF_ATTENTION,
    ),
    Kind(
        "lstm-inputs",
        lambda: nn.LSTM(N, M),
        "weight_ih_l0",
        _rows(4),
        lambda module, ms: _lstm(module, ms, module.weight_hh_l0.chunk(4)),
        **SEQUENTIAL,
    ),
    Kind(
        "lstm-state",
        lambda: nn.LSTM(N, M),
        "weight_hh_l0",
        _rows(4),
        lambda module, ms: _lstm(module, module.weight_ih_l0.chunk(4), ms),
        **SEQUENTIAL,
    ),
    Kind(
        "lstm-projection",
        lambda: nn.LSTM(N, M, proj_size=3),
        "weight_hr_l0",
        _rows(1),
        lambda module, ms: _projected(module, ms[0]),
        **SEQUENTIAL,
    ),
    Kind(
        "gru-state",
        lambda: nn.GRU(N, M),
        "weight_hh_l0",
        _rows(3),
        lambda module, ms: _gru(module, module.weight_ih_l0.chunk(3), ms),
        **SEQUENTIAL,
    ),
    Kind(
        "rnn-cell",
        lambda: nn.RNNCell(N, M),
        "weight_ih",
        _rows(1),
        lambda module, ms: (X @ ms[0].T + module.bias_ih + module.bias_hh).tanh(),
    ),
    Kind(
        "lstm-cell",
        lambda: nn.LSTMCell(N, M),
        "weight_ih",
        _rows(4),
        lambda module, ms: _cell(module, ms),
        lambda module: module(X)[0],
    ),
    Kind("experts", Experts, "up", list, _experts),
    Kind("experts-with-biases", lambda: Experts(biases=True), "up", list, _experts),
    Kind("experts-from-the-right", ExpertsFromTheRight, "up", lambda w: [m.T for m in w], _experts),
    Kind("experts-that-say-so", lambda: ExpertsFromTheRight(False), "up", lambda w: [m.T for m in w], _experts),
    Kind("declared", Declared, "table", lambda w: [w[:, e].T for e in (0, 1)], _experts),
    Kind(
        "named",
        lambda: set_layouts(Named(), {"table": Layout.parse("in batch out")}),
        "table",
        lambda w: [w[:, e].T for e in (0, 1)],
        _experts,
    ),
]


def _cell(module: nn.Module, ih: list[Tensor]) -> Tensor:
    biases = (module.bias_ih + module.bias_hh).chunk(4)
    i, _, g, o = (X @ m.T + b for m, b in zip(ih, biases, strict=True))
    return o.sigmoid() * (i.sigmoid() * g.tanh()).tanh()
