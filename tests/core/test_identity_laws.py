"""A state_dict carries what identifies d and U, by every way that it is kept; theta never meets another one's."""

from __future__ import annotations

import copy
import io
import math
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from subspace import Key, recipes, register, structured, subspaces
from subspace._base.index import pack, packed_bytes, unpack
from subspace.embeddings import SRHT, Direction, DirectSum, Sparse
from subspace.methods import SET
from subspace.offsets import DCT, Pretrained, Zero
from subspace.products.sparse_index import renew
from tests.support.cases import EACH_ONCE, EMBEDDINGS, OFFSETS, each_with_one, rest_slow
from tests.support.strategies import numbers

close = torch.testing.assert_close
each_pair = pytest.mark.parametrize(
    "offset_case, embedding_case", rest_slow(EACH_ONCE, EACH_ONCE[::2]), ids=lambda case: case.name
)
DIM = 9


def net(offset_case, embedding_case, seed: int = 0, start: int = 0) -> nn.Sequential:
    """Two layers and a norm, the first registered; `start` draws the present weights, `seed` what is random."""
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)).double()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(numbers(start + i, *parameter.shape))
    w = model[0].weight
    register(model[0], "weight", offset_case.make(w, Key(seed)), embedding_case.make(w, DIM, Key(seed)))
    return model


def outputs(model: nn.Module) -> Tensor:
    return model.eval()(numbers(99, 5, 8))


def support(model: nn.Module) -> Sparse | None:
    return next((part for part in model.modules() if isinstance(part, Sparse)), None)


def choose(model: nn.Module, seed: int = 0) -> None:
    """Move the support elsewhere, as methods do."""
    U = support(model)
    U.index.copy_(torch.from_numpy(Key(seed).fold("elsewhere").distinct(U.shape.numel(), U.dim)).sort().values)
    renew(U.index)


def by_torch_save(state, folder):
    torch.save(state, folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=True)


def by_distributed_checkpoint(state, folder):
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder / "dcp", no_dist=True)
        read = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        dcp.load(read, checkpoint_id=folder / "dcp", no_dist=True)
    return read


WAYS = {
    "itself": lambda state, folder: state,
    "torch.save": by_torch_save,
    "safetensors": lambda state, folder: from_safetensors(to_safetensors(state)),
    "distributed checkpoint": by_distributed_checkpoint,
    "deepcopy": lambda state, folder: copy.deepcopy(state),
    "every tensor in bfloat16": lambda state, folder: {
        name: tensor.bfloat16() if name.endswith("_extra_state") else tensor for name, tensor in state.items()
    },
    "the mean of two": lambda state, folder: {name: torch.stack([t, t]).double().mean(0) for name, t in state.items()},
}
SLOW = pytest.mark.slow
PAIRS_AND_WAYS = [
    pytest.param(
        *pair, way, id="-".join([*(case.name for case in pair), way]), marks=() if pair in EACH_ONCE[::2] else SLOW
    )
    for pair, way in each_with_one(EACH_ONCE, WAYS)  # a way sees tensors alone, whatever d and U they are of
]
each_pair_and_way = pytest.mark.parametrize("offset_case, embedding_case, way", PAIRS_AND_WAYS)
strictly = pytest.mark.parametrize("strict", [False, True])


@each_pair_and_way
def test_a_state_dict_restores_the_model(offset_case, embedding_case, way, tmp_path):
    model = net(offset_case, embedding_case)
    if support(model):
        choose(model)
    state = WAYS[way](model.state_dict(), tmp_path)
    for assign in (False, True):
        again = net(offset_case, embedding_case)
        again[0].parametrizations.weight.original.data.zero_()
        again.load_state_dict(state, assign=assign)
        close(outputs(again), outputs(model), rtol=0, atol=0)
        assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))


@each_pair_and_way
def test_theta_of_another_d_or_u_is_refused_and_not_taken(offset_case, embedding_case, way, tmp_path):
    other = net(offset_case, embedding_case, seed=1, start=50)
    state = WAYS[way](other.state_dict(), tmp_path)
    for strict in (False, True):
        model = net(offset_case, embedding_case)
        theta = model[0].parametrizations.weight.original.clone()
        if not embedding_case.random or embedding_case.name == "sparse-index":  # a chosen support comes along
            model.load_state_dict(state, strict=strict)
            close(outputs(model), outputs(other))
        else:
            with pytest.raises(RuntimeError, match=r"0\.weight must get a theta of its own d and U, got one of ano"):
                model.load_state_dict(state, strict=strict)
            assert torch.equal(model[0].parametrizations.weight.original, theta)


@strictly
@pytest.mark.parametrize("cut", [0, 3, 40, -1])
def test_an_extra_state_that_was_changed_is_refused(cut, strict):
    model = net(OFFSETS[1], EMBEDDINGS[2])
    for changed in (lambda t: t[:cut], lambda t: t + 1, lambda t: t.int().numpy(), lambda t: t * 0.5, lambda t: None):
        state = model.state_dict()
        name = next(name for name in state if name.endswith("_extra_state"))
        state[name] = changed(state[name])
        with pytest.raises(RuntimeError, match=r"0\.weight must get a theta of its own d and U"):
            net(OFFSETS[1], EMBEDDINGS[2]).load_state_dict(state, strict=strict)


@strictly
def test_a_dense_checkpoint_is_never_dropped(strict):
    plain = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)).double()
    model = net(OFFSETS[1], EMBEDDINGS[1])
    before = outputs(model)
    with pytest.raises(RuntimeError, match=r"0\.weight must come as the theta of its d \+ U theta, got dense values"):
        model.load_state_dict({"0.weight": plain[0].weight.detach()}, strict=strict)
    close(outputs(model), before)


def test_a_theta_that_comes_alone_is_taken_with_a_warning():
    model = net(OFFSETS[1], EMBEDDINGS[1])
    theta = {name: p.detach() + 1 for name, p in model.named_parameters() if "original" in name}
    with pytest.warns(UserWarning, match=r"nothing tells whether theta of 0\.weight is of the same d and U"):
        model.load_state_dict(theta, strict=False)


@each_pair
def test_a_model_on_meta_takes_a_state_dict_by_assignment(offset_case, embedding_case):
    model = net(offset_case, embedding_case)
    state = model.state_dict()
    again = net(offset_case, embedding_case).to("meta")
    again.load_state_dict(state, assign=True)
    close(outputs(again), outputs(model))
    if not offset_case.held:
        with torch.device("meta"):
            again = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)).double()
            w = again[0].weight
            if embedding_case.name not in ("scaled", "given"):  # of tensors that are there
                register(again[0], "weight", offset_case.make(w, Key(0)), embedding_case.make(w, DIM, Key(0)))
                again.load_state_dict(state, assign=True)
                close(outputs(again), outputs(model))


def test_a_default_device_changes_no_state_dict():
    model = net(OFFSETS[1], EMBEDDINGS[2])
    before = model.state_dict()
    with torch.device("meta"):
        model[0].parametrizations.weight[0]._identity = None
        inside = model.state_dict()
        model.load_state_dict(before)
    assert all(map(torch.equal, inside.values(), before.values()))


def test_a_state_of_the_start_brings_a_moved_support_back():
    model = net(OFFSETS[0], EMBEDDINGS[1])
    start, weight = copy.deepcopy(model.state_dict()), model[0].weight.detach().clone()
    choose(model)
    model.load_state_dict(start)
    assert torch.equal(model[0].weight, weight)
    assert support(model).is_drawn()


@each_pair
def test_a_model_holds_no_buffers_but_its_own_and_some_signs(offset_case, embedding_case):
    model = net(offset_case, embedding_case)
    held = {name: buffer for name, buffer in model.named_buffers() if not name.startswith("1.")}
    assert {name: (buffer.numel(), buffer.dtype) for name, buffer in held.items()} == {
        "0.parametrizations.weight.0.signs": (32, torch.float32)
    }
    assert not held.keys() & model.state_dict().keys()


def in_one_call(models, base, x):
    parameters, buffers = torch.func.stack_module_state(models)
    return torch.vmap(lambda p, b: torch.func.functional_call(base, (p, b), (x,)))(parameters, buffers)


@pytest.mark.parametrize("fast", rest_slow([False, True], [False]))
@each_pair
def test_an_ensemble_has_the_d_and_u_of_its_members_or_is_refused(offset_case, embedding_case, fast):
    x = numbers(99, 5, 8)

    def member(seed, start=0):
        model = net(offset_case, embedding_case, seed, start).eval()
        model[0].parametrizations.weight.original.data.normal_()
        return structured(model) if fast else model

    alike, differing = [member(0), member(0)], [member(0), member(1, 50)]
    if not (fast and embedding_case.name.startswith("fourier")):
        close(in_one_call(alike, copy.deepcopy(alike[0]), x), torch.stack([model(x) for model in alike]))
    if torch.equal(*(at_one(model) for model in differing)):
        return
    for base in differing:
        with pytest.raises(ValueError, match="members of an ensemble under vmap must have one d and U, got others"):
            in_one_call(differing, copy.deepcopy(base), x)


def at_one(model):
    built = model[0].parametrizations.weight[0]
    return built(torch.ones(built.dim, dtype=torch.float64))


def test_an_ensemble_whose_places_move_is_refused():
    models = [net(OFFSETS[0], EMBEDDINGS[1]) for _ in range(2)]
    for model in models:
        SET(model, torch.optim.SGD(model.parameters(), 0.1), t_end=10, delta_t=1, key=Key(3))
    with pytest.raises(ValueError, match="got some whose places move"):
        in_one_call(models, models[0], numbers(99, 5, 8))


def test_signs_outlive_the_values_of_a_model():
    model = net(OFFSETS[1], EMBEDDINGS[1])
    before = model.get_buffer(name := "0.parametrizations.weight.0.signs").clone()
    for move in (lambda m: m.half().double(), lambda m: m.to("meta"), lambda m: m.to_empty(device="cpu")):
        assert torch.equal(move(model).get_buffer(name), before)


AVERAGES = {"mean": {}, "exponential": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}}


@pytest.mark.parametrize("average", rest_slow(AVERAGES, ["exponential"]))
@each_pair
def test_an_average_of_a_model_has_its_d_and_u(offset_case, embedding_case, average):
    model = net(offset_case, embedding_case)
    for use_buffers in (False, True):
        averaged = AveragedModel(model, use_buffers=use_buffers, **AVERAGES[average])
        for _ in range(10):
            averaged.update_parameters(model)
            for part in averaged.module.state_dict().values():  # as timm's ModelEmaV2 writes
                part.copy_(part * 0.9 + part * 0.1)
        close(outputs(averaged.module), outputs(model))
        model.load_state_dict(averaged.module.state_dict())


@pytest.mark.parametrize("module", [lambda: nn.Linear(512, 512, bias=False), lambda: nn.Conv2d(64, 64, 3, bias=False)])
def test_a_state_dict_holds_nothing_that_a_key_rebuilds(module):
    for recipe in (recipes.dctps, recipes.sparse_finetuning, recipes.freezenet, recipes.random_pruning):
        state = recipe(module(), dim=5000).state_dict()
        theta = next(t for name, t in state.items() if name.endswith("original"))
        assert sum(t.nbytes for t in state.values()) < 1.1 * theta.nbytes


def test_a_chosen_support_is_held_in_few_bits():
    for density, at_most in ((0.5, 1.11), (0.1, 1.17), (0.01, 1.28)):
        layer = nn.Linear(1024, 1024, bias=False)
        w, k = layer.weight, int(density * layer.weight.numel())
        index = torch.from_numpy(Key(0).distinct(w.numel(), k)).sort().values
        register(layer, "weight", Zero(w), Sparse(w, index=index))
        assert sum(t.nbytes for t in layer.state_dict().values()) < at_most * 4 * k


def least_bits(k: int, size: int) -> float:
    """log2 (size choose k): what any code of a set of k places takes at least, on average over all of them."""
    return (math.lgamma(size + 1) - math.lgamma(k + 1) - math.lgamma(size - k + 1)) / math.log(2)


@given(st.integers(1, 1 << 40), st.floats(0, 1))
def test_places_in_order_take_half_a_bit_more_than_the_least(size, part):
    k = max(1, round(size**part / 8))
    rounding = 18 + math.log2(k) + 1e-12 * size  # whole bytes, one term of Stirling's formula, float64
    assert 8 * packed_bytes(k, size) <= least_bits(k, size) + 0.6 * k + rounding


@pytest.mark.parametrize("density, least, held", [(0.1, 4.69, 5.25), (0.01, 8.08, 8.56), (0.001, 11.41, 11.95)])
def test_the_bits_of_a_place_are_those_of_the_page(density, least, held):
    size = 10**8
    k = int(density * size)
    assert (round(least_bits(k, size) / k, 2), round(8 * packed_bytes(k, size) / k, 2)) == (least, held)
    assert held < 1.12 * least
    assert density > 0.01 or held < 1.07 * least
    row = f"| {100 * density:g} % | {least} | {held} | {1 + least / 32:.2f} | {1 + held / 32:.2f} |"
    assert row in (Path(__file__).parents[2] / "docs" / "saving.md").read_text()


@given(st.integers(0, 300), st.integers(0, 300), st.booleans(), st.integers(0, 99))
def test_an_index_is_what_was_packed(k, more, ordered, seed):
    index = torch.from_numpy(Key(seed).distinct(k + more, k))
    index = index.sort().values if ordered else index
    packed = pack(index, k + more, ordered=ordered)
    assert packed.dtype == torch.uint8
    assert len(packed) == packed_bytes(k, k + more, ordered=ordered)
    assert torch.equal(unpack(packed, k, k + more, ordered=ordered), index)
    with pytest.raises(ValueError, match="a packed index must have"):
        unpack(torch.cat([packed, packed.new_zeros(1)]), k, k + more, ordered=ordered)


def test_a_moving_support_takes_the_same_bytes_before_and_after(tmp_path):
    model = net(OFFSETS[0], EMBEDDINGS[1])
    mover = SET(model, torch.optim.SGD(model.parameters(), 0.1), t_end=10, delta_t=1, key=Key(3))
    before = model.state_dict()
    mover.step()
    after = model.state_dict()
    assert {n: t.shape for n, t in before.items()} == {n: t.shape for n, t in after.items()}
    again = net(OFFSETS[0], EMBEDDINGS[1])
    again.load_state_dict(after)
    close(again[0].weight, model[0].weight)


def test_the_extra_state_is_compared_part_by_part():
    def layer(**options):
        module = nn.Linear(16, 8)
        nn.init.constant_(module.weight, 1.0)
        w = module.weight
        d = options.get("d", lambda w: DCT(w))(w)
        U = options.get("U", lambda w: DirectSum([Direction(DCT(w)), Sparse(w, 6, key=Key(0))]))(w)
        register(module, "weight", d, U)
        return module

    state = layer().state_dict()
    for message, options in (
        ("d.gain must be 2.0, got 1.0", {"d": lambda w: DCT(w, gain=2.0)}),
        ("d.class must be Zero, got DCT|d must be", {"d": Zero}),
        ("the key of U must be", {"U": lambda w: DirectSum([Direction(DCT(w)), Sparse(w, 6, key=Key(1))])}),
        ("U.* must be", {"U": lambda w: SRHT(w, 7, key=Key(0))}),
        ("U.embeddings.1..dim must be 5", {"U": lambda w: DirectSum([Direction(DCT(w)), Sparse(w, 5, key=Key(0))])}),
    ):
        with pytest.raises(RuntimeError, match=message):
            layer(**options).load_state_dict(state)
    pretrained = layer(d=Pretrained).state_dict()
    other = layer(d=lambda w: Pretrained(w * 1.01))
    with pytest.raises(RuntimeError, match="d must be the same numbers, got others"):
        other.load_state_dict(pretrained, strict=False)


def test_a_registered_model_serves_functional_calls_and_exports_with_its_whole_state():
    model = net(OFFSETS[1], EMBEDDINGS[2]).eval()
    x = numbers(99, 5, 8)
    close(torch.func.functional_call(model, model.state_dict(), (x,)), model(x))
    exported = torch.export.export(model, (x,))
    torch.export.save(exported, file := io.BytesIO())
    file.seek(0)
    close(torch.export.load(file).module()(x), model(x))


def test_names_survive_a_copy_of_the_model():
    model = net(OFFSETS[1], EMBEDDINGS[1])
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    state = net(OFFSETS[1], EMBEDDINGS[1], seed=7).state_dict()
    with pytest.raises(RuntimeError, match="0.weight must get a theta"):
        twin.load_state_dict(state)
    assert [name for name, _ in subspaces(twin)] == ["0.weight"]
