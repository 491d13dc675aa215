"""Checkpoints under hostile conditions: files that change, files that lie, arguments that cannot come back."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
from safetensors.torch import load as read
from safetensors.torch import save as written
from torch import Tensor, nn

from subspace import Key, SubspaceParametrization, load, recipes, register, save, summary
from subspace._base import files
from subspace.checkpoint import sealed
from subspace.embeddings import Embedding, Sparse
from subspace.offsets import DCT, Offset, Zero
from tests.support.cases import EMBEDDINGS, OFFSETS, rest_slow
from tests.support.strategies import numbers

PARTS = [*OFFSETS, *EMBEDDINGS]


def layer() -> nn.Linear:
    module = nn.Linear(8, 6).double()
    module.weight.data = numbers(0, 6, 8)
    return module


def registered(part) -> nn.Linear:
    """A layer with that offset or embedding."""
    module = layer()
    offset = part.make(module.weight, Key(4)) if part in OFFSETS else Zero(module.weight)
    embedding = (part if part in EMBEDDINGS else EMBEDDINGS[1]).make(module.weight, 9, Key(4))
    register(module, "weight", offset, embedding, numbers(3, embedding.dim))
    return module


def net() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(numbers(i, *parameter.shape))
    return model


MODELS = {
    "dctps": lambda: recipes.dctps(net(), dim=20),
    "random_subspace": lambda: recipes.random_subspace(net(), dim=20),
    "sparse_finetuning": lambda: recipes.sparse_finetuning(net(), dim=20),
}


def everything(model: nn.Module) -> dict[str, Tensor]:
    """All that a model computes with, copied."""
    x = numbers(9, 5, 8)
    output = model.eval()(x.to(next(model.parameters()).dtype))
    return {"output": output.detach().clone(), **{k: v.clone() for k, v in model.state_dict().items()}}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(map(torch.equal, one.values(), other.values()))


def cases():
    yield from ((part.name, lambda part=part: registered(part), layer) for part in PARTS)
    yield from ((name, make, net) for name, make in MODELS.items())


CASES = list(cases())
SOME = rest_slow(CASES, CASES[::3])


@pytest.mark.parametrize("name, make, plain", SOME, ids=lambda case: case if isinstance(case, str) else "")
def test_a_loaded_model_and_its_file_are_independent(name, make, plain, tmp_path):
    path = tmp_path / "c"
    save(make(), path)
    model = load(plain(), path)
    before = everything(model)
    content = path.read_bytes()
    with path.open("r+b") as file:  # in place: what is mapped would change
        file.write(bytes(255 - byte for byte in content))
    assert same(everything(model), before)
    with path.open("r+b") as file:
        file.truncate(0)
    assert same(everything(model), before)
    path.write_bytes(content)
    with torch.no_grad():
        for tensor in model.state_dict(keep_vars=True).values():
            if tensor.is_floating_point():
                tensor.add_(1)
    assert path.read_bytes() == content


class RefusedError(Exception):
    """A refusal as it must be."""


def loaded(model: nn.Module, path, plugins=()) -> dict[str, Tensor]:
    """What the loaded model computes with; raises RefusedError where it is a sentence and the model as it was."""
    before, shown = copy.deepcopy(model.state_dict()), repr(model)
    objects = {name: id(t) for name, t in model.state_dict(keep_vars=True).items()}
    needs = [p.requires_grad for p in model.parameters()]
    try:
        return everything(load(model, path, plugins))
    except ValueError as error:
        message = str(error)
        assert len(message) < 400
        assert "\n" not in message
        now = model.state_dict(keep_vars=True)
        assert repr(model) == shown
        assert {name: id(t) for name, t in now.items()} == objects
        assert same({name: t.detach() for name, t in now.items()}, before)
        assert [p.requires_grad for p in model.parameters()] == needs
        raise RefusedError(message) from error


def parts_of(content: bytes) -> tuple[dict, dict[str, Tensor]]:
    """The description in a checkpoint, and its tensors."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["subspace"]), read(content)


def resealed(about: object, tensors: dict[str, Tensor]) -> bytes:
    """A checkpoint with that description (or its text) and these tensors, whose digest is right."""
    text = about if isinstance(about, str) else json.dumps(about)
    return written(tensors, {"subspace": text, "digest": sealed.digest(text, tensors)})


def flipped(content: bytes, bit: int) -> bytes:
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


@pytest.mark.parametrize("name, make, plain", SOME, ids=lambda case: case if isinstance(case, str) else "")
def test_a_flipped_bit_is_refused_or_changes_nothing(name, make, plain, tmp_path):
    path, model = tmp_path / "c", make()
    save(model, path)
    content, wanted = path.read_bytes(), everything(model)
    for bit in random.Random(0).sample(range(8 * len(content)), 20):
        path.write_bytes(flipped(content, bit))
        with contextlib.suppress(RefusedError):
            assert same(loaded(plain(), path), wanted), bit


def test_a_flipped_bit_does_not_tie_two_layers(tmp_path):
    path, model = tmp_path / "c", MODELS["dctps"]()
    save(model, path)
    content = path.read_bytes()
    assert content.count(b"theta:2.weight") == 2  # the reference and the tensor
    path.write_bytes(content.replace(b"theta:2.weight", b"theta:0.weight", 1))
    with pytest.raises(RefusedError, match="got content that differs from its digest|damaged"):
        loaded(net(), path)


@pytest.mark.parametrize("name, make, plain", SOME, ids=lambda case: case if isinstance(case, str) else "")
def test_a_tensor_of_another_shape_or_dtype_is_refused(name, make, plain, tmp_path):
    path = tmp_path / "c"
    save(make(), path)
    about, tensors = parts_of(path.read_bytes())
    for key, tensor in tensors.items():
        longer = torch.cat([tensor.flatten(), tensor.new_zeros(1)])
        for other in (tensor[..., :-1] if tensor.ndim else longer, longer, tensor.int(), tensor[None], tensor.bool()):
            if (other.shape, other.dtype) != (tensor.shape, tensor.dtype):
                path.write_bytes(resealed(about, tensors | {key: other.contiguous()}))
                with pytest.raises(RefusedError):
                    loaded(plain(), path)
        path.write_bytes(resealed(about, {k: t for k, t in tensors.items() if k != key}))
        with pytest.raises(RefusedError):
            loaded(plain(), path)


class Plug(Offset):
    """An offset that takes anything."""

    def __init__(self, like, value=None):
        super().__init__(like)
        self.value = value

    def forward(self):
        return torch.ones(self.shape).to(self.like)


class Splat(Plug):
    def __init__(self, like, *value):
        super().__init__(like, value)


class Options(Plug):
    def __init__(self, like, **value):
        super().__init__(like, value)


class First(Plug):
    def __init__(self, value, /, like):
        super().__init__(like, value)


class Forgets(Plug):
    def __init__(self, like, value, other=1):
        super().__init__(like, value)


class Rotated(Embedding):
    """An embedding of an embedding, which says its dim as well."""

    def __init__(self, like, embedding, dim):
        super().__init__(like, dim)
        self.embedding = embedding

    def forward(self, theta):
        return -self.embedding(theta)


class Wide(Plug):
    """An offset with a dim of its own, which is no theta's."""

    def __init__(self, like, dim):
        super().__init__(like)
        self.dim = dim


class Lines(Embedding):
    """An embedding with an argument of its own."""

    def __init__(self, like, value):
        super().__init__(like, 1)
        self.value = value

    def forward(self, theta):
        return theta * torch.ones(self.shape).to(self.like)


def quantized() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


LIKE = torch.empty(6, 8, dtype=torch.float64)
COMES_BACK = [
    *(None, True, False, 0, -1, 10**30, 0.1, float("inf"), "", "a word", '\u00e9\ud800\n"', Key(3, ("a", "b"))),
    *([], (), [1, 2], (1, (2, [3])), [(), [()]], torch.ones(3), torch.tensor(2), (torch.ones(2), "x"), torch.Size([2])),
    *(torch.empty(0), torch.ones(2, dtype=torch.bool), torch.ones(2, dtype=torch.complex64).conj(), DCT(LIKE)),
    *(
        torch.ones(2).expand(3, 2).contiguous(),
        torch.arange(6).view(2, 3).t(),
        [DCT(LIKE), Sparse(LIKE, 2, key=Key(0))],
    ),
]
DOES_NOT = [
    *({}, {"a": 1}, {1}, b"bytes", 1j, torch.float32, torch.device("cpu"), object, len, range(3), [{"a": 1}]),
    *((1, {2}), torch.ones(2, dtype=torch.complex128), torch.eye(2).to_sparse()),
    *(torch.ones(2, device="meta"), quantized()),
]


def with_argument(make, value) -> nn.Module:
    module = layer()
    register(module, "weight", make(module.weight, value), Sparse(module.weight, 4, key=Key(0)))
    return module


def equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, list | tuple):
        return isinstance(one, list) == isinstance(other, list) and all(map(equal, one, other))
    if isinstance(one, Offset | Embedding):
        return type(one) is type(other) and one.describe().keys() == other.describe().keys()
    return one == other and type(one) is type(other)


@pytest.mark.parametrize("value", COMES_BACK, ids=repr)
def test_an_argument_that_is_saved_comes_back_equal(value, tmp_path):
    save(with_argument(Plug, value), tmp_path / "c")
    again = load(layer(), tmp_path / "c", plugins=[Plug])
    assert equal(value, again.parametrizations.weight[0].offset.value)


@pytest.mark.parametrize("value", DOES_NOT, ids=repr)
def test_an_argument_that_would_not_come_back_is_not_saved(value, tmp_path):
    with pytest.raises(
        ValueError, match=r"weight must have a d and U that can be saved|must be a plain|must be of a dtype"
    ) as error:
        save(with_argument(Plug, value), tmp_path / "c")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [Splat, Options, First, Forgets, lambda like, value: Options(like, value=1)])
def test_arguments_that_have_no_name_are_not_saved(make, tmp_path):
    module = layer()
    d = make(3, module.weight) if make is First else Options(module.weight, a=1) if make is Options else make(LIKE, 3)
    register(module, "weight", d, Sparse(module.weight, 4, key=Key(0)))
    with pytest.raises(ValueError, match="weight must have a d and U that can be saved, got .*: .* must") as error:
        save(module, tmp_path / "c")
    assert "\n" not in str(error.value)
    assert repr(module)
    assert str(summary(module))


def test_an_embeddings_argument_comes_back_as_well(tmp_path):
    module = layer()
    register(module, "weight", Zero(module.weight), Lines(module.weight, (1, "a")))
    save(module, tmp_path / "c")
    again = load(layer(), tmp_path / "c", plugins=[Lines])
    assert again.parametrizations.weight[0].embedding.value == (1, "a")


@pytest.mark.parametrize("dim", [3, 1000, None, "x"])
def test_a_dim_is_that_of_theta_only_where_it_is(dim, tmp_path):
    module = layer()
    w = module.weight
    register(module, "weight", Wide(w, dim), Rotated(w, Sparse(w, 4, key=Key(0)), 4))
    save(module, tmp_path / "c")
    again = load(layer(), tmp_path / "c", plugins=[Wide, Rotated])
    assert torch.equal(again.weight, module.weight)


def nested(levels: int):
    value = 0
    for _ in range(levels):
        value = [value]
    return value


def test_arguments_in_arguments_are_saved_as_deep_as_they_are_loaded(tmp_path):
    for levels in (1, 8, 14):
        save(with_argument(Plug, nested(levels)), tmp_path / "c")
        again = load(layer(), tmp_path / "c", plugins=[Plug])
        assert again.parametrizations.weight[0].offset.value == nested(levels)
    with pytest.raises(ValueError, match="depth of the arguments must be such as a checkpoint can have"):
        save(with_argument(Plug, nested(15)), tmp_path / "c")


class Stateful(nn.Linear):
    def get_extra_state(self):
        return {"scale": 1}

    def set_extra_state(self, state):
        pass


def odd(change) -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2))
    recipes.dctps(model, dim=5, include=["0"])
    change(model[1])
    return model


NOT_SAVED = {
    "complex128": lambda m: m.register_buffer("b", torch.ones(2, dtype=torch.complex128)),
    "sparse": lambda m: m.register_buffer("b", torch.eye(2).to_sparse()),
    "sparse, frozen": lambda m: m.register_parameter("b", nn.Parameter(torch.eye(2).to_sparse(), False)),
    "quantized": lambda m: m.register_buffer("b", quantized()),
    "meta": lambda m: m.register_buffer("b", torch.ones(2, device="meta")),
    "meta, frozen": lambda m: m.register_parameter("b", nn.Parameter(torch.ones(2, device="meta"), False)),
    "expanded": lambda m: m.register_buffer("b", torch.ones(1).expand(3)),
    "extra state": lambda m: m.add_module("b", Stateful(2, 2)),
}
SAVED = {
    "conj": lambda m: m.register_buffer("b", torch.tensor([1 + 2j, 3j]).conj()),
    "neg": lambda m: m.register_buffer("b", torch.tensor([1 + 2j, 3j]).conj().imag),
    "NaN": lambda m: m.register_buffer("b", torch.tensor([1.0, float("nan")])),
    "trained inf": lambda m: m.register_parameter("b", nn.Parameter(torch.tensor([1.0, float("inf")]))),
    "frozen NaN": lambda m: m.register_parameter("b", nn.Parameter(torch.tensor([1.0, float("nan")]), False)),
    "frozen inf": lambda m: m.register_parameter("b", nn.Parameter(torch.tensor([1.0, float("inf")]), False)),
    "frozen complex": lambda m: m.register_parameter("b", nn.Parameter(torch.tensor([1 + 2j, 3j]), False)),
    "frozen integers": lambda m: m.register_parameter("b", nn.Parameter(torch.tensor([1, 2]), False)),
    "transposed": lambda m: m.register_buffer("b", torch.arange(6).view(2, 3).t()),
    "none": lambda m: m.register_buffer("b", None),
    "nothing": lambda m: m.register_buffer("b", torch.empty(0, 3)),
    "half": lambda m: m.register_buffer("b", torch.ones(2, dtype=torch.bfloat16)),
    "bool": lambda m: m.register_buffer("b", torch.tensor(True)),
}


@pytest.mark.parametrize("name", NOT_SAVED)
def test_what_would_not_come_back_is_not_saved(name, tmp_path):
    with pytest.raises(ValueError, match="must be") as error:
        save(odd(NOT_SAVED[name]), tmp_path / "c")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SAVED)
def test_any_other_tensor_comes_back_equal(name, tmp_path):
    model = odd(SAVED[name])
    save(model, tmp_path / "c")
    plain = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2))
    SAVED[name](plain[1])
    load(plain, tmp_path / "c")
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(plain.state_dict()[key], tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["sparse", "quantized", "expanded", "meta, frozen"])
def test_what_cannot_be_filled_is_refused(name, tmp_path):
    save(odd(lambda m: m.register_buffer("b", torch.ones(3))), tmp_path / "c")
    plain = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2))
    NOT_SAVED[name](plain[1])
    with pytest.raises(ValueError, match=r"1.b must "):
        load(plain, tmp_path / "c")
    assert not hasattr(plain[0], "parametrizations")


def test_a_d_that_is_not_finite_is_not_saved(tmp_path):
    class Broken(Plug):
        def forward(self):
            return super().forward() * float("nan")

    with pytest.raises(ValueError, match="d of weight must be finite to be recognised at loading"):
        save(with_argument(Broken, 1), tmp_path / "c")


def test_two_names_of_one_weight_are_not_registered_halfway(tmp_path):
    save(recipes.dctps(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), dim=6), tmp_path / "c")
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(RefusedError, match="0.weight must not be tied to another tensor"):
        loaded(tied, tmp_path / "c")


def test_a_buffer_that_is_an_argument_as_well_comes_back_as_both(tmp_path):
    def plain() -> nn.Module:
        model = layer()
        model.register_buffer("both", torch.arange(3.0))
        return model

    model = plain()
    d = Plug(model.weight, model.both)
    register(model, "weight", d, Sparse(model.weight, 4, key=Key(0)))
    save(model, tmp_path / "c")
    again = load(plain(), tmp_path / "c", plugins=[Plug])
    assert torch.equal(again.both, model.both)
    assert torch.equal(again.parametrizations.weight[0].offset.value, model.both)
    assert isinstance(again.parametrizations.weight[0], SubspaceParametrization)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077, 0])
def test_a_file_has_the_rights_that_any_other_would_have(umask, tmp_path):
    model, before = MODELS["dctps"](), os.umask(umask)
    try:
        (tmp_path / "any").write_bytes(b"")
        save(model, tmp_path / "c")
        assert mode(tmp_path / "c") == mode(tmp_path / "any") == 0o666 & ~umask
        for rights in (0o600, 0o644, 0o664, 0o640):
            (tmp_path / "c").chmod(rights)
            save(model, tmp_path / "c")
            assert mode(tmp_path / "c") == rights
    finally:
        os.umask(before)


def test_a_link_stays_one_and_its_target_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "c")
    for make in (MODELS["dctps"], MODELS["sparse_finetuning"]):  # the target is new, then there
        save(make(), tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert [path.name for path in (tmp_path / "there").iterdir()] == ["c"]
        assert same(everything(load(net(), tmp_path / "link")), everything(load(net(), tmp_path / "there" / "c")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]


@pytest.mark.parametrize("length", [1, 200, 246, 255])
def test_any_name_that_a_file_can_have(length, tmp_path):
    save(MODELS["dctps"](), tmp_path / ("n" * length))
    load(net(), tmp_path / ("n" * length))


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, got in (("pipe", "something that is no file"), ("folder", "something that is no file")):
        with pytest.raises(OSError, match=f"path must be writable, got {got}"):
            save(MODELS["dctps"](), tmp_path / name)
    with pytest.raises(OSError, match="path must be writable, got File name too long"):
        save(MODELS["dctps"](), tmp_path / ("n" * 256))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_the_folder_is_synced_after_the_file_has_its_name(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def record(descriptor: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), (tmp_path / "c").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    save(MODELS["dctps"](), tmp_path / "c")
    assert synced == [(False, False), (True, True)]


def test_where_no_file_can_be_nameless_it_is_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_nameless", lambda folder: None)
    save(MODELS["dctps"](), tmp_path / "c")
    save(MODELS["dctps"](), tmp_path / "c")
    load(net(), tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


SAVER = """
import sys, torch
from torch import nn
from subspace import recipes, save
model = recipes.ordinary(nn.Linear(2000, 2000))
print("ready", flush=True)
while True:
    save(model, sys.argv[1])
"""


@pytest.mark.crash
def test_a_killed_save_leaves_nothing_behind(tmp_path):
    if files._nameless(tmp_path) is None:
        pytest.skip("this file system has no nameless files")
    for seed in range(2):
        process = subprocess.Popen([sys.executable, "-c", SAVER, tmp_path / "c"], stdout=subprocess.PIPE)
        assert process.stdout.readline()
        time.sleep(0.02 + 0.05 * random.Random(seed).random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert [path.name for path in tmp_path.iterdir()] in ([], ["c"])
    if (tmp_path / "c").exists():
        load(nn.Linear(2000, 2000), tmp_path / "c")


@pytest.mark.slow
def test_files_that_are_exchanged_while_they_are_read_are_one_or_the_other(tmp_path):
    contents = []
    for make in (MODELS["dctps"], MODELS["random_subspace"]):
        save(make(), tmp_path / "c")
        contents.append((tmp_path / "c").read_bytes())
    done = threading.Event()

    def exchange() -> None:
        while not done.is_set():
            for content in contents:
                (tmp_path / "new").write_bytes(content)
                os.replace(tmp_path / "new", tmp_path / "c")

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        for _ in range(100):
            load(net(), tmp_path / "c")
    finally:
        done.set()
        thread.join()
