"""Whatever is written into an index: every route of every product gives the dense answer, or one sentence.

A compiled kernel that trusted it would read and write outside its arrays: where one does, this file ends in a crash.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from subspace import Key, recipes, register, structured, subspaces
from subspace import routes as routes_of
from subspace._base.index import fault, pack, packed_bytes
from subspace.embeddings import Sparse
from subspace.offsets import Zero
from subspace.products import ROUTES, Geometry, Weight, linear
from subspace.products.native import conv, load
from subspace.products.problem import Problem
from subspace.products.product import multiply
from subspace.products.weight import Needs

HUGE = torch.iinfo(torch.int64).max
# (shape of w, shape of x, stride, padding, dilation, groups), the last four of convolutions
PRODUCTS = [
    ((12, 30), (9, 30)),
    ((16, 16), (64, 16)),
    ((8, 6, 3, 3), (2, 6, 8, 8), (1, 1), (1, 1), (1, 1), 1),
    ((8, 3, 3, 3), (2, 6, 8, 8), (2, 1), (1, 0), (1, 2), 2),
    ((8, 3, 3, 3), (16, 3, 32, 32), (1, 1), (1, 1), (1, 1), 1),
    ((8, 6, 1, 1), (2, 6, 7, 7), (1, 1), (0, 0), (1, 1), 1),
    ((8, 6, 3), (2, 6, 9), (1,), (1,), (1,), 1),
]
HOSTILE = {
    "huge": lambda index, size: _with(index, -1, HUGE),
    "far": lambda index, size: index + size * 1000,
    "numel": lambda index, size: _with(index, -1, size),
    "negative": lambda index, size: _with(index, 0, -HUGE - 1),
    "minus one": lambda index, size: _with(index, 0, -1),
    "repeated": lambda index, size: _with(index, 1, int(index[0])),
    "repeated far away": lambda index, size: _with(index.flip(0), len(index) // 2, int(index[0])),
}
WAYS = {
    "copied": lambda index, new: index.copy_(new),
    "one by one": lambda index, new: [index.__setitem__(i, int(value)) for i, value in enumerate(new)],
    "exchanged": lambda index, new: setattr(index, "data", new.clone()),
}


def _with(index: Tensor, place: int, value: int) -> Tensor:
    changed = index.clone()
    changed[place] = value
    return changed


def weight(shape, values, index, transform) -> Weight:
    scale = None if transform == "zero" else torch.ones(1, dtype=values.dtype)
    return Weight(scale, values, index, shape, transform)


def routes(shape, x, geometry, transform):
    problem = Problem.of(x, weight(shape, x, torch.empty(0), transform), Geometry(shape[2:], *geometry))
    return [route.name for route in ROUTES if route.supports(problem)]


def product(shape, x, geometry, values, index, transform, route):
    return multiply(x, weight(shape, values, index, transform), Geometry(shape[2:], *geometry), route)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", PRODUCTS, ids=str)
def test_a_product_refuses_an_index_that_cannot_be_right(case, dtype):
    shape, size, *geometry = case
    x, numel = torch.ones(size, dtype=dtype, requires_grad=True), torch.Size(shape).numel()
    for transform, (kind, spoil) in itertools.product(["dct", "zero"], HOSTILE.items()):
        for route in routes(shape, x, geometry, transform):
            index = torch.arange(0, numel, 7)
            values = torch.ones(len(index), dtype=dtype, requires_grad=True)
            product(shape, x, geometry, values, index, transform, route).sum().backward()
            index.copy_(spoil(index, numel))
            with pytest.raises(ValueError, match=r"index must be .* in \[0, \d+\), got ") as raised:
                product(shape, x, geometry, values, index, transform, route)
            assert "\n" not in str(raised.value), (kind, route)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", PRODUCTS, ids=str)
def test_a_product_follows_its_index_however_it_is_written(case, way):
    shape, size, *geometry = case
    x, numel = torch.linspace(-1, 1, torch.Size(size).numel()).reshape(size), torch.Size(shape).numel()
    first, then = torch.arange(0, numel, 9), torch.arange(3, 3 + len(range(0, numel, 9)))
    values = torch.linspace(1, 2, len(first))
    for route in routes(shape, x, geometry, "dct"):
        index = first.clone()
        product(shape, x, geometry, values, index, "dct", route)
        WAYS[way](index, then)
        wanted = product(shape, x, geometry, values, index.clone(), "dct", "dense")
        got = product(shape, x, geometry, values, index, "dct", route)
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
        WAYS[way](index, HOSTILE["huge"](index, numel))
        with pytest.raises(ValueError, match="index must be"):
            product(shape, x, geometry, values, index, "dct", route)


def test_the_index_and_the_values_must_be_as_many():
    x = torch.ones(2, 30)
    for route, index in itertools.product(["dense", "fft", "native"], [torch.arange(3), torch.arange(5)]):
        if route != "native" or load.is_available():
            with pytest.raises(ValueError, match=r"index must have a place for each of 4 values, got [35]"):
                linear(x, Weight(None, torch.ones(4), index, (12, 30), "zero"), route)


@pytest.mark.skipif(not load.is_available(), reason=load.status())
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("kind", ["huge", "far", "numel", "negative", "minus one", "int32", "too few"])
def test_a_compiled_convolution_is_safe_on_its_own(kind, flipped):
    x, gy, geometry = torch.ones(2, 3, 5, 5), torch.ones(2, 8, 5, 5), Geometry((3, 3), (1, 1), (1, 1), (1, 1))
    index = torch.arange(0, 216, 5)
    values = torch.ones(len(index))
    others = {"int32": lambda index, _: index.int(), "too few": lambda index, _: index[1:]}
    index = (HOSTILE | others)[kind](index, 216)
    w = Weight(torch.ones(1), values, index.flip(0) if flipped else index, (8, 3, 3, 3), "dct")
    for call in (
        lambda: conv.forward(x, w, geometry),
        lambda: conv.backward(gy, x, w, geometry, Needs(True, True, True)),
        lambda: conv.add_sparse(x, w, geometry, gy),
        lambda: conv.add_sparse_gradients(gy, x, w, geometry, x, values),
    ):
        with pytest.raises(ValueError, match="index must be"):
            call()


def net(seed: int = 0) -> nn.Module:
    return recipes.dctps(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(72, 10)), density=0.1, seed=seed)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("places", [[0, 0, 5], [7, 3, 3], [2, 3, 1023], [1023, 0, 1]])
def test_no_state_dict_brings_an_index_that_cannot_be_right(places, assign):
    def layer(index):
        module = nn.Linear(33, 31)  # of 1023 weights, whose places take 10 bits
        register(module, "weight", Zero(module.weight), Sparse(module.weight, index=index))
        return module

    model, hostile = layer(torch.tensor([5, 6, 7])), layer(torch.tensor([5, 6, 7])).state_dict()
    name = next(name for name in hostile if name.endswith("_extra_state"))
    for U in (part for part in model.modules() if isinstance(part, Sparse)):
        content = bytearray(hostile[name].numpy().tobytes().replace(b'"in order": true', b'"in order":false'))
        content[-packed_bytes(3, 1023) :] = pack(torch.tensor(places), 1023, ordered=False).numpy().tobytes()
        hostile[name] = torch.frombuffer(content, dtype=torch.uint8)
        with pytest.raises(RuntimeError, match=r"weight must get .* index must be .* in \[0, 1023\), got"):
            model.load_state_dict(hostile, assign=assign)
        assert U.index.tolist() == [5, 6, 7]
    model(torch.ones(1, 33))


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_structured_model_refuses_until_its_index_is_right_again(kind):
    x, model = torch.linspace(-1, 1, 150).reshape(2, 3, 5, 5), structured(net())
    wanted = model(x)
    layers = zip(subspaces(model), routes_of(model, x, measure=False).rows, strict=True)
    for (name, space), row in layers:
        embedding = space.embedding.embeddings[1]
        right = embedding.index.clone()
        for route in ("auto", *row.predicted):
            structured(model, {name: route})
            with torch.no_grad():
                embedding.index.copy_(HOSTILE[kind](right, embedding.shape.numel()))
                with pytest.raises(ValueError, match="index must be"):
                    model(x)
                embedding.index.copy_(right)
            torch.testing.assert_close(model(x), wanted, atol=1e-5, rtol=1e-5)


def test_what_is_wrong_with_an_index_is_said():
    for index, why in (
        (torch.tensor([0, 6]), "0 ... 6"),
        (torch.tensor([-2, 5]), "-2 ... 5"),
        (torch.tensor([1, 1, 2]), "1 repeated"),
        (torch.tensor([3, 1, 2, 3, 1]), "2 repeated"),
        (torch.tensor([[1]]), "2-d torch.int64"),
        (torch.tensor([1.0]), "1-d torch.float32"),
    ):
        assert fault(index, 6) == why
    assert fault(torch.empty(0, dtype=torch.int64), 0) is None
    for seed in range(20):
        drawn = torch.from_numpy(Key(seed).distinct(50, 20))
        assert fault(drawn, 50) is None
        assert fault(drawn.sort().values, 50) is None
