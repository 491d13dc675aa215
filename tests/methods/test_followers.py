"""What keeps theta by slot beside a model that moves: averages, snapshots, optimizers' copies. All move with it.

Beside each stands the same average of the dense S, which is set to 0, the model's value, wherever an entry is dropped
or grown.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from subspace import recipes, structured, subspaces
from subspace.methods import SET, constant
from tests.methods.test_moving import MOVERS, STARTS, X, loss, net, parts, train
from tests.support.cases import each_with_one

Averages = dict[str, Tensor]
each_mover = pytest.mark.parametrize("mover", MOVERS.values(), ids=MOVERS)
each_start = pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)


def dense(model: nn.Module) -> Averages:
    """S of every tensor, in full and in float64."""
    found = {}
    for name, (theta, sparse, start) in parts(model).items():
        zeros = torch.zeros(sparse.shape.numel(), dtype=torch.float64)
        found[name.removeprefix("module.")] = zeros.scatter(0, sparse.index, theta.detach()[start:].double())
    return found


class Timm:
    """timm's ModelEmaV2, and with ints=True its ModelEmaV3: the whole state_dict is averaged, or its floats alone."""

    def __init__(self, model: nn.Module, ints: bool, decay: float = 0.8) -> None:
        self.module, self.ints, self.decay = copy.deepcopy(model).eval(), ints, decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        for mean, value in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            if self.ints and not mean.is_floating_point():
                mean.copy_(value)
            else:
                mean.copy_(self.decay * mean + (1 - self.decay) * value)


class Shadow(dict[str, Tensor]):
    """The averages of many a training script: a dictionary by the names of the Parameters, with tensors made anew."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__({name: p.detach().clone() for name, p in model.named_parameters()})

    def update_parameters(self, model: nn.Module) -> None:
        for name, p in model.named_parameters():
            self[name] = 0.8 * self[name] + 0.2 * p.detach()


@dataclass(frozen=True)
class Average:
    """make(model), with what is passed to `follow`; weight(n): of the model's in the n-th update, from 0."""

    make: Callable[[nn.Module], Any]
    follow: Callable[[Any], Any]
    weight: Callable[[int], float]


def averaged(ema: bool, buffers: bool) -> Average:
    rule = {"multi_avg_fn": get_ema_multi_avg_fn(0.8)} if ema else {}
    weight = (lambda n: 0.2 if n else 1.0) if ema else (lambda n: 1 / (n + 1))
    return Average(lambda model: AveragedModel(model, use_buffers=buffers, **rule), lambda ema: ema.module, weight)


AVERAGES = {
    "torch": averaged(ema=False, buffers=False),
    "torch, buffers": averaged(ema=False, buffers=True),
    "torch's EMA": averaged(ema=True, buffers=False),
    "Lightning's EMAWeightAveraging": averaged(ema=True, buffers=True),
    "a wrapper": Average(AveragedModel, lambda ema: ema, lambda n: 1 / (n + 1)),
    "timm's V2": Average(lambda model: Timm(model, ints=False), lambda ema: ema.module, lambda n: 0.2),
    "timm's V3": Average(lambda model: Timm(model, ints=True), lambda ema: ema.module, lambda n: 0.2),
    "a dictionary": Average(Shadow, lambda ema: ema, lambda n: 0.2),
}
each_average = pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)


class Reference:
    """The averages of the dense S, and what is known of the supports."""

    def __init__(self, model: nn.Module) -> None:
        self.means, self.updates = dense(model), 0
        self.places = {name: set(sparse.index.tolist()) for name, (_, sparse, _) in parts(model).items()}
        self.moved = 0

    def move(self, model: nn.Module) -> None:
        """Forget what was dropped or grown."""
        for name, (_, sparse, _) in parts(model).items():
            now = set(sparse.index.tolist())
            for place in now ^ self.places[name]:
                self.means[name][place] = 0
            self.moved += len(now - self.places[name])
            self.places[name] = now

    def update(self, model: nn.Module, weight: Callable[[int], float]) -> None:
        for name, value in dense(model).items():
            self.means[name].lerp_(value, weight(self.updates))
        self.updates += 1

    def agrees(self, found: Averages) -> bool:
        pairs = [(self.means[name], found[name]) for name in self.means]
        return all(torch.allclose(mean, other, rtol=1e-4, atol=1e-6) for mean, other in pairs)


def found_in(model: nn.Module, follower: Any) -> Averages:
    if isinstance(follower, nn.Module):
        return dense(follower)
    other = copy.deepcopy(model)
    for name, p in other.named_parameters():
        p.data = follower[name]
    return dense(other)


def steps(model, optimizer, mover, count: int) -> Iterator[int]:
    """Train, with a look at the model between the optimizer's step and the mover's, and after that."""
    for t in range(count):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        yield 2 * t
        mover.step(loss)
        yield 2 * t + 1


@pytest.mark.parametrize(
    "averaging, moving", each_with_one(product(AVERAGES, [False, True]), product(MOVERS, STARTS)), ids=str
)
def test_an_average_is_that_of_the_dense_weights_where_it_is_defined(averaging, moving):
    """before: it is updated before the mover's step, else after it."""
    average, before, mover, start = AVERAGES[averaging[0]], averaging[1], MOVERS[moving[0]], STARTS[moving[1]]
    model = start(net(), density=0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    ema = average.make(model)
    moving = mover(model, optimizer, t_end=100, delta_t=2, decay=constant, follow=[average.follow(ema)])
    reference = Reference(model)
    for t in steps(model, optimizer, moving, 9):
        if t % 2:
            reference.move(model)
        if bool(t % 2) != before:
            ema.update_parameters(model)
            reference.update(model, average.weight)
        assert reference.agrees(found_in(model, average.follow(ema)))
    assert reference.moved > 20


@each_mover
@each_start
def test_an_average_of_a_structured_model_is_used_as_it_is(mover, start):
    model = structured(start(net(), density=0.3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ema = AveragedModel(model)
    moving = mover(model, optimizer, t_end=100, delta_t=2, decay=constant, follow=ema)
    for t in steps(model, optimizer, moving, 6):
        if t % 2:
            ema.update_parameters(model)
    plain = start(net(), density=0.3)
    plain.load_state_dict(ema.module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ema.eval()(X), plain.eval()(X), rtol=1e-4, atol=1e-5)


@each_mover
def test_a_snapshot_that_follows_takes_the_models_value_in_slots_that_begin_anew(mover):
    model = recipes.dctps_rigl(net(), density=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    snapshot, before = Shadow(model), dense(model)
    moving = mover(model, optimizer, t_end=100, delta_t=1, decay=constant)
    moving.follow(snapshot)
    train(model, optimizer, moving, 1)
    was = {name: t.clone() for name, t in before.items()}
    for name, (_, sparse, _) in parts(model).items():
        outside = torch.ones_like(was[name], dtype=torch.bool).index_fill(0, sparse.index, False)
        was[name][outside] = 0
    assert all(torch.equal(t, was[name].float().double()) for name, t in found_in(model, snapshot).items())


@each_mover
@each_start
def test_lookahead_is_that_of_the_dense_weights(mover, start):
    """Slow weights in the optimizer's state, to which the fast ones return after every third step."""
    model = start(net(), density=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for p in model.parameters():
        optimizer.state[p]["slow"] = p.detach().clone()
    moving = mover(model, optimizer, t_end=100, delta_t=2, decay=constant)
    reference = Reference(model)
    for t in steps(model, optimizer, moving, 12):
        if t % 2:
            reference.move(model)
        elif t % 6 == 4:
            reference.update(model, lambda n: 0.5)
            with torch.no_grad():
                for p in model.parameters():
                    p.copy_(optimizer.state[p]["slow"].lerp_(p, 0.5))
            assert reference.agrees(dense(model))
    assert reference.moved > 20


@each_mover
def test_sharpness_aware_steps_restore_every_weight(mover):
    """SAM's two steps, with the perturbation in the optimizer's state, as on dense weights with a mask."""
    model = recipes.rigl(net(), density=0.3).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    moving = mover(model, optimizer, t_end=100, delta_t=2, decay=constant)
    S, speed = dense(model), {name: torch.zeros_like(t) for name, t in dense(model).items()}
    moved = 0

    def slopes() -> Averages:
        loss(model).backward()
        found = {}
        for name, (theta, sparse, _) in parts(model).items():
            found[name] = torch.zeros_like(S[name]).scatter(0, sparse.index, theta.grad.double())
        return found

    for _ in range(8):
        optimizer.zero_grad()
        first = slopes()
        with torch.no_grad():
            for p in model.parameters():
                optimizer.state[p]["e"] = 0.05 * p.grad
                p.add_(optimizer.state[p]["e"])
        assert all(torch.allclose(S[n] + 0.05 * g, dense(model)[n], atol=1e-5) for n, g in first.items())
        optimizer.zero_grad()
        second = slopes()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(optimizer.state[p]["e"])
        optimizer.step()
        before = {name: set(sparse.index.tolist()) for name, (_, sparse, _) in parts(model).items()}
        moving.step(loss)
        for name, (_, sparse, _) in parts(model).items():
            speed[name] = 0.9 * speed[name] + second[name]
            S[name] = S[name] - 0.05 * speed[name]
            now = set(sparse.index.tolist())
            moved += len(now - before[name])
            for place in now ^ before[name]:
                S[name][place] = speed[name][place] = 0
            assert torch.allclose(S[name], dense(model)[name], atol=1e-5)
    assert moved > 20


def soup(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """As in the code of "Model soups" (Wortsman et al., 2022): every tensor of the state_dicts, in floating point."""
    return {name: sum(state[name] * (1 / len(states)) for state in states) for name in states[0]}


@each_mover
@each_start
def test_a_soup_of_checkpoints_is_right_where_u_is_the_same_and_refused_where_it_is_not(mover, start):
    model = start(net(), density=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    moving = mover(model, optimizer, t_end=100, delta_t=4, decay=constant)
    states, values = [], []
    for _ in range(3):
        train(model, optimizer, moving, 1)
        states.append(copy.deepcopy(model.state_dict()))
        values.append(dense(model))
    train(model, optimizer, moving, 1)
    other = start(net(), density=0.3)
    other.load_state_dict(soup(states))
    for name, found in dense(other).items():
        torch.testing.assert_close(found, torch.stack([value[name] for value in values]).mean(0), rtol=1e-5, atol=1e-7)
    moved = copy.deepcopy(model.state_dict())
    for refused in (soup([*states, moved]), soup([states[0], moved])):
        with pytest.raises(RuntimeError, match=r"0\.weight|0\.parametrizations\.weight"):
            other.load_state_dict(refused)


# Bad input


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


@each_mover
@pytest.mark.parametrize(
    ("follower", "text"),
    [
        (lambda model: recipes.rigl(net(), density=0.3, seed=1), "the places of the model .*, got others in 0.weight"),
        (lambda model: recipes.rigl(net(), density=0.2), r"theta of 0.weight must have shape \(\d+,\), got \(\d+,\)"),
        (lambda model: recipes.rigl(net(), density=0.3, include=["0", "3"]), "the 3 tensors of the model, got 2"),
        (lambda model: net(), "model must have at least one registered subspace, got none"),
        (lambda model: {"0.weight": torch.zeros(3)}, "must have all thetas .* name 0.parametrizations.weight.original"),
    ],
)
def test_a_follower_of_another_model_is_refused(mover, follower, text):
    model = recipes.rigl(net(), density=0.3)
    with pytest.raises(ValueError, match=text):
        mover(model, sgd(model), t_end=10, follow=[follower(model)])


@each_mover
def test_a_follower_that_has_missed_a_move_is_refused_and_nothing_moves(mover):
    model = recipes.rigl(net(), density=0.3)
    late = copy.deepcopy(model)
    moving = mover(model, sgd(model), t_end=10, delta_t=1)
    moving.step(loss)
    with pytest.raises(ValueError, match="a follower must have the places of the model that it follows, got others in"):
        moving.follow(late)
    moving.followers.append(late)  # as one that was exchanged for another
    before = {name: t.tolist() for name, t in dense(model).items()}
    with pytest.raises(ValueError, match="a follower must have the places of the model that it follows, got others in"):
        moving.step(loss)
    assert {name: t.tolist() for name, t in dense(model).items()} == before


def others(kept: Tensor) -> Tensor:
    """Places that are not kept."""
    return torch.tensor(sorted(set(range(10_000)) - set(kept.tolist())))


@pytest.mark.parametrize(
    "places",
    [
        lambda kept, count: kept[:count],
        lambda kept, count: others(kept)[: count - 1],
        lambda kept, count: others(kept)[:1].expand(count),
        lambda kept, count: torch.full((count,), 1 << 40),
    ],
)
def test_what_grows_elsewhere_is_refused_and_nothing_moves(places):
    class Wrong(SET):
        def grow(self, kept, counts, objective):
            return {name: places(kept[name], counts[name]) for name in kept}

    model = recipes.rigl(net(), density=0.3)
    before = {name: (t.tolist(), s.index.tolist()) for name, (t, s, _) in parts(model).items()}
    with pytest.raises(ValueError, match="distinct places must grow beside those kept, got"):
        Wrong(model, sgd(model), t_end=10, delta_t=1).step()
    assert {name: (t.tolist(), s.index.tolist()) for name, (t, s, _) in parts(model).items()} == before


# Copies that do not follow


def moved_on(mover, start=recipes.dctps_rigl, fast=False):
    """A model that has moved, and a copy that has not."""
    model = start(net(), density=0.3)
    model = structured(model) if fast else model
    late = AveragedModel(model)
    train(model, sgd(model), mover(model, sgd(model), t_end=10, delta_t=1), 1)
    return model, late


REFUSED = (
    r"a copy of a model must move with it to be an average of it, got one that was written to after a move: .*follow"
)


@each_mover
@each_start
@pytest.mark.parametrize("fast", [False, True])
def test_an_average_that_missed_a_move_is_refused_where_it_is_used(mover, start, fast):
    model, late = moved_on(mover, start, fast)
    with torch.no_grad():
        late(X)  # as a snapshot it is right
    later = copy.deepcopy(late)
    late.update_parameters(model)
    late.update_parameters(model)
    with torch.no_grad():
        for wrong in (late, copy.deepcopy(late)):
            for use in (lambda wrong=wrong: wrong(X), lambda wrong=wrong: wrong.module[0].weight):
                with pytest.raises(RuntimeError, match=REFUSED):
                    use()
        later(X)
        later.module[0].parametrizations.weight.original.mul_(0.5)
        with pytest.raises(RuntimeError, match=REFUSED):
            later(X)


WRITERS = {  # how averages write
    "in place": lambda theta, new: theta.lerp_(new, 0.5),
    "to .data": lambda theta, new: theta.data.lerp_(new.data, 0.5),
    "another .data": lambda theta, new: setattr(theta, "data", torch.lerp(theta.data, new.data, 0.5)),
    "detached": lambda theta, new: theta.detach().copy_(new.detach()),
    "foreach": lambda theta, new: torch._foreach_lerp_([theta.data], [new.data], 0.5),
}


@each_mover
@pytest.mark.parametrize("writer", WRITERS)
def test_it_is_refused_however_it_is_written_to(mover, writer):
    model, late = moved_on(mover)
    late.requires_grad_(False)
    late(X)
    with torch.no_grad():
        for theta, new in zip(late.parameters(), model.parameters(), strict=True):
            WRITERS[writer](theta, new)
    with pytest.raises(RuntimeError, match=REFUSED):
        late(X)


@each_mover
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_snapshot_may_change_its_dtype(mover, dtype):
    _, late = moved_on(mover)
    late.requires_grad_(False).to(dtype)
    late(X.to(dtype))


def by_itself(model: nn.Module, late: AveragedModel) -> None:
    optimizer = sgd(late)
    for _ in range(2):
        loss(late).backward()
        optimizer.step()


ENDED = {
    "trained": by_itself,
    "loaded": lambda model, late: late.module.load_state_dict(model.state_dict()),
    "loaded with what it was": lambda model, late: late.load_state_dict(copy.deepcopy(late.state_dict())),
    "assigned": lambda model, late: [setattr(s.module, s.name, torch.ones(s.shape)) for _, s in subspaces(late)],
    "nothing": lambda model, late: None,
}


@each_mover
@pytest.mark.parametrize("what", ENDED)
def test_a_copy_that_goes_its_own_way_is_not(mover, what):
    model, late = moved_on(mover)
    ENDED[what](model, late)
    with torch.no_grad():
        assert late(X).isfinite().all()
    train(model, sgd(model), mover(model, sgd(model), t_end=10, delta_t=1), 1)
    with torch.no_grad():
        assert late(X).isfinite().all()
        assert pickle.loads(pickle.dumps(late))(X).isfinite().all()


@each_mover
def test_two_copies_train_side_by_side(mover):
    models = [recipes.rigl(net(), density=0.3)]
    models.append(copy.deepcopy(models[0]))
    optimizers = [sgd(model) for model in models]
    movers = [mover(m, o, t_end=100, delta_t=2) for m, o in zip(models, optimizers, strict=True)]
    for _ in range(6):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            loss(model).backward()
        for moving, optimizer in zip(movers, optimizers, strict=True):
            optimizer.step()
            moving.step(loss)
