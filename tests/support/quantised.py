"""Ways to quantise the linear layers of a model, in place, by the libraries that do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from subspace import from_bitsandbytes


def _torchao(config: str) -> Callable[[nn.Module], nn.Module]:
    def quantise(model: nn.Module) -> nn.Module:
        quantization = pytest.importorskip("torchao.quantization")
        quantization.quantize_(model, getattr(quantization, config)())
        return model

    return quantise


def by_bitsandbytes(model: nn.Module, kind: str, **options: Any) -> nn.Module:
    """A Sequential with that library's layers in place of the linear ones, as it makes them."""
    layers = getattr(pytest.importorskip("bitsandbytes").nn, kind)
    for i, layer in enumerate(model):
        if isinstance(layer, nn.Linear):
            made = layers(layer.in_features, layer.out_features, layer.bias is not None, **options)
            made.load_state_dict(layer.state_dict())
            model[i] = made.to(layer.weight.device, layer.weight.dtype).requires_grad_(False)
    return model


def _bitsandbytes(kind: str, **options: Any) -> Callable[[nn.Module], nn.Module]:
    return lambda model: from_bitsandbytes(by_bitsandbytes(model, kind, **options))


TORCHAO = {name: _torchao(name) for name in ("Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig")}
BITSANDBYTES = {
    "nf4": ("Linear4bit", {"quant_type": "nf4", "compress_statistics": False}),
    "nf4, scales too": ("Linear4bit", {"quant_type": "nf4", "compress_statistics": True}),
    "fp4": ("Linear4bit", {"quant_type": "fp4"}),
    "int8": ("Linear8bitLt", {"has_fp16_weights": False}),
    "int8 with outliers": ("Linear8bitLt", {"has_fp16_weights": False, "threshold": 6.0}),
}
QUANTISERS = TORCHAO | {name: _bitsandbytes(kind, **options) for name, (kind, options) in BITSANDBYTES.items()}
