"""alphas in a group of their own are trained as Parameters of their own would be, and the rest of theta as before."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from subspace import add_alpha_group, methods, parameter_groups, recipes, share, structured, subspaces
from subspace.embeddings import Sparse
from subspace.offsets import Hadamard, SignedDCT
from tests.support.cases import each_with_one, rest_slow
from tests.support.strategies import numbers

close = torch.testing.assert_close
X, Y = numbers(1, 12, 16), torch.arange(12) % 4
RECIPES = {
    "dctps": lambda m: recipes.dctps(m, density=0.2),
    "dctps_set": lambda m: recipes.dctps_set(m, density=0.2),
    "dctps_rigl": lambda m: recipes.dctps_rigl(m, density=0.2),
    "hadamard": lambda m: recipes.offset_plus_sparse(lambda w, key: Hadamard(w))(m, density=0.2),
    "scaled": lambda m: recipes.offset_plus_sparse(lambda w, key: SignedDCT(w, key=key), scale=3.0)(m, density=0.2),
    "pulled to 0": lambda m: recipes.offset_plus_sparse(lambda w, key: Hadamard(w), anchored=False)(m, density=0.2),
}
each_recipe = pytest.mark.parametrize("recipe", RECIPES)
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, dampening=0.1, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, 0.02, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.1),
    "one by one": lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.1, foreach=False),
    "fused": lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.1, fused=True),
}
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)
PAIRS = list(itertools.product(RECIPES, OPTIMIZERS))
each_with_each = pytest.mark.parametrize("recipe, optimizer", rest_slow(PAIRS, each_with_one(RECIPES, OPTIMIZERS)))
OWN = {"lr": 0.03, "weight_decay": 0.7}
pytestmark = pytest.mark.filterwarnings("ignore:the budget of")


def net(recipe: str) -> nn.Module:
    torch.manual_seed(0)
    return RECIPES[recipe](
        nn.Sequential(nn.Linear(16, 24, bias=False), nn.Tanh(), nn.Linear(24, 4, bias=False)).double()
    )


def loss(model: nn.Module) -> Tensor:
    return cross_entropy(model(X), Y)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 30, mover=None) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        if mover is not None:
            mover.step(loss)


class Reference(NamedTuple):
    """w = fixed + a line + S of one tensor as plain tensors: a (1,) and s (k,) are apart, w is dense."""

    fixed: Tensor
    line: Tensor
    index: Tensor
    a: Tensor
    s: Tensor

    @classmethod
    def of(cls, space) -> Reference:
        direction, sparse = space.embedding.parts()
        theta = space.theta.detach().clone()
        line = direction(torch.ones(1).double())
        return cls(space.offset(), line, sparse.index.clone(), theta[:1].clone(), theta[1:].clone())

    def weight(self) -> Tensor:
        w = self.fixed + self.a * self.line
        return w.flatten().index_add(0, self.index, self.s).reshape(w.shape)


def by_hand(kind: str, steps: int, references: list[Reference]) -> None:
    """The updates of torch's SGD and AdamW as their documentation has them, of a and of s with their own constants."""
    each = [(r, t, lr, wd) for r in references for t, lr, wd in ((r.a, *OWN.values()), (r.s, *DEFAULTS[kind]))]
    kept: list[dict[str, Tensor]] = [{} for _ in each]
    for step in range(1, steps + 1):
        weights = [r.weight().requires_grad_() for r in references]
        hidden = torch.tanh(linear(X, weights[0]))
        gradients = torch.autograd.grad(cross_entropy(linear(hidden, weights[1]), Y), weights)
        by_weight = dict(zip(map(id, references), gradients, strict=True))
        for (r, t, lr, wd), state in zip(each, kept, strict=True):
            gw = by_weight[id(r)]
            g = (gw * r.line).sum().reshape(1) if t is r.a else gw.flatten()[r.index]
            UPDATES[kind](t, g, lr, wd, step, state)


def sgd(t: Tensor, g: Tensor, lr: float, wd: float, step: int, state: dict[str, Tensor]) -> None:
    t -= lr * (g + wd * t)


def momentum(t: Tensor, g: Tensor, lr: float, wd: float, step: int, state: dict[str, Tensor]) -> None:
    g = g + wd * t
    state["b"] = g if step == 1 else 0.9 * state["b"] + 0.9 * g
    t -= lr * state["b"]


def nesterov(t: Tensor, g: Tensor, lr: float, wd: float, step: int, state: dict[str, Tensor]) -> None:
    g = g + wd * t
    state["b"] = g if step == 1 else 0.9 * state["b"] + g
    t -= lr * (g + 0.9 * state["b"])


def adamw(t: Tensor, g: Tensor, lr: float, wd: float, step: int, state: dict[str, Tensor]) -> None:
    t *= 1 - lr * wd
    adam(t, g, lr, 0.0, step, state)


def adam(t: Tensor, g: Tensor, lr: float, wd: float, step: int, state: dict[str, Tensor]) -> None:
    g = g + wd * t
    m = state["m"] = 0.9 * state.get("m", torch.zeros_like(g)) + 0.1 * g
    v = state["v"] = 0.999 * state.get("v", torch.zeros_like(g)) + 0.001 * g * g
    t -= lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)


UPDATES = {"sgd": sgd, "momentum": momentum, "nesterov": nesterov, "adam": adam, "adamw": adamw}
UPDATES |= {"one by one": adamw, "fused": adamw}
DEFAULTS = {name: (0.05 if name in ("sgd", "momentum", "nesterov") else 0.02, 0.1) for name in UPDATES}


@each_with_each
@pytest.mark.parametrize("fast", rest_slow([False, True], [False]))
def test_every_number_is_where_the_updates_by_hand_bring_it(recipe, optimizer, fast):
    model = net(recipe)
    references = [Reference.of(space) for _, space in subspaces(model)]
    step = OPTIMIZERS[optimizer](parameter_groups(model))
    add_alpha_group(step, model, **OWN)
    train(structured(model) if fast else model, step)
    by_hand(optimizer, 30, references)
    for (_, space), wanted in zip(subspaces(model), references, strict=True):
        close(space.theta.detach(), torch.cat([wanted.a, wanted.s]), rtol=1e-9, atol=1e-11)


@each_with_each
def test_with_theta_s_own_options_nothing_changes(recipe, optimizer):
    plain, own = net(recipe), net(recipe)
    train(plain, OPTIMIZERS[optimizer](plain.parameters()))
    step = OPTIMIZERS[optimizer](own.parameters())
    add_alpha_group(step, own)
    train(own, step)
    for a, b in zip(plain.parameters(), own.parameters(), strict=True):
        close(a, b, rtol=1e-10, atol=1e-12)  # a fused step rounds one number and several in a row differently


@each_optimizer
@pytest.mark.parametrize("call", [lambda step, closure: step(closure), lambda step, closure: step(closure=closure)])
def test_a_closure_changes_nothing(optimizer, call):
    plain, closed = net("dctps"), net("dctps")
    steps = [OPTIMIZERS[optimizer](model.parameters()) for model in (plain, closed)]
    for model, step in zip((plain, closed), steps, strict=True):
        add_alpha_group(step, model, **OWN)
    train(plain, steps[0], 4)

    def closure():
        steps[1].zero_grad()
        value = loss(closed)
        value.backward()
        return value

    for _ in range(4):
        assert call(steps[1].step, closure) > 0
    assert all(map(torch.equal, plain.parameters(), closed.parameters()))
    assert all(space.theta[0] != 0 for _, space in subspaces(closed))


@each_optimizer
def test_decay_alone_brings_alpha_where_it_started(optimizer):
    model = net("dctps")
    thetas = [space.theta for _, space in subspaces(model)]
    with torch.no_grad():
        for theta in thetas:
            theta.fill_(1.0)
    step = OPTIMIZERS[optimizer]([{"params": thetas, "weight_decay": 0.0}])
    add_alpha_group(step, model, weight_decay=1.0)
    for _ in range(300):
        for theta in thetas:
            theta.grad = torch.zeros_like(theta)
        step.step()
    assert all(abs(theta[0]) < 0.05 and bool((theta[1:] == 1).all()) for theta in thetas)


@pytest.mark.parametrize("mover", ["SET", "RigL"])
def test_places_move_beside_it(mover):
    model, still = net("dctps"), net("dctps")
    pairs = []
    for each, fraction in ((model, 0.3), (still, 0.0)):
        optimizer = torch.optim.SGD(each.parameters(), 0.0, momentum=0.9)
        add_alpha_group(optimizer, each, lr=0.1)
        moving = getattr(methods, mover)(each, optimizer, t_end=100, delta_t=2, fraction=fraction)
        train(each, optimizer, 9, moving)
        pairs.append([space for _, space in subspaces(each)])
    for moved, kept in zip(*pairs, strict=True):
        sparse = next(U for U in moved.embedding.parts() if isinstance(U, Sparse))
        assert not torch.equal(sparse.index, next(U for U in kept.embedding.parts() if isinstance(U, Sparse)).index)
        close(moved.theta[0], kept.theta[0])  # S stays 0
        assert float(moved.theta.detach()[0]) != 0


def test_a_training_goes_on_from_states():
    straight, first = net("dctps"), net("dctps")
    optimizers = [OPTIMIZERS["adamw"](model.parameters()) for model in (straight, first)]
    for model, optimizer in zip((straight, first), optimizers, strict=True):
        add_alpha_group(optimizer, model, **OWN)
    train(straight, optimizers[0], 10)
    train(first, optimizers[1], 6)
    again = net("dctps")
    optimizer = OPTIMIZERS["adamw"](again.parameters())
    add_alpha_group(optimizer, again, lr=1.0)
    again.load_state_dict(first.state_dict())
    optimizer.load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    train(again, optimizer, 4)
    assert all(map(torch.equal, again.parameters(), straight.parameters()))


def test_a_schedule_sees_the_group():
    model = net("dctps")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    add_alpha_group(optimizer, model, lr=0.4)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(model, optimizer, 1)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.2]


def test_one_theta_of_several_tensors_has_its_alphas_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Tanh(), nn.Linear(16, 16, bias=False)).double()
    recipes.dctps(model, density=0.2)
    theta = nn.Parameter(next(subspaces(model))[1].theta.detach().clone())
    share(model, theta)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    add_alpha_group(optimizer, model, lr=0.1)
    loss(model).backward()
    optimizer.step()
    close(theta.detach()[0], -0.1 * theta.grad[0])
    assert not theta.detach()[1:].any()


def test_what_has_no_gradient_stays():
    model = net("dctps")
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.5)
    add_alpha_group(optimizer, model)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("way", [copy.deepcopy, pickle.dumps, lambda o: copy.deepcopy((net("dctps"), o))])
def test_a_copy_of_the_optimizer_is_refused(way):
    model = net("dctps")
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    add_alpha_group(optimizer, model)
    with pytest.raises(TypeError, match="an optimizer with a group of alphas must not be copied"):
        way(optimizer)
    copy.deepcopy(optimizer.state_dict())


@each_optimizer
@pytest.mark.parametrize("unscale", [True, False])
def test_a_scaled_loss_changes_nothing(optimizer, unscale):
    plain, scaled = net("dctps").float(), net("dctps").float()
    x = X.float()
    steps = []
    for model in (plain, scaled):
        steps.append(OPTIMIZERS[optimizer](model.parameters()))
        add_alpha_group(steps[-1], model, **OWN)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for overflows in (False, False, True, False):
        for step in steps:
            step.zero_grad()
        scaler.scale(cross_entropy(scaled(x), Y) * (float("inf") if overflows else 1)).backward()
        if unscale:
            scaler.unscale_(steps[1])
        scaler.step(steps[1])
        scaler.update()
        if not overflows:
            cross_entropy(plain(x), Y).backward()
            steps[0].step()
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        close(a, b, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_right_is_refused():
    model = net("dctps")
    with pytest.raises(ValueError, match="model must have an alpha that trains, got none"):
        add_alpha_group(torch.optim.SGD(model.parameters(), 0.1), recipes.random_pruning(nn.Linear(8, 8), density=0.5))
    optimizer = torch.optim.SGD([model[2].parametrizations.weight.original], 0.1)
    with pytest.raises(ValueError, match="optimizer must train every theta that has an alpha, got one without"):
        add_alpha_group(optimizer, model)
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="by groups, got LBFGS"):
        add_alpha_group(torch.optim.LBFGS(model.parameters()), model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    add_alpha_group(optimizer, model)
    with pytest.raises(ValueError, match="optimizer must have no group named 'alpha' yet, got one"):
        add_alpha_group(optimizer, model)


def test_an_optimizer_that_keeps_other_values_is_refused():
    schedulefree = pytest.importorskip("schedulefree")
    model = net("dctps")
    with pytest.raises(ValueError, match="by groups, got AdamWScheduleFree"):
        add_alpha_group(schedulefree.AdamWScheduleFree(model.parameters()), model)
