"""Options of the study's methods: without them nothing changes, and each does what it says."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from torch import nn

import subspace
from subspace import Key, budgets, materialize, recipes, subspaces
from subspace.embeddings import Basis, Direction, Sparse, Transform
from subspace.methods import rows
from subspace.offsets import (
    DCT,
    BlockDCT,
    BlockHadamard,
    Gaussian,
    Haar,
    Hadamard,
    RankOne,
    SignedDCT,
    SignedHadamard,
    SignedPermutation,
)
from subspace.study import models
from subspace.study.data import Tensors
from subspace.study.entries.entry import Choice
from subspace.study.methods import METHODS, method
from subspace.study.methods.alphas import set_alphas
from subspace.study.methods.setting import Setting
from subspace.study.methods.variants import VALUES, format_option
from subspace.study.spec.study import Run, label
from tests.support.cases import each_with_one, rest_slow

pytestmark = pytest.mark.filterwarnings("ignore:the budget of")
IMAGES = torch.from_numpy(Key(0).normal(60 * 784, dtype="float32")).reshape(60, 1, 28, 28)
SAMPLES = Tensors(IMAGES, torch.arange(60) % 10)
N = 61_210


def setting(name, density=0.01, seed=3, **options):
    chosen = Run(Choice(name, options), density=density).method.options
    return Setting({"density": density}, density, seed, chosen, SAMPLES, 4, lambda model, **_: None)


def applied(name, density=0.01, model=None, **options):
    return method(name).apply(models.lenet5(Key(5)) if model is None else model, setting(name, density, **options))


def state(model):
    """All there is to a network: its numbers, d and U."""
    parts = [
        (q, str(s.parametrization.offset.describe()), s.parametrization.embedding.label()) for q, s in subspaces(model)
    ]
    return parts, supports(model), {q: p.tolist() for q, p in model.named_parameters()}


def supports(model):
    parts = {
        q: [part.index.tolist() for part in s.parametrization.modules() if isinstance(part, Sparse)]
        for q, s in subspaces(model)
    }
    return {q: index[0] for q, index in parts.items() if index}


FEW = {name: {n: 2 for n in ("steps", "rounds") if n in known.options} for name, known in METHODS.items()}


@functools.cache
def chosen(name, **options):
    """The support that a method chooses."""
    return supports(applied(name, **options))


def dense():
    return models.lenet5(Key(5))


# As the authors' code has it: d = 0 and alpha from 1, which weight decay pulls to 0.
DCTPS = recipes.offset_plus_sparse(lambda w, key: DCT(w), anchored=False)
AS_EVER = {
    "random_pruning_uniform": lambda: recipes.random_pruning(dense(), density=0.01, seed=3, budget=budgets.uniform),
    "random_pruning_epl": lambda: recipes.random_pruning(dense(), density=0.01, seed=3, budget=budgets.epl),
    "random_pruning_erk": lambda: recipes.random_pruning(dense(), density=0.01, seed=3, budget=budgets.erk),
    "magnitude": lambda: recipes.magnitude(dense(), density=0.01),
    "set": lambda: recipes.set(dense(), density=0.01, seed=3),
    "rigl": lambda: recipes.rigl(dense(), density=0.01, seed=3),
    "dctps": lambda: DCTPS(dense(), density=0.01, seed=3, budget=budgets.epl),
    "dctps_set": lambda: DCTPS(dense(), density=0.01, seed=3, budget=budgets.erk),
    "dctps_rigl": lambda: DCTPS(dense(), density=0.01, seed=3, budget=budgets.erk),
    "freezenet": lambda: recipes.freezenet(dense(), density=0.01, seed=3, budget=budgets.epl),
    "snip": lambda: recipes.snip(dense(), setting("snip").loss(128), density=0.01),
    "force": lambda: recipes.force(dense(), setting("force").fresh_loss(128), density=0.01, steps=60),
}


@pytest.mark.parametrize("name", rest_slow(AS_EVER, list(AS_EVER)[::3]))
def test_without_options_a_method_is_its_recipe(name):
    assert state(applied(name)) == state(AS_EVER[name]())
    assert label(Choice(name, dict(METHODS[name].options))) == METHODS[name].label


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("dctps", {"alpha": "fixed"}, "DCTpS, EPL, alpha=fixed"),
        ("dctps", {"gain": 2**0.5}, "DCTpS, EPL, gain=1.41421"),
        ("dctps", {"budget": "epf_average"}, "DCTpS, EPF on average"),
        ("dctps_rigl", {"budget": "epl", "rule": "authors"}, "DCTpS + RigL, EPL, rule=authors"),
        ("random_pruning_uniform", {"init": "sparse"}, "random pruning, uniform, init=sparse"),
        ("imp", {"rounds": 21}, "IMP, 21 rounds"),
        ("snip", {"shuffle": True}, "SNIP, shuffle=True"),
        ("force", {"rule": "authors"}, "FORCE, rule=authors"),
        ("force", {"rule": "authors", "steps": 60}, "FORCE, steps=60, rule=authors"),
    ],
)
def test_labels_read_well(name, options, expected):
    assert label(Run(Choice(name, options), density=0.1).method) == expected


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, known in METHODS.items() for option in known.options]
)
def test_a_label_says_a_changed_option_once_and_else_stays(name, option):
    default = METHODS[name].options[option]
    value = f"{default}?" if isinstance(default, str) else not default if isinstance(default, bool) else default + 7
    said, plain = METHODS[name].label_for({option: value}), METHODS[name].label
    assert said == f"{plain}, {option}={format_option(value)}" or (
        plain == said.replace(format_option(value), format_option(default)) and said.count(format_option(value)) == 1
    )


@pytest.mark.parametrize("option", VALUES)
def test_a_value_that_an_option_does_not_have_is_refused(option):
    name = next(name for name, known in METHODS.items() if option in known.options)
    with pytest.raises(ValueError, match=f"{option} of {name} must be one of .*, got 'other'"):
        Run(Choice(name, {option: "other"}), density=0.1)


def test_a_number_is_the_same_however_it_is_written():
    one, other = (Run(Choice("dctps", {"gain": gain}), density=0.1) for gain in (2, 2.0))
    assert one.hash == other.hash


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("dct", lambda w, key: DCT(w, gain=1.5)),
        ("signed_dct", lambda w, key: SignedDCT(w, key=key.fold("d"), gain=1.5)),
        ("hadamard", lambda w, key: Hadamard(w, gain=1.5)),
        ("gaussian", lambda w, key: Gaussian(w, key=key.fold("d"), gain=1.5)),
        ("rank_one", lambda w, key: RankOne(w, key=key.fold("d"), gain=1.5)),
        ("signed_hadamard", lambda w, key: SignedHadamard(w, key=key.fold("d"), gain=1.5)),
        ("block_hadamard", lambda w, key: BlockHadamard(w, key=key.fold("d"), gain=1.5)),
        ("block_dct", lambda w, key: BlockDCT(w, key=key.fold("d"), gain=1.5)),
        ("haar", lambda w, key: Haar(w, gain=1.5)),
        ("signed_permutation", lambda w, key: SignedPermutation(w, key=key.fold("d"), gain=1.5)),
    ],
)
@pytest.mark.parametrize(("method_", "alpha"), [("dctps", "trained"), ("dctps_rigl", "fixed")])
def test_the_first_weights_are_the_offset(method_, alpha, name, offset):
    model = applied(method_, offset=name, gain=1.5, alpha=alpha)
    size = subspace.summary(model)
    assert (size.dim - size.alpha, size.alpha) == (612, 5 if alpha == "trained" else 0)
    assert supports(model) == chosen(method_)
    for q, space in subspaces(model):
        w = space.module.weight.detach()
        torch.testing.assert_close(w, offset(w, Key(3).fold(q))())


def test_an_offset_of_zero_is_random_pruning():
    assert state(applied("dctps", offset="zero")) == state(applied("random_pruning_epl"))
    assert state(applied("dctps_rigl", offset="zero")) == state(applied("rigl"))
    for options in (
        {"frozen": True},
        {"alphas": "norms"},
        {"alpha": "fixed"},
        {"gain": 3.0},
    ):  # none says a thing of it
        with pytest.raises(ValueError, match="must not be zero with alpha, alphas, gain or a frozen S, got zero"):
            applied("dctps", offset="zero", **options)


@pytest.mark.parametrize("alpha", ["trained", "fixed"])
def test_a_frozen_s_is_neither_trained_nor_counted(alpha, recwarn):
    model = applied("dctps", frozen=True, alpha=alpha, model=models.resnet20(Key(0), in_channels=1))
    size = subspace.summary(model)
    alphas = 20 if alpha == "trained" else 0
    assert (size.dim, size.alpha, dict(size.beside)) == (alphas, alphas, {"norm": 1376, "bias": 10})
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == alphas + 1386
    start = {q: w.detach().clone() for q, w in materialize(model).named_parameters() if q.endswith("weight")}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(IMAGES[:8]), SAMPLES.labels[:8]).backward()
        optimizer.step()
    moved = {}
    for q, w in ((q, space.module.weight.detach()) for q, space in subspaces(model)):
        moved[q] = float((w * start[q]).sum() / (start[q] ** 2).sum()) - 1
        torch.testing.assert_close(w, (1 + moved[q]) * start[q])
    # alone before a batch norm, alpha makes no difference; after the last one it does
    assert (abs(moved["fc.weight"]) > 1e-6) == (alpha == "trained")
    assert not recwarn.list


@pytest.mark.parametrize(
    ("budget", "rule"),
    [("uniform", budgets.uniform), ("epl", budgets.epl), ("epf_average", budgets.epf), ("erk", budgets.erk)],
)
@pytest.mark.parametrize("name", ["dctps", "rigl", "random_pruning_epl", "freezenet"])
def test_a_budget_is_that_of_the_library(name, budget, rule):
    counts = [len(index) for index in supports(applied(name, budget=budget)).values()]
    assert counts == rule([w.shape for *_, w in subspace.targets(dense()).values()], 612)


def test_epf_is_equal_in_every_row_and_epf_on_average_is_not():
    def per_row(budget):
        index = torch.tensor(supports(applied("dctps", budget=budget))["conv3.weight"])
        return torch.bincount(index // 400, minlength=120)

    assert per_row("epf").max() - per_row("epf").min() <= 1 < per_row("epf_average").max()
    expected = DCTPS(dense(), density=0.01, seed=3, budget=budgets.epf, groups=rows)
    assert state(applied("dctps", budget="epf")) == state(expected)


@pytest.mark.parametrize("name", ["random_pruning_epl", "dctps", "rigl", "dctps_rigl", "freezenet"])
def test_the_authors_counts_are_realised(name):
    counts = [len(index) for index in supports(applied(name, 0.02, budget="epl", rule="authors")).values()]
    # 1224.2 of 150, 2400, 48000, 9840 and 820: 244.84 each, the first's 94.84 to the last
    assert counts == ([150, 245, 245, 245, 340] if "rigl" in name else [150, 244, 244, 244, 339])


def test_sparsity_aware_weights_have_kaimings_variance_for_the_fan_in_that_is_left():
    layer = nn.Sequential(nn.Linear(1000, 300, bias=False))
    with torch.no_grad():
        layer[0].weight.copy_(torch.from_numpy(Key(1).normal(300_000)).reshape(300, 1000) * (2 / 1000) ** 0.5)
    before = layer[0].weight.detach().clone()
    W = applied("random_pruning_epl", 0.05, model=layer, init="sparse")[0].weight.detach()
    kept = (W != 0).sum(1)
    assert kept.min() < kept.max()
    for row in range(300):
        at = W[row] != 0
        torch.testing.assert_close(W[row, at], before[row, at] * (1000 / kept[row]) ** 0.5)
    np.testing.assert_allclose(((W**2).sum(1) / 2).mean(), 1, rtol=0.05)  # each row's sum of squares: fan-in 2 / fan-in


CHOOSING = ["magnitude", "snip", "grasp", "iterative_snip", "force", "synflow", "imp", "freezenet_snip"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOOSING)
def test_a_reshuffled_support_has_the_same_counts_at_other_places(name):
    model = applied(name, shuffle=True, **FEW[name])
    one, other, before = chosen(name, **FEW[name]), supports(model), dict(dense().named_parameters())
    assert {q: len(index) for q, index in one.items()} == {q: len(index) for q, index in other.items()}
    assert sum(map(len, other.values())) == 612
    largest = other["conv3.weight"]
    expected = len(largest) * len(largest) / 48_000  # of places that are the same by chance
    assert len(set(one["conv3.weight"]) & set(largest)) <= expected + 6 * expected**0.5 + 1
    starts = {q: space.module.weight.detach().flatten() for q, space in subspaces(model)}
    for q, index in other.items():
        if name == "freezenet_snip":
            assert torch.equal(starts[q], Gaussian(before[q].detach(), key=Key(3).fold(q).fold("d"))().flatten())
        else:
            assert torch.equal(starts[q][index], before[q].detach().flatten()[index])
            assert int(starts[q].count_nonzero()) == len(index)


@pytest.mark.parametrize("name", ["magnitude", "snip", "grasp", "iterative_snip", "synflow"])
def test_an_inverted_score_keeps_as_many_of_the_lowest(name):
    kept, inverted = chosen(name, **FEW[name]), chosen(name, **FEW[name], invert=True)
    assert {q: len(index) for q, index in kept.items()} == {q: len(index) for q, index in inverted.items()}
    if name == "magnitude":
        for q, w in dense().named_parameters():
            if q in inverted:
                lowest = w.flatten().abs().argsort(stable=True)[: len(inverted[q])]
                assert inverted[q] == lowest.sort().values.tolist()
    if "steps" in METHODS[name].options:
        return  # what is lowest among those that are left
    assert all(not set(kept[q]) & set(inverted[q]) for q in kept if 2 * len(kept[q]) < dense().get_parameter(q).numel())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["magnitude", "snip", "force", "imp"])
def test_reinitialised_weights_are_others_of_the_same_distribution_at_the_same_places(name):
    model = applied(name, reinit=True, **FEW[name])
    assert chosen(name, **FEW[name]) == supports(model)
    for q, space in subspaces(model):
        first = dense().get_parameter(q).detach()
        w = space.module.weight.detach()
        kept = w.flatten()[supports(model)[q]]
        assert torch.isin(kept, first.flatten()).all()
        if len(kept) > 20:
            assert (kept != first.flatten()[supports(model)[q]]).float().mean() > 0.9
    shuffled = chosen(name, reinit=True, shuffle=True, **FEW[name])
    assert shuffled == chosen(name, shuffle=True, **FEW[name]) != supports(model)


BASED = [name for name, known in METHODS.items() if "basis" in known.options]


@pytest.mark.slow
@pytest.mark.parametrize("name, basis", each_with_one(BASED, ["dct", "haar_filters", "singular"]))
def test_in_a_basis_a_method_trains_as_many_coefficients(name, basis):
    model = applied(name, basis=basis, **FEW[name])
    size = subspace.summary(model)
    if METHODS[name].prunes:
        assert all(isinstance(space.embedding, Transform) for _, space in subspaces(model))
        return
    assert size.dim - size.alpha == 612
    for _, space in subspaces(model):
        U = space.embedding.parts()[-1]
        assert isinstance(U, Basis)
        assert type(U.transform).__name__ == {"dct": "DCT", "haar_filters": "Haar", "singular": "Singular"}[basis]
    if "shuffle" in METHODS[name].options:
        other = applied(name, basis=basis, shuffle=True, **FEW[name])
        counts = [[len(index) for index in supports(m).values()] for m in (model, other)]
        assert counts[0] == counts[1]
        assert supports(model) != supports(other)
        assert all(isinstance(space.embedding, Basis) for _, space in subspaces(other))


def test_every_sparse_method_has_a_basis():
    assert set(METHODS) - set(BASED) == {"ordinary", "random_subspace", "doped", "said"}


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("random_pruning_epl", {"basis": "dct", "init": "sparse"}, "init must be dense in a basis, got sparse in dct"),
        ("force", {"basis": "dct", "rule": "authors"}, "basis must be identity under the rule authors, got dct"),
        ("rigl", {"budget": "n:4"}, "budget must be one that a moving U keeps, got n:4"),
        ("gradual", {"budget": "n:4"}, "budget must be one that a moving U keeps, got n:4"),
        ("gradual", {"budget": "epf"}, "budget must be one of tensors to prune gradually, got epf"),
        (
            "random_subspace",
            {"burn_in": 1},
            "offset must be initial after a burn-in and in a lottery subspace, got gau",
        ),
        ("random_subspace", {"embedding": "lottery"}, "offset must be initial after a burn-in and in a lottery subsp"),
        ("random_subspace", {"offset": "zero"}, "offset must not be zero in a random subspace, where no weight would"),
        (
            "random_subspace",
            {"embedding": "lottery", "offset": "initial"},
            "a trajectory must have a point away from its first, got none in 1",
        ),
        ("random_subspace", {"burn_in": -1}, "burn_in of random_subspace must be an integer of at least 0 .* got -1"),
        ("gradual", {"t_start": 0.9, "t_end": 0.5}, "t_end must be at least t_start, 0.9, got 0.5"),
        ("doped", {"factors": "one", "dropout": 0.1}, "dropout must be 0 with one factor trained, got 0.1"),
        ("doped", {"factors": "two"}, "factors of doped must be one of 'both', 'one', got 'two'"),
        ("doped", {"dropout": 1.5}, r"dropout of doped must be in \[0, 1\], got 1.5"),
        ("dctps", {"budget": "n:4"}, "density must be a multiple of 1/4 for the budget n:4, got 0.01"),
    ],
)
def test_options_that_do_not_go_together_are_refused(name, options, error):
    def prepare():
        model = applied(name, **options)
        METHODS[name].mover(model, torch.optim.SGD(model.parameters(), 0.1), setting(name, **options))

    with pytest.raises(ValueError, match=error):
        prepare()


@pytest.mark.parametrize(("m", "density"), [(2, 0.5), (4, 0.5), (4, 0.25), (8, 0.125), (16, 0.1875)])
@pytest.mark.parametrize("name", rest_slow(["random_pruning_uniform", "dctps", "freezenet"], ["dctps"]))
def test_an_n_to_m_budget_has_n_in_every_m_inputs(name, m, density):
    model = applied(name, density, budget=f"n:{m}")
    size = subspace.summary(model)
    assert size.dim - size.alpha == round(density * N)
    for q, index in supports(model).items():
        shape = dense().get_parameter(q).shape
        mask = torch.zeros(shape.numel()).index_fill(0, torch.tensor(index), 1).reshape(shape[0], shape[1], -1)
        if shape[1] % m:
            per_row = mask.sum((1, 2))
            assert per_row.max() - per_row.min() <= 1
        else:
            blocks = mask.reshape(shape[0], shape[1] // m, m, -1).sum(2)
            assert (blocks == m * density).all()


def test_every_saliency_can_be_reshuffled():
    assert [name for name, known in METHODS.items() if known.from_dense] == CHOOSING
    assert all("shuffle" in METHODS[name].options for name in CHOOSING)


def test_the_loss_of_raw_logits_chooses_otherwise():
    assert supports(applied("snip", loss="nll")) != supports(applied("snip"))


def test_another_batch_is_another_objective():
    s, model = setting("snip"), dense()
    values = [s.loss(20, batch=batch)(model).item() for batch in (0, 0, 1, 2)]
    assert values[0] == values[1]
    assert len(set(values)) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "alpha"), [("authors", "trained"), ("norms", "fixed")])
def test_alphas_of_fixup(rule, alpha):
    expected = models.fixup_resnet110(Key(0), in_channels=1)
    recipes.dctps(expected, density=0.01, seed=3, budget=budgets.epl)
    set_alphas(expected, rule)
    model = applied("dctps", model=models.fixup_resnet110(Key(0), in_channels=1), alphas=rule, alpha=alpha)
    assert supports(model) == supports(expected)
    size = subspace.summary(model)
    assert size.alpha == (subspace.summary(expected).alpha if alpha == "trained" else 0)
    assert size.dim - size.alpha == subspace.summary(expected).dim - subspace.summary(expected).alpha
    weights = {q: space.module.weight.detach() for q, space in subspaces(expected)}
    for q, space in subspaces(model):
        torch.testing.assert_close(space.module.weight.detach(), weights[q])
        along = any(isinstance(part, Direction) for part in space.parametrization.modules())
        assert along == (alpha == "trained" and len(supports(model)[q]) < weights[q].numel())


def test_alphas_of_another_network_are_refused():
    with pytest.raises(ValueError, match="model must be a FixupResNet, got LeNet5"):
        applied("dctps", alphas="norms")


def test_own_methods_may_have_options_of_the_same_names():
    own = dataclasses.replace(METHODS["dctps"], options={"budget": "mine"})
    assert own.with_defaults("own", {"budget": "yours"}) == {"budget": "yours"}


@pytest.mark.parametrize("name", ["force", "iterative_snip"])
def test_every_round_scores_a_fresh_batch_unless_one_is_asked_for(name, monkeypatch):
    drawn, loss = [], Setting.loss

    def noted(s, samples, name="cross_entropy", batch=0):
        drawn.append(batch)
        return loss(s, samples, name, batch)

    monkeypatch.setattr(Setting, "loss", noted)
    applied(name, steps=4, samples=20)
    assert drawn == [0, 1, 2, 3]
    drawn.clear()
    one = applied(name, steps=4, samples=20, batches="one")
    assert drawn == [0]
    assert supports(one) == supports(getattr(recipes, name)(dense(), setting(name).loss(20), density=0.01, steps=4))
    fresh = [applied(name, steps=4, samples=20) for _ in range(2)]
    assert supports(fresh[0]) == supports(fresh[1]) != supports(one)


def test_the_rule_of_the_original_code_has_fresh_batches_too():
    fresh, one = (
        applied("force", rule="authors", steps=3, samples=20, batches=batches) for batches in ("fresh", "one")
    )
    assert supports(fresh) != supports(one)


@pytest.mark.parametrize("name", ["force", "iterative_snip"])
def test_results_of_one_batch_keep_their_hash_and_say_so_in_their_label(name):
    one, fresh = (Run(Choice(name, {"batches": batches}), density=0.1) for batches in ("one", "fresh"))
    assert "batches" not in one.configuration()["method"]["options"]
    assert fresh.configuration()["method"]["options"]["batches"] == "fresh"
    for run in (one, fresh):
        assert Run.parse(run.configuration()) == run
    assert (one.label, fresh.label) == (f"{METHODS[name].label}, batches=one", METHODS[name].label)
    theirs = Run(Choice("force", {"rule": "authors"}), density=0.1)
    assert "batches" not in theirs.configuration()["method"]["options"]


@pytest.mark.parametrize(
    ("name", "seed", "density", "hash_"),
    [
        ({"name": "force", "batches": "one"}, 0, 0.1, "4d13a6adc55c68f7"),
        ("ordinary", 0, None, "6f7af1550732f4b1"),
        ("dctps", 0, 0.01, "30c200b6a3a98dd4"),
        ("rigl", 1, 0.001, "6282130f4ce9681e"),
        ("imp", 0, 0.1, "645d1785828f7290"),
    ],
)
def test_hashes_of_runs_are_those_of_the_first_version(name, seed, density, hash_):
    assert Run(Choice.of(name, "method"), density=density, seed=seed, version="0.1.0").hash == hash_
