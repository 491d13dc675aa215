"""Checkpoints: small, whole or absent, and rebuilt exactly or refused."""

from __future__ import annotations

import copy
import json
import os
import pickle
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import subspace
from subspace import Key, load, materialize, recipes, register, save, share, subspaces
from subspace._base.index import pack
from subspace._identity.fingerprint import Probe, fingerprint
from subspace.checkpoint import sealed
from subspace.embeddings import Gaussian, Sparse
from subspace.offsets import DCT, Offset, Pretrained, Zero
from tests.support.cases import EMBEDDINGS, OFFSETS, rest_slow
from tests.support.strategies import each_embedding, each_offset, numbers

RECIPES = {
    "random_pruning": lambda m: recipes.random_pruning(m, density=0.1),
    "freezenet": lambda m: recipes.freezenet(m, density=0.1),
    "sparse_finetuning": lambda m: recipes.sparse_finetuning(m, density=0.1),
    "dctps": lambda m: recipes.dctps(m, density=0.1),
    "random_subspace": lambda m: recipes.random_subspace(m, dim=40),
    "ordinary": lambda m: recipes.ordinary(m),
}


def net(seed: int = 0) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(), nn.Linear(96, 5)
    )
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(0.2 * numbers(seed + i, *parameter.shape))
    return model


X = numbers(1, 4, 1, 8, 8).float()


def trained(recipe, seed: int = 0) -> nn.Module:
    """The model after some steps, so that theta, norms and running statistics have moved."""
    model = recipe(net(seed))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(X).tanh().sum().backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("name", RECIPES)
def test_a_loaded_model_is_the_saved_one(name, tmp_path):
    model = trained(RECIPES[name])
    save(model, tmp_path / "delta.safetensors")
    base = net(0) if name == "sparse_finetuning" else net(50)
    again = load(base, tmp_path / "delta.safetensors").eval()
    assert again is base
    assert torch.equal(again(X), model(X))
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
    thetas = [[id(space.theta) for _, space in subspaces(m)] for m in (model, again)]
    assert len(set(thetas[0])) == len(set(thetas[1]))
    assert str(subspace.summary(again)) == str(subspace.summary(model))
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize(
    "part", rest_slow([*OFFSETS, *EMBEDDINGS], [*OFFSETS, *EMBEDDINGS][::2]), ids=lambda case: case.name
)
def test_every_offset_and_embedding_round_trips(part, tmp_path):
    def layer() -> nn.Linear:
        module = nn.Linear(8, 6).double()
        module.weight.data = numbers(0, 6, 8)
        return module

    module = layer()
    offset = (part if part in OFFSETS else OFFSETS[1]).make(module.weight, Key(4))
    embedding = (part if part in EMBEDDINGS else EMBEDDINGS[1]).make(module.weight, 9, Key(4))
    register(module, "weight", offset, embedding, numbers(3, embedding.dim))
    save(module, tmp_path / "c")
    assert torch.equal(load(layer(), tmp_path / "c").weight, module.weight)


def test_nothing_that_can_be_rebuilt_is_in_the_file(tmp_path):
    model = trained(RECIPES["dctps"])
    save(model, tmp_path / "c")
    held = load_file(tmp_path / "c")
    thetas = {name: space.theta for name, space in subspaces(model)}
    assert {name.removeprefix("theta:") for name in held if name.startswith("theta:")} == thetas.keys()
    assert {name.removeprefix("state:") for name in held if name.startswith("state:")} == {
        *(
            "0.bias",
            "1.weight",
            "1.bias",
            "1.running_mean",
            "1.running_var",
            "1.num_batches_tracked",
            "3.bias",
            "5.bias",
        )
    }
    assert len(held) == len(thetas) + 8


def test_a_chosen_index_and_only_that_is_kept(tmp_path):
    model = RECIPES["freezenet"](net())
    moved = model[5].parametrizations.weight[0].embedding
    moved.index.copy_(torch.arange(moved.dim))
    save(model, tmp_path / "c")
    held = load_file(tmp_path / "c")
    assert [t.tolist() for name, t in held.items() if ":" not in name] == [pack(moved.index, moved.dim).tolist()]
    assert torch.equal(load(net(), tmp_path / "c")(X), model(X))


def test_a_chosen_index_without_an_entry_is_kept_however_it_lies_in_memory(tmp_path):
    layer = nn.Linear(8, 5)
    index = torch.empty_strided((0,), (0,), dtype=torch.int64)  # as torch.from_numpy has it
    register(layer, "weight", Zero(layer.weight), Sparse(layer.weight, index=index))
    save(layer, tmp_path / "c")
    loaded = load(nn.Linear(8, 5), tmp_path / "c")
    assert not loaded.weight.any()
    assert loaded.parametrizations.weight[0].embedding.index.shape == (0,)


def bottleneck(inputs: int, width: int, stride: int) -> nn.Sequential:
    outputs = 4 * width
    layers = [nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)]
    layers += [nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)]
    layers += [nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
    if stride != 1 or inputs != outputs:
        layers += [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers)


def resnet50_weights() -> nn.Module:
    """Every tensor of ResNet50 for CIFAR-100 (its forward pass is not needed): 23,652,032 prunable weights."""
    blocks, inputs = [], 64
    for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(depth):
            blocks.append(bottleneck(inputs, width, stride if i == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), *blocks, nn.Linear(2048, 100))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the budget of")
def test_a_resnet50_at_one_hundredth_of_a_percent_fits_in_under_1_mb(tmp_path):
    model = recipes.dctps(resnet50_weights(), density=1e-4)
    assert subspace.summary(model).weights == 23_652_032
    assert subspace.summary(model).dim == 2_365 + 54
    assert subspace.summary(model).beside == {"norm": 53_120, "bias": 100}
    save(model, tmp_path / "resnet50.safetensors")
    assert os.path.getsize(tmp_path / "resnet50.safetensors") < 600_000
    again = load(resnet50_weights(), tmp_path / "resnet50.safetensors")
    assert torch.equal(again[2][2].weight, model[2][2].weight)


def test_frozen_weights_are_checked_and_stay_frozen(tmp_path):
    def frozen(seed):
        model = net(seed)
        model[5].requires_grad_(False)
        return model

    model = recipes.dctps(frozen(0), density=0.1, exclude=["5"])
    save(model, tmp_path / "c")
    assert not any("5." in name for name in load_file(tmp_path / "c"))
    again = load(net(0), tmp_path / "c")
    assert not again[5].weight.requires_grad
    assert torch.equal(again.eval()(X), model.eval()(X))
    with pytest.raises(ValueError, match=r"the frozen 5.weight must be as it was saved, with fingerprint"):
        load(net(1), tmp_path / "c")


def test_partial_sharing_and_ties_among_the_rest_survive(tmp_path):
    def build():
        model = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])
        model[3].bias = model[2].bias
        return model

    model = build()
    for i in range(3):
        w = model[i].weight
        register(model[i], "weight", DCT(w), Gaussian(w, 5, key=Key(i)), torch.full((5,), float(i)))
    share(model[:2], nn.Parameter(torch.ones(5)))
    save(model, tmp_path / "c")
    again = load(build(), tmp_path / "c")
    thetas = [space.theta for _, space in subspaces(again)]
    assert thetas[0] is thetas[1] is not thetas[2]
    assert again[3].bias is again[2].bias
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))


class Eye(Offset):
    """An offset of somebody's own."""

    def forward(self):
        return torch.eye(*self.shape).to(self.like)


def test_plugins_of_ones_own_are_named_at_loading(tmp_path):
    layer = nn.Linear(4, 3)
    register(layer, "weight", Eye(layer.weight), Sparse(layer.weight, 2, key=Key(0)))
    save(layer, tmp_path / "c")
    with pytest.raises(
        ValueError, match="weight must fit the checkpoint's d and U, got: offset must be one of .*'Eye'"
    ):
        load(nn.Linear(4, 3), tmp_path / "c")
    assert torch.equal(load(nn.Linear(4, 3), tmp_path / "c", plugins=[Eye]).weight, layer.weight)


def rewritten(path, change) -> None:
    """Change the metadata of a checkpoint, leaving its tensors."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    about = json.loads(header["__metadata__"]["subspace"])
    change(about)
    text = header["__metadata__"]["subspace"] = json.dumps(about)
    header["__metadata__"]["digest"] = sealed.digest(text, load_file(path))
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + length :])


def other_key(about):
    about["spaces"]["5.weight"]["embedding"]["arguments"]["key"]["key"][0] += 1


def other_gain(about):
    about["spaces"]["5.weight"]["offset"]["arguments"]["gain"] = 1.01


def newer(about):
    about["format"] = 99


TAMPERED = {
    "U of 5.weight must be as it was saved, with fingerprint": other_key,
    "d of 5.weight must be as it was saved, with fingerprint": other_gain,
    "must be a checkpoint written by subspace.save, got format 99, of version .*; this one reads 4": newer,
}


def dct_and_sparse() -> nn.Module:
    model = net()
    register(model[5], "weight", DCT(model[5].weight), Sparse(model[5].weight, 30, key=Key(0)))
    return model


def tensors(model):
    return *model.named_parameters(), *model.named_buffers()


def refuses(model, path, error, kind=ValueError):
    before = {name: (id(t), t.clone()) for name, t in tensors(model)}, repr(model)
    with pytest.raises(kind, match=error) as raised:
        load(model, path)
    assert "\n" not in str(raised.value)
    now = dict(tensors(model))
    assert repr(model) == before[1]
    assert all(id(now[name]) == i and torch.equal(now[name], t) for name, (i, t) in before[0].items())


@pytest.mark.parametrize("error", TAMPERED)
def test_what_does_not_come_out_as_saved_is_refused(error, tmp_path):
    save(dct_and_sparse(), tmp_path / "c")
    rewritten(tmp_path / "c", TAMPERED[error])
    refuses(net(), tmp_path / "c", error)


def test_one_misplaced_entry_is_noticed(tmp_path):
    model = dct_and_sparse()
    index = model[5].parametrizations.weight[0].embedding.index
    for place in range(30):
        moved = index.clone()
        moved[place] = next(i for i in range(480) if i not in index.tolist())
        save(model, tmp_path / "c")
        held = load_file(tmp_path / "c") | {"x": moved.sort().values}
        about = json.loads(metadata(tmp_path / "c"))
        about["spaces"]["5.weight"]["embedding"] = {
            "kind": "embedding",
            "class": "Sparse",
            "arguments": {"index": {"tensor": "x"}},
        }
        text = json.dumps(about)
        save_file(held, tmp_path / "c", {"subspace": text, "digest": sealed.digest(text, held)})
        refuses(net(), tmp_path / "c", "U of 5.weight must be as it was saved")


def metadata(path) -> str:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])["__metadata__"]["subspace"]


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(fraction, tmp_path):
    path = tmp_path / "c"
    save(dct_and_sparse(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    refuses(net(), path, "must be a checkpoint written by subspace.save, got a damaged or foreign file")


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "c"
    save(dct_and_sparse(), path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    refuses(net(), path, "got content that differs from its digest")


def test_foreign_files_are_refused_and_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    (tmp_path / "pickle").write_bytes(pickle.dumps(Bomb()))
    torch.save({"w": torch.ones(2)}, tmp_path / "torch")
    save_file({"w": torch.ones(2)}, tmp_path / "foreign")
    for i, text in enumerate(("not json", "3", "{}")):
        save_file({"w": torch.ones(2)}, tmp_path / f"metadata{i}", {"subspace": text})
        refuses(net(), tmp_path / f"metadata{i}", "got damaged metadata")
    for name in ("pickle", "torch"):
        refuses(net(), tmp_path / name, "got a damaged or foreign file")
    refuses(net(), tmp_path / "foreign", "got another safetensors file")
    refuses(net(), tmp_path / "absent", "got no such file", FileNotFoundError)
    assert not (tmp_path / "exploded").exists()


def test_another_architecture_is_refused(tmp_path):
    save(RECIPES["dctps"](net()), tmp_path / "c")
    wide, short, long = net(), net()[:4], nn.Sequential(*net(), nn.Linear(5, 5))
    wide[5] = nn.Linear(96, 6)
    refuses(wide, tmp_path / "c", r"5.weight must|U of 5.weight|d of 5.weight|5.bias must be \(5,\)")
    refuses(short, tmp_path / "c", "the model must have the checkpoint's tensor 5.weight, got none of that name")
    refuses(long, tmp_path / "c", "must have the checkpoint's tensors, got a difference in 6.bias, 6.weight")
    refuses(RECIPES["dctps"](net()), tmp_path / "c", "model must be plain, as before register, got one with registered")
    with pytest.raises(ValueError, match="model must have at least one registered subspace, got none"):
        save(net(), tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_another_pretrained_model_is_refused(tmp_path):
    save(RECIPES["sparse_finetuning"](net(0)), tmp_path / "c")
    refuses(net(1), tmp_path / "c", "d of 0.weight must be as it was saved, with fingerprint")


def test_an_unwritable_path_is_one_sentence_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c"
    model = dct_and_sparse()
    save(model, path)
    before = path.read_bytes()
    with pytest.raises(OSError, match="path must be writable, got No such file or directory"):
        save(model, tmp_path / "no" / "such" / "c")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    model[5].parametrizations.weight.original.data += 1
    with pytest.raises(OSError, match="path must be writable, got No space left on device"):
        save(model, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


class Nudged(Offset):
    """The same d, every entry another way off by a unit in the last place."""

    def __init__(self, d: Offset) -> None:
        super().__init__(d.like.new_empty(d.shape), layout=d.layout)
        self.d = d

    def forward(self):
        d = self.d()
        return d * (1 + 2.0**-23 * torch.from_numpy(Key(1).signs(d.numel())).reshape(d.shape))


@given(st.floats(-1e12, 1e12), st.floats(1e-300, 1e12))
def test_a_fingerprint_in_a_file_is_near_enough_and_short(value, tolerance):
    kept = Probe(value, tolerance).rounded()
    assert abs(kept.value - value) <= tolerance / 100
    assert kept.tolerance == pytest.approx(tolerance, rel=0.01)
    assert kept.rounded() == kept
    if abs(value) < 1e5 * tolerance:
        assert float(f"{kept.value:.9g}") == kept.value


@each_offset
@pytest.mark.parametrize("shape", [(60, 80), (1, 900), (700, 3), (6, 5, 4, 4)])
def test_fingerprints_survive_another_platforms_rounding(case, shape):
    d = case.make(numbers(0, *shape).float(), Key(0))
    U = Sparse(torch.empty(shape), 3, key=Key(0))
    one, other = (fingerprint(each, U)["d"] for each in (d, Nudged(d)))
    assert abs(one.value - other.value) <= 0.05 * other.tolerance
    assert one.tolerance > 0 or not d().any()


@pytest.mark.parametrize("step", [1, 80, 81], ids=["in its row", "in its column", "elsewhere"])
def test_almost_any_misplaced_entry_is_noticed(step):
    like = torch.empty(60, 80)
    index = Sparse(like, 300, key=Key(0)).index
    places = set(index.tolist())

    def value(index):
        return fingerprint(DCT(like), Sparse(like, index=index))["U"]

    right, missed, moved = value(index), 0, 0
    for j in range(300):
        wrong = index.clone()
        wrong[j] = (index[j] + step) % 4800
        if wrong[j].item() not in places:
            moved += 1
            missed += abs(value(wrong).value - right.value) <= right.tolerance
    assert moved > 250
    assert missed <= 0.02 * moved


@each_embedding
def test_half_precision_checkpoints(case, tmp_path):
    layer = nn.Linear(8, 6).bfloat16()
    w = layer.weight
    register(layer, "weight", Pretrained(w), case.make(w, 9, Key(0)))
    save(layer, tmp_path / "c")
    base = materialize(copy.deepcopy(layer))
    base.weight.data = layer.parametrizations.weight[0].offset().clone()
    assert torch.equal(load(base, tmp_path / "c").weight, layer.weight)
