"""Files with a quantised theta: how far a number moves, how large a file is, and what is refused."""

from __future__ import annotations

import copy
import io
import random
import zlib
from hashlib import blake2b

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from subspace import Deltas, Key, load, pack, recipes, register, rounded, save, subspaces
from subspace.checkpoint import packed, sealed
from subspace.checkpoint.quantised import APART, BLOCK, quantise
from subspace.offsets import DCT
from tests.core.test_file_fuzz import JUNK
from tests.core.test_file_laws import MODELS, RefusedError, everything, flipped, loaded, net, parts_of, resealed, same
from tests.support.cases import EMBEDDINGS, rest_slow
from tests.support.memory import peak_bytes
from tests.support.strategies import numbers

BITS = (2, 4, 8)
some_embeddings = pytest.mark.parametrize("case", rest_slow(EMBEDDINGS, EMBEDDINGS[::2]), ids=lambda case: case.name)
each_bits = pytest.mark.parametrize("bits", rest_slow(BITS, [4]))
HEADER = 300  # bytes of a file beside what its parts take alone: names, digests and the tables of three streams


def layer() -> nn.Linear:
    module = nn.Linear(40, 24).double()
    module.weight.data, module.bias.data = numbers(0, 24, 40), numbers(1, 24)
    return module


def registered(case, scale: float = 0.1) -> nn.Linear:
    module = layer()
    embedding = case.make(module.weight, 700, Key(4))
    register(module, "weight", DCT(module.weight), embedding, scale * numbers(3, embedding.dim))
    return module


def moved(name: str) -> nn.Module:
    """A model whose theta is no start."""
    model = MODELS[name]()
    with torch.no_grad():
        for i, (_, space) in enumerate(subspaces(model)):
            space.theta.add_(0.1 * numbers(i, len(space.theta)))
    return model


def size(model: nn.Module, bits: int | None) -> int:
    save(model, file := io.BytesIO(), bits=bits)
    return file.tell()


def entropy(values: np.ndarray) -> float:
    """Bytes of independent values, by their frequencies."""
    share = np.unique(values, return_counts=True)[1] / max(1, len(values))
    return float(-(share * np.log2(share)).sum() * len(values) / 8)


@given(
    st.integers(0, 2**32),
    st.integers(0, 700),
    st.sampled_from(range(2, 9)),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.floats(-40, 30),
    st.floats(0, 3),
)
def test_no_number_moves_by_more_than_half_a_step(seed, k, bits, dtype, scale, tail):
    theta = (2.0**scale * numbers(seed, k) * numbers(seed + 1, k).abs() ** tail).to(dtype)
    theta = theta.nan_to_num(posinf=1.0, neginf=1.0)
    found = quantise(theta, bits)
    again = found.numbers()
    assert again.dtype == dtype
    assert torch.equal(again[found.places], theta[found.places])
    for first in range(0, k, BLOCK):
        block, near = theta[first : first + BLOCK].double(), again[first : first + BLOCK].double()
        kept = (found.places >= first) & (found.places < first + BLOCK)
        inside = torch.ones(len(block), dtype=torch.bool).index_fill(0, found.places[kept] - first, False)
        assert int(kept.sum()) <= APART
        largest = block[inside].abs().max() if inside.any() else 0.0
        step = max(1.0079 * largest / (2 ** (bits - 1) - 1), 1e-40)  # bfloat16 rounds up by 1 part in 128 at most
        ulp = torch.finfo(dtype).eps * block.abs() + torch.finfo(dtype).tiny * torch.finfo(dtype).eps
        assert bool(((near - block).abs() <= step / 2 + ulp).all())


@pytest.mark.parametrize("bits", [4, 8])
def test_a_scale_among_small_numbers_stays_exact_and_does_not_coarsen_them(bits):
    theta = 1e-3 * numbers(0, 500)
    theta[0] = 1.0
    found = quantise(theta, bits)
    assert found.places.tolist() == [0]
    assert float((found.numbers() - theta).abs().max()) < 2e-3 / (2 ** (bits - 1) - 1)


@some_embeddings
@each_bits
def test_a_loaded_model_is_the_rounded_one_and_all_else_is_exact(case, bits):
    model = registered(case)
    save(model, file := io.BytesIO(), bits=bits)
    again = load(layer(), io.BytesIO(file.getvalue()))
    assert torch.equal(again.bias, model.bias)
    before = {name: space.theta.clone() for name, space in subspaces(model)}
    with rounded(model, bits):
        for (_, mine), (_, other) in zip(subspaces(model), subspaces(again), strict=True):
            assert torch.equal(mine.theta, other.theta)
        assert torch.equal(again.weight, model.weight)
    assert all(torch.equal(before[name], space.theta) for name, space in subspaces(model))


@some_embeddings
@each_bits
def test_a_file_is_as_large_as_entropy_and_header_say(case, bits):
    """Codes cost at most `bits` each and 5 % and a table more than their entropy; the rest, what it does alone."""
    model = registered(case)
    (theta,) = (space.theta for _, space in subspaces(model))
    with torch.no_grad():
        rest = size(registered(case, scale=0.0), bits)
    found = quantise(theta, bits)
    codes, steps = entropy(found.codes.numpy()), 2 * len(found.steps)
    apart = 12 * len(found.places)
    assert size(model, bits) <= rest + 1.05 * codes + steps + apart + HEADER
    assert size(model, bits) <= rest + len(theta) * bits / 8 + steps + apart + HEADER


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform"])
def test_a_large_theta_takes_within_five_percent_of_its_entropy(bits, draw):
    theta = torch.from_numpy(getattr(np.random.default_rng(0), draw)(size=100_000))
    found = quantise(theta, bits)
    content = packed._coded(found.codes)
    assert len(content) <= 1.05 * entropy(found.codes.numpy())
    assert len(content) <= 1.01 * len(theta) * bits / 8


@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_comes_back(name, tmp_path):
    model = moved(name)
    save(model, tmp_path / "c", bits=6)
    again = load(net(), tmp_path / "c")
    with rounded(model, 6):
        assert same(everything(again), everything(model))


def test_thetas_of_several_dtypes_come_back():
    base = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).double())
    model = copy.deepcopy(base)
    for i, case in enumerate(EMBEDDINGS[:1] * 2):
        weight = model[i].weight
        U = case.make(weight, 9, Key(i))
        register(model[i], "weight", DCT(weight), U, numbers(i, U.dim).to(weight.dtype))
    save(model, file := io.BytesIO(), bits=4)
    again = load(base, io.BytesIO(file.getvalue()))
    with rounded(model, 4):
        for (_, mine), (_, other) in zip(subspaces(model), subspaces(again), strict=True):
            assert torch.equal(mine.theta, other.theta)


@pytest.mark.parametrize("bits", [0, 1, 9, -1, 8.0, "8", True])
def test_other_bits_are_refused_and_nothing_is_written(bits, tmp_path):
    with pytest.raises(ValueError, match="bits must be an integer from 2 to 8"):
        save(MODELS["dctps"](), tmp_path / "c", bits=bits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_a_theta_that_cannot_be_quantised_is_refused(value, tmp_path):
    model = MODELS["dctps"]().double()
    next(subspaces(model))[1].theta.data[-1] = value
    with pytest.raises(ValueError, match=r"theta:0.weight cannot be quantised: theta must be finite"):
        save(model, tmp_path / "c", bits=8)
    with pytest.raises(ValueError, match="theta must be finite"), rounded(model, 8):
        raise AssertionError
    assert list(tmp_path.iterdir()) == []


def test_an_exact_theta_comes_back_after_an_error():
    model = MODELS["dctps"]()
    before = everything(model)
    with pytest.raises(KeyError), rounded(model, 2):
        raise KeyError
    assert same(everything(model), before)


@pytest.mark.parametrize("name", list(MODELS))
def test_a_damaged_file_is_refused_in_a_sentence(name, tmp_path):
    path, model = tmp_path / "c", moved(name)
    save(model, path, bits=4)
    content = path.read_bytes()
    draw = random.Random(0)
    damaged = [flipped(content, bit) for bit in draw.sample(range(8 * len(content)), 100)]
    damaged += [content[:length] for length in (*range(0, 40), *draw.sample(range(len(content)), 40))]
    for each in [*damaged, content + b"x", content + content]:
        path.write_bytes(each)
        with pytest.raises(RefusedError, match="must be a checkpoint written by subspace.save, got"):
            loaded(net(), path)


def sealed_again(content: bytes, change) -> bytes:
    """A packed file whose parts were changed, with digests that are right; change(parts) -> parts."""
    plain, steps, codes = packed.from_bytes(content)
    about, tensors = parts_of(plain)
    parts = change(packed.Parts(about, tensors, steps, codes))
    return packed.to_bytes(resealed(parts.about, parts.tensors), parts)


def lies():
    yield from (lambda p, junk=junk: p._replace(about={**p.about, "packed": junk}) for junk in JUNK)
    for key in ("thetas", "apart"):
        yield from (
            lambda p, junk=junk, key=key: p._replace(about={**p.about, "packed": {**p.about["packed"], key: junk}})
            for junk in JUNK
            if junk != p_apart
        )
    for place in range(3):
        for junk in JUNK:
            yield lambda p, junk=junk, place=place: p._replace(about=_with(p.about, place, junk))
    yield lambda p: p._replace(codes=p.codes[:-1])
    yield lambda p: p._replace(steps=p.steps[:0])
    yield lambda p: p._replace(codes=torch.cat([p.codes, p.codes]), steps=torch.cat([p.steps, p.steps]))
    yield lambda p: p._replace(tensors={n: t for n, t in p.tensors.items() if n != packed.VALUES})
    yield lambda p: p._replace(tensors={n: t for n, t in p.tensors.items() if n != packed.PLACES})


p_apart = 1  # the numbers apart in the file below


def _with(about: dict, place: int, junk: object) -> dict:
    changed = copy.deepcopy(about)
    changed["packed"]["thetas"][0][place] = junk
    return changed


def one_layer() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 120, bias=False)).double()


def test_a_file_that_lies_with_the_right_digests_is_refused(tmp_path):
    path, model = tmp_path / "c", one_layer()
    U = EMBEDDINGS[0].make(model[0].weight, 300, Key(0))
    theta = 1e-3 * numbers(0, U.dim)
    theta[5] = 1.0
    register(model[0], "weight", DCT(model[0].weight), U, theta)
    save(model, path, bits=6)
    content = path.read_bytes()
    assert packed.take_apart(*_read(path), 6).about["packed"]["apart"] == p_apart
    for lie in lies():
        try:
            path.write_bytes(sealed_again(content, lie))
        except (ValueError, OverflowError):  # what JSON itself cannot say
            continue
        with pytest.raises(RefusedError):
            loaded(one_layer(), path)


def _read(path):
    about, tensors = sealed.read(path)
    return {name: value for name, value in about.items() if name != "packed"}, tensors


def test_a_small_file_never_becomes_a_large_one(tmp_path):
    bomb = zlib.compress(bytes(200_000_000), 9)
    body = bomb + bomb + bomb
    path = tmp_path / "c"
    path.write_bytes(packed.MAGIC + blake2b(body, digest_size=packed.DIGEST).digest() + body)
    with pytest.raises(RefusedError, match="a stream that does not end"):
        loaded(net(), path)
    assert peak_bytes(lambda: refuse(net(), path)) < 300 * len(body)


def refuse(model: nn.Module, path) -> None:
    with pytest.raises(RefusedError):
        loaded(model, path)


def test_zeros_are_written_so_that_they_can_be_read(tmp_path):
    def base() -> nn.Module:
        model = nn.Linear(8, 8)
        model.register_buffer("mask", torch.zeros(1_000_000, dtype=torch.uint8))
        return model

    model = recipes.random_pruning(base(), dim=9)
    save(model, tmp_path / "c", bits=8)
    assert torch.equal(load(base(), tmp_path / "c").mask, model.mask)


def test_packing_a_file_is_saving_it_so(tmp_path):
    model = moved("dctps")
    save(model, tmp_path / "exact")
    save(model, tmp_path / "small", bits=5)
    found = pack(tmp_path / "exact", tmp_path / "packed", 5)
    one, other = (everything(load(net(), tmp_path / name)) for name in ("packed", "small"))
    assert same(one, other)
    assert (found.bytes, found.exact_bytes) == tuple((tmp_path / n).stat().st_size for n in ("packed", "exact"))
    thetas = torch.cat([space.theta.detach() for _, space in subspaces(model)])
    with rounded(model, 5):
        near = torch.cat([space.theta.detach() for _, space in subspaces(model)])
    assert found.error == pytest.approx(float((near - thetas).norm() / thetas.norm()))
    with pytest.raises(ValueError, match="theta must be exact in a file to pack, got one of 5 bits"):
        pack(tmp_path / "packed", tmp_path / "again", 4)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("allowed", [4, 6, 8])
def test_packing_takes_the_fewest_bits_that_the_measure_allows(allowed, tmp_path):
    model = moved("dctps")
    save(model, tmp_path / "exact")
    want = everything(model)["output"]

    def measure(file) -> float:
        return float((everything(load(net(), file))["output"] - want).abs().max())

    rises = {bits: pack(tmp_path / "exact", tmp_path / "p", bits, measure, 9.0).measures[bits] for bits in (4, 6, 8)}
    found = pack(tmp_path / "exact", tmp_path / "packed", (8, 6, 4), measure, rise=rises[allowed])
    assert found.bits == allowed
    assert measure(io.BytesIO((tmp_path / "packed").read_bytes())) == rises[allowed]


def test_packing_refuses_where_nothing_is_good_enough(tmp_path):
    save(moved("dctps"), tmp_path / "exact")
    worse = iter(range(9))
    with pytest.raises(ValueError, match="some of .4, 6, 8. bits must make the measure rise by at most 0.01"):
        pack(tmp_path / "exact", tmp_path / "packed", measure=lambda file: float(next(worse)))
    with pytest.raises(ValueError, match="bits must be one number where there is no measure"):
        pack(tmp_path / "exact", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_the_format_of_a_packed_file_is_told_first(tmp_path):
    path = tmp_path / "c"
    save(moved("dctps"), path, bits=4)
    changed = sealed_again(path.read_bytes(), lambda p: p._replace(about={**p.about, "format": 99}))
    path.write_bytes(changed)
    with pytest.raises(RefusedError, match="got format 99"):
        loaded(net(), path)


def test_a_base_takes_a_packed_delta_as_any_other():
    base = net()
    model = recipes.sparse_finetuning(copy.deepcopy(base), dim=20)
    for i, (_, space) in enumerate(subspaces(model)):
        space.theta.data = numbers(i, len(space.theta)).to(space.theta)
    save(model, file := io.BytesIO(), bits=6)
    deltas = Deltas(base)
    deltas.add("small", io.BytesIO(file.getvalue()))
    x = numbers(7, 3, 8).to(base[0].weight.dtype)
    with rounded(model.eval(), 6):
        wanted = model(x)
    base.eval()
    deltas.use("small")
    assert torch.allclose(base(x), wanted, atol=1e-5)
