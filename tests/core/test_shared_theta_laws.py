"""A theta of several tensors is one Parameter, in a model, in its copies and in every file."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import nn

from subspace import load, recipes, save, subspaces
from subspace.embeddings import SRHT
from tests.support.strategies import numbers

close = torch.testing.assert_close
X = numbers(1, 5, 12).float()
DTYPES = [torch.float32, torch.bfloat16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def net(dtype=torch.float32, seed: int = 0) -> nn.Module:
    model = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Sequential(nn.Linear(10, 10), nn.ReLU()), nn.Linear(10, 4))
    for i, p in enumerate(model.parameters()):
        p.data = 0.3 * numbers(seed + i, *p.shape)
    return model.to(dtype)


def shared(dtype=torch.float32, value: float = 0.0) -> nn.Module:
    model = recipes.random_subspace(net(dtype), dim=15, embedding=SRHT)
    with torch.no_grad():
        next(subspaces(model))[1].theta.fill_(value)
    return model


def theta_of(model: nn.Module) -> nn.Parameter:
    (theta,) = {space.theta for _, space in subspaces(model)}
    return theta


@each_dtype
def test_a_state_dict_has_it_once_and_every_form_of_it_brings_it_back(dtype, tmp_path):
    model = shared(dtype, 0.5)
    state = model.state_dict()
    assert [name for name in state if name.endswith(".original")] == ["0.parametrizations.weight.original"]
    torch.save(state, buffer := io.BytesIO())
    buffer.seek(0)
    for form in (state, torch.load(buffer), from_safetensors(to_safetensors(state))):
        for assign in (False, True):
            again = shared(dtype)
            again.load_state_dict({name: t.clone() for name, t in form.items()}, assign=assign)
            assert torch.equal(theta_of(again), theta_of(model))
            assert torch.equal(again(X.to(dtype)), model(X.to(dtype)))
    save(model, tmp_path / "c")
    assert torch.equal(theta_of(load(net(dtype), tmp_path / "c")), theta_of(model))
    assert torch.equal(theta_of(copy.deepcopy(model)), theta_of(model))


def test_what_is_missing_is_missed_and_a_part_of_a_model_has_a_state_of_its_own():
    model = shared(value=0.5)
    state = model.state_dict()
    del state["0.parametrizations.weight.original"]
    with pytest.raises(RuntimeError, match='Missing key.*"0.parametrizations.weight.original"'):
        shared().load_state_dict(state)
    assert shared().load_state_dict(state, strict=False).missing_keys == ["0.parametrizations.weight.original"]
    part = model[2].state_dict()
    assert torch.equal(part["0.parametrizations.weight.original"], theta_of(model))
    other = shared()
    other[2].load_state_dict(part)
    assert torch.equal(theta_of(other), theta_of(model))


def test_a_model_on_the_meta_device_keeps_thetas_apart():
    model = nn.Sequential(*(recipes.random_subspace(net(), dim=15, embedding=SRHT) for _ in range(2))).to("meta")
    thetas = [name for name in model.state_dict() if name.endswith(".original")]
    assert thetas == ["0.0.parametrizations.weight.original", "1.0.parametrizations.weight.original"]


MOVES = {
    "to meta and back": lambda model: model.to("meta").to_empty(device="cpu"),
    "emptied": lambda model: model.to_empty(device="cpu"),
    "half": lambda model: model.half(),
    "a part, and the rest": lambda model: (model[2].double(), model.double()),
    "trained, then half": lambda model: (model(X).sum().backward(), model.bfloat16()),
}


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("move", MOVES)
def test_a_model_that_was_moved_has_one_theta_still(move, swap):
    model = shared(value=0.5)
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        MOVES[move](model)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert theta_of(model) is model[2][0].parametrizations.weight.original
    assert sum(name.endswith("original") for name, _ in model.named_parameters()) == 1


class Classifier(nn.Module):
    """A model as Hugging Face's Trainer calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = shared()

    def forward(self, x, labels):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.slow
def test_hugging_faces_trainer_writes_checkpoints_and_resumes_from_them(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    data = [{"x": x, "labels": torch.tensor(i % 4)} for i, x in enumerate(numbers(3, 16, 12).float())]

    def trainer(model, steps):
        arguments = transformers.TrainingArguments(
            tmp_path, max_steps=steps, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, learning_rate=0.1
        )
        return transformers.Trainer(model, arguments, train_dataset=data)

    whole, resumed = Classifier(), Classifier()
    trainer(whole, 4).train()
    trainer(resumed, 4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert theta_of(whole.net).any()
    close(theta_of(resumed.net), theta_of(whole.net))
