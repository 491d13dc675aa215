"""How many output channels of a layer an offset makes use of, at initialisation: `python -m benchmarks.channels`.

With e_c the mean square of channel c over samples and places, before any normalisation, (sum e_c)^2 / sum e_c^2 is the
effective number of channels: all of them where all are equally large, 1 where one is and the others are 0.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.report import Row, options, write
from subspace import Key, targets
from subspace.offsets import DCT, Gaussian, Hadamard, Offset, SignedDCT
from subspace.study import data, models
from subspace.study.entries.entry import Choice

PLACES = [
    ("mnist5k", Choice("lenet5")),
    ("digits", Choice("mlp")),
    ("digits", Choice("mlp", {"norm": True})),
    ("digits", Choice("resnet20")),
]
SEEDS, SAMPLES = 3, 512
OFFSETS: dict[str, Callable[[Tensor, Key], Offset]] = {
    "DCT": lambda w, key: DCT(w),
    "signed DCT": lambda w, key: SignedDCT(w, key=key),
    "Hadamard": lambda w, key: Hadamard(w),
    "Gaussian": lambda w, key: Gaussian(w, key=key, gain=1.0),
}


def effective(energy: Tensor) -> float:
    """(sum e)^2 / sum e^2 of the energies of channels: (channels,); nan where all are 0.

    >>> effective(torch.tensor([2.0, 2.0, 0.0, 0.0]))
    2.0
    """
    return float(energy.sum() ** 2 / energy.square().sum())


@torch.no_grad()
def channels(model: nn.Module, inputs: Tensor) -> dict[str, tuple[float, int]]:
    """Of every layer with a weight that `targets` finds: the effective number of its channels, and their number."""
    found: dict[str, tuple[float, int]] = {}

    def seen(name: str, output: Tensor) -> None:
        found[name] = effective(output.double().square().transpose(0, 1).flatten(1).mean(1)), output.shape[1]

    for name, (module, *_) in targets(model).items():
        module.register_forward_hook(lambda _, __, output, name=name: seen(name, output))
    model.train()(inputs)
    return found


def main() -> None:
    """Print the layers' shares, the mean over seeds, and write the table where a folder was asked for."""
    parser = options(__doc__)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows: list[Row] = []
    for name, choice in PLACES:
        known = data.load(Choice(name))
        inputs = known.train.batch(torch.arange(SAMPLES))[0]
        for label, make in OFFSETS.items():
            for seed in range(SEEDS):
                model = models.build(choice, known, Key(seed))
                for tensor, target in targets(model).items():
                    target.weight.data = make(target.weight, Key(seed).fold(tensor))()
                for tensor, (count, of) in channels(model, inputs).items():
                    place = f"{name}, {choice}"
                    rows.append(
                        {"place": place, "layer": tensor, "offset": label, "seed": seed, "of": of, "count": count}
                    )
    table = pd.DataFrame(rows).pivot_table(
        index=["place", "layer", "of"], columns="offset", values="count", sort=False
    )[list(OFFSETS)]
    print(table.round(1).to_string())
    write(asked.out, rows)


if __name__ == "__main__":
    main()
