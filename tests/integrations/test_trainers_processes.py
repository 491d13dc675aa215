"""Several processes in a trainer of others': all move alike, one saves, and what was interrupted goes on to the bit."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from torch import nn

from subspace import subspaces
from tests.support.processes import processes

pytest.importorskip("accelerate")
pytest.importorskip("lightning.pytorch")
pytestmark = [pytest.mark.torchrun, pytest.mark.filterwarnings("ignore")]


def found(model: nn.Module) -> list[torch.Tensor]:
    """What trains and the supports, in one process."""
    supports = [space.embedding.support() for _, space in subspaces(model)]
    return [p.detach().clone() for p in model.parameters() if p.requires_grad] + [i.clone() for i in supports]


def by_hugging_face(folder: Path, stop: int, resume: bool) -> nn.Module:
    from tests.integrations import test_hugging_face

    trainer = test_hugging_face.run("rigl", folder, stop, resume or None)
    assert trainer.args.world_size == 2
    return trainer.model


def by_lightning(folder: Path, stop: int, resume: bool) -> nn.Module:
    from tests.integrations import test_lightning as own

    (path,) = folder.glob("step=*.ckpt") if resume else [None]
    recipe, mover = own.MOVERS["rigl"]
    module = own.fit(own.Module(recipe), folder, own.DeltaCallback(mover), stop, path, devices=2)
    assert module.trainer.world_size == 2
    return module


TRAINERS = {"hugging face": (by_hugging_face, 3, 6), "lightning": (by_lightning, 1, 2)}  # half of a training, and all


def trained(rank: int, trainer: str, folder: Path, port: int) -> list[list[torch.Tensor]]:
    """After the whole training, and after one that was interrupted in its middle."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
    train, half, end = TRAINERS[trainer]
    whole = train(folder / "whole", end, False)
    train(folder / "parts", half, False)
    return [found(whole), found(train(folder / "parts", end, True))]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.mark.parametrize("trainer", TRAINERS)
def test_all_processes_move_alike_and_go_on_to_the_bit(trainer, tmp_path):
    with processes() as run:
        first, second = run(trained, trainer, tmp_path, free_port())
    for one, other in zip(first[0] + first[0], [*second[0], *first[1]], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(first[1], second[1], strict=True):
        assert torch.equal(one, other)
