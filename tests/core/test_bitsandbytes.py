"""A layer that bitsandbytes has quantised becomes an nn.Linear of the same bytes and values, and is then any other."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from subspace import Deltas, Key, from_bitsandbytes, recipes, register, save, structured, subspaces, summary
from subspace.embeddings import Sparse
from subspace.offsets import Pretrained
from tests.support.cases import rest_slow
from tests.support.quantised import BITSANDBYTES, by_bitsandbytes

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore:.*inputs will be cast from")
each_kind = pytest.mark.parametrize("kind", BITSANDBYTES)
close = torch.testing.assert_close
SIZES = [(64, 48), (50, 13), (7, 3), (4096, 33)]


def quantised(kind: str, n_in: int = 64, n_out: int = 48, dtype: torch.dtype = torch.float32, seed: int = 0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(n_in, n_out), nn.Tanh(), nn.Linear(n_out, 32)).to(dtype)
    name, options = BITSANDBYTES[kind]
    return by_bitsandbytes(model, name, **options)


def values(layer: nn.Module) -> Tensor:
    """w by that library's own functions."""
    from bitsandbytes.functional import dequantize_4bit

    weight = layer.weight
    if hasattr(weight, "quant_state"):
        return dequantize_4bit(weight.data, weight.quant_state)
    scales = weight.SCB if weight.SCB is not None else layer.state.SCB
    return weight.data.float() * scales[:, None] / 127


@each_kind
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("called", rest_slow([False, True], [True]))
def test_it_has_the_bytes_the_values_and_the_product(kind, sizes, called):
    model, x = quantised(kind, *sizes), torch.randn(5, sizes[0], requires_grad=True)
    (gx,) = torch.autograd.grad(model(x).square().sum(), x) if called else (None,)
    memory, w, y = model[0].weight.data_ptr(), values(model[0]), copy.deepcopy(model)(x)
    assert from_bitsandbytes(model) is model
    layer = model[0]
    assert type(layer) is nn.Linear
    assert (layer.weight.shape, layer.weight.dtype) == (w.shape, torch.float32)
    assert layer.weight.data_bytes.data_ptr() == memory
    close(layer.weight.dequantize(), w)
    close(layer.weight + 0, w)
    close(model(x), y)
    if gx is not None:
        close(torch.autograd.grad(model(x).square().sum(), x)[0], gx)


@each_kind
@given(sizes=st.sampled_from(SIZES), ends=st.lists(st.integers(-50, 60), min_size=2, max_size=2))
def test_its_rows_are_those_of_the_whole(kind, sizes, ends):
    w = from_bitsandbytes(quantised(kind, *sizes))[0].weight
    first, last = ends
    assert torch.equal(w[first:last], w.dequantize()[first:last])


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_called_in_any_dtype_after_inference(kind, dtype):
    model, x = quantised(kind, 64, 64, dtype=dtype).eval(), torch.randn(5, 64).to(dtype)
    with torch.no_grad():
        y = model(x)  # where the processor has its instructions, this packs the bytes anew
        found = from_bitsandbytes(model)(x)
    assert found.dtype == y.dtype
    close(found, y, rtol=0.05, atol=0.05)


@each_kind
def test_copies_and_pickles_have_their_own(kind):
    model, x = from_bitsandbytes(quantised(kind)), torch.randn(5, 64)
    y = model(x)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).to("cpu")):
        close(again(x), y)
        assert again[0].weight.data_bytes.data_ptr() != model[0].weight.data_bytes.data_ptr()
    with pytest.raises(NotImplementedError, match="a quantised weight must not be written into"), torch.no_grad():
        model[0].weight.add_(1)


@each_kind
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("computes", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_stands_among_layers_of_any_dtype(kind, dtype, computes, bias):
    torch.manual_seed(0)
    name, options = BITSANDBYTES[kind]
    options = options | ({"compute_dtype": computes} if name == "Linear4bit" else {})
    inner = by_bitsandbytes(nn.Sequential(nn.Linear(64, 64, bias)), name, **options)
    model, x = nn.Sequential(nn.LayerNorm(64).to(dtype), *inner), torch.randn(5, 64).to(dtype)
    y = model(x)
    from_bitsandbytes(model)
    assert model[1].weight.dtype == dtype
    close(model(x), y, rtol=0.02, atol=0.02)
    recipes.sparse_finetuning(model, density=0.1)
    close(model(x), y, rtol=0.05, atol=0.05)
    assert model(x).dtype == dtype
    close(structured(model)(x), y, rtol=0.05, atol=0.05)
    inner = from_bitsandbytes(by_bitsandbytes(nn.Sequential(nn.Linear(64, 64, bias)), name, **options), torch.float16)
    assert inner[0].weight.dtype == torch.float16


@each_kind
def test_a_state_dict_goes_round(kind, tmp_path):
    model = recipes.sparse_finetuning(from_bitsandbytes(quantised(kind)), density=0.1, include=["0"])
    torch.save(model.state_dict(), tmp_path / "state")
    other, fresh = copy.deepcopy(model), from_bitsandbytes(quantised(kind, seed=1))
    other[2] = fresh[2]
    x = torch.randn(5, 64)
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    close(other(x), model(x))
    with pytest.raises(RuntimeError, match="a quantised weight must be given one of its kind and shape, got"):
        other.load_state_dict(model.state_dict() | {"2.weight": torch.zeros(32, 48)})


@each_kind
def test_hooks_biases_and_frozen_parts_stay(kind):
    model, seen = quantised(kind), []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    bias = model[0].bias
    from_bitsandbytes(model)(torch.randn(5, 64))
    assert seen == [1]
    assert model[0].bias is bias
    assert not any(p.requires_grad for p in model.parameters())


@each_kind
def test_deltas_of_it_are_switched(kind, tmp_path):
    tuned, x = from_bitsandbytes(quantised(kind)), torch.randn(5, 64)
    base, y = copy.deepcopy(tuned), tuned(x)
    recipes.sparse_finetuning(tuned, density=0.1)
    with torch.no_grad():
        for _, space in subspaces(tuned):
            space.theta.normal_()
    save(tuned, tmp_path / "a")
    deltas = Deltas(base)
    deltas.add("a", tmp_path / "a")
    deltas.use("a")
    close(base(x), tuned(x), rtol=1e-4, atol=1e-4)
    deltas.use()
    close(base(x), y)


@each_kind
def test_as_it_is_it_is_refused(kind):
    model = quantised(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    refused = r"0\.weight must be a tensor of its shape, got bytes: call subspace\.from_bitsandbytes\(model\)"
    for recipe in (recipes.sparse_finetuning, recipes.dctps):
        with pytest.raises(ValueError, match=refused):
            recipe(model, density=0.1)
    with pytest.raises(TypeError, match="like must be a real floating-point tensor, got torch.u?int8"):
        register(model[0], "weight", Pretrained(model[0].weight), Sparse(model[0].weight, 3, key=Key(0)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    beside = nn.Sequential(model, nn.Linear(32, 8))
    recipes.sparse_finetuning(beside, density=0.5, include=["1"])
    assert {each.name: each.why for each in summary(beside).left_out}["0.0.weight"] == "not chosen"


def test_what_cannot_be_turned_is_refused_and_left_as_it_was():
    plain = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ValueError, match="model must have a linear layer that bitsandbytes has quantised, got none"):
        from_bitsandbytes(plain)
    model = quantised("nf4")
    kinds = list(map(type, model))
    model[2].forward = model[2].forward
    with pytest.raises(ValueError, match="2 must have the forward of its class, got one that was replaced"):
        from_bitsandbytes(model)
    assert list(map(type, model)) == kinds
    import bitsandbytes

    table = bitsandbytes.nn.Embedding4bit(64, 64).to("cpu")
    with pytest.raises(ValueError, match="must be a Linear4bit or Linear8bitLt, got Embedding4bit"):
        from_bitsandbytes(nn.Sequential(table))
