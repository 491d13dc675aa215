"""Checkpoints under hostile conditions: files that change, files that lie, arguments that cannot come back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from subspace import Key, load, recipes, register, save
from subspace.offsets import Zero
from tests.support.cases import EMBEDDINGS, OFFSETS
from tests.support.strategies import numbers

PARTS = [*OFFSETS, *EMBEDDINGS]


def layer() -> nn.Linear:
    module = nn.Linear(8, 6).double()
    module.weight.data = numbers(0, 6, 8)
    return module


def registered(part) -> nn.Linear:
    """A layer with that offset or embedding."""
    module = layer()
    offset = part.make(module.weight, Key(4)) if part in OFFSETS else Zero(module.weight)
    embedding = (part if part in EMBEDDINGS else EMBEDDINGS[1]).make(module.weight, 9, Key(4))
    register(module, "weight", offset, embedding, numbers(3, embedding.dim))
    return module


def net() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(numbers(i, *parameter.shape))
    return model


MODELS = {
    "dctps": lambda: recipes.dctps(net(), dim=20),
    "random_subspace": lambda: recipes.random_subspace(net(), dim=20),
    "sparse_finetuning": lambda: recipes.sparse_finetuning(net(), dim=20),
}


def everything(model: nn.Module) -> dict[str, Tensor]:
    """All that a model computes with, copied."""
    x = numbers(9, 5, 8)
    output = model.eval()(x.to(next(model.parameters()).dtype))
    return {"output": output.detach().clone(), **{k: v.clone() for k, v in model.state_dict().items()}}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(map(torch.equal, one.values(), other.values()))


def cases():
    yield from ((part.name, lambda part=part: registered(part), layer) for part in PARTS)
    yield from ((name, make, net) for name, make in MODELS.items())


@pytest.mark.parametrize("name, make, plain", list(cases()), ids=lambda case: case if isinstance(case, str) else "")
def test_a_loaded_model_and_its_file_are_independent(name, make, plain, tmp_path):
    path = tmp_path / "c"
    save(make(), path)
    model = load(plain(), path)
    before = everything(model)
    content = path.read_bytes()
    with path.open("r+b") as file:  # in place: what is mapped would change
        file.write(bytes(255 - byte for byte in content))
    assert same(everything(model), before)
    with path.open("r+b") as file:
        file.truncate(0)
    assert same(everything(model), before)
    path.write_bytes(content)
    with torch.no_grad():
        for tensor in model.state_dict(keep_vars=True).values():
            if tensor.is_floating_point():
                tensor.add_(1)
    assert path.read_bytes() == content
