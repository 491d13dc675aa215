"""The processes that train one run: each takes its part of every batch, and torch sums their gradients.

DistributedDataParallel reduces the gradients of theta and of the few other trained numbers, and nothing else travels
during a step: d and U are the same in every process from the start. At an epoch's end follow the loss (8 bytes), the
buffers of process 0, as the running statistics of batch norm, and a checksum of the network.

Batch norm normalizes by the statistics of a process's own part of the batch, as is usual; all else computes what one
process would, but for rounding.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from subspace import Key, subspaces
from subspace.embeddings import Embedding
from subspace.products.sparse_index import renew


@dataclass
class Team:
    """The processes of a run: how many, which of them this is, and whether they compute on GPUs. By itself, one."""

    size: int = 1
    rank: int = 0
    cuda: bool = False

    def __post_init__(self) -> None:
        self.sent = self.steps = 0

    def device(self, name: str) -> torch.device:
        """Where this process computes: for "cuda", a GPU for each of several processes."""
        return torch.device("cuda", self.rank) if self.cuda and self.size > 1 else torch.device(name)

    def shard(self, places: Tensor) -> Tensor:
        """This process's part of a batch; all of a batch that has fewer samples than there are processes."""
        return places if len(places) < self.size else places.tensor_split(self.size)[self.rank]

    def weight(self, local: int, whole: int) -> float:
        """The factor of the mean loss over this part with which the gradients add up to that of the whole batch."""
        return 1 / self.size if whole < self.size else local / whole

    def key(self, key: Key) -> Key:
        """The key of what is random in this process alone, such as dropout."""
        return key if self.rank == 0 else key.fold(f"process {self.rank}")

    def wrap(self, model: nn.Module) -> nn.Module:
        """A network whose backward pass sums the gradients of all processes: the model, with hooks on its parameters.

        It is wrapped anew for every epoch: the order of the sums is then the same whether or not a run was interrupted.
        """
        if self.size == 1:
            return model
        self.sent = self.steps = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of newer versions of torch, about the name of the option
            net = DistributedDataParallel(model, broadcast_buffers=False, init_sync=False)
        net.register_comm_hook(None, lambda _, bucket: self._sum(bucket))
        return net

    def _sum(self, bucket: Any) -> Any:
        """Reduce a part of the gradients, a torch.distributed.GradBucket, and count its bytes."""
        self.sent += bucket.buffer().nbytes
        self.steps += bucket.is_last()
        work: Any = dist.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    @property
    def reduced_bytes(self) -> int:
        """The bytes that a step of the network wrapped last sent into the reduction; 0 for one process."""
        return self.sent // max(self.steps, 1)

    def gradient_bytes(self, model: nn.Module) -> int:
        """The bytes that a step of this network would send; 0 for one process."""
        return 0 if self.size == 1 else sum(p.nbytes for p in model.parameters() if p.requires_grad)

    def total(self, value: float) -> float:
        """The sum over the processes."""
        if self.size == 1:
            return value
        numbers = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(numbers)
        return numbers.item()

    @torch.no_grad()
    def follow(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Take over process 0's buffers and, with an optimizer, every support, theta and its state, as after a move.

        What depends on dropout or on the last bit, as which entries are the largest, is then the same everywhere.
        """
        if self.size == 1:
            return
        thetas = [space.theta for _, space in subspaces(model)] if optimizer else []
        states = [optimizer.state.get(theta, {}).values() for theta in thetas] if optimizer else []
        moved = [index for U in _embeddings(model) if (index := U.support()) is not None] if optimizer else []
        for tensor in chain(model.buffers(), moved, thetas, *states):
            if isinstance(tensor, Tensor):
                dist.broadcast(tensor.detach(), src=0)
        for index in moved:
            renew(index)

    def check_same(self, model: nn.Module) -> None:
        """RuntimeError, in all processes, unless they have the same network to the last bit, d and U included."""
        if self.size == 1:
            return
        digest = hashlib.sha256()
        identities = ((name, space.parametrization.get_extra_state()) for name, space in subspaces(model))
        for name, tensor in chain(model.named_parameters(), model.named_buffers(), identities):
            numbers = torch.cat([tensor.detach().cpu().flatten()])  # a copy: the stride of a single one may be 0
            digest.update(name.encode() + numbers.view(torch.uint8).numpy().tobytes())
        digests: list[Any] = [None] * self.size
        dist.all_gather_object(digests, digest.hexdigest())
        if other := [number for number, found in enumerate(digests) if found != digests[0]]:
            raise RuntimeError(f"all processes must have the same network, got another one in process {other[0]}")


def _embeddings(model: nn.Module) -> Iterator[Embedding]:
    """All that are in the model, those within others included."""
    return (part for part in model.modules() if isinstance(part, Embedding))
