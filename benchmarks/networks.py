"""The networks of the benchmarks, re-stated: those of the DCTpS experiments, for 32 x 32 images, and a ViT's MLPs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """body(x) + shortcut(x)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) + self.shortcut(x)
        return y


def normed(c_in: int, c_out: int, k: int, stride: int = 1, groups: int = 1, relu: bool = True) -> Iterator[nn.Module]:
    """A convolution without bias, a batch-norm and, unless told otherwise, a ReLU."""
    yield nn.Conv2d(c_in, c_out, k, stride, padding=k // 2, groups=groups, bias=False)
    yield nn.BatchNorm2d(c_out)
    if relu:
        yield nn.ReLU(inplace=True)


def head(features: int, classes: int) -> list[nn.Module]:
    """Global average pooling and the classifier."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)]


def resnet50(classes: int = 100, stem: str = "cifar") -> nn.Sequential:
    """ResNet50 (He et al. 2016); the stem is 3 x 3 without pooling for "cifar", 7 x 7 and pooled for "imagenet"."""
    if stem not in ("cifar", "imagenet"):
        raise ValueError(f"stem must be 'cifar' or 'imagenet', got {stem!r}")
    layers = list(normed(3, 64, 3) if stem == "cifar" else normed(3, 64, 7, 2))
    if stem == "imagenet":
        layers.append(nn.MaxPool2d(3, 2, padding=1))
    channels = 64
    for width, blocks, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for stride in (first, *[1] * (blocks - 1)):
            body = [*normed(channels, width, 1), *normed(width, width, 3, stride)]
            body += normed(width, 4 * width, 1, relu=False)
            same = channels == 4 * width
            shortcut = None if same else nn.Sequential(*normed(channels, 4 * width, 1, stride, relu=False))
            layers += [Residual(nn.Sequential(*body), shortcut), nn.ReLU(inplace=True)]
            channels = 4 * width
    return nn.Sequential(*layers, *head(channels, classes))


def mobilenetv2(classes: int = 10) -> nn.Sequential:
    """MobileNetV2 (Sandler et al. 2018) as in the DCTpS experiments: a 1 x 1 shortcut where a stride-1 block widens."""
    layers, channels = list(normed(3, 32, 3)), 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, c_out, blocks, first in stages:
        for stride in (first, *[1] * (blocks - 1)):
            wide = expansion * channels
            body = [*normed(channels, wide, 1), *normed(wide, wide, 3, stride, groups=wide)]
            block = nn.Sequential(*body, *normed(wide, c_out, 1, relu=False))
            shortcut = None if channels == c_out else nn.Sequential(*normed(channels, c_out, 1, relu=False))
            layers.append(Residual(block, shortcut) if stride == 1 else block)
            channels = c_out
    return nn.Sequential(*layers, *normed(channels, 1280, 1), *head(1280, classes))


def vgg19(classes: int = 10) -> nn.Sequential:
    """VGG19 with batch-norm (Simonyan and Zisserman 2015) and one linear layer."""
    layers: list[nn.Module] = []
    channels = 3
    for stage, (width, convolutions) in enumerate(((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))):
        layers += [nn.MaxPool2d(2)] if stage else []
        for _ in range(convolutions):
            layers += normed(channels, width, 3)
            channels = width
    return nn.Sequential(*layers, *head(channels, classes))


def vit_mlps(depth: int = 12, width: int = 768) -> nn.Sequential:
    """The MLP blocks of ViT-B/16 (Dosovitskiy et al. 2021), without its attention: (N, tokens, width) -> the same."""

    def block() -> nn.Sequential:
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    return nn.Sequential(*(Residual(block()) for _ in range(depth)))


# name -> the network and the shape of one example
NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "resnet50": (resnet50, (3, 32, 32)),
    "mobilenetv2": (mobilenetv2, (3, 32, 32)),
    "vgg19": (vgg19, (3, 32, 32)),
    "vit": (vit_mlps, (197, 768)),
    "resnet50-imagenet": (lambda: resnet50(1000, "imagenet"), (3, 224, 224)),
}


def layers(model: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """The distinct convolutions and linear layers by label, each with the shape of one example of its input."""
    found: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        size = tuple(inputs[0].shape[1:])
        found.setdefault(label(module, size), (module, size))

    prunable = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [module.register_forward_pre_hook(note) for module in prunable]
    with torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    model.train()
    return found


def label(module: nn.Module, shape: tuple[int, ...]) -> str:
    """A layer in words, as "3x3 64->128 @32 s2" (stride 2 on 32 x 32 pixels) or "linear 512->10"."""
    if isinstance(module, nn.Linear):
        return f"linear {module.in_features}->{module.out_features}"
    assert isinstance(module, nn.Conv2d)
    (k, _), (stride, _) = module.kernel_size, module.stride
    marks = [f" s{stride}"] * (stride > 1) + [f" g{module.groups}"] * (module.groups > 1)
    return f"{k}x{k} {module.in_channels}->{module.out_channels} @{shape[-1]}{''.join(marks)}"


def mlp(width: int, depth: int) -> nn.Sequential:
    """Linear layers of one width with ReLUs behind them."""
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())))


class Attention(nn.Module):
    """Multi-head self-attention with a linear layer each for queries, keys, values and the output."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(-2)
        z: Tensor = self.output(y)
        return z


def transformer(width: int, depth: int, heads: int, causal: bool) -> nn.Sequential:
    """Pre-norm blocks of attention and an MLP four times as wide."""
    blocks: list[nn.Module] = []
    for _ in range(depth):
        blocks.append(Residual(nn.Sequential(nn.LayerNorm(width), Attention(width, heads, causal))))
        mlp = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        blocks.append(Residual(nn.Sequential(nn.LayerNorm(width), *mlp)))
    return nn.Sequential(*blocks, nn.LayerNorm(width))


def gpt(width: int = 1024, depth: int = 12, heads: int = 16, words: int = 8192) -> nn.Sequential:
    """A GPT (Radford et al. 2019) of so many layers, without positions: (N, length) -> (N, length, words)."""
    return nn.Sequential(nn.Embedding(words, width), transformer(width, depth, heads, True), nn.Linear(width, words))


class Patches(nn.Module):
    """(N, 3, H, W) -> (N, tokens, width) by 16 x 16 patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, width, 16, stride=16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(x).flatten(2).transpose(1, 2)
        return y


class Mean(nn.Module):
    """The mean over the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def vit_b16(classes: int = 1000) -> nn.Sequential:
    """ViT-B/16 (Dosovitskiy et al. 2021) with the mean of the tokens in the place of a class token."""
    return nn.Sequential(Patches(768), transformer(768, 12, 12, False), Mean(), nn.Linear(768, classes))
