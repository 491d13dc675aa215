"""The singular values of a network's Jacobian, its logits by its inputs, sample by sample.

W is not differentiated, and J never computed by entries: `torch.func.vjp` gives e^T J for every logit e, one backward
pass each for all samples, and the K x n matrix of those K rows is small (K logits, n inputs). What stands between a
singular value and 1 is what depth does to a signal, or to a gradient: where all are far below 1 nothing trains.

Batch norms are taken at the mean and the variance of `SETTLING` training samples, so that those of the start, whose
running statistics have seen nothing, and of the end are treated alike; they couple no samples then.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import subspace
from subspace import Key
from subspace.study.data import Data

SETTLING, AT_ONCE = 512, 64


def jacobian_spectra(model: nn.Module, data: Data, count: int, device: torch.device) -> list[list[float]]:
    """The singular values for `count` test samples, the same for every run: count x min(K, n), falling.

    The model stays as it is. ValueError where there are fewer samples.
    """
    if count > len(data.test):
        raise ValueError(f"jacobian must be at most {len(data.test)}, the test samples, got {count}")
    key = Key(0).fold("jacobian")
    first, places = (
        torch.from_numpy(key.fold(n).permutation(len(p))) for n, p in (("train", data.train), ("test", data.test))
    )
    net = settled(model, data.train.batch(first[:SETTLING])[0].to(device))
    parts = [data.test.batch(some)[0].to(device) for some in torch.split(places[:count], AT_ONCE)]
    values = torch.cat([singular_values(net, inputs) for inputs in parts])
    return [[float(f"{value:.6g}") for value in row] for row in values.tolist()]


def settled(model: nn.Module, inputs: Tensor) -> nn.Module:
    """A plain copy, every W built, in evaluation mode with batch norms at the statistics of these inputs."""
    net = subspace.materialize(model).eval().requires_grad_(False)  # else every row of J keeps a graph
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # an average over all that is seen
        norm.train()
    if norms:
        with torch.no_grad():
            net(inputs)
    return net.eval()


def singular_values(net: nn.Module, inputs: Tensor) -> Tensor:
    """Of d logits / d inputs at every sample of (b, ...), in float64: (b, min(K, n)), falling.

    The net must treat samples apart from each other, as in evaluation mode.
    """
    logits, pull = torch.func.vjp(net, inputs)[:2]
    rows = [pull(unit.expand_as(logits))[0].flatten(1) for unit in torch.eye(logits.shape[1]).to(logits)]
    values: Tensor = torch.linalg.svdvals(torch.stack(rows, dim=1).detach().double())
    return values
