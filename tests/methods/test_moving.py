"""Moving U: SET and RigL on any offset keep dim and slots, start at 0, and leave an entry that stays as it is."""

from __future__ import annotations

import copy
import functools
import weakref
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from subspace import Key, budgets, materialize, offsets, recipes, register, share, structured, subspaces
from subspace.embeddings import DirectSum, Sparse
from subspace.methods import SET, RigL, constant, cosine, growth, linear, snip
from subspace.methods.growth import largest
from subspace.methods.set import _outside
from tests.support.cases import each_with_one
from tests.support.memory import peak_bytes

pytestmark = pytest.mark.filterwarnings("ignore:the budget of")
MOVERS = {"SET": SET, "RigL": RigL}
STARTS = {
    "zero": recipes.rigl,
    "dctps": recipes.dctps_rigl,
    "freezenet": recipes.freezenet,
    "pretrained": recipes.sparse_finetuning,
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.03, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.03),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.03),
}
each_mover = pytest.mark.parametrize("mover", MOVERS.values(), ids=MOVERS)
each_start = pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
X = torch.from_numpy(Key(7).normal(12 * 64)).float().reshape(12, 1, 8, 8)
Y = torch.arange(12) % 3


def net() -> nn.Module:
    """Batch norm, a grouped convolution, dropout; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=2), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 3)),
        )


def loss(model: nn.Module) -> Tensor:
    return cross_entropy(model(X), Y)


def train(model, optimizer, mover, steps, objective=loss):
    for _ in range(steps):
        optimizer.zero_grad()
        objective(model).backward()
        optimizer.step()
        mover.step(objective)


def parts(model: nn.Module) -> dict[str, tuple[nn.Parameter, Sparse, int]]:
    """(theta, sparse embedding, where its entries start in theta) by name."""
    found = {}
    for q, space in subspaces(model):
        U = space.parametrization.embedding
        found[q] = (space.theta, U.embeddings[1], 1) if isinstance(U, DirectSum) else (space.theta, U, 0)
    return found


def entries(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """What belongs to every place: theta, gradient, optimizer state; and apart, what belongs to none."""
    placed, apart = {}, {}
    for q, (theta, sparse, start) in parts(model).items():
        tensors = {"theta": theta.detach(), "grad": theta.grad, **optimizer.state[theta]}
        tensors = {n: t for n, t in tensors.items() if isinstance(t, Tensor)}
        per_entry = {n: t for n, t in tensors.items() if t.shape == theta.shape}
        for j, place in enumerate(sparse.index.tolist()):
            placed[q, place] = {n: float(t[start + j]) for n, t in per_entry.items()}
        apart[q] = {n: (t[:start] if n in per_entry else t).tolist() for n, t in tensors.items()}
    return {"placed": placed, "apart": apart}


@pytest.mark.parametrize("optimizer, moving", each_with_one(OPTIMIZERS, product(MOVERS, STARTS)), ids=str)
def test_entries_keep_their_slot_and_state_and_grow_at_zero(optimizer, moving):
    mover, start = MOVERS[moving[0]], STARTS[moving[1]]
    model = start(net(), density=0.3)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    moving = mover(model, optimizer, t_end=100, delta_t=4, decay=constant)
    train(model, optimizer, moving, 3)
    loss(model).backward()  # accumulates gradients that are due to the present entries
    identities = {q: (id(theta), id(sparse.index), sparse.dim) for q, (theta, sparse, _) in parts(model).items()}
    slots = {q: sparse.index.tolist() for q, (_, sparse, _) in parts(model).items()}
    before = entries(model, optimizer)
    moving.step(loss)
    after = entries(model, optimizer)

    assert {q: (id(t), id(s.index), s.dim) for q, (t, s, _) in parts(model).items()} == identities
    assert after["apart"] == before["apart"]  # alpha, its moments, step counts
    for theta, sparse, first in parts(model).values():
        assert theta.shape == (first + sparse.dim,)
        places = sparse.index.tolist()
        assert sorted(places) == sorted(set(places) & set(range(sparse.shape.numel())))
    for q, (_, sparse, _) in parts(model).items():
        now = set(sparse.index.tolist())
        assert all(place == then for place, then in zip(sparse.index.tolist(), slots[q], strict=True) if then in now)
    new = after["placed"].keys() - before["placed"].keys()
    assert len(new) > 10
    assert all(set(after["placed"][key].values()) == {0.0} for key in new)
    assert all(after["placed"][key] == before["placed"][key] for key in after["placed"].keys() - new)
    for q, (_, sparse, _) in parts(model).items():  # the smallest went
        size = {place: abs(values["theta"]) for (name, place), values in before["placed"].items() if name == q}
        gone = {place for place in size if (q, place) not in after["placed"]}
        dropped = set(sorted(size, key=size.get)[: int(0.3 * sparse.dim)])
        assert gone <= dropped
    train(model, optimizer, moving, 5)


def dense_reference(model: nn.Module, mover_steps: int, delta_t: int, fraction: float):
    """RigL after SGD with momentum, on dense matrices and masks: W = alpha D + S, for the two layers of `mlp`."""
    S, mask, momentum, D, alpha, speed = [], [], [], [], [], []
    for _, space in subspaces(model):
        d, U, theta = space.parametrization.offset(), space.parametrization.embedding, space.theta.detach()
        trains = isinstance(U, DirectSum)
        sparse = U.embeddings[1] if trains else U
        m = torch.zeros(U.shape, dtype=torch.float64).view(-1).index_fill(0, sparse.index, 1).view(U.shape)
        S.append(torch.zeros_like(m).view(-1).scatter(0, sparse.index, theta[int(trains) :]).view(U.shape))
        mask.append(m)
        momentum.append(torch.zeros_like(m))
        D.append(U.embeddings[0].offset() if trains else d.clone())
        alpha.append(1.0)
        speed.append(0.0 if trains else None)

    def gradients():
        W = [(a * d + s).requires_grad_() for a, d, s in zip(alpha, D, S, strict=True)]
        value = cross_entropy(relu(X.double().flatten(1) @ W[0].T) @ W[1].T, Y)
        return torch.autograd.grad(value, W)

    for t in range(1, mover_steps + 1):
        for i, g in enumerate(gradients()):
            momentum[i] = (0.9 * momentum[i] + g) * mask[i]
            S[i] = S[i] - 0.1 * momentum[i]
            if speed[i] is not None:
                speed[i] = 0.9 * speed[i] + float((g * D[i]).sum())
                alpha[i] -= 0.1 * speed[i]
        if t % delta_t:
            continue
        for i, g in enumerate(gradients()):
            active = mask[i].flatten().nonzero().flatten().tolist()
            count = int(
                fraction * (1 + torch.cos(torch.tensor(torch.pi * t / 60, dtype=torch.float64))) / 2 * len(active)
            )
            kept = sorted(active, key=lambda p: -abs(float(S[i].flatten()[p])))[: len(active) - count]
            free = sorted(set(range(g.numel())) - set(kept), key=lambda p: -abs(float(g.flatten()[p])))
            now = torch.zeros(g.numel(), dtype=torch.float64).index_fill(0, torch.tensor(kept + free[:count]), 1)
            mask[i] = now.view(g.shape)
            S[i], momentum[i] = S[i] * mask[i], momentum[i] * mask[i]
    return [a * d + s for a, d, s in zip(alpha, D, S, strict=True)], mask


def mlp() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 20, bias=False), nn.ReLU(), nn.Linear(20, 3, bias=False)
        ).double()


def loss64(model: nn.Module) -> Tensor:
    return cross_entropy(model(X.double()), Y)


@each_start
def test_rigl_is_the_algorithm_on_dense_masks(start):
    model = start(mlp(), density=0.2)
    first = {q: sparse.index.clone() for q, (_, sparse, _) in parts(model).items()}
    W, mask = dense_reference(model, mover_steps=40, delta_t=5, fraction=0.4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, RigL(model, optimizer, t_end=60, delta_t=5, fraction=0.4), 40, loss64)
    for (q, space), w, m in zip(subspaces(model), W, mask, strict=True):
        index = parts(model)[q][1].index
        assert sorted(index.tolist()) == m.flatten().nonzero().flatten().tolist()
        first[q] = sorted(set(index.tolist()) - set(first[q].tolist()))
        torch.testing.assert_close(getattr(space.module, space.name).detach(), w)
    assert sum(map(len, first.values())) > 50  # it did move


@each_mover
@each_start
def test_a_mover_resumes_bit_exactly(mover, start):
    def begun():
        model = start(net(), density=0.3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
        return model, optimizer, mover(model, optimizer, t_end=40, delta_t=3)

    torch.manual_seed(5)
    straight = begun()
    train(*straight, 7)
    saved = copy.deepcopy([part.state_dict() for part in straight])
    generator = torch.get_rng_state()
    train(*straight, 8)
    resumed = begun()
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(generator)
    train(*resumed, 8)
    assert entries(*resumed[:2]) == entries(*straight[:2])
    other, expected = resumed[0].state_dict(), straight[0].state_dict()
    assert all(torch.equal(other[name], expected[name]) for name in expected)
    assert any(not torch.equal(saved[0][name], expected[name]) for name in expected if name.endswith("_extra_state"))


@each_mover
def test_moving_leaves_everything_else_as_it_was(mover):
    model = recipes.dctps_rigl(net(), density=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model[7].eval()
    loss(model).backward()
    moved = {id(t) for theta, sparse, _ in parts(model).values() for t in (theta, sparse.index)}

    def state():
        tensors = [*model.named_parameters(), *model.named_buffers()]
        rest = {n: t.detach().clone() for n, t in tensors if id(t) not in moved}
        grads = [(n, id(p.grad), p.grad.sum().item()) for n, p in model.named_parameters() if id(p) not in moved]
        modes = [(m.training, len(m._forward_hooks), "forward" in vars(m)) for m in model.modules()]
        return {n: t.tolist() for n, t in rest.items()}, grads, modes, torch.get_rng_state().tolist()

    before = state()
    mover(model, optimizer, t_end=10, delta_t=1).step(loss)
    assert state() == before


@pytest.mark.parametrize(
    ("decay", "factor"),
    [
        (constant, lambda p: 1.0),
        (linear, lambda p: 1 - p),
        (cosine, lambda p: torch.cos(torch.tensor(p) * torch.pi / 2) ** 2),
    ],
)
def test_so_many_move_at_multiples_of_delta_t_before_t_end(decay, factor):
    model = mlp()
    register(model[1], "weight", offsets.Zero(model[1].weight), Sparse(model[1].weight, 400, key=Key(0)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    mover = SET(model, optimizer, t_end=20, delta_t=5, fraction=0.5, decay=decay)
    sizes = []

    class Spy(type(mover)):
        def grow(self, kept, counts, objective):
            sizes.append((self.steps, 400 - len(kept["1.weight"]), counts["1.weight"]))
            return super().grow(kept, counts, objective)

    mover.__class__ = Spy
    for _ in range(30):
        mover.step()
    assert sizes == [(t, int(200 * factor(t / 20) + 1e-4), int(200 * factor(t / 20) + 1e-4)) for t in (5, 10, 15)]


@each_mover
def test_a_dense_tensor_and_a_frozen_theta_stay(mover):
    model = recipes.rigl(net(), density=1.0)
    model[0].parametrizations.weight.original.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    train(model, optimizer, mover(model, optimizer, t_end=10, delta_t=5, fraction=0.5), 4)
    before = entries(model, optimizer)
    mover(model, optimizer, t_end=10, delta_t=1, fraction=0.5).step(loss)
    assert entries(model, optimizer) == before

    sparse = recipes.rigl(net(), density=0.2)
    sparse[0].parametrizations.weight.original.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in sparse.parameters() if p.requires_grad], lr=0.1)
    before = {q: part.index.clone() for q, (_, part, _) in parts(sparse).items()}
    mover(sparse, optimizer, t_end=10, delta_t=1).step(loss)
    stayed = [torch.equal(part.index, before[q]) for q, (_, part, _) in parts(sparse).items()]
    assert stayed == [True, False, False]


def test_set_grows_uniformly_outside_what_is_kept():
    index = torch.tensor([0, 3, 4, 8])
    assert _outside(index, torch.arange(6)).tolist() == [1, 2, 5, 6, 7, 9]
    model = mlp()
    register(model[1], "weight", offsets.Zero(model[1].weight), Sparse(model[1].weight, 128, key=Key(0)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    grown = []
    for seed in (0, 1):
        moving = SET(model, optimizer, t_end=100, delta_t=1, key=Key(seed))
        for moving.steps in (1, 2):
            grown.append(moving.grow({"1.weight": torch.arange(0, 1280, 10)}, {"1.weight": 60}, None)["1.weight"])
    for places in grown:
        assert places.tolist() == sorted(set(places.tolist()))
        assert all(place % 10 for place in places.tolist())
        assert 400 < places.double().mean() < 880
    assert len({tuple(places.tolist()) for places in grown}) == 4  # by key and step


# Growth


@given(seed=st.integers(0, 99), levels=st.integers(1, 30), taken=st.floats(0, 1), wanted=st.floats(0, 1))
@pytest.mark.parametrize("block", [7, 1 << 20])
def test_largest_in_blocks_is_the_largest(block, seed, levels, taken, wanted):
    key = Key(seed)
    gradient = torch.from_numpy(key.integers(53, 2 * levels + 1)).float() - levels
    kept = torch.from_numpy(key.distinct(53, int(taken * 53))).sort().values
    count = int(wanted * (53 - len(kept)))
    candidates = sorted(set(range(53)) - set(kept.tolist()), key=lambda p: (-abs(float(gradient[p])), p))
    blocks = [(start, gradient[start : start + block]) for start in range(0, 53, block)]
    assert largest(blocks, kept, count).tolist() == sorted(candidates[:count])


class Reused(nn.Module):
    """Weights that are read several times, once in a checkpoint, or to no consequence."""

    def __init__(self, cached: bool = False) -> None:
        super().__init__()
        self.inner, self.recurrent, self.head = nn.Linear(8, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.cached = cached

    def forward(self, x: Tensor) -> Tensor:
        if self.cached:
            with parametrize.cached():
                return self.through(x)
        return self.through(x)

    def through(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), 8, 8)
        x = self.inner(x).tanh()
        x = self.inner(x) if self.cached else checkpoint(self.inner, x, use_reentrant=False)
        x = x + self.attention(x, x, x)[0]
        self.inner.weight.norm()
        return self.head(self.recurrent(x)[0].mean(1))


def expected_growth(model: nn.Module, moving: RigL, fraction: float, objective=loss) -> dict[str, set[int]]:
    """By autograd on a plain dense copy."""
    dense = materialize(model)
    for p in dense.parameters():
        p.grad = None
    objective(dense).backward()
    weights, expected = dict(dense.named_parameters()), {}
    for q, (theta, sparse, start) in parts(model).items():
        magnitude = theta.detach()[start:].abs()
        count = int(fraction * sparse.dim)
        kept = sparse.index[magnitude.argsort(descending=True, stable=True)[: sparse.dim - count]]
        slope = weights[q].grad.flatten().abs().index_fill(0, kept, -1)
        expected[q] = set(kept.tolist()) | set(slope.topk(count).indices.tolist())
    return expected


CASES = {
    "reused": (lambda: Reused(), loss),
    "cached": (lambda: Reused(cached=True), loss),
    "accumulated": (
        lambda: Reused(),
        lambda m: sum(cross_entropy(m(x), y) for x, y in zip(X.split(4), Y.split(4), strict=True)),
    ),
}


@pytest.mark.parametrize(("make", "objective"), CASES.values(), ids=CASES)
@each_start
def test_rigl_grows_by_the_whole_gradient_of_every_weight(make, objective, start):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = start(make(), density=0.3, include=".*(weight|weight_.h_l0|in_proj_weight)")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    moving = RigL(model, optimizer, t_end=100, delta_t=1, fraction=0.3, decay=constant)
    expected = expected_growth(model, moving, 0.3, objective)
    moving.step(objective)
    assert {q: set(sparse.index.tolist()) for q, (_, sparse, _) in parts(model).items()} == expected
    assert len(expected) == 6


def test_a_tensor_that_the_objective_does_not_depend_on_stays():
    model = recipes.rigl(net(), density=0.3)
    before = {q: sparse.index.clone() for q, (_, sparse, _) in parts(model).items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    RigL(model, optimizer, t_end=10, delta_t=1).step(lambda m: m[:3](X).square().sum())
    assert [torch.equal(s.index, before[q]) for q, (_, s, _) in parts(model).items()] == [False, True, True]


def test_no_two_dense_gradients_are_held_at_once(monkeypatch):
    model = recipes.rigl(mlp(), density=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []

    def spy(blocks, kept, count):
        blocks = list(blocks)
        assert all(storage() is None for storage in seen)
        seen.append(weakref.ref(blocks[0][1].untyped_storage()))
        return largest(blocks, kept, count)

    monkeypatch.setattr(growth, "largest", spy)
    RigL(model, optimizer, t_end=10, delta_t=1).step(loss64)
    assert len(seen) == 2


def rebound(model: nn.Module) -> nn.Module:
    """Layers that never compute their weight, as a faster route would have them."""
    for _, space in subspaces(model):
        if space.name == "weight":
            space.module.forward = functools.partial(unweighed, space)
    return model


def unweighed(space, input):
    """The layer's output, past the parametrization."""
    d, U, layer = space.parametrization.offset, space.parametrization.embedding, space.module
    if isinstance(layer, nn.Linear):
        y = d.linear(input) + U.linear(space.theta, input)
        return y if layer.bias is None else y + layer.bias
    return layer._conv_forward(input, d() + U(space.theta), layer.bias)


@each_start
def test_rigl_works_where_forwards_never_build_the_weight(start):
    plain, fast = start(mlp(), density=0.2), rebound(start(mlp(), density=0.2))
    forwards = [space.module.forward for _, space in subspaces(fast)]
    for _, space in subspaces(fast):
        space.parametrization.register_forward_hook(lambda *_: pytest.fail("the weight was built"))
    for model in (plain, fast):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        train(model, optimizer, RigL(model, optimizer, t_end=60, delta_t=3), 10, loss64)
    assert [space.module.forward for _, space in subspaces(fast)] == forwards
    for (_, one, _), (_, other, _) in zip(parts(plain).values(), parts(fast).values(), strict=True):
        assert torch.equal(one.index, other.index)


class Everything(nn.Module):
    """Layers of every kind, called once, twice, by keyword, without a batch, and beside a read of the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(1, 4, 3, stride=2, padding=(2, 1), dilation=(1, 2))
        self.grouped = nn.Conv2d(4, 8, 3, groups=2, dilation=(1, 2), padding="same", bias=False)
        self.depthwise = nn.Conv2d(8, 8, 2, groups=8, padding=1, padding_mode="circular")
        self.line = nn.Conv1d(8, 6, 3, padding=2, padding_mode="reflect")
        self.solid = nn.Conv3d(1, 2, 2, padding="valid")
        self.fc = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.image(input=x), inplace=True)
        x = self.depthwise(self.grouped(x))
        x = torch.stack([self.line(sample) for sample in x.flatten(2)])
        x = nn.functional.adaptive_avg_pool1d(self.solid(x.unflatten(2, (2, -1)).unsqueeze(1)).flatten(1), 12)
        y = self.fc(x) + checkpoint(self.fc, x.cos(), use_reentrant=False)
        return y[:, :3] + self.fc.weight.square().mean()


@each_start
@pytest.mark.parametrize("block", [5, 1 << 20])
def test_rigl_grows_by_the_whole_gradient_of_layers_that_never_build_the_weight(start, block, monkeypatch):
    monkeypatch.setattr(growth, "BLOCK", block)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = start(Everything().double(), density=0.3)
    expected = expected_growth(model, None, 0.3, loss64)
    rebound(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    RigL(model, optimizer, t_end=100, delta_t=1, fraction=0.3, decay=constant).step(loss64)
    assert {q: set(sparse.index.tolist()) for q, (_, sparse, _) in parts(model).items()} == expected
    assert len(expected) == 6


def test_where_no_weight_is_built_no_dense_gradient_is(monkeypatch):
    monkeypatch.setattr(growth, "BLOCK", 1 << 12)
    peaks = []
    for rebind in (lambda model: model, rebound):
        model = rebind(recipes.dctps_rigl(nn.Sequential(nn.Linear(900, 700, bias=False)), density=1e-3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        moving = RigL(model, optimizer, t_end=10, delta_t=1)
        x = torch.ones(2, 900)
        peaks.append(peak_bytes(lambda moving=moving, x=x: moving.step(lambda m: m(x).square().sum())))
    dense = 900 * 700 * 4
    assert peaks[1] < dense / 4 < dense < peaks[0]


@pytest.mark.compile
@each_mover
@each_start
def test_movers_work_on_compiled_models(mover, start):
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    torch._dynamo.reset()
    plain, compiled = start(mlp(), density=0.2), start(mlp(), density=0.2)
    whole = torch.compile(compiled, backend=backend)
    for model, called in ((plain, plain), (compiled, whole)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
        train(called, optimizer, mover(model, optimizer, t_end=40, delta_t=3), 2, loss64)
        first = len(compilations)
        train(called, optimizer, mover(called, optimizer, t_end=40, delta_t=3), 10, loss64)
    assert first == len(compilations) > 0  # a move is nothing to compile for
    if mover is RigL:  # SET's draws depend on the qualified names, which compiling changes
        for name, tensor in compiled.state_dict().items():
            torch.testing.assert_close(tensor, plain.state_dict()[name])
    assert all(len(set(s.index.tolist())) == len(s.index) for _, s, _ in parts(compiled).values())


@each_mover
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_movers_work_with_autocast_and_a_gradient_scaler(mover, dtype):
    model = recipes.dctps_rigl(net(), density=0.3).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    moving = mover(model, optimizer, t_end=100, delta_t=2, decay=constant)

    def objective(m: nn.Module) -> Tensor:
        with torch.autocast("cpu", dtype):
            return cross_entropy(m(X).float(), Y)

    first = {q: s.index.clone() for q, (_, s, _) in parts(model).items()}
    for _ in range(6):
        for _ in range(2):  # accumulated
            scaler.scale(objective(model) / 2).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        moving.step(objective)
    for q, (theta, sparse, _) in parts(model).items():
        assert theta.isfinite().all()
        assert theta.dtype == torch.float32
        assert not torch.equal(sparse.index, first[q])


# Bad input


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def shared() -> nn.Module:
    model = mlp()
    for layer in (model[1], model[3]):
        register(layer, "weight", offsets.Zero(layer.weight), Sparse(layer.weight, 5, key=Key(0)))
    share(model, nn.Parameter(torch.zeros(5, dtype=torch.float64)))
    return model


@each_mover
@pytest.mark.parametrize(
    ("make", "options", "error", "text"),
    [
        (net, {}, ValueError, "model must have at least one registered subspace, got none"),
        (
            lambda: recipes.random_subspace(net(), dim=3),
            {},
            TypeError,
            r"0.weight must have a Sparse embedding, alone or in a Basis or DirectSum, got Scaled\(Gaussian\)",
        ),
        (lambda: recipes.ordinary(net()), {}, TypeError, "must have a Sparse embedding, .* got Identity"),
        (shared, {}, ValueError, "theta must belong to one tensor to be moved, got that of 1.weight, which is shared"),
        (lambda: recipes.rigl(net(), dim=60), {"delta_t": 0}, ValueError, "delta_t must be at least 1, got 0"),
        (lambda: recipes.rigl(net(), dim=60), {"fraction": 1.5}, ValueError, r"fraction must be in \[0, 1\], got 1.5"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(mover, make, options, error, text):
    model = make()
    with pytest.raises(error, match=text):
        mover(model, sgd(model), t_end=10, **options)


@each_mover
def test_the_optimizer_must_be_the_models(mover):
    with pytest.raises(ValueError, match="optimizer must train every theta, got one without that of 0.weight"):
        mover(recipes.rigl(net(), dim=60), sgd(net()), t_end=10)


def test_rigl_that_fails_moves_nothing():
    for objective, error, text in (
        (None, TypeError, "objective must be a function of the model, got None"),
        (lambda m: loss(m) * torch.inf, FloatingPointError, "gradients must be finite, got .* that are not in step 1"),
        (lambda m: m(X), ValueError, r"objective must return one number .*, got shape \(12, 3\)"),
    ):
        model = recipes.rigl(net(), density=0.3)
        optimizer = sgd(model)
        mover = RigL(model, optimizer, t_end=10, delta_t=1)
        before = {n: t.tolist() for n, t in model.state_dict().items()}
        with pytest.raises(error, match=text):
            mover.step(objective)
        assert {n: t.tolist() for n, t in model.state_dict().items()} == before
    RigL(model, optimizer, t_end=10, delta_t=2).step()  # not due: needs none


def test_moving_an_empty_tensor_is_nothing():
    model = recipes.rigl(net(), density=0.3, budget=lambda shapes, total: [0, 60, 20], dim=None)
    optimizer = sgd(model)
    train(model, optimizer, RigL(model, optimizer, t_end=10, delta_t=1), 3)
    assert [s.dim for _, s, _ in parts(model).values()] == [0, 60, 20]


def test_rigl_starts_from_erk():
    for recipe in (recipes.rigl, recipes.set, recipes.dctps_rigl, recipes.dctps_set):
        sparse = [part for _, part, _ in parts(recipe(net(), dim=60)).values()]
        assert [part.dim for part in sparse] == budgets.erk([part.shape for part in sparse], 60)


class Checkpointed(nn.Module):
    """A body that is computed again in the backward pass, and a head."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)), nn.Linear(16, 4)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x) if self.reentrant is None else checkpoint(self.body, x, use_reentrant=self.reentrant)
        return self.head(x)


@pytest.mark.parametrize("fast", [False, True])
def test_what_is_checkpointed_is_scored_and_grows_as_ever_or_is_refused(fast):
    x, y = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).requires_grad_(), torch.arange(8) % 4

    def objective(model: nn.Module) -> Tensor:
        return cross_entropy(model(x), y)

    def made(reentrant: bool | None) -> list[Tensor]:
        torch.manual_seed(0)
        model = recipes.snip(Checkpointed(reentrant), objective, density=0.2, budget=budgets.uniform)
        model = structured(model) if fast else model
        moving = RigL(model, torch.optim.SGD(model.parameters(), lr=0.1), t_end=10, delta_t=1)
        moving.step(objective)
        return [space.embedding.support().clone() for _, space in subspaces(model)]

    assert all(map(torch.equal, made(None), made(False)))
    with pytest.raises(
        ValueError,
        match=r"body.0.weight must be scored by gradients, got it in a checkpoint without use_reentrant=False",
    ):
        made(True)
    torch.manual_seed(0)
    model = recipes.rigl(Checkpointed(True), density=0.2)
    model = structured(model) if fast else model
    before = [space.embedding.support().clone() for _, space in subspaces(model)]
    moving = RigL(model, torch.optim.SGD(model.parameters(), lr=0.1), t_end=10, delta_t=1)
    with pytest.raises(ValueError, match=r"body.0.weight must be scored by gradients"):
        moving.step(objective)
    assert all(map(torch.equal, before, (space.embedding.support() for _, space in subspaces(model))))


@pytest.mark.parametrize("fast", [False, True])
def test_a_part_that_the_objective_uses_without_gradients_stays(fast):
    model = recipes.rigl(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)), density=0.3)
    model = structured(model) if fast else model
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))

    def objective(net: nn.Module) -> Tensor:
        with torch.no_grad():  # as a generator's samples are made for its critic
            x_hat = net[0](x)
        return net[1](x_hat).square().mean()

    before = [space.embedding.support().clone() for _, space in subspaces(model)]
    RigL(model, torch.optim.SGD(model.parameters(), lr=0.1), t_end=10, delta_t=1).step(objective)
    after = [space.embedding.support() for _, space in subspaces(model)]
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])
    scores = snip(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)), objective)
    assert not scores["0.weight"].any()
    assert scores["1.weight"].all()
