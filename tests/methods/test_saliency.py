"""Choosing U: every saliency against its paper's formula, exact and nested selection, a model left as it was."""

from __future__ import annotations

import random as python_random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, relu

from subspace import Key, budgets
from subspace.methods import (
    blocks,
    flow,
    force,
    gradient,
    grasp,
    magnitude,
    random,
    rows,
    select,
    shuffle,
    snip,
    synflow,
)
from subspace.methods import supports as prune
from subspace.methods.saliencies.synflow import GroupedInDouble

pytestmark = pytest.mark.filterwarnings("ignore:the budget of")
SALIENCIES = {
    "magnitude": magnitude,
    "random": random(Key(3)),
    "snip": snip,
    "gradient": gradient,
    "grasp": grasp,
    "synflow": synflow,
}
each_saliency = pytest.mark.parametrize("saliency", SALIENCIES.values(), ids=SALIENCIES)


class Attentive(nn.Module):
    """Attention, a layer norm, dropout and an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = images.reshape(len(images), -1, 8)
        x = self.norm(x + self.attention(x, x, x)[0])
        return self.head(self.drop(self.recurrent(x)[0].mean(1)))


def convolutional() -> nn.Module:
    """Batch norm, a grouped and a depthwise convolution, dropout."""
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Dropout(0.3)),
        *(nn.Conv2d(4, 4, 1, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    )


NETWORKS = {"convolutional": convolutional, "attentive": Attentive}
each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


def made(network, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return network().to(dtype)


def batch(dtype: torch.dtype = torch.float32, n: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(Key(7).normal(n * 64)).reshape(n, 1, 8, 8).to(dtype)
    return x, torch.arange(n) % 3


def loss(net: nn.Module) -> Tensor:
    x, y = batch()
    return cross_entropy(net(x.to(next(net.parameters()).dtype)), y)


def state(model: nn.Module) -> list:
    """All that scoring could leave behind."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        *((n, id(t), t.data_ptr(), t.dtype, t.requires_grad, t.detach().clone().numpy().tobytes()) for n, t in tensors),
        *((n, id(p.grad), None if p.grad is None else p.grad.tolist()) for n, p in model.named_parameters()),
        *((n, m.training, len(m._forward_pre_hooks), len(m._forward_hooks)) for n, m in model.named_modules()),
        *(torch.get_rng_state().tolist(), torch.is_grad_enabled(), torch.get_default_dtype()),
        *(str(np.random.get_state()), python_random.getstate()),
    ]


@each_saliency
@each_network
def test_scoring_leaves_the_model_as_it_was(saliency, network):
    model = made(network)
    loss(model).backward()
    next(iter(model.children())).eval()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[-1].grad = None
    before = state(model)
    scores = saliency(model, loss)
    assert state(model) == before
    weights = dict(model.named_parameters())
    assert all(s.shape == weights[q].shape and not s.requires_grad and s.isfinite().all() for q, s in scores.items())
    assert sum(bool(s.any()) for s in scores.values()) == len(scores)


@each_saliency
def test_an_objective_that_fails_leaves_the_model_as_it_was(saliency):
    model = made(convolutional)
    before = state(model)

    def failing(net: nn.Module) -> Tensor:
        loss(net).backward()
        net.eval()
        raise KeyError("no data")

    if saliency in (magnitude, SALIENCIES["random"]):
        saliency(model, failing)
    else:
        with pytest.raises(KeyError, match="no data"):
            saliency(model, failing)
    assert state(model) == before


@each_saliency
@pytest.mark.parametrize("steps", [1, 3])
def test_pruning_leaves_the_model_as_it_was(saliency, steps):
    model = made(convolutional)
    before = state(model)
    kept = prune(model, saliency, loss, 0.3, steps=steps)
    assert state(model) == before
    assert sum(map(len, kept.values())) == round(0.3 * numel(model))


@each_saliency
def test_scores_include_and_exclude(saliency):
    model = made(Attentive)
    assert list(saliency(model, loss)) == [
        *("attention.in_proj_weight", "attention.out_proj.weight"),
        *("recurrent.weight_ih_l0", "recurrent.weight_hh_l0", "head.weight"),
    ]
    assert list(saliency(model, loss, include=["weight_hh_l0", "head"])) == ["recurrent.weight_hh_l0", "head.weight"]
    assert list(saliency(model, loss, exclude=["head", "attention", "out_proj"])) == [
        *("recurrent.weight_ih_l0", "recurrent.weight_hh_l0"),
    ]


@each_saliency
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_scored_in_at_least_float32(saliency, dtype):
    model = made(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 3)), dtype=dtype)
    scores = saliency(model, loss)
    expected = torch.float64 if saliency in (synflow, SALIENCIES["random"]) else torch.float32
    assert {s.dtype for s in scores.values()} == {dtype if saliency is magnitude else expected}


def test_autocast_and_compiled_models_are_scored():
    model = made(convolutional).eval()
    plain = snip(model, loss)

    def autocast(net: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(net)

    for q, s in snip(model, autocast).items():
        assert s.dtype == torch.float32
        assert (s - plain[q]).norm() < 0.05 * plain[q].norm()
    compiled = torch.compile(model, backend="eager")
    for (q, s), (name, other) in zip(plain.items(), snip(compiled, loss).items(), strict=True):
        assert name == q
        assert torch.equal(s, other)


# Independent references, from the papers' formulas: two layers without biases, float64, one flat vector of weights.

SIZES = [(9, 64), (3, 9)]
SPLIT = [m * n for m, n in SIZES]


def perceptron(dtype: torch.dtype = torch.float64) -> nn.Module:
    return made(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 9, False), nn.ReLU(), nn.Linear(9, 3, False)), dtype=dtype
    )


def flattened(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def risk(w: Tensor, temperature: float = 1.0) -> Tensor:
    first, second = (part.reshape(size) for part, size in zip(w.split(SPLIT), SIZES, strict=True))
    x, y = batch(torch.float64)
    return cross_entropy(relu(x.flatten(1) @ first.T) @ second.T / temperature, y)


def slope(w: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(risk, w)


def best(score: Tensor, k: int) -> set[int]:
    return set(score.argsort(descending=True, stable=True)[:k].tolist())


def places(kept: dict[str, Tensor]) -> set[int]:
    first, second = kept.values()
    return set(first.tolist()) | {SPLIT[0] + i for i in second.tolist()}


def counts(total: int, steps: int) -> list[int]:
    N = sum(SPLIT)
    return [round(np.exp(t / steps * np.log(total) + (1 - t / steps) * np.log(N))) for t in range(1, steps + 1)]


@pytest.mark.parametrize("k", [1, 30, 300])
def test_snip_is_its_formula(k):
    w = flattened(perceptron())
    connection = torch.autograd.functional.jacobian(lambda c: risk(c * w), torch.ones_like(w))  # dL/dc at c = 1
    assert places(prune(perceptron(), snip, loss, dim=k)) == best(connection.abs(), k)


@pytest.mark.parametrize("k", [1, 30, 300])
def test_grasp_is_its_formula(k):
    w = flattened(perceptron())
    warm = torch.autograd.functional.jacobian(lambda w: risk(w, 200), w)
    score = -w * (torch.autograd.functional.hessian(lambda w: risk(w, 200), w) @ warm)
    removed = set(score.argsort(descending=True)[: len(w) - k].tolist())
    x, y = batch(torch.float64)
    kept = prune(perceptron(), grasp, lambda net: cross_entropy(net(x) / 200, y), dim=k)
    assert places(kept) == set(range(len(w))) - removed


def test_gradient_is_the_gradient():
    w = flattened(perceptron())
    assert places(prune(perceptron(), gradient, loss, dim=50)) == best(slope(w).abs(), 50)


@pytest.mark.parametrize(("k", "steps"), [(30, 1), (30, 7), (5, 20)])
def test_iterative_snip_is_its_algorithm(k, steps):
    w = flattened(perceptron())
    mask = torch.ones_like(w)
    for count in counts(k, steps):
        score = (slope(w * mask) * w * mask).abs()
        score[mask == 0] = -1
        mask = torch.zeros_like(w)
        mask[list(best(score, count))] = 1
    assert places(prune(perceptron(), snip, loss, dim=k, steps=steps)) == set(mask.nonzero().flatten().tolist())


@pytest.mark.parametrize(("k", "steps"), [(30, 1), (30, 7), (5, 20)])
def test_force_is_its_algorithm(k, steps):
    w = flattened(perceptron())
    mask, returned = torch.ones_like(w), 0
    for count in counts(k, steps):
        kept = best((slope(w * mask) * w).abs(), count)
        returned += len(kept - set(mask.nonzero().flatten().tolist()))
        mask = torch.zeros_like(w)
        mask[list(kept)] = 1
    assert places(force(perceptron(), loss, dim=k, steps=steps)) == kept
    assert bool(returned) == (steps > 1)  # or this would not tell it from Iterative SNIP


def test_what_a_round_has_pruned_never_returns():
    def jealous(model: nn.Module, objective: object) -> dict[str, Tensor]:
        weights = {q: w.detach() for q, w in model.named_parameters()}
        return {q: torch.where(w == 0, 2.0, SALIENCIES["random"](model)[q]) for q, w in weights.items()}

    first = prune(perceptron(), jealous, loss, dim=counts(30, 2)[0])
    kept = prune(perceptron(), jealous, loss, dim=30, steps=2)
    assert places(kept) < places(first)


def test_force_in_one_round_is_snip():
    model = made(convolutional).eval()
    one, other = force(model, loss, 0.2, steps=1), prune(model, snip, loss, 0.2)
    assert all(torch.equal(one[q], other[q]) for q in other)


@pytest.mark.parametrize(("k", "steps"), [(200, 1), (30, 100), (4, 10)])
def test_synflow_is_its_formula(k, steps):
    w = flattened(perceptron()).abs()
    first, second = (part.reshape(size) for part, size in zip(w.split(SPLIT), SIZES, strict=True))
    kept = set(range(len(w)))
    for count in counts(k, steps):
        mask = torch.zeros_like(w)
        mask[list(kept)] = 1
        a, b = (part.reshape(size) for part, size in zip(mask.split(SPLIT), SIZES, strict=True))
        W, V = first * a, second * b  # R = 1^T V W 1
        score = torch.cat([(V.sum(0)[:, None] * W).flatten(), (V * W.sum(1)).flatten()])
        score[mask == 0] = -1
        kept = best(score, count)
    assert places(prune(perceptron(), synflow, flow(1, 1, 8, 8), dim=k, steps=steps)) == kept


# SynFlow's own law


def deep() -> nn.Module:
    layers = [nn.Sequential(nn.Linear(32, 32, bias=False), nn.ReLU()) for _ in range(70)]
    for layer in layers:
        nn.init.normal_(layer[0].weight, std=2.0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32, bias=False), *layers)


def unbiased() -> nn.Module:
    """At initialization a batch norm scales in eval mode, and shifts nothing."""
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2, bias=False)),
        *(nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 3, bias=False)),
    )


@pytest.mark.parametrize("network", [unbiased, deep])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ones", [flow(1, 1, 8, 8), lambda net: net(torch.ones(1, 1, 8, 8)).sum()], ids=["flow", "own"])
def test_synflow_conserves(network, dtype, ones):
    model = made(network, dtype=dtype).train()
    sums = torch.stack([s.sum() for s in synflow(model, ones).values()])
    assert sums.dtype == torch.float64
    torch.testing.assert_close(sums, sums[:1].expand_as(sums), rtol=1e-9, atol=0)
    assert sums[0] > (torch.finfo(torch.float32).max if network is deep else 0)  # where float32 overflows
    positive = {n: p.abs().double() for n, p in model.named_parameters()}
    R = functional_call(model.eval().double(), positive, torch.ones(1, 1, 8, 8, dtype=torch.float64)).sum()
    torch.testing.assert_close(sums[0], R, rtol=1e-9, atol=0)


def test_synflow_takes_the_absolute_value_of_the_whole_state():
    """Biases, norms and running means too, as the authors' code does."""
    model, mirrored = made(convolutional), made(convolutional)
    with torch.no_grad():
        model[1].running_mean.copy_(torch.tensor([0.1, -0.2, 0.3, -0.4]))
        mirrored.load_state_dict({n: t if n == "1.running_var" else -t for n, t in model.state_dict().items()})
    for (q, one), (name, other) in zip(
        synflow(model, flow(1, 1, 8, 8)).items(), synflow(mirrored, flow(1, 1, 8, 8)).items(), strict=True
    ):
        assert q == name
        assert torch.equal(one, other)


# Selection


def numel(model: nn.Module) -> int:
    return sum(s.numel() for s in magnitude(model).values())


def drawn(seed: int, levels: int, shapes=((4, 6), (3, 8, 2), (5,))) -> dict[str, Tensor]:
    """Scores with many ties."""
    keys = {f"tensor {i}": shape for i, shape in enumerate(shapes)}
    return {
        q: torch.from_numpy(Key(seed).fold(q).integers(int(np.prod(shape)), levels)).double().reshape(shape) - 1
        for q, shape in keys.items()
    }


@given(seed=st.integers(0, 99), levels=st.integers(1, 9), dim=st.integers(1, 77))
def test_select_is_exact_and_breaks_ties_by_order(seed, levels, dim):
    scores = drawn(seed, levels)
    flat = np.concatenate([s.flatten().numpy() for s in scores.values()])
    expected = np.sort(np.argsort(-flat, kind="stable")[:dim])
    kept = select(scores, dim=dim)
    starts = np.cumsum([0, *(s.numel() for s in scores.values())])
    got = np.concatenate([index.numpy() + start for index, start in zip(kept.values(), starts, strict=False)])
    assert got.tolist() == expected.tolist()
    assert all(index.dtype == torch.int64 for index in kept.values())


@pytest.mark.parametrize("budget", [None, budgets.epl, budgets.uniform, budgets.erk, budgets.epf])
@pytest.mark.parametrize("groups", [None, rows], ids=["anywhere", "rows"])
@given(seed=st.integers(0, 99), levels=st.integers(2, 99), density=st.tuples(st.floats(0.02, 1), st.floats(0.02, 1)))
def test_select_is_exact_and_nested_in_density(budget, groups, seed, levels, density):
    scores = drawn(seed, levels)
    small, large = (select(scores, d, budget=budget, groups=groups) for d in sorted(density))
    for kept, d in ((small, min(density)), (large, max(density))):
        assert sum(map(len, kept.values())) == round(d * 77)
        if budget is not None:
            assert list(map(len, kept.values())) == budget([s.shape for s in scores.values()], round(d * 77))
    for q in scores:
        assert set(small[q].tolist()) <= set(large[q].tolist())
        assert small[q].tolist() == sorted(set(small[q].tolist()))


@each_saliency
@pytest.mark.parametrize("budget", [None, budgets.epl])
def test_every_saliency_is_nested_in_density(saliency, budget):
    model = made(convolutional).eval()
    small, large = (prune(model, saliency, loss, d, budget=budget) for d in (0.1, 0.4))
    assert all(set(small[q].tolist()) <= set(large[q].tolist()) for q in small)


def test_select_by_blocks_keeps_the_best_of_every_block():
    scores = {"w": torch.from_numpy(Key(1).normal(4 * 8)).reshape(4, 8)}
    kept = select(scores, 0.5, groups=blocks(4))["w"]
    mask = torch.zeros(32).scatter(0, kept, 1).reshape(4, 2, 4)
    best_two = scores["w"].reshape(4, 2, 4).topk(2).indices
    assert torch.equal(mask.nonzero()[:, 2].reshape(4, 2, 2), best_two.sort().values)


@given(seed=st.integers(0, 99), levels=st.integers(2, 9), dim=st.integers(1, 24))
def test_select_by_rows_gives_what_is_left_to_the_best_next_scores(seed, levels, dim):
    scores = drawn(seed, levels, shapes=[(4, 6)])
    rank = np.argsort(np.argsort(-scores["tensor 0"].numpy(), axis=1, kind="stable"), axis=1).flatten()  # in its row
    order = np.lexsort((np.arange(24), -scores["tensor 0"].numpy().flatten(), rank))  # by rank, then by score, by place
    assert select(scores, dim=dim, groups=rows)["tensor 0"].tolist() == sorted(order[:dim].tolist())


def test_among_keeps_only_what_was_kept():
    scores = drawn(0, 99)
    before = select({q: -s for q, s in scores.items()}, dim=30)  # the worst
    kept = select(scores, dim=12, among=before)
    assert all(set(kept[q].tolist()) <= set(before[q].tolist()) for q in kept)
    assert sum(map(len, kept.values())) == 12


def test_shuffle_keeps_the_counts_and_moves_the_places():
    model = made(convolutional)
    weights = dict(model.named_parameters())
    kept = prune(model, snip, loss, 0.3)
    shuffled, again, other = (shuffle(kept, weights, Key(seed)) for seed in (0, 0, 1))
    for q, index in kept.items():
        assert len(shuffled[q]) == len(index)
        assert shuffled[q].tolist() == sorted(set(shuffled[q].tolist()))
        assert len(index) == 0 or (shuffled[q][0] >= 0 and shuffled[q][-1] < weights[q].numel())
        assert torch.equal(shuffled[q], again[q])
    assert any(not torch.equal(shuffled[q], kept[q]) for q in kept)
    assert any(not torch.equal(shuffled[q], other[q]) for q in kept)


# Bad input


def test_scores_that_are_not_finite_are_named_with_their_round():
    model = perceptron()
    with torch.no_grad():
        model[3].weight[0, 0] = torch.inf
    text = r"scores must be finite, got 1 of 27 in 3.weight that are not in round 1 of 4"
    with pytest.raises(FloatingPointError, match=text):
        prune(model, magnitude, loss, 0.1, steps=4)
    with pytest.raises(FloatingPointError, match=r"got 1 of 27 in 3.weight that are not$"):
        select(magnitude(model), 0.1)

    calls = []

    def spoilt(net: nn.Module) -> Tensor:
        calls.append(0)
        return loss(net) * (torch.nan if len(calls) == 3 else 1)

    for scheduled in (lambda m: prune(m, snip, spoilt, 0.1, steps=4), lambda m: force(m, spoilt, 0.1, steps=4)):
        calls.clear()
        model = perceptron()
        before = state(model)
        with pytest.raises(FloatingPointError, match=r"in 1.weight that are not in round 3 of 4"):
            scheduled(model)
        assert state(model) == before


def test_a_density_that_leaves_fewer_entries_than_tensors_says_so():
    for kept in (
        lambda: prune(made(convolutional), synflow, flow(1, 1, 8, 8), dim=2, steps=5),
        lambda: force(made(convolutional), loss, dim=2, steps=3),
        lambda: select(magnitude(made(convolutional)), dim=2),
    ):
        with pytest.warns(UserWarning, match=r"the budget of 2 leaves no entry to .*: fewer entries than the 4"):
            assert sum(map(len, kept().values())) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(made(convolutional), magnitude, loss, 0.5)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m: snip(m), TypeError, "objective must be a function of the model, got None"),
        (lambda m: grasp(m, lambda net: torch.ones(())), ValueError, "depends on the weights, got a constant"),
        (lambda m: snip(m, lambda net: net(batch()[0])), ValueError, r"must return one number .*, got shape \(6, 3\)"),
        (lambda m: prune(m, snip, loss, 0.1, steps=0), ValueError, "steps must be at least 1, got 0"),
        (lambda m: prune(m, snip, loss, 2.0), ValueError, r"density must be in \(0, 1\], got 2.0"),
        (lambda m: prune(m, snip, loss, 0.1, dim=3), TypeError, "exactly one of density and dim"),
        (lambda m: prune(m, snip, loss, dim=30.0), TypeError, "dim must be an integer, got 30.0"),
        (lambda m: snip(m, loss, include=["missing"]), ValueError, "got 'missing', which none ends in"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, error, text):
    model = made(convolutional)
    before = state(model)
    with pytest.raises(error, match=text):
        call(model)
    assert state(model) == before


@pytest.mark.parametrize(
    ("a", "b", "ends"),
    [
        ((24, 8), (3, 8, 16), [4, 4, 24]),
        ((3, 16, 8), (8, 24), [8, 16, 24]),
        ((16, 24), (24, 8), [8, 8, 24]),
        ((3, 16, 8), (3, 8, 8), None),
    ],
)
def test_grouped_products_in_float64_are_torchs_in_float32(a, b, ends):
    a, b = torch.randn(*a), torch.randn(*b)
    offs = None if ends is None else torch.tensor(ends, dtype=torch.int32)
    expected = torch.nn.functional.grouped_mm(a.bfloat16(), b.bfloat16(), offs=offs).float()
    with GroupedInDouble():
        found = torch.nn.functional.grouped_mm(a.double(), b.double(), offs=offs)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
