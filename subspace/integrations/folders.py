"""A delta as a folder with a card, as model hubs have them: delta.safetensors and README.md.

huggingface_hub's `upload_folder` and `snapshot_download` take such a folder to a hub and bring it back.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch import nn

from subspace._base.files import write_atomically
from subspace.checkpoint import load, save
from subspace.parametrization import Subspace, subspaces

DELTA, CARD = "delta.safetensors", "README.md"
TEXT = """---
{front}
---

# A delta of {base}

Every tuned weight is w = d + U theta, d the weight of {base}: `{delta}` holds {dim:,} numbers of theta and how to build
each U, {bytes:,} bytes altogether, and nothing of the base. Licence of the delta: {licence}.

```python
from subspace.integrations import folders

model = folders.read(base, "this folder")  # base: {base}, as it was before it was tuned
```

The base must have the fingerprints of d below, and {left_out} frozen tensors that the file has fingerprints of.

| tensor | shape | d | fingerprint of d | U | dim | key of U |
|---|---|---|---|---|---|---|
{rows}
"""


def write(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    base: str,
    licence: str | None = None,
    bits: int | None = None,
) -> list[str]:
    """Write the delta of a model and its card into a local folder, which is made if it is not there.

    Args:
        model: With registered subspaces.
        folder: Where to; files of these names are replaced, others stay.
        base: The name of the model that was tuned, as the card is to have it: "bert-base-uncased".
        licence: Of the delta, as a hub calls it: "apache-2.0"; None where the card is to say that there is none stated.
        bits: Of a number of theta, as of `subspace.save`; exact by default.

    Returns:
        The names of the tensors that are left out, as `subspace.save`.

    Raises:
        ValueError: As `subspace.save`, or if a name has a line break.
        OSError: If the folder cannot be written.
    """
    if bad := [text for text in (base, licence or "") if len(text.splitlines()) > 1]:
        raise ValueError(f"base and licence must be of one line, got {bad[0]!r}")
    if not (spaces := dict(subspaces(model))):
        raise ValueError("model must have at least one registered subspace, got none")
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    left_out = save(model, place / DELTA, bits=bits)
    about = {"library_name": "torch-subspace", "tags": ["subspace"], "base_model": base, "license": licence}
    text = TEXT.format(
        front="\n".join(f"{name}: {json.dumps(value)}" for name, value in about.items() if value is not None),
        base=base,
        delta=DELTA,
        dim=sum({id(space.theta): space.theta.numel() for space in spaces.values()}.values()),
        bytes=(place / DELTA).stat().st_size,
        licence=licence or "none stated",
        left_out=len(left_out),
        rows="\n".join(_row(name, space) for name, space in spaces.items()),
    )
    write_atomically(place / CARD, text.encode())
    return left_out


def _row(name: str, space: Subspace) -> str:
    d, U = space.offset, space.embedding
    shape = " x ".join(map(str, space.shape))
    mark = space.parametrization.identity().probes[0].value
    key = f"`{U.key}`" if U.key is not None else ""
    return f"| {name} | {shape} | {d.label()} | {mark:.9g} | {U.label()} | {U.dim} | {key} |"


def read(model: nn.Module, folder: str | os.PathLike[str]) -> nn.Module:
    """Register on a plain model the delta of a local folder.

    Args:
        model: The base, as of `subspace.load`.
        folder: Which `write` has written.

    Returns:
        The model.

    Raises:
        FileNotFoundError: If there is no such local folder: names of repositories are not downloaded.
        ValueError: As `subspace.load`; the model is then as it was.
    """
    path = Path(folder) / DELTA
    if not path.is_file():
        raise FileNotFoundError(
            f"folder must be a local one with {DELTA}, got {os.fspath(folder)!r}: "
            "download a repository first, as by huggingface_hub.snapshot_download"
        )
    return load(model, path)
