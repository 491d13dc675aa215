"""What the library is compared with: other designs of the same layers, re-stated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

PRUNABLE = (nn.Conv2d, nn.Linear)


class TwoDense(nn.Module):
    """scale * dct(x) + sparse(x), two dense layers, as in the public code of DCTpS (github.com/IlanPrice/DCTpS).

    The DCT is a dense weight that is not trained; S is a dense weight whose entries outside the support are zero, and
    whose gradient is multiplied by the mask in a hook.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, density: float, seed: int = 0) -> None:
        super().__init__()
        self.sparse, self.dct = layer, twin(layer)
        self.dct.weight = nn.Parameter(dct_weight(layer.weight), requires_grad=False)
        self.scaling = nn.Parameter(layer.weight.new_tensor(1.0))
        mask = random_mask(layer.weight, density, seed)
        with torch.no_grad():
            layer.weight.zero_()
        layer.weight.register_hook(lambda gradient: gradient * mask)
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.scaling * self.dct(x) + self.sparse(x)
        return y


def twin(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """The same layer without a bias, its weight not yet filled."""
    with torch.device("meta"):
        if isinstance(layer, nn.Linear):
            return nn.Linear(layer.in_features, layer.out_features, bias=False)
        shape = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride
        return nn.Conv2d(*shape, layer.padding, layer.dilation, layer.groups, bias=False)


def dct_weight(like: Tensor) -> Tensor:
    """The truncated orthonormal DCT-II in the shape of a weight, patches with the channel fastest."""
    n_out, n_in = like.shape[0], like[0].numel()
    dtype = np.float64 if like.dtype == torch.float64 else np.float32
    matrix = scipy.fft.dct(np.eye(n_in, max(n_in, n_out), dtype=dtype), norm="ortho", overwrite_x=True)[:, :n_out]
    weight = torch.from_numpy(matrix).to(like.dtype).T
    return weight.reshape(n_out, *like.shape[2:], like.shape[1]).movedim(-1, 1).contiguous()


def random_mask(weight: Tensor, density: float, seed: int) -> Tensor:
    """Ones at round(density * numel) random places, zeros elsewhere."""
    places = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(weight.numel(), dtype=weight.dtype)
    mask[places[: round(density * weight.numel())]] = 1
    return mask.reshape(weight.shape)


def authors(model: nn.Module, density: float) -> nn.Module:
    """The model with every convolution and linear layer as `TwoDense`."""
    return replaced(model, lambda layer: TwoDense(layer, density))


def pruned(model: nn.Module, density: float) -> nn.Module:
    """The model with a random mask of `torch.nn.utils.prune` on every convolution and linear layer."""
    return replaced(model, lambda layer: prune.random_unstructured(layer, "weight", amount=1 - density))


def replaced(model: nn.Module, new: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The model with new(layer) in place of every convolution and linear layer, the model itself included."""
    if isinstance(model, PRUNABLE):
        return new(model)
    for name, child in model.named_children():
        setattr(model, name, replaced(child, new))
    return model


def dense_fourier_ft(c: Tensor, index: Tensor, shape: tuple[int, int], scaling: float, x: Tensor) -> Tensor:
    """x (scaling Re IFFT2(spectrum))^T as in peft's FourierFT (Gao et al. 2024): dense spectrum, then dense weight.

    c: (dim,), at the flat places `index` of the spectrum of `shape` = (n_out, n_in); x: (..., n_in) -> (..., n_out).
    """
    spectrum = torch.zeros(shape, device=c.device)
    spectrum[index // shape[1], index % shape[1]] = c.float()
    delta: Tensor = torch.fft.ifft2(spectrum).real * scaling
    return F.linear(x, delta.to(x.dtype))
