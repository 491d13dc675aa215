"""Files that were damaged, and files that lie with a digest that is right: loaded as saved, or refused in a sentence.

A refusal leaves the model as it was, and no file makes `load` draw, hold or recurse beyond its size and the model's.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from subspace import Key, load, recipes, register, save
from subspace.embeddings import SRHT, Direction, DirectSum, FourierFT, Gaussian, Scaled, Sparse
from subspace.offsets import DCT, RankOne, SignedDCT, Zero
from tests.core.test_file_laws import RefusedError, everything, flipped, loaded, parts_of, resealed, same
from tests.support.memory import peak_bytes


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 4)).double().eval()


def registered(*makes: Callable[[Tensor], Any]) -> nn.Module:
    """Both layers, each with the d and U that are made for it."""
    model = plain()
    for layer, make in zip((model[0], model[2]), makes, strict=True):
        d, U = make(layer.weight)
        register(layer, "weight", d, U, torch.linspace(-1, 1, U.dim, dtype=torch.float64))
    return model


KEY = Key(3, ("a",))
MODELS: dict[str, Callable[[], nn.Module]] = {
    "dctps": lambda: recipes.dctps(plain(), dim=8),
    "random_subspace": lambda: recipes.random_subspace(plain(), dim=5),
    "an index": lambda: registered(
        lambda w: (DCT(w), Sparse(w, index=torch.tensor([1, 5, 7]))),
        lambda w: (Zero(w), Scaled(SRHT(w, 3, key=KEY), torch.ones(3).double())),
    ),
    "sums": lambda: registered(
        lambda w: (SignedDCT(w, key=KEY), DirectSum([Direction(RankOne(w, key=KEY)), FourierFT(w, 3, key=KEY)])),
        lambda w: (Zero(w), Gaussian(w, 4, key=KEY)),
    ),
}
JUNK: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        10**400,
        1e308,
        0.5,
        float("nan"),
        float("inf"),
        "",
        "x",
        "a\nb",
        "\x1b]0;\x07",
    ),
    *(
        [],
        {},
        [[]],
        [0] * 50,
        {"key": []},
        {"key": [0, 1]},
        {"tensor": "0"},
        {"tuple": 3},
        {"tensor": None},
        "y" * 5000,
    ),
    *({"kind": "offset", "class": "DCT", "arguments": {}}, {"kind": "embedding", "class": "Identity", "arguments": {}}),
    *(
        {"kind": "offset", "class": "__class__", "arguments": {}},
        {"kind": "offset", "class": "Offset", "arguments": {}},
    ),
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    found = []
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found += [(value, key), *places(value[key])]
    return found


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def lie(about: Any, tensors: dict[str, Tensor], g: random.Random) -> tuple[Any, dict[str, Tensor]]:
    """One or several things changed in what a file says or holds."""
    about, tensors = copy.deepcopy(about), dict(tensors)
    for _ in range(g.choice([1, 1, 1, 2, 4])):
        container, key = g.choice(places(about))
        other, there = g.choice(places(about))
        kind = g.randrange(9)
        if kind < 3:
            container[key] = copy.deepcopy(g.choice(JUNK))
        elif kind == 3:
            container[key] = copy.deepcopy(other[there])
        elif kind == 4 and isinstance(container, dict):
            container[g.choice([*container, "x", "of", "dim", "stored", "keep", "gain", "index", "scale"])] = g.choice(
                JUNK
            )
        elif kind == 5 and isinstance(container, dict):
            del container[key]
        elif kind == 6:
            container[key] = nested(g.choice([5, 30, 400]))
        elif kind == 7 and isinstance(container[key], int | float):
            container[key] = container[key] * g.choice([-1, 2, 1000, 10**9])
        else:
            name = g.choice(list(tensors))
            one = tensors[name]
            tensors[name] = g.choice(
                [
                    one[None],
                    one.flatten()[:-1],
                    one.float(),
                    one.long(),
                    torch.zeros(3),
                    one * float("nan"),
                    one * 0,
                    one - 1,
                ]
            ).contiguous()
    return about, tensors


def damaged(content: bytes, g: random.Random) -> bytes:
    """Bytes flipped, cut out, put in, exchanged, or cut off."""
    first, last = sorted(g.randrange(len(content) + 1) for _ in range(2))
    noise = g.randbytes(g.choice([1, 8, 100]))
    changes = [
        lambda: flipped(content, g.randrange(8 * len(content))),
        lambda: content[:first],
        lambda: content[:first] + content[last:],
        lambda: content[:first] + noise + content[first:],
        lambda: content[:first] + noise + content[first + len(noise) :],
        lambda: content[:first] + content[last:] + content[first:last],
        lambda: noise + content,
    ]
    return g.choice(changes)()


def fuzz(path, seeds: range) -> None:
    files = {}
    for name, make in MODELS.items():
        model = make().eval()
        save(model, path)
        files[name] = path.read_bytes(), everything(model)
    for seed in seeds:
        g = random.Random(seed)
        content, wanted = files[g.choice(list(files))]
        honest = g.random() < 0.3
        path.write_bytes(damaged(content, g) if honest else resealed(*lie(*parts_of(content), g)))
        start = time.process_time()
        with contextlib.suppress(RefusedError):
            found = loaded(plain(), path)
            assert not honest or same(found, wanted), seed
        assert time.process_time() - start < 2, seed


@pytest.mark.slow
def test_a_mutated_file_is_loaded_or_refused(tmp_path):
    fuzz(tmp_path / "c", range(1000))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_flipped_bit_of_any_byte_is_refused_or_changes_nothing(name, tmp_path):
    path, model = tmp_path / "c", MODELS[name]().eval()
    save(model, path)
    content, wanted = path.read_bytes(), everything(model)
    for bit in (8 * place + place % 8 for place in range(len(content))):
        path.write_bytes(flipped(content, bit))
        with contextlib.suppress(RefusedError):
            assert same(loaded(plain(), path), wanted), bit


def part(kind: str, name: str, **arguments: Any) -> dict[str, Any]:
    return {"kind": kind, "class": name, "arguments": arguments}


def deep(levels: int) -> Any:
    inner = part("embedding", "Gaussian", dim=3, key={"key": [0]})
    for _ in range(levels):
        inner = part("embedding", "Scaled", embedding=inner, scale={"tensor": "scale"})
    return inner


GREEDY = {
    "dim": part("embedding", "Gaussian", dim=4_000_000, key={"key": [0]}, of=10**13),
    "stored": part("embedding", "Gaussian", dim=4_000_000, key={"key": [0]}, stored=True),
    "of": part("embedding", "SRHT", dim=10**13, key={"key": [0]}, of=10**14),
    "places": part("embedding", "Sparse", dim=4_000_000, key={"key": [0]}),
    "waves": part("embedding", "FourierFT", dim=2_000_000, key={"key": [0]}),
    "many": part(
        "embedding",
        "DirectSum",
        embeddings=[part("embedding", "Gaussian", dim=3, key={"key": [i]}) for i in range(10_000)],
    ),
    "many lines": part(
        "embedding",
        "DirectSum",
        embeddings=[
            part("embedding", "Direction", offset=part("offset", "Gaussian", key={"key": [i]}, keep=True))
            for i in range(10_000)
        ],
    ),
    "less than nothing": part(
        "embedding",
        "DirectSum",
        embeddings=[part("embedding", "Gaussian", dim=dim, key={"key": [0]}) for dim in (4_000_000, -4_000_000)],
    ),
    "deep": deep(300),
    "deep lists": part("embedding", "Gaussian", dim=nested(900), key={"key": [0]}),
    "a long key": part("embedding", "Gaussian", dim=3, key={"key": [10**4000, *"a" * 10_000]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GREEDY)
def test_no_file_makes_load_work_beyond_its_size(name, tmp_path, monkeypatch):
    path, size = tmp_path / "c", 2000
    module = nn.Linear(size, size, bias=False)
    register(module, "weight", Zero(module.weight), Sparse(module.weight, 3, key=Key(0)))
    save(module, path)
    about, tensors = parts_of(path.read_bytes())
    about["spaces"]["weight"]["embedding"] = GREEDY[name]
    path.write_bytes(resealed(about, tensors | {"scale": torch.ones(3)}))
    drawn = []
    bits = Key.bits
    monkeypatch.setattr(Key, "bits", lambda key, n, start=0: drawn.append(n) or bits(key, n, start))
    base = nn.Linear(size, size, bias=False)

    def attempt() -> None:
        with pytest.raises(ValueError, match="must"):
            load(base, path)

    assert peak_bytes(attempt) < 20 * size**2 + 20 * path.stat().st_size
    assert sum(drawn) <= 4 * size**2


@pytest.mark.parametrize("levels", [100, 10_000, 1_000_000])
def test_no_depth_of_json_is_too_much(levels, tmp_path):
    path = tmp_path / "c"
    save(MODELS["dctps"](), path)
    about, tensors = parts_of(path.read_bytes())
    text = json.dumps(about).replace('"dim": 4', '"dim": ' + "[" * levels + "]" * levels)
    assert len(text) > levels
    path.write_bytes(resealed(text, tensors))
    with pytest.raises(RefusedError):
        loaded(plain(), path)
