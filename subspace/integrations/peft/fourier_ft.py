"""FourierFT: peft draws frequencies from the whole plane, of which (a, b) and (-a, -b) are one wave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from subspace.embeddings import Embedding, FourierFT
from subspace.embeddings.fourier_ft import frequency_places
from subspace.integrations.peft.tuner import Config, Layer, Pairs, Tensors, Tuner
from subspace.offsets import Pretrained
from subspace.parametrization import Subspace


class FourierFTTuner(Tuner):
    """Two frequencies of one wave are one number of theta, their sum."""

    peft_type = "FOURIERFT"
    suffixes = ("fourierft_spectrum",)
    options = frozenset({"n_frequency", "n_frequency_pattern", "scaling", "random_loc_seed", "init_weights"})

    def read(self, layer: Layer, tensors: Tensors, config: Config) -> tuple[Pairs, Tensor]:
        spectrum = tensors["fourierft_spectrum"].double()
        drawn = _drawn(*layer.fans, config["random_loc_seed"])[: len(spectrum)]
        index, place = torch.unique(drawn, return_inverse=True)
        d = Pretrained(layer.weight)
        U = FourierFT(layer.weight, index=index, scale=config["scaling"], layout=layer.layout)
        return {"weight": (d, U)}, spectrum.new_zeros(len(index)).index_add(0, place, spectrum)

    def takes(self, embedding: Embedding) -> bool:
        return isinstance(embedding, FourierFT) and embedding.matrices == 1

    def write(self, spaces: Mapping[str, Subspace], config: dict[str, Any]) -> dict[str, Tensor]:
        counts, written = {}, {}
        scaling = next((U.scale for space in spaces.values() if (U := _waves(space)).scale is not None), 150.0)
        for name, space in spaces.items():
            U = _waves(space)
            drawn = _drawn(*U.fans, self.seed)
            a, b = U.frequencies.cpu().T
            mine = frequency_places(a, b, *U.fans)
            first = {place: at for at, place in reversed([*enumerate(drawn.tolist())])}
            at = torch.tensor([first[place] for place in mine.tolist()])
            count = int(at.max()) + 1
            if len(torch.unique(drawn[:count])) != len(mine):
                raise ValueError(
                    f"{name} must have the frequencies that peft draws from its seed {self.seed}, got others: "
                    "start from an adapter of peft's"
                )
            entries = U.spectrum(space.theta.detach().cpu().double(), scaling)
            written[f"{name}.fourierft_spectrum"] = entries.new_zeros(count).index_add(0, at, entries).float()
            counts[name] = count
        common = max(counts.values())
        pattern = {name: count for name, count in counts.items() if count != common}
        config.update(n_frequency=common, n_frequency_pattern=pattern, scaling=scaling, random_loc_seed=self.seed)
        return written


def _drawn(n_out: int, n_in: int, seed: int) -> Tensor:
    """The numbers of all frequencies of the plane, in the order that peft draws them in."""
    drawn = torch.randperm(n_out * n_in, generator=torch.Generator().manual_seed(seed))
    return frequency_places(drawn // n_in, drawn % n_in, n_out, n_in)


def _waves(space: Subspace) -> FourierFT:
    assert isinstance(space.embedding, FourierFT)
    return space.embedding
