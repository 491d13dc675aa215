"""Hugging Face's Trainer: what was interrupted goes on to the bit, from checkpoints without the base."""

from __future__ import annotations

import copy
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import subspace
from subspace import methods, recipes, subspaces, tune
from tests.core import test_transformers as zoo

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from subspace.integrations.transformers import DeltaCallback  # noqa: E402

pytestmark = pytest.mark.slow
NAME = "BertForSequenceClassification"
IDS = torch.arange(96).reshape(16, 6) % 50
DATA = [{"input_ids": ids, "labels": torch.tensor(i % 2)} for i, ids in enumerate(IDS)]
FREE = ["classifier", "LayerNorm"]


def sparse(model: nn.Module) -> nn.Module:
    return tune.sparse(model, density=0.05, also_train=FREE)


def dense(model: nn.Module) -> nn.Module:
    return recipes.ordinary(model, include=["query"])


MOVERS = {
    "none": (partial(tune.fourier_ft, dim=120, also_train=FREE), None),
    "one theta": (partial(tune.srht, dim=50), None),
    "rigl": (sparse, lambda model, optimizer: methods.RigL(model, optimizer, t_end=100, delta_t=2)),
    "set": (sparse, lambda model, optimizer: methods.SET(model, optimizer, t_end=100, delta_t=2)),
    "gradual": (
        dense,
        lambda model, optimizer: methods.GradualPruning(model, optimizer, density=0.1, t_start=1, t_end=6, delta_t=1),
    ),
}


class Stop(transformers.TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


def trainer(model: nn.Module, folder: Path, callback: DeltaCallback, stop: int = 6) -> transformers.Trainer:
    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_steps=3,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    return transformers.Trainer(model, arguments, train_dataset=DATA, callbacks=[callback, Stop(stop)])


def run(case: str, folder: Path, stop: int = 6, resume: Path | bool | None = None, **options) -> transformers.Trainer:
    recipe, mover = MOVERS[case]
    made = trainer(recipe(zoo.model(NAME)), folder, DeltaCallback(mover, **options), stop)
    made.train(resume_from_checkpoint=resume if isinstance(resume, bool | None) else str(resume))
    return made


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(map(torch.equal, *(state.values() for state in states)))


@pytest.mark.parametrize("case", MOVERS)
def test_it_goes_on_to_the_bit(case, tmp_path):
    whole = run(case, tmp_path / "whole")
    begun = run(case, tmp_path / "parts", stop=3)
    assert not same(whole.model, begun.model)
    resumed = run(case, tmp_path / "parts", resume=True)
    assert same(whole.model, resumed.model)
    for ours, theirs in zip(
        whole.optimizer.state_dict()["state"].values(), resumed.optimizer.state_dict()["state"].values(), strict=True
    ):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_its_steps_are_those_of_a_plain_loop(tmp_path):
    kind = transformers.BertForSequenceClassification
    config = kind.config_class(**zoo.BERT, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    torch.manual_seed(0)
    model = sparse(kind(config))
    other = copy.deepcopy(model)
    seen = []
    made = trainer(model, tmp_path, DeltaCallback(MOVERS["rigl"][1]))
    made.args.gradient_accumulation_steps, made.args.max_grad_norm, made.args.lr_scheduler_type = 1, 0, "constant"
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    made.train()
    hook.remove()

    optimizer = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], 1e-2, weight_decay=0.0)
    mover = MOVERS["rigl"][1](other.train(), optimizer)
    for batch in {id(batch["labels"]): batch for batch in seen}.values():  # the mover's calls see one again
        optimizer.zero_grad()
        other(**batch).loss.backward()
        optimizer.step()
        mover.step(lambda net, batch=batch: net(**batch).loss)
    assert mover.steps == 6
    supports = [[space.embedding.support() for _, space in subspaces(net)] for net in (model, other)]
    assert all(map(torch.equal, *supports))
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", MOVERS)
def test_a_checkpoint_holds_what_trains_alone_and_a_delta_for_others(case, tmp_path):
    model = run(case, tmp_path, stop=3).model
    folder = tmp_path / "checkpoint-3"
    held = load_file(folder / "model.safetensors")
    trained = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    assert {name for name in held if not name.endswith("_extra_state")} == trained & set(model.state_dict())
    assert "bert.embeddings.word_embeddings.weight" not in held or case == "gradual"
    again = subspace.load(zoo.model(NAME), folder / "delta.safetensors")
    assert torch.equal(zoo.logits(again, NAME), zoo.logits(model.eval(), NAME))


BAD = {
    "no subspace": (
        lambda folder: trainer(zoo.model(NAME), folder, DeltaCallback()).train(),
        "model must have at least one registered subspace, got none: apply a recipe first",
    ),
    "another base": (
        lambda folder: trainer(sparse(other_base()), folder, DeltaCallback(MOVERS["rigl"][1])).train(True),
        "the model must be as the checkpoint left it, on the same base, got another bert.embeddings.word_.*",
    ),
    "no mover": (
        lambda folder: trainer(sparse(zoo.model(NAME)), folder, DeltaCallback()).train(True),
        "training must go on with a mover, as the checkpoint was made, got none",
    ),
    "another folder": (
        lambda folder: run("rigl", folder, resume=folder / "checkpoint-3", resume_from=folder / "checkpoint-6"),
        "the model must be as the checkpoint left it, on the same base, got another .*",
    ),
}


def other_base() -> nn.Module:
    model = zoo.model(NAME)
    model.bert.embeddings.word_embeddings.weight.data[0, 0] += 1
    return model


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_go_on_is_refused_in_a_sentence(case, tmp_path):
    if case != "no subspace":
        run("rigl", tmp_path, stop=3)
    if case == "another folder":
        run("rigl", tmp_path, resume=True)
    call, message = BAD[case]
    with pytest.raises(ValueError, match=f"^{message}$"):
        call(tmp_path)


def test_a_checkpoint_of_another_callback_is_refused(tmp_path):
    run("rigl", tmp_path, stop=3)
    (tmp_path / "checkpoint-3" / "subspace.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"^resume_from must be a folder with subspace.pt, got .*point-3$"):
        run("rigl", tmp_path, resume=True)


def test_an_objective_is_what_the_mover_is_given(tmp_path):
    asked = []

    def objective(model: nn.Module) -> torch.Tensor:
        asked.append(model)
        return zoo.logits(model, NAME).square().sum()

    model = run("rigl", tmp_path, objective=objective).model
    assert asked == [model] * 3  # at steps 2, 4 and 6


def test_a_checkpoint_may_lie_elsewhere(tmp_path):
    whole = run("rigl", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "copy")
    moved = tmp_path / "copy"
    resumed = run("rigl", tmp_path / "new", resume=moved, resume_from=moved)
    assert same(whole.model, resumed.model)
