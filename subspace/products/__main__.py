"""Measure the cost model's constants on this machine and print them, as `choice/typical.json` holds them."""

import json

import torch

from subspace.products.choice.calibration import FAMILIES, measure
from subspace.products.routes import ROUTES

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
table = {str(d).removeprefix("torch."): {f: measure(ROUTES, f, d, "cpu") for f in FAMILIES} for d in DTYPES}
print(json.dumps(table, indent=1))
