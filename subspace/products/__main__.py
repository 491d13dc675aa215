"""Measure the cost model's constants on this machine, keep them for later processes, and print them.

They are printed as `choice/typical.json` holds them. `python -m subspace.products cuda` is for a GPU.
"""

import argparse
import json

import torch

from subspace.products.choice.calibration import FAMILIES, keep, measure
from subspace.products.routes import ROUTES

DTYPES = {"cpu": (torch.float32, torch.float64, torch.bfloat16, torch.float16)}
ON_GPU = (torch.float32, torch.bfloat16, torch.float16)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("device", nargs="?", choices=("cpu", "cuda"), default="cpu")
device: str = parser.parse_args().device
table: dict[str, dict[str, object]] = {}
for dtype in DTYPES.get(device, ON_GPU):
    for family in FAMILIES:
        found = measure(ROUTES, family, dtype, device)
        keep(family, dtype, device, found)
        prefix = "" if device == "cpu" else f"{device} "
        table.setdefault(prefix + str(dtype).removeprefix("torch."), {})[family] = found
print(json.dumps(table, indent=1))
