"""Price and Tanner's rules: counts by hand and by their formulas, and FORCE as their loop has it."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Size, nn
from torch.nn.functional import nll_loss

import subspace
from subspace import Key, subspaces, targets
from subspace.study import models
from subspace.study.data import Tensors
from subspace.study.entries.entry import Choice
from subspace.study.methods import authors, method
from subspace.study.methods.setting import Setting
from subspace.study.spec.study import Run

SHAPES = [Size([2, 5]), Size([4, 25]), Size([8, 5])]  # 10, 100 and 40 weights


@pytest.mark.parametrize(
    ("name", "density", "static", "moving"),
    [
        # 90: 30 each, 20 of the first go to the last, of which 10 are lost
        ("epl", 0.6, [10, 30, 40], [10, 30, 40]),
        # 15.75: 5.25 each
        ("epl", 0.105, [5, 5, 5], [6, 6, 6]),
        # 30 for 14 filters: 4.29, 8.57, 17.14
        ("epf_average", 0.2, [4, 8, 17], None),
        # 120 for 14 filters: 17.1 of 10 are lost
        ("epf_average", 0.8, [10, 34, 40], None),
        # 30 for axes of 7 + 29 + 13: 4.29, 17.76, 7.96
        ("erk", 0.2, [4, 17, 7], [5, 18, 8]),
        # 120: 17.1, 71.02, 31.8
        ("erk", 0.8, [10, 71, 31], [10, 72, 32]),
        # 1.5, 15, 6; RigL's first tensor is dense
        ("uniform", 0.15, [1, 15, 6], [10, 15, 6]),
    ],
)
def test_counts_equal_those_by_hand(name, density, static, moving):
    assert authors.budget(name, density)(SHAPES, 0) == static
    if moving:
        assert authors.budget(name, density, moving=True)(SHAPES, 0) == moving


def test_172_of_fixup_resnet110_are_between_106_and_220_or_647():
    """A uniform budget truncated, EPL rounded up in every one of 110 tensors, and RigL's dense first tensor."""
    with torch.device("meta"):
        shapes = [w.shape for *_, w in targets(models.fixup_resnet110(Key(0))).values()]
    assert (len(shapes), round(1e-4 * sum(map(math.prod, shapes)))) == (110, 172)
    static = {name: sum(authors.budget(name, 1e-4)(shapes, 172)) for name in authors.BUDGETS}
    moving = {name: sum(authors.budget(name, 1e-4, moving=True)(shapes, 172)) for name in authors.MOVING}
    assert static == {"uniform": 106, "epl": 110, "epf_average": 108, "erk": 109}
    assert moving == {"uniform": 647, "epl": 220, "erk": 219}


@pytest.mark.parametrize(("name", "moving"), [("er", False), ("epf", False), ("epf_average", True)])
def test_a_budget_they_do_not_have_is_refused(name, moving):
    with pytest.raises(ValueError, match=f"budget must be one of uniform, .*, got '{name}'"):
        authors.budget(name, 0.1, moving)


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def setting(options, density=0.1):
    images = torch.from_numpy(Key(0).normal(90 * 64, dtype="float32")).reshape(90, 1, 8, 8)
    samples = Tensors(images, torch.arange(90) % 3)
    run = Run(Choice("force", options), density=density)
    return Setting({"density": density}, density, 3, run.method.options, samples, 4, lambda model: None)


def by_their_loop(model, s, rounds, batch):
    """iterative_pruning of Price and Tanner's pruning_algos.py, on a plain network with masks."""
    model = copy.deepcopy(model)
    layers, masks = [layer for layer in model if isinstance(layer, nn.Linear)], None
    for number in range(rounds):
        places = torch.from_numpy(
            (Key(3).fold("objective").fold(f"batch {number}") if number else Key(3).fold("objective"))
            .permutation(90)[:batch]
            .copy()
        )
        model.zero_grad()
        inputs, labels = s.samples.batch(places)
        nll_loss(model(inputs), labels).backward()
        scores = [(layer.weight * layer.weight.grad).abs().detach() for layer in layers]
        if masks is not None:
            least = min(float(score.min()) for score in scores)
            for score, mask in zip(scores, masks, strict=True):
                score[mask == 0] = least
        every = torch.cat([score.flatten() for score in scores])
        count = int(len(every) * np.exp(0 - (number + 1) * (0 - np.log(s.density)) / rounds))
        bar = torch.topk(every, count, sorted=True)[0][-1]
        masks = [score >= bar for score in scores]
        for layer, mask in zip(layers, masks, strict=True):
            layer.weight.data *= mask
    return masks


def test_force_is_their_loop():
    torch.manual_seed(0)
    model, s = net(), setting({"rule": "authors", "steps": 10, "loss": "nll", "samples": 30})
    before = copy.deepcopy(model.state_dict())
    expected = by_their_loop(model, s, 10, 30)
    model.zero_grad()
    model.load_state_dict(before)
    kept = authors.force(model, s)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [index.tolist() for index in kept.values()] == [mask.flatten().nonzero()[:, 0].tolist() for mask in expected]
    assert sum(map(len, kept.values())) == int(0.1 * (64 * 12 + 12 * 3))  # truncated: 80 of 80.4
    method("force").apply(model, s)
    assert {q: space.parametrization.embedding.index.tolist() for q, space in subspaces(model)} == {
        q: index.tolist() for q, index in kept.items()
    }
    assert subspace.summary(model).dim == 80
    assert torch.equal(model[1].weight != 0, expected[0] & (before["1.weight"] != 0))


def test_force_by_their_rule_has_their_rounds_and_their_loss():
    theirs = Run(Choice("force", {"rule": "authors"}), density=0.1).method.options
    assert (theirs["steps"], theirs["loss"]) == (10, "nll")
    ours = Run(Choice("force", {"rule": "exact"}), density=0.1).method.options
    assert (ours["steps"], ours["loss"]) == (60, "cross_entropy")


def test_force_says_so_where_nothing_would_be_left():
    with pytest.raises(ValueError, match=r"density must leave at least one of 804 weights, got 0.001"):
        authors.force(net(), setting({"rule": "authors", "steps": 1}, density=0.001))
