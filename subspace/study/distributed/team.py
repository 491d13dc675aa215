"""A run that several processes train together, each on its part of every batch, as torchrun starts them.

The gradients are summed over the processes by torch's DistributedDataParallel, and nothing else travels during a step:
of w = d + U theta the numbers in theta and the few trained beside it, while d and U are the same everywhere from the
start. How many bytes that is, is measured. Besides, at the end of an epoch, the loss (8 bytes), the running statistics
of batch norm and a checksum of the network.

Batch norm normalizes by the statistics of a process's own part of the batch, as is usual; all else computes what one
process would, but for rounding.

A run that fails in all of them alike, as by a loss that is not finite, is over like any other, and they meet anew for
the next. A process that fails alone says why (`rendezvous`) and ends, and with it, through torchrun, all of them.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from subspace import Key
from subspace.study.distributed import rendezvous as world
from subspace.study.results.store import StorageError
from subspace.study.spec.study import Run

T = TypeVar("T")
ALONE = 30.0  # seconds after which a process that failed takes it that the others did not
ABANDONED: list[Any] = []  # process groups of runs that failed: one that goes while its hooks are there may hang


class Team(AbstractContextManager["Team"]):
    """The processes that train one run, from joining until the block is left; by itself, one process alone.

    size: how many; rank: which of them this is. cuda: whether they compute on GPUs.
    """

    def __init__(self, size: int = 1, rank: int = 0, cuda: bool = False, word: world.Store | None = None) -> None:
        self.size, self.rank, self.cuda, self.word = size, rank, cuda, word
        self.sent, self.steps = 0, 0

    @classmethod
    @world.with_torchrun()
    def joined(cls, run: Run) -> Team:
        """The team for a run; process 0 hands it over to those that `follow`. ValueError as `check`."""
        world.check(run.train.processes)
        if world.size() == 1:
            return cls()
        if world.rank() == 0:
            world.hand_over(run)
        return cls(world.size(), world.rank(), torch.device(run.train.device).type == "cuda", world.joined())

    @world.with_torchrun()
    def __enter__(self) -> Team:
        if self.word is not None and not dist.is_initialized():
            if self.cuda:
                torch.cuda.set_device(self.device("cuda"))
            backend = "cpu:gloo,cuda:nccl" if self.cuda else "gloo"
            store = dist.PrefixStore("team", self.word)  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)
        return self

    @world.with_torchrun()
    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        """Part. Of an error that is but the consequence of another process's, a RuntimeError that has its cause.

        SystemExit where the others go on as if nothing were, or have died: the run is then to be resumed.
        """
        if self.word is None or not isinstance(error, Exception | None):
            return
        text = f"{type(error).__name__}: {error}"
        first = self.word.compare_set("cause", "", f"process {self.rank}: {text}").decode() if error else ""
        ended, deadline = self.word.add("ended", 1), time.monotonic() + ALONE
        if error is None or isinstance(error, StorageError):  # of process 0, and ends the study
            return
        while ended < self.size:
            if time.monotonic() > deadline:
                raise SystemExit(f"stopped, as process {self.rank} failed alone: {text}") from error
            time.sleep(0.05)
            ended = self.word.add("ended", 0)
        ABANDONED.append(dist.group.WORLD)
        dist.destroy_process_group()
        if not first.endswith(f": {text}"):
            raise RuntimeError(first) from error

    def device(self, name: str) -> torch.device:
        """Where this process computes: for "cuda", a GPU for each of the processes on a machine."""
        return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if self.cuda else torch.device(name)

    def shard(self, places: Tensor) -> Tensor:
        """This process's part of a batch, each sample being one's; all of a batch with fewer samples than processes."""
        return places if len(places) < self.size else places.tensor_split(self.size)[self.rank]

    def weight(self, local: int, whole: int) -> float:
        """The factor of the mean loss over this part with which the gradients add up to that of the whole batch."""
        return 1 / self.size if whole < self.size else local / whole

    def key(self, key: Key) -> Key:
        """The key of what is to be random here, such as dropout: not the same for other samples of a batch."""
        return key if self.rank == 0 else key.fold(f"process {self.rank}")

    def wrap(self, model: nn.Module) -> nn.Module:
        """A network whose backward pass sums the gradients of all processes: the model with hooks on its parameters.

        To be made anew for every epoch: the order of the sums is then the same whether or not a run was interrupted.
        """
        if self.size == 1:
            return model
        self.sent, self.steps = 0, 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of newer versions of torch, about the name of the option
            net = DistributedDataParallel(model, broadcast_buffers=False, init_sync=False)
        net.register_comm_hook(None, lambda _, bucket: self._sum(bucket))
        return net

    @property
    def reduced_bytes(self) -> int:
        """What a step of the network wrapped last sent into the reduction of the gradients; 0 for one process."""
        return self.sent // max(self.steps, 1)

    def gradient_bytes(self, model: nn.Module) -> int:
        """What a step of this network would send, without subspaces or with; 0 for one process."""
        return 0 if self.size == 1 else sum(p.nbytes for p in model.parameters() if p.requires_grad)

    def total(self, value: float) -> float:
        """The sum over the processes."""
        if self.size == 1:
            return value
        numbers = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(numbers)
        return numbers.item()

    def share(self, value: T) -> T:
        """Process 0's, in every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def decided(self, decide: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
        """The function as process 0 computes it, in every process; also what it raises. One process: itself.

        What depends on dropout or on the last bit, such as which entries are the largest, is then the same everywhere.
        """
        if self.size == 1:
            return decide

        def everywhere(*arguments: Any) -> dict[str, Tensor]:
            outcome: Any = None
            if self.rank == 0:
                try:
                    outcome = {name: tensor.cpu() for name, tensor in decide(*arguments).items()}
                except Exception as error:
                    outcome = error
            outcome = self.share(outcome)
            if isinstance(outcome, Exception):
                raise outcome
            return {name: tensor.to(self.device("cuda" if self.cuda else "cpu")) for name, tensor in outcome.items()}

        return everywhere

    def settle(self, model: nn.Module) -> None:
        """Give batch norm the mean of all processes' running statistics, so that all of them test the same network."""
        for module in model.modules() if self.size > 1 else ():
            for statistic in (getattr(module, "running_mean", None), getattr(module, "running_var", None)):
                if statistic is not None:
                    dist.all_reduce(statistic)
                    statistic /= self.size

    def agree(self, model: nn.Module) -> None:
        """RuntimeError, in all of them, unless every process has the same network to the last bit, d and U included."""
        if self.size == 1:
            return
        digest = hashlib.sha256()
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            numbers = torch.cat([tensor.detach().cpu().flatten()])  # a copy: the stride of a single one may be 0
            digest.update(name.encode() + numbers.view(torch.uint8).numpy().tobytes())
        digests: list[Any] = [None] * self.size
        dist.all_gather_object(digests, digest.hexdigest())
        if other := [number for number, found in enumerate(digests) if found != digests[0]]:
            raise RuntimeError(f"all processes must have the same network, got another one in process {other[0]}")

    def _sum(self, bucket: Any) -> Any:
        """How DistributedDataParallel is to reduce a part of the gradients, a torch.distributed.GradBucket."""
        self.sent += bucket.buffer().nbytes
        self.steps += bucket.is_last()
        work: Any = dist.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])
