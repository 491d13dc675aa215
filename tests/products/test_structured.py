"""structured changes nothing but time and memory: every offset, embedding, layer, route, dtype and layout."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

import subspace
from subspace import (
    Key,
    is_structured,
    load,
    materialize,
    recipes,
    register,
    routes,
    save,
    structured,
    subspaces,
    summary,
    unstructured,
)
from subspace.embeddings import ColumnScale, Direction, DirectSum, Embedding, RowScale, Sparse
from subspace.offsets import DCT, Gaussian, Hadamard, Offset, Pretrained, RankOne, SignedDCT, Zero
from tests.support.cases import EACH_ONCE, EACH_WITH_SEVERAL, EMBEDDINGS, rest_slow


def changed(layer: nn.Module, **later: object) -> nn.Module:
    """The layer with attributes set after it was made, as those do who dilate a backbone for segmentation."""
    for name, value in later.items():
        setattr(layer, name, value)
    return layer


LAYERS = {
    "linear": (lambda: nn.Linear(12, 7), (5, 12)),
    "linear-one": (lambda: nn.Linear(12, 7), (12,)),
    "linear-axes": (lambda: nn.Linear(6, 16, bias=False), (2, 3, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv1d-same": (lambda: nn.Conv1d(4, 6, 4, padding="same"), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 6, 5)),
    "conv2d-stride": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 2), bias=False), (2, 4, 7, 6)),
    "conv2d-dilation": (lambda: nn.Conv2d(4, 5, 3, dilation=2, padding=2), (2, 4, 7, 7)),
    "conv2d-groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "conv2d-depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), (2, 4, 5, 5)),
    "conv2d-circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 5, 5)),
    "conv2d-reflect": (lambda: nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="reflect"), (2, 4, 5, 5)),
    "conv2d-unbatched": (lambda: nn.Conv2d(4, 6, 3), (4, 5, 5)),
    "conv2d-1x1": (lambda: nn.Conv2d(4, 9, 1), (2, 4, 5, 5)),
    "conv2d-1x1-stride": (lambda: nn.Conv2d(9, 4, 1, stride=2, padding=1), (2, 9, 5, 6)),
    "conv2d-one-number": (lambda: nn.Conv2d(4, 6, 3, stride=(2,), padding=(1,)), (2, 4, 7, 6)),
    "conv2d-changed": (
        lambda: changed(nn.Conv2d(4, 6, 3, padding=1), padding=(0, 2), stride=(3, 1), dilation=(1, 2)),
        (2, 4, 9, 7),
    ),
    "conv2d-changed-to-one": (lambda: changed(nn.Conv2d(4, 6, 3, padding="valid"), padding=2, stride=2), (2, 4, 7, 6)),
    "conv2d-same-changed": (lambda: changed(nn.Conv2d(4, 6, (3, 4), padding="same"), dilation=(2, 1)), (2, 4, 7, 6)),
    "conv2d-to-same": (lambda: changed(nn.Conv2d(4, 6, (3, 4), padding=3), padding="same"), (2, 4, 7, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, padding=1), (1, 2, 3, 4, 3)),
}
FORMS = {
    "dct+sparse": lambda w: (DCT(w, gain=0.7), Sparse(w, 9, key=Key(0))),
    "hadamard+sparse": lambda w: (Hadamard(w, gain=0.7), Sparse(w, 9, key=Key(0))),
    "signed+sparse": lambda w: (SignedDCT(w, key=Key(1), gain=0.7), Sparse(w, 9, key=Key(0))),
    "alpha signed+sparse": lambda w: (
        Zero(w),
        DirectSum([Direction(SignedDCT(w, key=Key(1))), Sparse(w, 9, key=Key(0))]),
    ),
    "sparse": lambda w: (Zero(w), Sparse(w, 9, key=Key(0))),
    "dct+sparse, in any order": lambda w: (DCT(w), Sparse(w, index=torch.tensor([17, 3, 11, 0, 5, 8]))),
    "nothing": lambda w: (DCT(w), Sparse(w, 0, key=Key(0))),
    "alpha": lambda w: (Zero(w), Direction(Hadamard(w))),
    "alpha+sparse": lambda w: (Zero(w), DirectSum([Direction(DCT(w, gain=1.5)), Sparse(w, 9, key=Key(0))])),
    "pretrained+sparse": lambda w: (Pretrained(w), Sparse(w, 9, key=Key(0))),
    "pretrained": lambda w: (Pretrained(w), Sparse(w, 0, key=Key(0))),
    "alpha pretrained+sparse": lambda w: (
        Zero(w),
        DirectSum([Direction(Pretrained(w)), Sparse(w, 9, key=Key(0))]),
    ),
    "sparse+alpha, dct": lambda w: (DCT(w), DirectSum([Sparse(w, 9, key=Key(0)), Direction(DCT(w, gain=2.0))])),
    "alpha+sparse+alpha": lambda w: (
        Zero(w),
        DirectSum([Direction(DCT(w)), Sparse(w, 9, key=Key(0)), Direction(DCT(w, gain=2.0))]),
    ),
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 6e-2}


def layer(name: str, form: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    make, shape = LAYERS[name]
    module = make().to(dtype)
    space = register(module, "weight", *FORMS[form](module.weight))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        space.theta.copy_(torch.randn(space.theta.shape, generator=generator, dtype=torch.float64))
    return module, torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients to the input and to everything that trains."""
    x = x.detach().requires_grad_()  # in its own memory format
    y = model(x)
    slope = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).cos().to(y.dtype).reshape(y.shape)
    return [y, *torch.autograd.grad(y, [x, *model.parameters()], slope)]


def check(plain: list[Tensor], fast: list[Tensor], tolerance: float) -> None:
    for a, b in zip(plain, fast, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        a, b = a.detach().double(), b.detach().double()
        assert float((a - b).norm()) <= tolerance * (1 + float(a.norm()))


def possible(module: nn.Module, x: Tensor) -> list[str]:
    return list(routes(structured(copy.deepcopy(module)), x, measure=False).rows[0].predicted)


CASES = [
    (name, form, list(TOLERANCE)[(i + j) % len(TOLERANCE)])
    for i, name in enumerate(LAYERS)
    for j, form in enumerate(FORMS)
]


@pytest.mark.parametrize("name, form, dtype", rest_slow(CASES, CASES[::5]), ids=str)
def test_structured_changes_nothing_but_time_and_memory(name, form, dtype):
    module, x = layer(name, form, dtype)
    reference = results(module.double(), x.double()) if dtype == torch.bfloat16 else results(module, x)
    reference = [t.to(dtype) for t in reference]
    module = module.to(dtype)
    layouts = [x, x.contiguous(memory_format=torch.channels_last)] if x.ndim == 4 else [x]
    for x in layouts:
        for route in ["auto", *possible(module, x)]:
            check(reference, results(structured(copy.deepcopy(module), route), x), TOLERANCE[dtype])


@pytest.mark.parametrize("offset, embedding", rest_slow(EACH_WITH_SEVERAL, EACH_ONCE), ids=lambda case: case.name)
def test_every_offset_and_embedding_is_served_or_left_plain(offset, embedding):
    for make, shape in (LAYERS["linear"], LAYERS["conv2d"]):
        module = make().double()
        w = module.weight
        U = embedding.make(w, 10 if embedding.free else 1, Key(1))
        register(module, "weight", offset.make(w, Key(2)), U)
        x = torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float64).reshape(shape).sin()
        reference = results(module, x)
        check(reference, results(structured(module), x), 1e-8)
        row = summary(module).rows[0]
        assert (row.route is None) == (row.plain_because is not None)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("recipe", [recipes.dctps, recipes.random_pruning], ids=lambda recipe: recipe.__name__)
def test_a_network_in_channels_last_stays_so_with_images_of_one_channel(recipe, fast):
    dense = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1))
    dense = dense.to(memory_format=torch.channels_last)
    model = recipe(copy.deepcopy(dense), dim=60, seed=0)
    model = structured(model) if fast else model
    for net in (dense, model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert net(torch.randn(2, 1, 8, 7)).is_contiguous(memory_format=torch.channels_last)
    assert materialize(model)[1].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_registered_network_trains_the_same_and_back():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
    )
    net = recipes.dctps(net.double(), density=0.05)
    other = structured(copy.deepcopy(net))
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for model in (net, other):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    assert net.state_dict().keys() == other.state_dict().keys()
    for dense in (materialize(other), unstructured(other)):
        assert all("forward" not in vars(module) for module in dense.modules())
        torch.testing.assert_close(dense.eval()(x), net.eval()(x))


def test_a_copy_is_its_own():
    module, x = layer("linear", "alpha+sparse", torch.float64)
    first = structured(module)
    second = copy.deepcopy(first)
    before = first(x)
    with torch.no_grad():
        next(subspaces(second))[1].theta.zero_()
    assert torch.equal(first(x), before)
    assert not torch.allclose(second(x), before)


def test_compiled_without_breaks_and_moving_u_recompiles_nothing():
    torch._dynamo.reset()
    module, x = layer("linear", "alpha+sparse", torch.float32)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    fast = structured(module)
    compiled = torch.compile(fast, fullgraph=True, backend=counter)
    check(results(fast, x), results(compiled, x), 1e-6)
    sparse = next(subspaces(module))[1].parametrization.embedding.embeddings[1]
    sparse.index.copy_(torch.arange(5, 5 + len(sparse.index)))
    check(results(unstructured(copy.deepcopy(module)), x), results(compiled, x), 1e-5)
    assert counter.frame_count == 1


def test_autocast_gives_the_plain_dtype():
    for name in ("linear", "conv2d"):
        module, x = layer(name, "alpha+sparse", torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            plain, fast = module(x), structured(module)(x)
        assert plain.dtype == fast.dtype == torch.bfloat16
        torch.testing.assert_close(plain, fast, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("case", EMBEDDINGS, ids=lambda case: case.name)
def test_no_rows_have_no_outputs_and_no_gradients(case):
    module = nn.Linear(12, 8)
    U = case.make(module.weight, 5 if case.free else 1, Key(1))
    register(module, "weight", Pretrained(module.weight), U)
    x = torch.empty(2, 0, 12, requires_grad=True)
    y = structured(module)(x)
    assert y.shape == (2, 0, 8)
    y.sum().backward()
    assert all(not p.grad.any() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("case", EMBEDDINGS, ids=lambda case: case.name)
def test_autocast_gives_the_plain_dtype_whatever_u_is(case):
    module, x = nn.Linear(12, 8), torch.linspace(-1, 1, 60).reshape(5, 12).sin().requires_grad_()
    U = case.make(module.weight, 5 if case.free else 1, Key(1))
    register(module, "weight", Pretrained(module.weight), U, torch.linspace(-1, 1, U.dim))
    found = []
    for model in (module, structured(copy.deepcopy(module), "apart")):
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        found.append([y.detach(), *torch.autograd.grad(y.float().square().sum(), [x, *model.parameters()])])
    for plain, fast in zip(*found, strict=True):
        assert plain.dtype == fast.dtype
        assert float((plain - fast).norm()) <= 0.05 * (1 + float(plain.norm()))


def test_vmap_over_thetas_and_inputs():
    module, x = layer("linear", "alpha+sparse", torch.float64)
    fast = structured(copy.deepcopy(module))
    thetas = {n: torch.stack([p, 2 * p]) for n, p in module.named_parameters()}
    plain = torch.func.vmap(lambda p: torch.func.functional_call(module, p, (x,)))(thetas)
    assert torch.allclose(torch.func.vmap(lambda p: torch.func.functional_call(fast, p, (x,)))(thetas), plain)


def test_nothing_of_the_size_of_the_weight_is_saved():
    for name in ("linear-axes", "conv2d"):
        module, x = layer(name, "alpha+sparse", torch.float32)
        numel = module.weight.numel()
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: (saved.append(t), t)[1], lambda t: t):
            structured(module)(x)
        assert saved
        assert all(t.numel() != numel for t in saved)


@pytest.mark.parametrize("form", ["pretrained+sparse", "alpha pretrained+sparse"])
@pytest.mark.parametrize("name", ["linear-axes", "conv2d"])
def test_of_a_pretrained_weight_nothing_is_saved_but_itself(name, form):
    module, x = layer(name, form, torch.float32)
    (d,) = (m for m in module.modules() if isinstance(m, Pretrained))
    for route in possible(module, x):
        fast, saved = structured(copy.deepcopy(module), route), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: (saved.append(t), t)[1], lambda t: t):
            fast(x)
        assert {t.data_ptr() for t in saved if t.numel() == d.weight.numel()} == {d.weight.data_ptr()}


@pytest.mark.parametrize("scale", [RowScale, ColumnScale])
def test_one_product_with_d_does_for_factors_of_its_outputs_or_inputs(scale, monkeypatch):
    torch.manual_seed(0)
    base, x = nn.Linear(48, 64), torch.randn(500, 48)
    plain, loaded = copy.deepcopy(base), copy.deepcopy(base)
    d = Pretrained(plain.weight)
    theta = register(plain, "weight", d, scale(d, scale=1.0)).theta
    nn.init.uniform_(theta, -0.5, 0.5)
    save(plain, file := io.BytesIO())
    file.seek(0)
    load(loaded, file)
    fast = structured(copy.deepcopy(plain))
    calls, product = [], Pretrained.linear
    monkeypatch.setattr(Pretrained, "linear", lambda d, x: calls.append(d) or product(d, x))
    plain(x).square().sum().backward()
    for model in (fast, structured(loaded)):
        y = model(x)
        assert len(calls) == 1
        calls.clear()
        torch.testing.assert_close(y, plain(x))
        y.square().sum().backward()
        (space,) = dict(subspaces(model)).values()
        torch.testing.assert_close(space.theta.grad, theta.grad, rtol=1e-4, atol=1e-4)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), plain(x))
        calls.clear()


def test_hooks_still_run_and_bias_may_be_a_subspace():
    module = nn.Linear(8, 5)
    register(module, "weight", DCT(module.weight), Sparse(module.weight, 6, key=Key(0)))
    register(module, "bias", Zero(module.bias), Sparse(module.bias, 2, key=Key(0)))
    x = torch.randn(3, 8)
    plain, calls = module(x), []
    module.register_forward_hook(lambda *_: calls.append(1))
    assert torch.allclose(structured(module)(x), plain, atol=1e-5)
    assert calls == [1]
    assert [row.plain_because for row in summary(module).rows] == [
        None,
        "not the weight of a linear layer or convolution",
    ]


def test_bad_input_is_one_sentence():
    module, x = layer("linear", "dct+sparse", torch.float32)
    with pytest.raises(ValueError, match=r"route must be one of auto, .*, got 'fast'"):
        structured(module, "fast")
    with pytest.raises(ValueError, match=r"route must name registered tensors, such as 'weight', got 'fc'"):
        structured(module, {"fc": "auto"})
    with pytest.raises(ValueError, match="at least one registered subspace, got none"):
        structured(nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"route must be one of auto, dense, .*, got 'bottleneck'"):
        structured(module, "bottleneck")(x)
    with pytest.raises(ValueError, match=r"axis of 12, got shape \(5, 11\)"):
        structured(module)(x[:, :11])
    with pytest.raises(ValueError, match="must have a structured layer, got none"):
        routes(unstructured(module), x)


def test_the_report_names_every_layer_and_times_its_routes():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    net = structured(recipes.dctps(net, density=0.1), {"3.weight": "fft"})
    report = routes(net, torch.randn(2, 3, 8, 8))
    assert [(row.name, row.x_shape) for row in report.rows] == [("0.weight", (2, 3, 8, 8)), ("3.weight", (2, 288))]
    assert report.rows[1].route == "fft"
    for row in report.rows:
        assert row.predicted.keys() == row.measured.keys() >= {"dense", "remat"}
        assert all(seconds > 0 for seconds in [*row.predicted.values(), *row.measured.values()])
    assert "3.weight" in str(report)
    assert "<td>3.weight</td>" in report._repr_html_()
    assert "structured: 2 of 2; compiled kernels:" in str(summary(net))


def test_growth_on_structured_layers_is_growth():
    x, y = torch.randn(16, 12), torch.arange(16) % 3
    grown = []
    for fast in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3))
        net = recipes.dctps_rigl(net, density=0.3)
        if fast:
            structured(net)
        loss = lambda net: nn.functional.cross_entropy(net(x), y)  # noqa: E731
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        rigl = subspace.methods.RigL(net, optimizer, t_end=10, delta_t=2)
        for _ in range(6):
            optimizer.zero_grad()
            loss(net).backward()
            optimizer.step()
            rigl.step(loss)
        grown.append([part.sparse.index.clone() for part in rigl.parts.values()])
    for a, b in zip(*grown, strict=True):
        assert torch.equal(a, b)


class Checkers(Offset):
    """Somebody's offset: +-1 as on a board, which never needs to be built to multiply."""

    def __init__(self, like, *, key=None):
        super().__init__(like, key=key)
        self.built = 0

    def forward(self):
        self.built += 1
        rows, columns = (torch.arange(n) for n in self.shape)
        return (1.0 - 2 * ((rows[:, None] + columns) % 2)).to(self.like)

    def linear(self, x):
        signs = 1 - 2 * (torch.arange(self.shape[1]) % 2).to(x)
        return (x @ signs).unsqueeze(-1) * (1 - 2 * (torch.arange(self.shape[0]) % 2).to(x))


class Blocks(Embedding):
    """Somebody's embedding: one number for each row."""

    def __init__(self, like, *, key=None):
        super().__init__(like, like.shape[0], key=key)
        self.built = 0

    def forward(self, theta):
        self.built += 1
        return theta.unsqueeze(-1).expand(self.shape).clone()

    def linear(self, theta, x):
        return x.sum(-1, keepdim=True) * theta


OWN = {
    "offset": lambda w: (Checkers(w), Sparse(w, 9, key=Key(0))),
    "embedding": lambda w: (DCT(w), Blocks(w)),
    "both": lambda w: (Checkers(w), DirectSum([Blocks(w), Sparse(w, 9, key=Key(0))])),
    "direction": lambda w: (Zero(w), DirectSum([Direction(Checkers(w)), Sparse(w, 9, key=Key(0))])),
    "rank-one": lambda w: (RankOne(w, key=Key(1)), Sparse(w, 9, key=Key(0))),
    "rank-one direction": lambda w: (Zero(w), DirectSum([Direction(RankOne(w, key=Key(1))), Sparse(w, 9, key=Key(0))])),
    "two transforms": lambda w: (DCT(w), DirectSum([Direction(Hadamard(w)), Sparse(w, 9, key=Key(0))])),
}


@pytest.mark.parametrize("name", OWN)
def test_a_fast_linear_of_somebodys_own_is_used(name, monkeypatch):
    module, x = nn.Linear(12, 7).double(), torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(5, 12).sin()
    space = register(module, "weight", *OWN[name](module.weight))
    reference = results(module, x)
    structured(module)
    plugins = [m for m in module.modules() if isinstance(m, Checkers | Blocks | RankOne)]
    monkeypatch.setattr(RankOne, "forward", lambda self: pytest.fail("d was built"))
    before = [getattr(plugin, "built", 0) for plugin in plugins]
    check(reference, results(module, x), 1e-10)
    assert [getattr(plugin, "built", 0) for plugin in plugins] == before
    assert summary(module).rows[0].plain_because is None
    assert routes(module, x).rows[0].route == "product"
    assert space.theta.requires_grad


def test_an_offset_without_a_fast_linear_is_left_plain():
    module = nn.Linear(12, 7)
    register(module, "weight", Gaussian(module.weight, key=Key(0)), Sparse(module.weight, 9, key=Key(0)))
    assert summary(structured(module)).rows[0].plain_because == "Gaussian has no fast product"
    assert not is_structured(module)
