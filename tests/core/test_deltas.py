"""Deltas: what one base computes with them is what each tuned model computed, for every embedding."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import time

import pytest
import torch
from torch import Tensor, nn

import subspace
from subspace import Deltas, Key, disabled, recipes, register, structured, subspaces, unregister
from subspace.embeddings import FourierFT, Sparse
from subspace.offsets import Pretrained
from tests.support.cases import EMBEDDINGS, rest_slow
from tests.support.memory import peak_bytes

each_embedding = pytest.mark.parametrize("case", rest_slow(EMBEDDINGS, EMBEDDINGS[::3]), ids=lambda case: case.name)


def base(dtype=torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)).to(dtype)


def inputs(*batch: int, dtype=torch.float64) -> Tensor:
    return torch.linspace(-1, 1, 12 * torch.Size(batch).numel(), dtype=dtype).sin().reshape(*batch, 12)


def tuned(plain: nn.Module, case, seed: int) -> nn.Module:
    """A copy of the base with that embedding on its weights, a random theta, and another bias."""
    model = copy.deepcopy(plain)
    for place in (0, 2):
        w = model[place].weight
        U = case.make(w, 7 if case.free else 1, Key(5).fold(str(place)))
        generator = torch.Generator().manual_seed(seed + place)
        register(model[place], "weight", Pretrained(w), U, torch.randn(U.dim, generator=generator, dtype=w.dtype))
    with torch.no_grad():
        model[2].bias += 0.1 * seed
    return model


def held(case, count: int = 3) -> tuple[Deltas, dict[str, nn.Module]]:
    plain = base()
    models = {f"delta {seed}": tuned(plain, case, seed) for seed in range(count)}
    deltas = Deltas(plain)
    for name, model in models.items():
        deltas.add(name, model)
    return deltas, models


@each_embedding
def test_a_delta_in_use_is_the_tuned_model(case):
    deltas, models = held(case, 2)
    for x in (inputs(5), inputs(2, 3)):
        plain = deltas.base(x)
        for name, model in models.items():
            deltas.use(name)
            torch.testing.assert_close(deltas.base(x), model(x))
            deltas.merge(name)
            torch.testing.assert_close(deltas.base(x), model(x))
        deltas.use()
        assert torch.equal(deltas.base(x), plain)


@each_embedding
def test_every_row_of_a_batch_may_have_its_own(case, monkeypatch):
    deltas, models = held(case)
    names = ["delta 2", None, "delta 0", "delta 2", "delta 1", None]
    for x in (inputs(len(names)), inputs(len(names), 3), inputs(len(names), 3, 2)):
        plain = deltas.base(x)
        wanted = [plain[i] if name is None else models[name](x[i : i + 1])[0] for i, name in enumerate(names)]
        for alone in (0, 1 << 14):
            monkeypatch.setattr("subspace.deltas.choice.ALONE_ABOVE", alone)
            with deltas.each(names):
                torch.testing.assert_close(deltas.base(x), torch.stack(wanted))
            assert torch.equal(deltas.base(x), plain)


@each_embedding
def test_deltas_add_up(case):
    deltas, models = held(case, 2)
    x, both = inputs(4), copy.deepcopy(deltas.base)
    tensors = [dict(subspace.materialize(model).named_parameters()) for model in models.values()]
    with torch.no_grad():
        for name, mine in both.named_parameters():
            mine += sum(each[name] - mine for each in tensors)
    with deltas.using(*models):
        torch.testing.assert_close(deltas.base(x), both(x))
    assert deltas.active == ()


@each_embedding
def test_without_its_deltas_a_model_is_the_base(case):
    plain = base()
    model, x = tuned(plain, case, 0), inputs(4)
    before, state = model(x), copy.deepcopy(model.state_dict())
    for each in (model, structured(copy.deepcopy(model))):
        with disabled(each):
            torch.testing.assert_close(each(x), plain(x))
        torch.testing.assert_close(each(x), before)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))


def test_a_gradient_of_what_ran_disabled_is_the_bases():
    plain = base()
    model, x = structured(tuned(plain, EMBEDDINGS[1], 0)), inputs(4).requires_grad_()
    with disabled(model):
        y = model(x).sum()
    (found,) = torch.autograd.grad(y, x)
    torch.testing.assert_close(found, torch.autograd.grad(plain(x).sum(), x)[0])


def test_disabled_says_when_there_is_nothing_to_leave_out():
    with pytest.raises(ValueError, match="must have registered subspaces or be the base of Deltas, got neither"):
        disabled(base()).__enter__()


def test_disabled_reaches_the_deltas_of_a_part():
    deltas, _ = held(EMBEDDINGS[1])
    whole, x = nn.Sequential(deltas.base, nn.ReLU()), inputs(4)
    plain = whole(x)
    deltas.use("delta 1")
    with disabled(whole):
        assert torch.equal(whole(x), plain)
    assert deltas.active == ("delta 1",)
    assert not torch.allclose(whole(x), plain)


@each_embedding
def test_unregistered_in_place_it_is_plain_and_computes_the_same(case):
    plain = base()
    model, x = structured(tuned(plain, case, 1)), inputs(4)
    wanted = model(x)
    assert unregister(model) is model
    assert not list(subspaces(model))
    assert dict(model.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    torch.testing.assert_close(model(x), wanted)


def conv_base() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    return net.eval()


def test_tensors_that_are_no_linear_layers_are_built():
    plain = conv_base()
    x, state = torch.randn(3, 3, 4, 4), copy.deepcopy(plain.state_dict())
    model = recipes.sparse_finetuning(copy.deepcopy(plain), density=0.2)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    deltas = Deltas(plain)
    deltas.add("one", model)
    before, values = plain(x), plain[0].weight.data_ptr()
    deltas.use("one")
    torch.testing.assert_close(plain(x), model(x))
    with pytest.raises(ValueError, match=r"a row's own delta must be one of linear layers, got one of 0\.weight"):
        deltas.each(["one"]).__enter__()
    deltas.use()
    assert plain[0].weight.data_ptr() == values
    assert torch.equal(plain(x), before)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), plain.state_dict().values(), strict=True))


def test_a_write_while_a_delta_is_in_use_is_not_lost_in_silence():
    plain = conv_base()
    deltas = Deltas(plain)
    deltas.add("one", recipes.sparse_finetuning(copy.deepcopy(plain), density=0.2))
    deltas.use("one")
    with torch.no_grad():
        plain[0].weight += 1
    with pytest.raises(ValueError, match=r"0\.weight must not be written to while a delta is in use, got a write"):
        deltas.use()


def test_attention_that_only_looks_at_its_last_weight_gets_the_delta():
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, dtype=torch.float64)
    model = recipes.sparse_finetuning(copy.deepcopy(plain), density=0.3)
    with torch.no_grad():
        for _, space in subspaces(model):
            space.theta.normal_()
    x = torch.randn(3, 2, 8, dtype=torch.float64)
    deltas = Deltas(plain)
    deltas.add("one", model)
    deltas.use("one")
    torch.testing.assert_close(plain(x, x, x)[0], model(x, x, x)[0])


def saved(model: nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    subspace.save(model, file)
    file.seek(0)
    return file


def moved(weight: str) -> nn.Module:
    other = base()
    with torch.no_grad():
        other.get_parameter(weight).mul_(1.01)
    return other


def rounded() -> nn.Module:
    other = base()
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(32).round_().div_(32)
    return other


def buffered(number: float) -> nn.Module:
    net = base()
    net.register_buffer("level", torch.tensor([number]))
    return net


BAD = {
    "another base": (lambda: saved(tuned(moved("0.weight"), EMBEDDINGS[1], 0)), r"d of 0\.weight must be as the delta"),
    "another quantisation": (lambda: saved(tuned(rounded(), EMBEDDINGS[1], 0)), r"d of 0\.weight must be as the delta"),
    "another kind of numbers": (lambda: saved(tuned(buffered(2), EMBEDDINGS[1], 0)), "must be .*int64 as in the delta"),
    "no delta": (lambda: saved(recipes.dctps(base(), density=0.2)), r"the base's weight plus a delta, got d = "),
    "a name of no tensor": (
        lambda: saved(nn.Sequential(tuned(base(), EMBEDDINGS[1], 0))),
        r"delta's tensor 0\.0\.bias",
    ),
    "another buffer": (
        lambda: saved(tuned(buffered(2.0), EMBEDDINGS[1], 0)),
        "buffer level must be as the base has it",
    ),
    "no file": (lambda: io.BytesIO(b"nothing"), "must be a checkpoint written by subspace.save"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_delta_of_something_else_is_refused_and_nothing_has_changed(bad):
    deltas = Deltas(buffered(1.0) if bad in ("another buffer", "another kind of numbers") else base())
    make, error = BAD[bad]
    x, before = inputs(3), copy.deepcopy(deltas.base.state_dict())
    plain = deltas.base(x)
    with pytest.raises(ValueError, match=error) as raised:
        deltas.add("one", make())
    assert "\n" not in str(raised.value)
    assert list(deltas) == []
    assert all(torch.equal(a, b) for a, b in zip(before.values(), deltas.base.state_dict().values(), strict=True))
    assert torch.equal(deltas.base(x), plain)


def test_names_are_looked_up_before_anything_changes():
    deltas, models = held(EMBEDDINGS[1])
    deltas.use("delta 1")
    x = inputs(3)
    for call in (deltas.use, deltas.merge, deltas.remove, lambda name: deltas.each([name]).__enter__()):
        with pytest.raises(ValueError, match="name must be of a delta that is held, got 'none'"):
            call("none")
    with pytest.raises(ValueError, match="must be of a delta that is not in use, got 'delta 1'"):
        deltas.remove("delta 1")
    with pytest.raises(ValueError, match="must be a new one without replace=True, got 'delta 1'"):
        deltas.add("delta 1", models["delta 2"])
    torch.testing.assert_close(deltas.base(x), models["delta 1"](x))
    deltas.add("delta 1", models["delta 2"], replace=True)
    torch.testing.assert_close(deltas.base(x), models["delta 2"](x))
    deltas.use()
    deltas.remove("delta 1")
    assert "delta 1" not in deltas
    assert len(deltas) == 2


def test_a_batch_of_another_size_than_the_names_is_refused():
    deltas, _ = held(EMBEDDINGS[1])
    with deltas.each(["delta 0", None]), pytest.raises(ValueError, match=r"a first axis of 2, .*, got \(5, 12\)"):
        deltas.base(inputs(5))
    assert deltas.active == ()


def test_a_base_has_one_holder_and_is_plain():
    deltas, _ = held(EMBEDDINGS[1])
    with pytest.raises(ValueError, match="base must have no other Deltas"):
        Deltas(deltas.base)
    deltas.close()
    assert not deltas.base[0]._forward_hooks
    Deltas(deltas.base)
    with pytest.raises(ValueError, match="base must be plain"):
        Deltas(recipes.dctps(base(), density=0.1))


def test_a_delta_finds_its_place_in_a_base_held_otherwise():
    model, x = tuned(base(), EMBEDDINGS[1], 1), inputs(4)
    deltas = Deltas(nn.ModuleDict({"encoder": base().float()}))
    deltas.add("one", saved(model), prefix="encoder.")
    deltas.use("one")
    torch.testing.assert_close(deltas.base["encoder"](x.float()), model(x).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("make", [lambda w: Sparse(w, 9, key=Key(0)), lambda w: FourierFT(w, 9, key=Key(0))])
def test_outputs_keep_the_bases_dtype(dtype, make):
    plain = base(dtype)
    model = copy.deepcopy(plain)
    U = make(model[0].weight)
    register(model[0], "weight", Pretrained(model[0].weight), U, torch.ones(U.dim, dtype=dtype))
    deltas = Deltas(plain)
    deltas.add("one", model)
    deltas.use("one")
    x = inputs(3, dtype=dtype)
    assert plain(x).dtype == dtype
    torch.testing.assert_close(plain(x), model(x), rtol=0.05, atol=0.05)


def test_a_second_delta_is_trained_on_top_of_one_in_use():
    deltas = held(EMBEDDINGS[1], 1)[0]
    deltas.use("delta 0")
    x = inputs(4)
    before = deltas.base(x)
    recipes.sparse_finetuning(deltas.base, density=0.1, include=["0", "2"])
    torch.testing.assert_close(deltas.base(x), before)
    deltas.base(x).sum().backward()


def test_thousands_of_deltas_take_little_more_than_their_numbers():
    plain = nn.Linear(64, 64)
    model = recipes.sparse_finetuning(copy.deepcopy(plain), dim=1000)
    deltas, file = Deltas(plain), saved(model)
    content = file.getvalue()

    def hold() -> None:
        for number in range(1000):
            deltas.add(str(number), io.BytesIO(content))

    assert peak_bytes(hold) < 1.3 * 4 * 1000 * 1000
    assert len(deltas) == 1000
    start = time.perf_counter()
    for _ in range(100):
        deltas.use("1")
        deltas.use("2")
    assert time.perf_counter() - start < 200 * 1e-3  # microseconds, were it not for others on the machine


class Shared(nn.Module):
    """Two linear layers of one weight, and a table that is a head's."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.a, self.b = nn.Embedding(5, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 5, bias=False)
        self.b.weight, self.head.weight = self.a.weight, self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.b(torch.relu(self.a(self.table(tokens)))))


@pytest.mark.parametrize("name", ["a.weight", "table.weight", "head.weight"])
def test_a_delta_of_a_shared_weight_is_there_wherever_that_is(name):
    torch.manual_seed(0)
    plain, tokens = Shared(), torch.arange(5)
    before = plain(tokens)
    model = recipes.sparse_finetuning(copy.deepcopy(plain), dim=20, include=[name])
    for _, space in subspaces(model):
        nn.init.normal_(space.theta)
    deltas = Deltas(plain)
    deltas.add("one", model)
    for choose in (deltas.use, deltas.merge):
        choose("one")
        torch.testing.assert_close(plain(tokens), model(tokens))
    deltas.use()
    assert torch.equal(plain(tokens), before)


@pytest.mark.parametrize("way", ["use", "merge", "each"])
def test_blocks_leave_what_was_in_use(way):
    deltas, models = held(EMBEDDINGS[1], 2)
    x, both = inputs(2), ["delta 0", "delta 1"]
    with deltas.each(both) if way == "each" else contextlib.nullcontext():
        if way != "each":
            getattr(deltas, way)(*both)
        before, weight = deltas.base(x), deltas.base[0].weight.detach().clone()
        with disabled(deltas.base):
            assert not torch.equal(deltas.base(x), before)
            with deltas.using("delta 1"):
                torch.testing.assert_close(deltas.base(x), models["delta 1"](x))
        assert torch.equal(deltas.base(x), before)
        assert torch.equal(deltas.base[0].weight, weight)
        deltas.add("delta 0", models["delta 0"], replace=True)
        assert torch.equal(deltas.base(x), before)
        assert torch.equal(deltas.base[0].weight, weight)


def test_a_base_is_left_as_it_was_when_its_deltas_are_forgotten():
    plain = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(24, 4))
    x = torch.linspace(-1, 1, 48).reshape(2, 3, 8).sin()
    before, model = plain(x), recipes.sparse_finetuning(copy.deepcopy(plain), dim=20)
    for _, space in subspaces(model):
        nn.init.normal_(space.theta)

    def used():
        deltas = Deltas(plain)
        deltas.add("one", model)
        deltas.use("one")
        return plain(x)

    torch.testing.assert_close(used(), model(x))
    assert torch.equal(plain(x), before)
    assert not plain[2]._forward_hooks
    torch.testing.assert_close(used(), model(x))


def test_a_base_is_copied_without_deltas_in_use_or_not_at_all():
    deltas, models = held(EMBEDDINGS[1], 1)
    x = inputs(2)
    plain = deltas.base(x)
    deltas.use("delta 0")
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a base must have no delta in use when it is copied or pickled"):
            copied(deltas.base)
    deltas.merge("delta 0")
    torch.testing.assert_close(copy.deepcopy(deltas.base)(x), models["delta 0"](x))
    deltas.use()
    again = copy.deepcopy(deltas.base)
    deltas.use("delta 0")
    assert torch.equal(again(x), plain)


def test_a_bias_in_half_precision_is_the_trained_one():
    torch.manual_seed(0)
    plain = nn.Linear(64, 64).bfloat16()
    model = recipes.sparse_finetuning(copy.deepcopy(plain), dim=9, also_train=["bias"])
    with torch.no_grad():
        model.bias += torch.randn(64).bfloat16() / 7
    deltas = Deltas(plain)
    deltas.add("one", model)
    deltas.merge("one")
    assert torch.equal(plain.bias, model.bias)
