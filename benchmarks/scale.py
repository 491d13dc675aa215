"""What processes send one another in a training step: `python -m benchmarks.scale`.

An MLP is trained by several processes of one gloo group on CPUs, and every collective operation of one step is counted
where torch starts it. A process sends (n - 1) / n of a tensor's bytes to gather it or to reduce and scatter it among n,
and twice that for an all-reduce, by the usual rings. Under `fully_shard` what trains is gathered for the forward and
again for the backward pass, and its gradient reduced once: 3 (n - 1) / n bytes times the numbers that train, and w is
not among them where it is d + U theta.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.report import Row, options, write
from subspace import recipes, shard_offsets, structured, subspaces

KINDS = {  # the operation, which argument is the whole tensor or, of the last, the part, how often (n - 1) / n is sent
    "c10d::_allgather_base_": ("gathered", 0, 1),
    "c10d::_reduce_scatter_base_": ("reduced", 1, 1),
    "c10d::allreduce_": ("all-reduced", 0, 2),
    "c10d::broadcast_": ("broadcast", 0, 1),
    "_c10d_functional::all_gather_into_tensor": ("gathered", 0, 1),
}
STILL = ("_c10d_functional::wait_tensor", "_c10d_functional::_wrap_tensor_autograd")  # which send nothing
MODELS: dict[str, Callable[[nn.Module, float], nn.Module]] = {
    "dense": lambda model, density: model,
    "DCT + S": lambda model, density: structured(recipes.dctps(model, density=density)),
    "DCT + S, w built": lambda model, density: recipes.dctps(model, density=density),
    "pretrained + S": lambda model, density: structured(recipes.sparse_finetuning(model, density=density)),
}


class Traffic(TorchDispatchMode):
    """Counts the bytes that this process sends, by kind, and the entries of the largest tensor of any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if "c10d" in func.namespace and name not in STILL:
            kind, at, times = KINDS[name]
            n = dist.get_world_size()
            parts = n if "functional" in name else 1
            for tensor in args[at] if isinstance(args[at], list | tuple) else [args[at]]:
                self.sent[kind] += times * (n - 1) * parts * tensor.nbytes // n
                self.largest = max(self.largest, parts * tensor.numel())
        return func(*args, **(kwargs or {}))


def mlp(width: int, depth: int) -> nn.Sequential:
    """Square layers with ReLU between them, without biases."""
    torch.manual_seed(0)
    layers = [part for _ in range(depth) for part in (nn.Linear(width, width, bias=False), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def distributed(model: nn.Module, how: str) -> nn.Module:
    """Over all processes, layer by layer where it is sharded; a dense d too."""
    if how == "DDP":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return shard_offsets(model) if next(subspaces(model), None) else model


def measure(rank: int, name: str, how: str, width: int, depth: int, batch: int, density: float) -> Row:
    """One step of one process, after some that are not counted: what it sent, beside the sizes."""
    model = MODELS[name](mlp(width, depth), density)
    numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
    model = distributed(model, how)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    x: Tensor = torch.randn(batch, width, generator=torch.Generator().manual_seed(rank))

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    for _ in range(3):  # DistributedDataParallel sorts its buckets in the first
        step()
    with Traffic() as traffic:
        step()
    sent = {f"{kind} MB": traffic.sent[kind] / 1e6 for kind in dict.fromkeys(kind for kind, _, _ in KINDS.values())}
    total = {"sent MB": sum(traffic.sent.values()) / 1e6, "largest tensor": traffic.largest}
    sizes = {"width": width, "depth": depth, "weights": depth * width**2, "trained": numbers}
    return {"model": name, "by": how, "processes": dist.get_world_size(), **sizes, **sent, **total}


def on_paper(
    trained: float, fixed: float = 0.0, processes: int = 64, trained_bytes: int = 4, fixed_bytes: int = 4
) -> float:
    """The bytes that each process sends in a step under `fully_shard`.

    Args:
        trained: Numbers that are gathered twice and whose gradients are reduced once.
        fixed: Those of a dense d in parts, which are gathered twice.
        processes: Among which both are divided.
        trained_bytes: Of each number that trains.
        fixed_bytes: Of each that does not.

    >>> dense = on_paper(7e9, trained_bytes=2)
    >>> drawn = on_paper(7e9 * 1e-3)
    >>> pretrained = on_paper(7e9 * 1e-3, fixed=7e9, fixed_bytes=2)
    >>> [f"{sent / 1e9:.3g} GB" for sent in (dense, drawn, pretrained)]
    ['41.3 GB', '0.0827 GB', '27.6 GB']
    """
    return (3 * trained * trained_bytes + 2 * fixed * fixed_bytes) * (processes - 1) / processes


def _take_part(rank: int, size: int, folder: str, cases: list[tuple[Any, ...]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    try:
        found = [measure(rank, *case) for case in cases]
    finally:
        dist.destroy_process_group()
    if rank == 0:
        Path(folder, "found").write_text(json.dumps(found))


def together(size: int, cases: list[tuple[Any, ...]]) -> list[Row]:
    """What the first of several processes found of each case."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_take_part, (size, folder, cases), nprocs=size)
        found: list[Row] = json.loads(Path(folder, "found").read_text())
    return found


def main() -> None:
    """Measure, print, write."""
    parser = options(__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32, help="rows in each process")
    parser.add_argument("--density", type=float, default=1e-3)
    args = parser.parse_args()
    sizes = (args.width, args.depth, args.batch, args.density)
    table = together(args.processes, [(name, how, *sizes) for how in ("fully_shard", "DDP") for name in MODELS])
    for row in table:
        print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else str(value) for key, value in row.items()))
    write(args.out, table)


if __name__ == "__main__":
    main()
