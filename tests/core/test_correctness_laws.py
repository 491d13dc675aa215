"""What is computed is what is said, also after others have had their hands on the model."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from subspace import (
    Key,
    load,
    materialize,
    methods,
    recipes,
    register,
    routes,
    save,
    share,
    structured,
    subspaces,
    summary,
    unstructured,
)
from subspace.embeddings import SRHT, Gaussian, Sparse
from subspace.methods.budgets import entries, exact
from subspace.methods.lottery_ticket import LotteryTicket
from subspace.methods.moving import constant
from subspace.offsets import DCT, Pretrained, SignedDCT, Zero
from tests.support.cases import EMBEDDINGS, OFFSETS, rest_slow
from tests.support.strategies import each_embedding, each_offset, numbers

close = torch.testing.assert_close
AGAIN = {
    "spectral norm": spectral_norm,
    "softplus": lambda module: parametrize.register_parametrization(module, "weight", nn.Softplus(), unsafe=True),
    "dropout": lambda module: parametrize.register_parametrization(module, "weight", nn.Dropout(0.5), unsafe=True),
    "twice": lambda module: [spectral_norm(module), spectral_norm(module)],
}
LAYERS = {
    "linear": (lambda: nn.Linear(8, 6), (3, 8)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 5)),
    "pointwise": (lambda: nn.Conv2d(8, 6, 1, stride=2), (2, 8, 5, 5)),
}


def made(name: str):
    make, shape = LAYERS[name]
    module = make().double()
    with torch.no_grad():
        module.weight.copy_(numbers(0, *module.weight.shape))
    space = register(module, "weight", DCT(module.weight), Sparse(module.weight, 20, key=Key(0)))
    return module, space, numbers(1, *shape)


def by_weight(module: nn.Module, x):
    """What the layer's weight, as it is seen, makes of x."""
    return type(module).__mro__[1].forward(module, x) if parametrize.is_parametrized(module) else module(x)


@pytest.mark.parametrize("again", AGAIN)
@pytest.mark.parametrize("name", LAYERS)
def test_a_structured_layer_whose_weight_is_parametrized_again_goes_by_that_weight(name, again):
    torch.manual_seed(0)
    module, _, x = made(name)
    assert summary(structured(module)).rows[0].route is not None
    AGAIN[again](module)
    module.eval()
    close(module(x), by_weight(module, x))
    (row,) = summary(module).rows
    assert (row.route, row.plain_because) == (None, "parametrized again")
    structured(module)
    close(module(x), by_weight(module, x))
    assert "forward" not in vars(unstructured(module))


@pytest.mark.parametrize("leave", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_structured_layer_whose_parametrization_is_removed_is_a_plain_one(name, leave):
    module, _, x = made(name)
    weight = module.weight.detach().clone()
    structured(module)
    parametrize.remove_parametrizations(module, "weight", leave_parametrized=leave)
    if leave:
        close(module.weight.detach(), weight)
        close(module(x), LAYERS[name][0]().double().forward.__func__(module, x))
    else:
        assert module.weight.shape == (20,)
    assert "forward" not in vars(unstructured(module))
    copy.deepcopy(module)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_tensor_that_shares_theta_can_go_and_leaves_it_to_the_others(first, fast):
    model = recipes.random_subspace(nn.Sequential(*(nn.Linear(6, 6) for _ in range(3))).double(), dim=9)
    theta = next(subspaces(model))[1].theta
    with torch.no_grad():
        theta.copy_(numbers(0, 9))
    x, before, values = numbers(1, 2, 6), materialize(model), theta.detach().clone()
    if fast:
        structured(model)
    parametrize.remove_parametrizations(model[first], "weight")
    close(model(x), before(x))
    assert isinstance(model[first].weight, nn.Parameter)
    left = [space for _, space in subspaces(model)]
    assert len(left) == 2
    assert all(space.theta is theta for space in left)
    close(theta.detach(), values)
    model(x).sum().backward()
    assert theta.grad.abs().sum() > 0
    for other in (copy.deepcopy(model), materialize(model)):
        close(other(x), before(x))
    for module in [m for i, m in enumerate(model) if i != first]:
        parametrize.remove_parametrizations(module, "weight")
    close(model(x), before(x))
    assert theta.shape == (9,)


def test_a_shared_theta_is_still_assigned_and_saved_as_any(tmp_path):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).double()
    for i, module in enumerate(model):
        register(module, "weight", DCT(module.weight), Gaussian(module.weight, 5, key=Key(i)))
    share(model, nn.Parameter(numbers(0, 5)))
    wanted = model[0].parametrizations.weight[0](numbers(3, 5)).detach()
    model[0].weight = wanted
    close(model[0].weight.detach(), wanted)
    close(next(subspaces(model))[1].theta.detach(), numbers(3, 5))
    assert [name for name, _ in model.named_parameters()] == ["0.bias", "0.parametrizations.weight.original", "1.bias"]
    save(model, tmp_path / "c")
    again = load(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).double(), tmp_path / "c")
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
    parametrize.remove_parametrizations(again[0], "weight")
    close(again[1].weight, model[1].weight)


MOVES = {
    "to meta and back": lambda model: model.to("meta").to_empty(device="cpu"),
    "emptied": lambda model: model.to_empty(device="cpu"),
    "half and back": lambda model: model.half().double(),
    "to meta, half and back": lambda model: model.to("meta").half().to_empty(device="cpu").double(),
}


@pytest.mark.parametrize("move", rest_slow(MOVES, ["to meta and back", "half and back"]))
@pytest.mark.parametrize("part", [*OFFSETS, *EMBEDDINGS], ids=lambda case: case.name)
def test_a_model_that_lost_its_values_is_whole_again_with_its_state_dict(part, move):
    module = nn.Linear(8, 6).double()
    with torch.no_grad():
        module.weight.copy_(numbers(0, 6, 8).half())
    w = module.weight
    offset = (part if part in OFFSETS else OFFSETS[9]).make(w, Key(4))
    register(module, "weight", offset, (part if part in EMBEDDINGS else EMBEDDINGS[1]).make(w, 9, Key(4)))
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    weight = module.weight.detach().clone()
    dirt = [torch.full((64,), math.nan, dtype=torch.float64) for _ in range(8)]
    del dirt
    MOVES[move](module)
    module.load_state_dict(state)
    close(
        module.weight.detach(), weight, rtol=1e-2 if "half" in move else 1e-12, atol=1e-2 if "half" in move else 1e-12
    )


@given(st.fractions(0, 1, max_denominator=1000).filter(lambda f: 0 < f < 1), st.integers(1, 10_000))
def test_a_count_is_that_of_the_number_as_it_is_written(fraction, n):
    written = Fraction(round(fraction * 10_000), 10_000)
    if 0 < written < 1:
        number = float(written)
        assert exact(number) == exact(np.float64(number)) == exact(written) == written
        if (wanted := round(written * n)) >= 1:
            assert entries(n, number, None) == wanted


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.3, 0.7, 0.8, 0.9, 0.99])
def test_a_lottery_tickets_fraction_is_rounded_up_and_no_further(fraction):
    model = nn.Linear(10, 30, bias=False)
    search = LotteryTicket(model, lambda model: None, fraction=fraction)
    while search.dim > 1:
        before = search.dim
        wanted = before - math.ceil(Fraction(str(fraction)) * before)
        if wanted < 1:
            with pytest.raises(ValueError, match=r"dim must be in \[1, "):
                search.prune()
            return
        search.prune()
        assert search.dim == wanted


@pytest.mark.parametrize("fraction", [0.29, 0.3, 0.57, 0.58, 0.7])
def test_a_mover_drops_as_many_as_it_says(fraction):
    for n in (10, 50, 100):
        model = nn.Linear(20, 20, bias=False)
        register(model, "weight", Zero(model.weight), Sparse(model.weight, n, key=Key(0)))
        space = next(subspaces(model))[1]
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        mover = methods.SET(model, optimizer, t_end=10, delta_t=1, fraction=fraction, decay=constant)
        counts = []
        mover.grow = lambda kept, count, objective, counts=counts: counts.append(count) or {}
        mover.step()
        assert counts == [{"weight": math.floor(Fraction(str(fraction)) * n)}]
        assert space.theta.shape == (n,)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))


def lenet() -> nn.Module:
    convs = [nn.Conv2d(3, 6, 5), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*convs, nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10))


@pytest.mark.parametrize("make, total", [(mlp, 199_210), (lenet, 62_006)])
def test_a_random_subspace_of_all_parameters_has_the_published_size(make, total):
    plain = make()
    model = recipes.random_subspace(copy.deepcopy(plain), dim=3, include=lambda name, tensor: True)
    assert summary(model).weights == total
    for (name, parameter), (_, space) in zip(plain.named_parameters(), subspaces(model), strict=True):
        start = getattr(space.module, space.name)
        assert (parameter.ndim < 2) == torch.equal(start, parameter), name
    columns = [torch.vmap(s.parametrization.embedding)(torch.eye(3)).reshape(3, -1) for _, s in subspaces(model)]
    close(torch.cat(columns, 1).norm(dim=1), torch.ones(3))


@each_offset
def test_a_random_subspace_starts_at_any_offset(case, tmp_path):
    def plain() -> nn.Module:
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        with torch.no_grad():
            for i, parameter in enumerate(model.parameters()):
                parameter.copy_(numbers(i, *parameter.shape))
        return model

    include = None if case.fans else lambda name, tensor: True
    model = recipes.random_subspace(plain(), dim=4, offset=case.make, include=include)
    for _, space in subspaces(model):
        assert torch.equal(getattr(space.module, space.name), space.parametrization.offset())
    if case.name == "pretrained":
        close(model(numbers(9, 2, 6)), plain()(numbers(9, 2, 6)))
    save(model, tmp_path / "c")
    close(load(plain(), tmp_path / "c")(numbers(9, 2, 6)), model(numbers(9, 2, 6)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 3), (9, 6), (12, 30), (64, 64), (10, 100), (8, 3, 3, 3)])
def test_entries_of_the_dct_that_are_zero_are_exactly_zero(shape, dtype):
    n_out, n_in = shape[0], math.prod(shape[1:])
    q, like = max(n_out, n_in), torch.empty(shape, dtype=dtype)
    i, j = np.meshgrid(np.arange(n_out), np.arange(n_in), indexing="ij")
    zero = torch.from_numpy(i * (2 * j + 1) % (2 * q) == q)  # an odd multiple of pi / 2
    zero = zero.reshape(n_out, *shape[2:], shape[1]).movedim(-1, 1)
    for d in (DCT(like), DCT(like, gain=1.7), SignedDCT(like, key=Key(0))):
        assert torch.equal(d() == 0, zero)


SHAPES_OF_W = {
    "constant": lambda n: torch.ones(n),
    "one": lambda n: torch.eye(n)[n // 3],
    "alternating": lambda n: (-1.0) ** torch.arange(n),
    "a wave": lambda n: torch.cos(torch.arange(n) * 0.01),
    "the first half": lambda n: (torch.arange(n) < n // 2).float(),
    "a row of H": lambda n: SRHT(torch.empty(n), 60, key=Key(0))(torch.eye(60)[3]).abs(),
}


@pytest.mark.parametrize("name", SHAPES_OF_W)
def test_the_length_of_a_projection_does_not_depend_on_what_is_projected(name):
    """|U^T w|^2 over |w|^2 dim / n is 1 +- (2 / dim)^1/2 for a Gaussian U."""
    n, dim = 1 << 12, 60
    w = SHAPES_OF_W[name](n).double()
    w = w / w.norm() * math.sqrt(n / dim)
    found = torch.tensor([float(SRHT(w, dim, key=Key(seed)).adjoint(w).square().sum()) for seed in range(60)])
    assert abs(found.mean() - 1) < 0.12
    assert found.std() < 1.5 * math.sqrt(2 / dim)


@each_embedding
def test_routes_of_a_layer_parametrized_again_are_not_asked_for(case):
    module = nn.Linear(8, 6).double()
    register(module, "weight", Pretrained(module.weight), case.make(module.weight, 9, Key(0)))
    structured(module)
    spectral_norm(module)
    with pytest.raises(ValueError, match="model must have a structured layer, got none"):
        routes(module, numbers(0, 2, 8))
