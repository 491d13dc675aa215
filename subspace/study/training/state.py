"""How far a run has come, and what it goes on from after a crash. Generators are not in it: every epoch seeds them.

A model is kept as `subspace.save` has it, so what is kept of d and U is a key or an index; one with other
parametrizations on top of its subspaces as its state_dict, and its method makes it anew.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

import subspace
from subspace.methods import LotteryTicket
from subspace.study.training.metrics import Metrics

State = dict[str, Any]


class UnfitState(ValueError):  # noqa: N818
    """A stored state that does not fit its run, as after a change of one's own code."""


@contextmanager
def restoring() -> Iterator[None]:
    """Turn what goes wrong with a stored state in the block into UnfitState, but for want of memory."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UnfitState(f"a stored state must fit its run, got {type(error).__name__}: {error}") from error


class StateStore:
    """Where a run keeps what it can be resumed from. This one keeps nothing: the run begins at the start."""

    def load(self) -> State | None:
        """What was kept last; None at the start."""
        return None

    def save(self, state: State) -> None:
        """Keep it in place of what was kept before; state["done"] has the figures of all epochs so far."""

    def reject(self, reason: str) -> None:
        """Put what was kept out of the way, as it does not fit the run."""


@dataclass
class RunState:
    """How far a run has come.

    metrics: so far; flops_total is of training alone until the run is finished. done: the figures of every epoch,
    those of rounds included: "epoch" (from 1), "train_loss" (nats, the mean over the batches), "train_accuracy" (a
    fraction, of the batches as they were met), "test_accuracy" and "validation_accuracy" (fractions, None in a
    round and where nothing is held apart), "learning_rate" and "seconds". saved: what an interrupted run has still
    to go on from. search: for a lottery ticket, until it is found. dense_bytes: of the network that the search
    rewinds to. fitting: the dim of a run that was given bytes.
    """

    metrics: Metrics = field(default_factory=Metrics)
    done: list[dict[str, Any]] = field(default_factory=list)
    saved: State | None = None
    search: LotteryTicket | None = None
    dense_bytes: int = 0
    fitting: int = 0

    @classmethod
    def of(cls, saved: State | None) -> RunState:
        """The state of a run that begins, or of one that goes on from what was saved."""
        if saved is None:
            return cls()
        with restoring():
            return cls(Metrics(**saved["metrics"]), list(saved["done"]), saved)

    def saveable(self, model: nn.Module, parts: dict[str, State], epochs: int, is_final: bool) -> State:
        """All that resuming needs; epochs: how many of this training are done. is_final: it is no round of a search."""
        return {
            "metrics": asdict(self.metrics),
            "done": self.done,
            "search": None if is_final or not self.search else self.search.state_dict(),
            "model": model_bytes(model) if is_final and is_held_by_a_file(model) else model.state_dict(),
            "parts": parts,
            "epochs": epochs,
        }


def pack(state: State) -> bytes:
    """A state of tensors, numbers, text and containers of them, as bytes."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def unpack(content: bytes) -> State:
    """The state that `pack` was given, on the CPU; no code in it is run."""
    state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def is_held_by_a_file(model: nn.Module) -> bool:
    """Whether a plain model has a place for all that a checkpoint holds: nothing else is on top of its subspaces."""
    stacks = (module for module in model.modules() if isinstance(module, ParametrizationList))
    return all(len(stack) == 1 for stack in stacks)


def model_bytes(model: nn.Module) -> Tensor:
    """A model with subspaces as the bytes of its checkpoint, (n,) uint8."""
    subspace.save(model, file := io.BytesIO())
    return torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)


def restore_model(model: nn.Module, content: Tensor) -> nn.Module:
    """The plain model, built as it was, with the subspaces and all that was trained of a `model_bytes`."""
    with restoring():
        return subspace.load(model, io.BytesIO(content.numpy().tobytes()))


def restore_state(model: nn.Module, state: State) -> nn.Module:
    """The model, made anew by its method, with the numbers of a state_dict."""
    with restoring():
        model.load_state_dict(state)
    return model
