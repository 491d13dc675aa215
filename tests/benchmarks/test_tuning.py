"""The benchmark of tuners: files within their budget, the base's output at first, runs that are kept, and the tasks."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks import fine_tuning, tasks, tuning
from benchmarks.tasks import Headed, Split, Task
from benchmarks.tuners import TUNERS, file_bytes, fits_or_not, largest_size, made, most_bytes
from subspace import Key
from tests.support.cases import rest_slow

OURS = [name for name, each in TUNERS.items() if each.library == "subspace" and name != "head only" and not each.bits]
ADDED = ["peft LoRA", "peft SHiRA", "peft IA3", "peft VeRA"]  # begin at the base, as peft's FourierFT does not


class Base(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(40, 40), nn.Linear(40, 40)

    def forward(self, x):
        return self.value(torch.tanh(self.query(x)))


def task() -> Task:
    """Points by the sign of one coordinate."""
    torch.manual_seed(0)
    x = torch.randn(200, 40)
    whole = Split((x,), (x[:, 0] > 0).long())
    parts = (whole.at(places) for places in torch.arange(200).split([100, 40, 60]))
    return Task("signs", Base().requires_grad_(False), ("query", "value"), 40, 2, *parts)


@pytest.fixture(autouse=True)
def with_peft():
    pytest.importorskip("peft")


TUNED = [name for name in TUNERS if name != "head only"]


@pytest.mark.parametrize("name", rest_slow(TUNED, TUNED[::3]))
def test_a_file_is_within_its_budget_and_a_larger_size_is_not(name):
    here, budget = task(), 12_000
    size = largest_size(here, name, budget)
    assert size >= 1
    assert file_bytes(made(here, name, size, 0), here, TUNERS[name].bits) <= most_bytes(here, name, size) <= budget
    larger = size + max(1, size // 32)
    if larger <= TUNERS[name].most(here):
        assert not fits_or_not(lambda size: most_bytes(here, name, size) <= budget, larger)


def test_a_tuner_that_no_file_has_room_for_has_no_size():
    assert largest_size(task(), "peft LoRA", 100) == 0


@pytest.mark.parametrize("name", [*OURS, *ADDED])
def test_tuning_begins_at_the_base(name):
    here = task()
    plain = Headed(copy.deepcopy(here.base), 40, 2, Key(3).fold("head"))
    model = made(here, name, max(2, TUNERS[name].least(here)), 3).eval()
    assert torch.allclose(model(*here.test.inputs), plain(*here.test.inputs), atol=1e-5)


@pytest.mark.parametrize("name", TUNERS)
def test_the_tuner_and_the_head_train_and_nothing_else(name):
    here = task()
    model = made(here, name, max(2, TUNERS[name].least(here)), 0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):  # of two factors one moves later
        optimizer.zero_grad()
        cross_entropy(model(*here.train.inputs), here.train.labels).backward()
        optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}
    others = [n for n in moved if "head" not in n.split(".")]
    assert bool(others) == (name != "head only")
    assert not any(n.startswith("base.") and n.endswith((".weight", ".bias")) for n in others)


def test_a_run_learns_and_says_what_it_took():
    row = tuning.tuned(task(), "sparse", 400, 5e-3, 0, steps=60, batch=50)
    assert row["last_loss"] < 0.6 * row["first_loss"]
    assert row["test"] > 0.6
    assert row["trained"] == 400
    assert row["saved_bytes"] > 0
    assert row["file_bytes"] >= 1600


def test_an_epoch_visits_every_sample_once():
    found = torch.cat(list(tuning.orders(12, 4, 6, Key(0))))
    assert sorted(found[:12].tolist()) == sorted(found[12:].tolist()) == list(range(12))
    assert found[:12].tolist() != found[12:].tolist()


def test_runs_are_kept_and_not_run_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(tuning.TASKS, "digits", lambda layers: task())
    words = "tuning --tasks digits --tuners sparse ia3 --budgets 12000 --seeds 2 --steps 3 --threads 1 --out"
    monkeypatch.setattr(sys, "argv", [*words.split(), str(tmp_path)])
    tuning.main()
    first = pd.read_csv(tmp_path / "runs.csv")
    assert set(first["seed"]) == {0, 1, tuning.SEARCH}
    assert not first.duplicated(tuning.CASE).any()
    monkeypatch.setattr(tuning, "tuned", lambda *a: pytest.fail("a run that is there was run again"))
    tuning.main()
    pd.testing.assert_frame_equal(first, pd.read_csv(tmp_path / "runs.csv"))
    table = pd.read_csv(tmp_path / "table.csv")
    assert table["tuner"].tolist() == ["sparse", "ia3"]
    assert (table["file_bytes"] <= 12_000).all()


def test_a_summary_takes_the_rate_that_was_best_on_held_out_samples_and_counts_other_seeds():
    figures = {"size": 3, "first_loss": 1.0, "last_loss": 0.5, "step_seconds": 0.01, "saved_bytes": 2e6}
    case = {"task": "t", "budget": 10, "tuner": "sparse", **figures, "file_bytes": 9, "trained": 3}
    rows = [
        {**case, "rate": rate, "seed": tuning.SEARCH, "held_out": held, "test": 1.0}
        for rate, held in ((2e-3, 0.5), (tuning.DEFAULT, 0.6), (0.1, 0.9))
    ]
    tests = {tuning.DEFAULT: (0.5, 0.6, 0.7), 0.1: (0.7, 0.8, 0.75)}
    rows += [
        {**case, "rate": rate, "seed": seed, "held_out": 0.0, "test": test}
        for rate, found in tests.items()
        for seed, test in enumerate(found)
    ]
    (row,) = tuning.summary(pd.DataFrame(rows))
    assert (row["rate"], row["seeds"], row["default_test"]) == (0.1, 3, pytest.approx(0.6))
    interval = stats.t.interval(0.95, 2, loc=0.75, scale=stats.sem(tests[0.1]))
    low, high = (f"{100 * value:.1f}" for value in interval)
    other = [{**row, "tuner": "ia3", "budget": 99} for row in rows if row["rate"] == tuning.DEFAULT]
    table = tuning.accuracies(pd.DataFrame(rows + other), "t").splitlines()
    assert table[0] == "| tuner | 10 B | 99 B |"
    assert table[2] == f"| sparse | 75.0 [{low}, {high}]; 60.0 |  |"
    assert table[3].startswith("| ia3 |  | 60.0 [")
    assert tuning.costs(pd.DataFrame(rows), "t").splitlines()[2] == "| sparse | 3; 10 ms; 2.0 MB |"
    assert (row["test"], row["low"], row["high"]) == (pytest.approx(0.75), *map(pytest.approx, interval))


def test_gains_are_over_the_head_alone_at_equal_seeds_of_tuners_that_take_every_task():
    figures = {"budget": 10, "rate": tuning.DEFAULT, "size": 3, "held_out": 0.5, "last_loss": 0.5, "step_seconds": 0.01}
    figures |= {"saved_bytes": 2e6, "file_bytes": 9, "trained": 3}
    tests = {("a", "head only"): (0.5, 0.6), ("a", "sparse"): (0.7, 0.9), ("a", "ia3"): (0.9, 0.9)}
    tests |= {("b", "head only"): (0.2, 0.2), ("b", "sparse"): (0.2, 0.3)}
    runs = pd.DataFrame(
        {**figures, "task": name, "tuner": tuner, "seed": seed, "test": test}
        for (name, tuner), found in tests.items()
        for seed, test in enumerate((*found, 1.0))
    ).replace({"seed": {2: tuning.SEARCH}})
    found = tuning.gains(runs)
    assert found["tuner"].tolist() == ["sparse", "sparse"]
    assert found.sort_values("seed")["gain"].tolist() == pytest.approx([10, 20])
    (axes,) = tuning.figure(runs).axes
    assert [line.get_xydata().tolist() for line in axes.get_lines() if line.get_label() == "sparse"] == [
        [[9, pytest.approx(15)]]
    ]


def test_texts_have_one_class_each_and_every_class_is_there():
    pytest.importorskip("babel")
    labelled = tasks.languages()
    texts = [text for text, _ in labelled]
    assert {label for _, label in labelled} == set(tasks.LANGUAGES)
    assert len(set(texts)) == len(texts)
    assert ("Frankreich", "de") in labelled


@pytest.mark.slow
def test_docstrings_are_of_what_they_say():
    kinds, topics = tasks.kinds(), tasks.topics()
    counts = np.unique([label for _, label in kinds], return_counts=True)
    assert counts[0].tolist() == ["class", "function", "module"]
    assert len(set(counts[1])) == 1
    assert {label for _, label in topics} == set(tasks.TOPICS)
    right = {" ".join(text.split()) for text, _, _ in tasks.docstrings()}
    words = {tuple(sorted(text.split())) for text in right}
    for text, label in tasks.orders():
        assert text in right if label == "right" else tuple(sorted(text.split())) in words


@pytest.mark.slow
def test_a_network_for_digits_is_the_same_every_time_and_its_parts_do_not_meet():
    pytest.importorskip("sklearn")
    one, other = tasks.digits(tasks.SIZES), tasks.digits(tasks.SIZES)
    assert all(map(torch.equal, one.base.state_dict().values(), other.base.state_dict().values()))
    assert [len(part.labels) for part in (one.train, one.held_out, one.test)] == [400, 150, 300]
    assert not any(p.requires_grad for p in one.base.parameters())


@pytest.mark.slow
def test_what_is_computed_once_is_what_minilm_computes():
    pytest.importorskip("all_minilm_l6_v2")
    model, tokens = tasks.minilm()
    labelled = [("Berlin", "a"), ("a longer text than that", "b"), ("Rome", "a")]
    found = tasks.text_task("mine", labelled, 8, 2, (1, 1, 1))
    order = Key(0).fold("mine").permutation(3)
    ids, mask = tokens([labelled[place][0] for place in order], 8)
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask[..., None].float()
    wanted = (hidden * weights).sum(1) / weights.sum(1)
    inputs = [
        torch.cat(each) for each in zip(found.train.inputs, found.held_out.inputs, found.test.inputs, strict=True)
    ]
    assert torch.allclose(found.base(*inputs), wanted, atol=1e-4)


def test_a_task_is_the_data_and_the_pretrained_model_of_a_study(monkeypatch):
    with_mask = Split((torch.randn(9, 4, 6), torch.ones(9, 4, dtype=torch.int64)), torch.arange(9) % 3)
    base = Sum()
    found = Task("texts", base, ("fc",), 6, 3, with_mask, with_mask, with_mask.at(torch.arange(5)))
    monkeypatch.setitem(fine_tuning.TASKS, "texts", lambda layers: found)
    samples = fine_tuning.samples("texts")
    assert (len(samples.train), len(samples.test), samples.num_classes) == (9, 5, 3)
    model = fine_tuning.pretrained(Key(3), "texts")
    inputs, _ = samples.train.batch(torch.arange(9))
    torch.testing.assert_close(model(inputs), Headed(base, 6, 3, Key(3))(*with_mask.inputs))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.net.base.fc.weight is not base.fc.weight
    with pytest.raises(ValueError, match="^task must be one of order, topic, .*, got 'sums'$"):
        fine_tuning.samples("sums")


class Sum(nn.Module):
    """Hidden states (n, t, 6) and a mask (n, t) -> (n, 6)."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6).requires_grad_(False)

    def forward(self, hidden, mask):
        return (self.fc(hidden) * mask[..., None]).sum(1)
