"""Iterative magnitude pruning: exact rounds, bit-exact rewinding, the model untouched."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from subspace import Key, materialize, recipes, subspaces
from subspace.methods import LotteryTicket

X = torch.from_numpy(Key(7).normal(24 * 36)).float().reshape(24, 1, 6, 6)
Y = torch.arange(24) % 3


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            *(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 12), nn.ReLU()),
            nn.Linear(12, 3),
        )


N = 54 + 96 * 12 + 36


def train(model: nn.Module, steps: int = 4) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(X), Y).backward()
        optimizer.step()


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: t.detach().numpy().tobytes() for name, t in model.state_dict().items()}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in materialize(model).named_parameters() if p.ndim > 1}


@pytest.mark.parametrize("early", [0, 3], ids=["init", "early checkpoint"])
def test_every_round_rewinds_to_the_bit(early):
    model = net()
    train(model, early)
    before, start = bits(model), weights(model)
    search = LotteryTicket(model, train, fraction=0.3)
    for _ in range(5):
        search.prune()
        ticket = search.ticket()
        masks = {q: torch.zeros(w.numel()).index_fill(0, search.supports[q], 1).view(w.shape) for q, w in start.items()}
        dense = bits(materialize(ticket))
        for q, w in weights(ticket).items():
            assert torch.equal(w, start[q] * masks[q])
        assert {n: b for n, b in dense.items() if n not in start} == {n: b for n, b in before.items() if n not in start}
        train(ticket)  # belongs to the caller
    assert bits(model) == before
    assert ticket.state_dict()["1.running_mean"].any()


def test_it_is_the_algorithm():
    """On dense weights and masks: train, drop the smallest of all that remain, rewind."""
    start = net()
    masks = {n: torch.ones_like(p) for n, p in start.named_parameters() if p.ndim > 1}
    for kept in (900, 600, 300):
        model = copy.deepcopy(start)
        with torch.no_grad():
            for n, p in model.named_parameters():
                if n in masks:
                    p.mul_(masks[n])
                    p.register_hook(lambda g, mask=masks[n]: g * mask)
        train(model)
        size = torch.cat(
            [(p.detach().abs() - 2 * (1 - masks[n])).flatten() for n, p in model.named_parameters() if n in masks]
        )
        flat = torch.zeros(N).index_fill(0, size.argsort(descending=True)[:kept], 1)
        masks = {n: m.view(masks[n].shape) for (n, m) in zip(masks, flat.split([54, 1152, 36]), strict=True)}
    search = LotteryTicket(start, train)
    for kept in (900, 600, 300):
        search.prune(kept)
    assert {q: i.tolist() for q, i in search.supports.items()} == {
        n: m.flatten().nonzero().flatten().tolist() for n, m in masks.items()
    }


def test_rounds_are_exact_and_nested():
    search = LotteryTicket(net(), train, fraction=0.2)
    assert search.dim == N
    dims, before = [], None
    for _ in range(6):
        search.prune()
        dims.append(search.dim)
        if before:
            assert all(set(search.supports[q].tolist()) <= set(before[q].tolist()) for q in before)
        before = dict(search.supports)
    expected, remaining = [], N
    for _ in range(6):
        remaining = int(0.8 * remaining)
        expected.append(remaining)
    assert dims == expected
    model = search.run(density=0.1)
    assert search.dim == round(0.1 * N) == sum(space.theta.numel() for _, space in subspaces(model))
    assert search.rounds == 6 + 5  # 0.8^6 -> 0.8^10 > 0.1 > 0.8^11


def test_what_is_pruned_never_returns_even_where_all_is_zero():
    search = LotteryTicket(net(), train)
    search.prune(300)
    before = dict(search.supports)
    search.train = lambda model: [p.data.zero_() for p in model.parameters()]
    search.prune(100)
    assert search.dim == 100
    assert all(set(search.supports[q].tolist()) <= set(before[q].tolist()) for q in before)


def test_training_the_model_afterwards_does_not_move_the_rewinding_point():
    model = net()
    before = bits(model)
    search = LotteryTicket(model, train)
    train(model)
    assert bits(search.ticket()) == before


def test_it_resumes_bit_exactly():
    straight = LotteryTicket(net(), train)
    straight.prune()
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    straight.prune()
    resumed = LotteryTicket(nn.Sequential(*net()), train)
    nn.init.zeros_(resumed.start[0].weight)  # the rewinding point is in the state
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    resumed.prune()
    assert resumed.rounds == 2
    assert bits(resumed.ticket()) == bits(straight.ticket())


def test_the_recipe_prunes_the_model_itself():
    model, expected = net(), LotteryTicket(net(), train).run(density=0.3)
    weight = model[0].weight
    assert recipes.imp(model, train, density=0.3) is model
    assert bits(model) == bits(expected)
    assert next(subspaces(model))[1].theta is weight
    whole = recipes.imp(net(), train, density=1.0)  # no round at all
    assert sum(space.theta.numel() for _, space in subspaces(whole)) == N
    chosen = recipes.imp(net(), train, dim=30, fraction=0.5, include=["4"])
    assert [name for name, _ in subspaces(chosen)] == ["4.weight"]


@pytest.mark.filterwarnings("ignore:the budget of")
@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: LotteryTicket(net(), train, fraction=1.0), ValueError, r"fraction must be in \(0, 1\), got 1.0"),
        (lambda: LotteryTicket(net(), train).prune(N + 1), ValueError, rf"dim must be in \[1, {N}\], got {N + 1}"),
        (lambda: LotteryTicket(net(), train).run(), TypeError, "exactly one of density and dim must be given"),
        (
            lambda: LotteryTicket(net(), lambda m: nn.init.constant_(m[0].weight, torch.nan)).prune(),
            FloatingPointError,
            "scores must be finite, got 54 of 54 in 0.weight that are not in round 1",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_tensors_left_empty_are_named():
    with pytest.warns(UserWarning, match="the budget of 2 leaves no entry to .*: fewer entries than the 3 tensors"):
        LotteryTicket(net(), train, fraction=0.9).run(dim=2)
