"""ResNet18 on all 60,000 images of Fashion-MNIST on a GPU: dense beside DCTpS and random pruning, steps and accuracy.

Every step is one CUDA graph: forward, loss, backward and Adam under autocast to bfloat16. The learning rate is the
studies', 3e-3 / sqrt(density), and falls to 0 along a cosine. Needs a checkout on the path, torch with CUDA and the
published files: `PYTHONPATH=. python -m benchmarks.full_training --data-dir FOLDER`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import subspace
from benchmarks.gpu import stamp
from benchmarks.timing import Call, captured
from subspace import Key
from subspace.study.data.idx import fashion_mnist
from subspace.study.data.samples import Tensors
from subspace.study.models.resnet18 import resnet18

RATE = 3e-3


class Labelled(NamedTuple):
    """Images (n, 1, 28, 28), normalised, channels_last, and their labels (n,), on the device."""

    images: Tensor
    labels: Tensor


def load(samples: Tensors, device: str) -> Labelled:
    images, labels = samples.batch(torch.arange(len(samples)))
    return Labelled(images.to(device).contiguous(memory_format=torch.channels_last), labels.to(device))


def build(method: str, density: float, seed: int, device: str) -> tuple[nn.Module, int]:
    """The network, and how many numbers of its 21 weights train."""
    model = resnet18(Key(seed), in_channels=1).to(device, memory_format=torch.channels_last)
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if method == "dense":
        return model, sum(weight.numel() for weight in weights)
    model = subspace.structured(getattr(subspace.recipes, method)(model, density=density, seed=seed))
    return model, sum(space.theta.numel() for _, space in subspace.subspaces(model))


class Training:
    """A network with its optimizer and the batch that a step reads."""

    def __init__(self, model: nn.Module, rate: float, batch: Labelled) -> None:
        self.model, self.batch = model, batch
        self.device = batch.labels.device.type
        self.rate = torch.zeros((), device=self.device)  # that a captured step reads
        self.optimizer = torch.optim.Adam(model.parameters(), lr=self.rate, capturable=self.device == "cuda")
        self.base, self.loss = rate, torch.zeros((), device=self.device)
        self.step: Call = self.compute
        if self.device == "cuda":
            before = {name: t.clone() for name, t in model.state_dict().items() if isinstance(t, Tensor)}
            self.step = captured(self.compute)  # which trains, at a rate of 0
            with torch.no_grad():
                for name, t in model.state_dict().items():
                    if name in before:
                        t.copy_(before[name])
                for state in self.optimizer.state.values():
                    for t in state.values():
                        t.zero_()

    def logits(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, cache_enabled=False):
            y: Tensor = self.model(images)
        return y.float()

    def compute(self) -> None:
        """Forward, loss, backward and an update."""
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.logits(self.batch.images), self.batch.labels)
        loss.backward()
        self.optimizer.step()
        self.loss.copy_(loss.detach())

    def epochs(self, data: Labelled, count: int, seed: int) -> Iterator[float]:
        """Train for so many epochs; the seconds of each."""
        size, generator = len(self.batch.labels), torch.Generator().manual_seed(seed)
        steps = len(data.labels) // size
        for epoch in range(count):
            start, order = time.perf_counter(), torch.randperm(len(data.labels), generator=generator)
            for step, places in enumerate(order[: steps * size].to(self.device).split(size)):
                self.rate.fill_(self.base * (1 + math.cos(math.pi * (epoch + step / steps) / count)) / 2)
                self.batch.images.copy_(data.images[places])
                self.batch.labels.copy_(data.labels[places])
                self.step()
            if not self.loss.isfinite():  # which waits for the GPU
                raise FloatingPointError(f"the loss must be finite, got {self.loss.item()}")
            yield time.perf_counter() - start

    @torch.no_grad()
    def accuracy(self, data: Labelled) -> float:
        self.model.eval()
        right = sum((self.logits(x).argmax(1) == y).sum() for x, y in zip(*(t.split(1000) for t in data), strict=True))
        self.model.train()
        return float(right) / len(data.labels)


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="where the folder fashion-mnist is")
    parser.add_argument("--methods", nargs="+", default=["dctps", "random_pruning"], help="recipes beside dense")
    parser.add_argument("--densities", nargs="+", type=float, default=[1e-1, 1e-2, 1e-3])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, help="to train on; all by default")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which no other run begins")
    parser.add_argument("--out", type=Path, help="folder for full-training.csv and its stamp")
    args = parser.parse_args()
    begun, data = time.monotonic(), fashion_mnist(args.data_dir, train=args.images)
    train, test = (load(part, args.device) for part in (data.train, data.test))
    runs = [(seed, "dense", 1.0) for seed in range(args.seeds)]
    runs += [(seed, m, density) for seed in range(args.seeds) for density in args.densities for m in args.methods]
    rows: list[dict[str, object]] = []
    for seed, method, density in sorted(runs):
        if time.monotonic() - begun > args.seconds:
            print(f"not begun within {args.seconds:g} seconds: seed {seed}, {method}, {density:g}", flush=True)
            continue
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        model, dim = build(method, density, seed, args.device)
        batch = Labelled(*(t[: args.batch].clone(memory_format=torch.preserve_format) for t in train))
        training = Training(model, RATE / math.sqrt(density), batch)
        seconds = sorted(training.epochs(train, args.epochs, seed))
        row = {"method": method, "density": density, "seed": seed, "numbers": dim, "epochs": args.epochs}
        row |= {"accuracy": training.accuracy(test), "seconds_per_epoch": seconds[len(seconds) // 2]}
        row |= {"peak_gb": torch.cuda.max_memory_allocated() / 1e9 if args.device == "cuda" else None}
        rows.append(row)
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
        if args.out:
            write(args.out, rows, args.device)


def write(out: Path, rows: list[dict[str, object]], device: str) -> None:
    """full-training.csv and full-training.json."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "full-training.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    (out / "full-training.json").write_text(json.dumps(stamp(device, "benchmarks.full_training"), indent=2) + "\n")


if __name__ == "__main__":
    main()
