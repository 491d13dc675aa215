"""Models of torchvision, timm and transformers by name, where they are installed, without pretrained weights.

| entry                     | what it is                                               | options are those of     |
|---------------------------|----------------------------------------------------------|--------------------------|
| torchvision:resnet18      | torchvision.models.get_model("resnet18"); for 3 channels | its builder              |
| timm:vit_tiny_patch16_224 | timm.create_model("vit_tiny_patch16_224")                | its class                |
| transformers:vit          | AutoModelForImageClassification of a "vit" configuration | AutoConfig.for_model     |

The number of classes is the data's; so are the channels and the size of an image where the model has them to choose.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from subspace.study.entries.lookup import require_known

Options = Mapping[str, Any]


def torchvision(name: str, facts: Options, options: Options) -> nn.Module:
    """A model of `torchvision.models`."""
    models = installed("torchvision").models
    if facts.get("in_channels") != 3:
        raise ValueError(f"data must have 3 channels for torchvision:{name}, got {facts.get('in_channels', 'none')}")
    size = {"image_size": facts["image_size"]} if name.startswith("vit") else {}
    return models.get_model(name, **{"weights": None, "num_classes": facts["num_classes"], **size, **options})  # type: ignore[no-any-return]


def timm(name: str, facts: Options, options: Options) -> nn.Module:
    """A model of `timm`; those of a fixed size of images get the data's."""
    library = installed("timm")
    usual = library.get_pretrained_cfg(name)
    size = {"img_size": facts["image_size"]} if usual is not None and usual.fixed_input_size else {}
    given = {"pretrained": False, "num_classes": facts["num_classes"], "in_chans": facts["in_channels"], **size}
    return library.create_model(name, **{**given, **options})  # type: ignore[no-any-return]


def transformers(name: str, facts: Options, options: Options) -> nn.Module:
    """A model of `transformers` for image classification, that returns its logits."""
    library = installed("transformers")
    usual = library.AutoConfig.for_model(name)
    # a configuration keeps what it does not know
    known_options = [option for option in {*usual.to_dict(), *options} if hasattr(usual, option)]
    require_known(options, sorted(known_options), f"options of transformers:{name} must be")
    shared = {"in_channels": "num_channels", "image_size": "image_size"}
    given = {theirs: facts[ours] for ours, theirs in shared.items() if hasattr(usual, theirs)}
    # of several classes, as DeiT has, no architectures is the first, and None, the default, fails
    given |= {"num_labels": facts["num_classes"], "architectures": []}
    config = library.AutoConfig.for_model(name, **{**given, **options})
    return Logits(library.AutoModelForImageClassification.from_config(config))


class Logits(nn.Module):
    """Images -> the logits of a model of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images).logits
        return logits


LIBRARIES: dict[str, Callable[[str, Options, Options], nn.Module]] = {
    "torchvision": torchvision,
    "timm": timm,
    "transformers": transformers,
}
NAMES: dict[str, Callable[[Any], Collection[str]]] = {  # of the models that a library has
    "torchvision": lambda library: library.models.list_models(),
    "timm": lambda library: library.list_models(),
    "transformers": lambda library: [kind.model_type for kind in library.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING],
}


def is_of_library(entry: str) -> bool:
    """Whether a name is that of a library's model, LIBRARY:NAME."""
    return entry.partition(":")[0] in LIBRARIES


def require_in_library(entry: str) -> None:
    """ValueError if the library of an entry LIBRARY:NAME is not installed, or has no such model."""
    library, _, name = entry.partition(":")
    found = installed(library)
    if not (library == "timm" and found.is_model(name)):  # by a tag or an alias, which its list does not have
        require_known([name], NAMES[library](found), f"model must be one that {library} has:")


def of_library(entry: str, facts: Options, options: Options) -> nn.Module:
    """The model of an entry LIBRARY:NAME; ValueError if the library, the name or an option is not there.

    Its constructor may draw from the global generators: see `data.seeded`.
    """
    library, _, name = entry.partition(":")
    require_in_library(entry)
    if "in_channels" not in facts:
        raise ValueError(f"data must be images for {entry}, got inputs of shape {facts['input_shape']}")
    try:
        return LIBRARIES[library](name, facts, options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"options of {entry} must be those that it takes, got {dict(options)}: {error}") from error


def installed(library: str) -> Any:
    """The package; ValueError with the command that installs it, or with why it cannot be imported."""
    try:
        return import_module(library)
    except ModuleNotFoundError as missing:
        if missing.name == library:
            raise ValueError(f"{library} must be installed for its models, got none: pip install {library}") from None
        raise ValueError(f"{library} must be complete for its models, got: {missing}") from missing
    except Exception as error:  # one that is built for another torch
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise ValueError(f"{library} must be one that can be imported beside this torch, got {what}") from error
