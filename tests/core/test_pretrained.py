"""A pretrained d is the tensor that it is given: on the disk, shared, or quantised, and never written into."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

import subspace
from subspace import Key, materialize, recipes, register, routes, structured, subspaces, summary, unregister
from subspace.embeddings import Circulant, FourierFT, LowRank, RowScale, Sparse
from subspace.offsets import Pretrained
from tests.support.cases import EMBEDDINGS, MODULES
from tests.support.memory import peak_bytes
from tests.support.quantised import QUANTISERS

each_module = pytest.mark.parametrize("case", MODULES, ids=lambda case: case.name)
each_embedding = pytest.mark.parametrize("case", EMBEDDINGS, ids=lambda case: case.name)


def offsets(model: nn.Module) -> list[Pretrained]:
    return [space.offset for _, space in subspaces(model)]


@each_module
def test_d_is_the_parameters_own_memory_and_nothing_writes_into_it(case):
    torch.manual_seed(0)
    module = case.make().double()
    weight = getattr(module, case.tensor)
    memory, before = weight.data_ptr(), weight.detach().clone()
    U = Sparse(weight, min(3, weight.numel()), key=Key(0))
    space = register(module, case.tensor, Pretrained(weight), U, torch.zeros(U.dim))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        case.call(module).square().sum().backward()
        optimizer.step()
    state = module.state_dict()
    module.load_state_dict({name: t if name.endswith("_extra_state") else t + 1 for name, t in state.items()})
    setattr(module, case.tensor, before + 1)
    materialize(module)
    space.theta.data.fill_(3.0)
    d = space.offset
    unregister(module)
    assert d.weight.data_ptr() == memory
    assert torch.equal(d(), before)


def test_a_step_between_the_passes_is_no_write_to_d():
    layer = nn.Linear(6, 5)
    space = register(layer, "weight", Pretrained(layer.weight), Sparse(layer.weight, 4, key=Key(0)), torch.zeros(4))
    x = torch.randn(3, 6, requires_grad=True)
    y = torch.nn.functional.linear(x, space.offset())
    with torch.no_grad():
        space.theta.add_(1)
    y.sum().backward()


@each_embedding
def test_copies_share_d_and_no_file_or_state_holds_it(case):
    layer = nn.Linear(12, 8)
    U = case.make(layer.weight, 5 if case.free else 1, Key(0))
    register(layer, "weight", Pretrained(layer.weight), U, torch.zeros(U.dim))
    copies = [copy.deepcopy(layer) for _ in range(3)]
    assert len({d.weight.data_ptr() for model in (layer, *copies) for d in offsets(model)}) == 1
    assert all(d is not offsets(layer)[0] for model in copies for d in offsets(model))
    memory = offsets(layer)[0].weight.untyped_storage().data_ptr()
    assert all(tensor.untyped_storage().data_ptr() != memory for tensor in layer.state_dict().values())
    copies[0].double()
    assert offsets(copies[0])[0]().dtype == torch.float64
    assert offsets(layer)[0]().dtype == torch.float32


def test_many_tuned_copies_take_the_memory_of_one_base():
    layer = nn.Linear(512, 512, bias=False)
    register(layer, "weight", Pretrained(layer.weight), Sparse(layer.weight, 10, key=Key(0)), torch.zeros(10))
    copies: list[nn.Module] = []
    assert peak_bytes(lambda: copies.extend(copy.deepcopy(layer) for _ in range(20))) < 4 * 512 * 512


def test_a_memory_mapped_file_stays_on_the_disk(tmp_path):
    torch.save({"weight": torch.randn(1024, 1024)}, tmp_path / "base.pt")
    layer = nn.Linear(1024, 1024, bias=False, device="meta")
    layer.load_state_dict(torch.load(tmp_path / "base.pt", mmap=True), assign=True)
    content = (tmp_path / "base.pt").read_bytes()

    def tune() -> None:
        recipes.sparse_finetuning(layer, dim=100)

    assert peak_bytes(tune) < 4 * 1024 * 1024  # bytes, of the weight: most of it the sum of some at a time
    layer(torch.randn(2, 1024)).sum().backward()
    assert (tmp_path / "base.pt").read_bytes() == content


def test_a_copy_that_gives_its_subspaces_up_leaves_d_to_the_others(tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    first = recipes.sparse_finetuning(copy.deepcopy(base), density=0.3)
    second, before = copy.deepcopy(first), [d().clone() for d in offsets(first)]
    other = recipes.sparse_finetuning(base, density=0.3, include=["0"])
    with torch.no_grad():
        base[1].weight.add_(1)
    subspace.save(other, tmp_path / "c")
    subspace.load(second, tmp_path / "c", replace=True)
    unregister(copy.deepcopy(first))[0].weight.data.zero_()
    optimizer = torch.optim.SGD(second.parameters(), 0.1)
    second(torch.randn(3, 6)).square().sum().backward()
    optimizer.step()
    assert all(map(torch.equal, [d() for d in offsets(first)], before))


WIDE = {
    "low-rank": (lambda w: LowRank(w, 8, 8, key=Key(0)), True),
    "fourier-ft": (lambda w: FourierFT(w, 100, key=Key(0)), True),
    "many frequencies": (lambda w: FourierFT(w, 20_000, key=Key(0)), False),
    "row-scale": (lambda w: RowScale(Pretrained(w)), True),
    "row-scale of another d": (lambda w: RowScale(Pretrained(w + 1)), False),
    "circulant": (lambda w: Circulant(w, 8), False),
}


@pytest.mark.parametrize("name", WIDE)
def test_a_product_of_its_own_is_taken_where_it_pays(name):
    make, pays = WIDE[name]
    layer, x = nn.Linear(512, 512), torch.randn(256, 512, requires_grad=True)
    space = register(layer, "weight", Pretrained(layer.weight), make(layer.weight))
    plain = layer(x)
    assert space.parametrization.is_linear_faster(256) == pays
    for route, taken in {"auto": "product" if pays else "dense", "dense": "dense", "apart": "product"}.items():
        assert routes(structured(layer, route), x).rows[0].route == taken
        torch.testing.assert_close(layer(x), plain, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_that_are_not_finite_are_counted(dtype, value):
    weight = torch.zeros(3, 5, dtype=dtype)
    weight[1, 2] = weight[2, 4] = value
    with pytest.raises(ValueError, match="pretrained weights must be finite, got 2 that are not"):
        Pretrained(weight)
    assert Pretrained(torch.empty(0, 4, dtype=dtype))().shape == (0, 4)


@pytest.fixture
def quantised():
    """Makes a network with quantised linear layers, of weights in bfloat16 or float32."""

    def make(config: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(0)
        return QUANTISERS[config](nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 32)).to(dtype))

    return make


CONFIGS = list(QUANTISERS)
WEIGHT_ONLY = [config for config in CONFIGS if "Dynamic" not in config]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("make", [lambda w: Sparse(w, 9, key=Key(0)), lambda w: FourierFT(w, 9, key=Key(0))])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_quantised_base_is_tuned_as_it_is(config, make, fast, quantised):
    base, x = quantised(config), torch.randn(5, 64, requires_grad=True)
    y = base(x)
    model = quantised(config)
    for place in (0, 2):
        w = model[place].weight
        U = make(w)
        register(model[place], "weight", Pretrained(w), U, torch.zeros(U.dim))
    if fast:
        structured(model)
    tolerance = {"rtol": 0.02, "atol": 0.02}  # a product that quantises its input too differs from one that does not
    torch.testing.assert_close(model(x), y, **tolerance)
    with torch.no_grad():
        for _, space in subspaces(model):
            space.theta.normal_()
    dense = materialize(model)
    parameters = [space.theta for _, space in subspaces(model)]
    found = torch.autograd.grad(model(x).square().sum(), [x, *parameters])
    torch.testing.assert_close(model(x), dense(x), rtol=0.05, atol=0.05)
    (gx,) = torch.autograd.grad(dense(x).square().sum(), x)
    assert float((found[0] - gx).norm()) < 0.05 * float(gx.norm())
    assert all(g.isfinite().all() for g in found)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_recipe_takes_quantised_weights_though_they_ask_for_no_gradient(config, quantised):
    base, x = quantised(config), torch.randn(5, 64)
    model = recipes.sparse_finetuning(copy.deepcopy(base), density=0.01)
    assert [name for name, _ in subspaces(model)] == ["0.weight", "2.weight"]
    torch.testing.assert_close(model(x), base(x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("config", WEIGHT_ONLY)
def test_a_structured_quantised_base_is_never_dequantised_whole(config, quantised, monkeypatch):
    model = quantised(config)
    for place in (0, 2):
        w = model[place].weight
        register(model[place], "weight", Pretrained(w), Sparse(w, 9, key=Key(0)), torch.zeros(9))
    structured(model)
    assert all(row.route is not None for row in summary(model).rows)
    monkeypatch.setattr("subspace.offsets.pretrained.dequantised", lambda *_: pytest.fail("d was dequantised"))
    monkeypatch.setattr("subspace._base.quantised.BLOCK", 8 * 64)
    saved: list[Tensor] = []
    x = torch.randn(5, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        y = model(x)
    assert all(t.numel() < 48 * 32 for t in saved)
    y.sum().backward()


@pytest.mark.parametrize("config", WEIGHT_ONLY)
def test_a_quantised_base_round_trips_through_a_file(config, quantised):
    model = quantised(config)
    recipes.sparse_finetuning(model, density=0.1)
    with torch.no_grad():
        for _, space in subspaces(model):
            space.theta.normal_()
    file, x = io.BytesIO(), torch.randn(5, 64)
    subspace.save(model, file)
    again = subspace.load(quantised(config), io.BytesIO(file.getvalue()))
    torch.testing.assert_close(again(x), model(x))
    torch.manual_seed(0)
    other = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 32))
    with pytest.raises(ValueError, match=r"d of 0\.weight must be as it was saved"):
        subspace.load(other, io.BytesIO(file.getvalue()))
    assert not list(subspaces(other))
