"""A registered module is copied, pickled and sent to another process whole, each copy with a class of its own."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from subspace import Key, is_structured, materialize, recipes, register, share, structured, subspaces
from subspace.embeddings import Direction, DirectSum, Sparse
from subspace.offsets import DCT
from tests.support.cases import EACH_ONCE, EMBEDDINGS, MODULES, OFFSETS, rest_slow
from tests.support.strategies import numbers

close = torch.testing.assert_close
each_module = pytest.mark.parametrize("case", MODULES, ids=lambda case: case.name)


def saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "the oldest protocol": lambda module: pickle.loads(pickle.dumps(module, protocol=0)),
    "torch.save": saved,
    "twice": lambda module: saved(pickle.loads(pickle.dumps(module))),
    "between processes": lambda module: pickle.loads(bytes(multiprocessing.reduction.ForkingPickler.dumps(module))),
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def registered(case, offset=OFFSETS[1], embedding=EMBEDDINGS[1]):
    module = case.make().double()
    w = getattr(module, case.tensor)
    return module, register(module, case.tensor, offset.make(w, Key(1)), embedding.make(w, min(3, w.numel()), Key(0)))


@each_way
@each_module
def test_a_copy_computes_the_same_and_is_its_own(case, way):
    module, space = registered(case)
    expected = case.call(module)  # after which an RNN holds what it has computed
    other = way(module)
    close(case.call(other), expected)
    assert type(other) is not type(module)
    assert (type(other).__name__, type(other).__mro__[1:]) == (type(module).__name__, type(module).__mro__[1:])
    case.call(other).sum().backward()
    assert next(subspaces(other))[1].theta.grad is not None
    assert space.theta.grad is None
    parametrize.remove_parametrizations(other, case.tensor)
    close(case.call(module), expected)


@pytest.mark.parametrize("way", rest_slow(WAYS.values(), [copy.deepcopy, saved]))
def test_every_offset_and_embedding_is_pickled(way):
    for offset, embedding in EACH_ONCE:
        module, _ = registered(MODULES[0], offset, embedding)
        assert torch.equal(way(module).weight, module.weight)


@each_way
def test_a_structured_model_stays_one_and_tied_thetas_stay_tied(way):
    model = nn.Sequential(nn.Linear(8, 8), nn.Conv1d(4, 6, 3), nn.Linear(8, 8)).double()
    for layer in model:
        w = layer.weight
        register(layer, "weight", DCT(w), DirectSum([Direction(DCT(w, gain=0.5)), Sparse(w, 9, key=Key(0))]))
    share(model, nn.Parameter(numbers(0, 10)))
    layers, x = way(structured(model, "remat")), numbers(1, 2, 8)
    thetas = {id(space.theta) for _, space in subspaces(layers)}
    assert len(thetas) == 1
    for one, other in zip(model, layers, strict=True):
        assert is_structured(other)
        assert other.weight.shape == one.weight.shape
    close(layers[0](x), model[0](x))
    with torch.no_grad():
        next(subspaces(layers))[1].theta.set_(numbers(2, 10))
    assert not torch.allclose(layers[0](x), model[0](x))


def test_foreign_parametrizations_of_the_same_module_come_along():
    module = nn.Linear(8, 5)
    parametrize.register_parametrization(module, "bias", nn.Softplus(), unsafe=True)
    register(module, "weight", DCT(module.weight), Sparse(module.weight, 9, key=Key(0)))
    other = pickle.loads(pickle.dumps(module))
    assert torch.equal(other.bias, module.bias)
    assert torch.equal(other.weight, module.weight)


def test_what_is_materialized_is_pickled_without_a_trace_of_this_package():
    model = materialize(structured(recipes.dctps(nn.Sequential(nn.Linear(8, 8), nn.Conv2d(2, 3, 3)), density=0.5)))
    assert b"subspace" not in pickle.dumps(model)


def _serve(model, x, results):
    results.put(model(x).detach().numpy())


@pytest.mark.slow
def test_a_spawned_process_is_given_a_structured_model():
    model, x = structured(recipes.dctps(nn.Sequential(nn.Linear(8, 8)), density=0.2)), torch.ones(2, 8)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_serve, args=(model, x, results))
    process.start()
    close(torch.from_numpy(results.get(timeout=300)), model(x).detach())
    process.join(30)
    assert process.exitcode == 0
