"""Networks to compare methods on: one function for each from a `Key` to a freshly initialised model, and yours.

A new one is a file and a line in `MODELS`. One of your own is named by its import path, as "mypkg.mymodule:build", and
one of torchvision, timm or transformers as "timm:resnet18" (`libraries`). A function is given by name those of
num_classes, input_shape, in_channels, image_size and key that it has a parameter for, and the options of its entry.
The logits are (n, num_classes), or (n, num_classes, length) of sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from subspace import Key
from subspace.study.data import Data
from subspace.study.entries.entry import Choice
from subspace.study.entries.lookup import lookup
from subspace.study.entries.options import call_with_options, require_options
from subspace.study.entries.seeding import seeded
from subspace.study.models.conv1d import conv1d
from subspace.study.models.fixup_resnet110 import fixup_resnet110
from subspace.study.models.gpt import gpt
from subspace.study.models.initialisation import draw_biases
from subspace.study.models.lenet5 import lenet5
from subspace.study.models.libraries import is_of_library, of_library, require_in_library
from subspace.study.models.lstm_lm import lstm_lm
from subspace.study.models.mlp import mlp
from subspace.study.models.mobilenet_v2 import mobilenet_v2
from subspace.study.models.resnet18 import resnet18
from subspace.study.models.resnet20 import resnet20
from subspace.study.models.resnet50 import resnet50
from subspace.study.models.vgg19 import vgg19
from subspace.study.models.vit_tiny import vit_tiny

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": lenet5,
    "mlp": mlp,
    "conv1d": conv1d,
    "lstm_lm": lstm_lm,
    "gpt": gpt,
    "resnet20": resnet20,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vgg19": vgg19,
    "mobilenet_v2": mobilenet_v2,
    "fixup_resnet110": fixup_resnet110,
    "vit_tiny": vit_tiny,
}
__all__ = ["MODELS", "build", *MODELS]


def build(choice: Choice, data: Data, key: Key) -> nn.Module:
    """The choice's model for this data, initialised from the key; no global generator is moved.

    Those of `MODELS` have the option `biases`: "zero", or "uniform" as torch has them by default. ValueError for a name
    or an option that is not known, and for what is not a model.
    """
    facts, options = {**facts_of(data), "key": key}, dict(choice.options)
    biases = options.pop("biases", "zero") if choice.name in MODELS else "zero"
    if biases not in ("zero", "uniform"):
        raise ValueError(f"biases must be zero or uniform, got {biases!r}")
    with seeded(key):
        if is_of_library(choice.name):
            model = of_library(choice.name, facts, choice.options)
        else:
            model = call_with_options(find(choice.name), Choice(choice.name, options), facts)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__} from {choice.name!r}")
    if biases == "uniform":
        draw_biases(model, key)
    return model


def require(choice: Choice) -> None:
    """ValueError if there is no such model, by name, at its import path or in its library, or it has no such option."""
    if is_of_library(choice.name):
        return require_in_library(choice.name)
    require_options(find(choice.name), choice, ["biases"] if choice.name in MODELS else [])


def facts_of(data: Data) -> dict[str, Any]:
    """What a model may want to know: num_classes, input_shape, and of images or signals in_channels and image_size.

    image_size is one number where all sides are equal, and all of them where they are not.
    """
    shape = tuple(data.train.batch(torch.tensor([0]))[0].shape[1:])
    facts: dict[str, Any] = {"num_classes": data.num_classes, "input_shape": shape}
    if len(shape) > 1:
        facts |= {"in_channels": shape[0], "image_size": shape[1] if len({*shape[1:]}) == 1 else shape[1:]}
    return facts


def find(name: str) -> Callable[..., nn.Module]:
    """The function called `name` or at that import path; ValueError with the names, and the nearest, if none."""
    found = lookup(name, MODELS, "model", importable=True)
    if not callable(found):
        raise ValueError(f"model must be a function that returns one, got {type(found).__name__} at {name!r}")
    return found
