"""A checkpoint of a tuned model: nothing trained is lost, and it finds its place in models that are held otherwise."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from subspace import Key, load, recipes, register, routes, save, structured, subspaces
from subspace._base.first_values import checksum
from subspace.checkpoint.names import Renamed
from subspace.embeddings import Sparse
from subspace.offsets import DCT, Pretrained
from tests.support.cases import rest_slow
from tests.support.strategies import numbers

close = torch.testing.assert_close
X = numbers(99, 5, 8).float()
RECIPES = {
    "sparse_finetuning": lambda m: recipes.sparse_finetuning(m, density=0.2),
    "freezenet": lambda m: recipes.freezenet(m, density=0.2),
    "dctps": lambda m: recipes.dctps(m, density=0.2),
    "random_subspace": lambda m: recipes.random_subspace(m, dim=7),
    "magnitude": lambda m: recipes.magnitude(m, density=0.2),
}
each_recipe = pytest.mark.parametrize("recipe", RECIPES)


def net() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 3))
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(numbers(i, *parameter.shape) / 2)
    return model


def train(model: nn.Module) -> nn.Module:
    """Some steps, which change every tensor that trains, and the norm's statistics."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(X).square().sum().backward()
        optimizer.step()
    return model.eval()


@each_recipe
@pytest.mark.parametrize(
    "frozen", rest_slow(["nothing", "all", "all but theta", "the last layer from the start"], ["all"])
)
def test_a_file_holds_what_was_trained_whatever_requires_a_gradient(recipe, frozen, tmp_path):
    model = net()
    if frozen == "the last layer from the start":
        model[4].requires_grad_(False)
        model = recipes.dctps(model, density=0.2, exclude=["4"])
    else:
        model = RECIPES[recipe](model)
    train(model)
    if frozen.startswith("all"):
        model.requires_grad_(False)
        for _, space in subspaces(model) if "theta" in frozen else ():
            space.theta.requires_grad_(True)
    left_out = save(model, tmp_path / "c")
    base = net().state_dict()
    assert {"4.weight", "4.bias"} <= set(left_out) if "start" in frozen else "4.weight" not in left_out
    assert all(torch.equal(model.get_parameter(name), base[name]) for name in left_out)
    assert not set(left_out) & {name.removeprefix("state:") for name in load_file(tmp_path / "c")}
    again = load(net().eval(), tmp_path / "c")
    close(again(X), model(X))
    save(again, tmp_path / "again")
    close(load(net().eval(), tmp_path / "again")(X), model(X))


def test_what_is_frozen_after_the_recipe_and_never_changed_is_left_out(tmp_path):
    for copied in (lambda m: m, copy.deepcopy, lambda m: m.double().float()):
        model = recipes.dctps(net(), density=0.2, include=["0"])
        model[3].requires_grad_(False)
        model = train(copied(model))
        assert save(model, tmp_path / "c") == ["3.weight", "3.bias"]
        close(load(net().eval(), tmp_path / "c")(X), model(X))


@pytest.mark.parametrize("change", ["written", "one entry", "through data", "exchanged", "moved about"])
def test_a_frozen_tensor_that_changed_in_any_way_is_in_the_file(change, tmp_path):
    model = recipes.dctps(net(), density=0.2, include=["0"]).eval()
    model[3].requires_grad_(False)
    weight = model[3].weight
    {
        "written": lambda: weight.mul_(1.01),
        "one entry": lambda: weight[0].__setitem__(0, weight[0, 0] + 1e-6),
        "through data": lambda: weight.data.add_(1),
        "exchanged": lambda: setattr(weight, "data", weight + 1),
        "moved about": lambda: weight.copy_(weight.flip(0)),
    }[change]()
    assert save(model, tmp_path / "c") == ["3.bias"]
    close(load(net().eval(), tmp_path / "c")(X), model(X))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.complex128])
@pytest.mark.parametrize("rows", [(0, 1), (0, 64), (3, 130), (63, 65)])
def test_a_checksum_notices_that_rows_of_a_large_tensor_are_exchanged(dtype, rows):
    table = (torch.arange(140 * 32_768 // dtype.itemsize) % 251).to(dtype).reshape(140, -1)
    first, second = rows
    exchanged = table.clone()
    exchanged[[first, second]] = table[[second, first]]
    assert not torch.equal(exchanged, table)
    assert checksum(exchanged) != checksum(table) == checksum(table.clone())


def test_what_a_base_has_is_left_out_of_a_model_registered_by_hand(tmp_path):
    model = net().requires_grad_(False)
    w = model[3].weight
    register(model[3], "weight", Pretrained(w), Sparse(w, 5, key=Key(0)), torch.ones(5))
    assert save(model, tmp_path / "whole") == ["3.bias"]  # whose layer was registered
    left_out = save(model, tmp_path / "c", base=net().state_dict())
    assert set(left_out) == {"0.weight", "0.bias", "1.weight", "1.bias", "3.bias", "4.weight", "4.bias"}
    for path in ("whole", "c"):
        close(load(net().eval(), tmp_path / path)(X), model.eval()(X))


def ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def checkpointed(model: nn.Module) -> nn.Module:
    for i in (0, 3):
        model[i] = checkpoint_wrapper(model[i])
    return model


WRAPPERS = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled inside": lambda model: nn.Sequential(*(torch.compile(part, backend="eager") for part in model)),
    "of several processes": ddp,
    "data parallel": nn.DataParallel,
    "activations checkpointed": checkpointed,
    "averaged": AveragedModel,
    "all at once": lambda model: torch.compile(ddp(checkpointed(model)), backend="eager"),
}
COMPILED = ("compiled", "compiled inside", "all at once")


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory):
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "recipe, wrapper",
    [
        *(pytest.param("dctps", each, marks=pytest.mark.compile if each in COMPILED else ()) for each in WRAPPERS),
        *(pytest.param(each, "all at once", marks=pytest.mark.slow) for each in RECIPES if each != "dctps"),
    ],
)
def test_names_keys_and_files_are_those_of_the_plain_model(recipe, wrapper, tmp_path):
    wrap = WRAPPERS[wrapper]
    plain, before, after = RECIPES[recipe](net()), RECIPES[recipe](wrap(net())), wrap(RECIPES[recipe](net()))
    names = [name for name, _ in subspaces(plain)]
    for model in (before, after):
        assert [name for name, _ in subspaces(model)] == names
        close(model.eval()(X), plain.eval()(X))
        save(model, tmp_path / "c")
        assert load_file(tmp_path / "c").keys() == file_of(plain, tmp_path)
        close(load(net().eval(), tmp_path / "c")(X), plain(X))
    save(plain, tmp_path / "plain")
    close(load(wrap(net()).eval(), tmp_path / "plain")(X), plain(X))


def file_of(model, folder):
    save(model, folder / "own")
    return load_file(folder / "own").keys()


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.base, self.head = net(), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.base(x))


@each_recipe
def test_a_delta_finds_its_place_under_another_prefix(recipe, tmp_path):
    model = train(RECIPES[recipe](net()))
    save(model, tmp_path / "c")
    larger = Tagger().eval()
    head = larger.head.weight.clone()
    load(larger, tmp_path / "c", prefix="base.")
    close(larger.base(X), model(X))
    assert torch.equal(larger.head.weight, head)

    save(larger, tmp_path / "larger")
    smaller = load(net().eval(), tmp_path / "larger", prefix={"base.": "", "head.": None})
    close(smaller(X), model(X))
    with pytest.raises(ValueError, match=r"the model must have the checkpoint's tensor base\."):
        load(net(), tmp_path / "larger")
    with pytest.raises(ValueError, match=r"the model must have the checkpoint's tensor elsewhere\.0\.weight"):
        load(Tagger(), tmp_path / "c", prefix="elsewhere.")


def test_names_are_exchanged_by_the_longest_beginning():
    names = Renamed({"a.": "x.", "a.b.": "", "c": None})
    assert [names(name) for name in ("a.w", "a.b.w", "c.w", "d.w")] == ["x.w", "w", None, "d.w"]
    with pytest.raises(ValueError, match="prefix must give each tensor a name of its own, got w twice"):
        Renamed({"a.": ""}).of_keys({"a.w": 1, "w": 2})


@each_recipe
@pytest.mark.parametrize("dtype", rest_slow([torch.bfloat16, torch.float16, torch.float64], [torch.bfloat16]))
def test_a_delta_goes_into_a_base_of_another_dtype(recipe, dtype, tmp_path):
    model = train(RECIPES[recipe](net()))
    save(model, tmp_path / "c")
    again = load(net().eval().to(dtype), tmp_path / "c")
    close(again(X.to(dtype)).float(), model(X), rtol=0.1, atol=0.1)
    assert again[1].weight.dtype == dtype
    save(again, tmp_path / "back")
    close(load(net().eval(), tmp_path / "back")(X), model(X), rtol=0.1, atol=0.1)


@each_recipe
@pytest.mark.parametrize("present", rest_slow(RECIPES, ["dctps"]))
def test_a_delta_takes_the_place_of_another(recipe, present, tmp_path):
    model = train(RECIPES[recipe](net()))
    save(model, tmp_path / "c")
    other = structured(RECIPES[present](net())) if present == "dctps" else RECIPES[present](net())
    if recipe == "sparse_finetuning" and present != recipe:  # whose base is no longer there
        before = other.eval()(X)
        with pytest.raises(ValueError, match=r"d of 0\.weight must be as it was saved"):
            load(other, tmp_path / "c", replace=True)
        close(other(X), before)
        assert [name for name, _ in subspaces(other)] == ["0.weight", "3.weight", "4.weight"]
        train(other)
        return
    with pytest.raises(ValueError, match=r"model must be plain, .* replace=True"):
        load(other, tmp_path / "c")
    load(other.eval(), tmp_path / "c", replace=True)
    close(other(X), model(X))
    if present == "dctps":
        structured_now = len(routes(other, X, measure=False).rows) if recipe in ("dctps", "magnitude") else 0
        assert structured_now == 3 * (recipe in ("dctps", "magnitude"))
    train(copy.deepcopy(other))


def test_a_layer_with_several_subspaces_is_put_back_in_order(tmp_path):
    def layer(gain):
        module = nn.LSTM(4, 5)
        for name in ("weight_ih_l0", "weight_hh_l0"):
            w = getattr(module, name)
            register(module, name, DCT(w, gain=gain), Sparse(w, 9, key=Key(0)), torch.ones(9))
        return module

    save(layer(2.0), tmp_path / "c")
    other = layer(1.0)
    shown, weights = repr(other), [getattr(other, name).clone() for name in ("weight_ih_l0", "weight_hh_l0")]
    with pytest.raises(ValueError, match="names of its own|a name of its own|must have the checkpoint's tensor"):
        load(other, tmp_path / "c", replace=True, prefix={"weight_hh": "nowhere"})
    assert repr(other) == shown
    assert all(map(torch.equal, weights, [other.weight_ih_l0, other.weight_hh_l0]))
    load(other, tmp_path / "c", replace=True)
    close(other.weight_hh_l0, layer(2.0).weight_hh_l0)


def in_parts(rank: int, recipe: str, folder: str) -> None:
    """Train a model in two shards; save it, load the whole, and bring it through a distributed checkpoint."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
    from torch.distributed.fsdp import fully_shard

    warnings.simplefilter("ignore")
    plain, mesh = net(), torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    plain[4].requires_grad_(False)
    model = RECIPES[recipe](plain)
    frozen = [name for name in ("4.weight", "4.bias") if not dict(plain.named_parameters()).get(name, X).requires_grad]
    for part in (model[0], model[3], model[4], model):
        fully_shard(part, mesh=mesh)
    train(model)
    y = model(X)
    assert set(frozen) <= set(save(model, f"{folder}/c"))
    close(load(net().eval(), f"{folder}/c")(X), y)
    with pytest.raises(ValueError, match="model must be loaded before it is sharded, got .* in parts"):
        load(model, f"{folder}/c", replace=True)
    dcp.save(get_model_state_dict(model), checkpoint_id=f"{folder}/dcp")
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    state = get_model_state_dict(model)
    dcp.load(state, checkpoint_id=f"{folder}/dcp")
    set_model_state_dict(model, state)
    close(model(X), y)


@pytest.mark.torchrun
def test_a_sharded_model_is_saved_whole_by_its_processes(run, tmp_path):
    for recipe in ("sparse_finetuning", "freezenet", "dctps", "magnitude"):
        (tmp_path / recipe).mkdir()
        run(in_parts, recipe, str(tmp_path / recipe))
