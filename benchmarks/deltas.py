"""Rows per second of a base whose batch holds 1, 16 or 64 distinct deltas: at once, one delta after the other, by peft.

The base is a stack of linear layers; a delta has `dim` numbers altogether. "base" computes without any. "at once" is
`Deltas.each`, "separate" switches from delta to delta and computes each one's rows by themselves. "peft" is its
mixed-batch LoRA (`adapter_names`) of rank 1, of more numbers; it is left out where peft cannot be imported. Before
that: seconds of a switch, and the memory that holding many deltas takes.
"""

from __future__ import annotations

import copy
import io
import itertools
from functools import partial
from multiprocessing import get_context
from time import perf_counter

import torch
from torch import Tensor, nn

import subspace
from benchmarks.memory import settled
from benchmarks.report import Row, options, rows, show, write
from benchmarks.timing import Call, interleave
from subspace import Deltas, Key
from subspace.embeddings import FourierFT, Sparse
from subspace.offsets import Pretrained

EMBEDDINGS = {"sparse": Sparse, "fourier_ft": FourierFT}


def stack(width: int, depth: int) -> nn.Module:
    """The base: layers of one width, GELU between them."""
    layers = itertools.chain.from_iterable((nn.Linear(width, width), nn.GELU()) for _ in range(depth))
    return nn.Sequential(*layers).requires_grad_(False).eval()


def tuned(base: nn.Module, kind: str, dim: int) -> nn.Module:
    """A copy of the base with a delta of `dim` numbers, divided among its layers."""
    model = copy.deepcopy(base)
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    for place, layer in enumerate(layers):
        k = dim // len(layers) + (place < dim % len(layers))
        U = EMBEDDINGS[kind](layer.weight, k, key=Key(0).fold(str(place)))
        subspace.register(layer, "weight", Pretrained(layer.weight), U, 0.01 * torch.randn(k))
    return model


def holder(base: nn.Module, kind: str, dim: int, count: int) -> Deltas:
    """The base with that many deltas, "0", "1", ..."""
    model, deltas = tuned(base, kind, dim), Deltas(base)
    for name in range(count):
        for _, space in subspace.subspaces(model):
            with torch.no_grad():
                space.theta.normal_(std=0.01)
        file = io.BytesIO()
        subspace.save(model, file)
        file.seek(0)
        deltas.add(str(name), file)
    return deltas


def at_once(deltas: Deltas, x: Tensor, names: list[str]) -> Tensor:
    """One call for all rows."""
    with deltas.each(names):
        y: Tensor = deltas.base(x)
    return y


def separate(deltas: Deltas, x: Tensor, names: list[str]) -> Tensor:
    """A call for the rows of each delta."""
    y = torch.empty_like(x)
    for name in dict.fromkeys(names):
        mine = torch.tensor([each == name for each in names])
        with deltas.using(name):
            y[mine] = deltas.base(x[mine])
    return y


def mixed_lora(base: nn.Module, count: int) -> nn.Module | None:
    """peft's model with that many adapters of rank 1; None where peft cannot be imported."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        return None
    targets = [name for name, layer in base.named_modules() if isinstance(layer, nn.Linear)]
    config = LoraConfig(r=1, target_modules=targets, init_lora_weights=False)
    model = get_peft_model(copy.deepcopy(base), config, adapter_name="0")
    for name in range(1, count):
        model.add_adapter(str(name), config)
    return model.eval()


def held_bytes(width: int, depth: int, kind: str, dim: int, count: int) -> int:
    """How much a process grows by holding that many deltas."""
    base, file = stack(width, depth), io.BytesIO()
    subspace.save(tuned(base, kind, dim), file)
    deltas = holder(base, kind, dim, 1)
    content, before = file.getvalue(), settled()
    for name in range(count):
        deltas.add(f"held {name}", io.BytesIO(content))
    return settled() - before


def switch_seconds(deltas: Deltas, repeats: int = 1000) -> float:
    """Seconds of taking another delta into use."""
    names = list(itertools.islice(deltas, 2))
    start = perf_counter()
    for number in range(repeats):
        deltas.use(names[number % len(names)])
    deltas.use()
    return (perf_counter() - start) / repeats


def main() -> None:
    """Measure, print, write."""
    parser = options(__doc__)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--dim", type=int, default=1000, help="numbers of a delta, 4 bytes each")
    parser.add_argument("--batch", type=int, default=64, help="rows")
    parser.add_argument("--tokens", type=int, default=16, help="positions of a row")
    parser.add_argument("--distinct", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--held", type=int, default=10_000, help="deltas held for the measurement of memory")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table: list[Row] = []
    x = torch.randn(args.batch, args.tokens, args.width)
    peft = mixed_lora(stack(args.width, args.depth), max(args.distinct))
    print("peft: " + ("not there" if peft is None else "mixed-batch LoRA of rank 1"))
    with torch.inference_mode():
        for kind in EMBEDDINGS:
            base = stack(args.width, args.depth)
            plain = copy.deepcopy(base)
            with get_context("spawn").Pool(1) as process:
                grown = process.apply(held_bytes, (args.width, args.depth, kind, args.dim, args.held))
            print(f"{kind}: {args.held} deltas of {4 * args.dim} bytes are held in {grown / 1e6:.1f} MB")
            deltas = holder(base, kind, args.dim, max(args.distinct))
            print(f"{kind}: a switch takes {1e6 * switch_seconds(deltas):.1f} microseconds")
            for distinct in args.distinct:
                names = [str(row % distinct) for row in range(args.batch)]
                calls: dict[str, Call] = {
                    "base": partial(plain, x),
                    "at once": partial(at_once, deltas, x, names),
                    "separate": partial(separate, deltas, x, names),
                }
                if peft is not None:
                    calls["peft"] = partial(peft, x, adapter_names=names)
                found = rows(
                    interleave(calls, args.rounds, args.seconds), ("separate", "peft"), case=kind, distinct=distinct
                )
                for row in found:
                    row["rows per second"] = args.batch / float(str(row["seconds"]))
                    show(row)
                table += found
            deltas.close()
    write(args.out, table)


if __name__ == "__main__":
    main()
