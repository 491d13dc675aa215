"""Measure the cost model's constants on this machine and print them, as `choice/typical.json` holds them."""

import json

import torch

from subspace.products.choice.calibration import CONV, measure
from subspace.products.routes import ROUTES

families = ["linear", *(kind + layout for kind in CONV for layout in ("", ", channels_last"))]
print(json.dumps({"typical": {family: measure(ROUTES, family, torch.float32, "cpu") for family in families}}, indent=1))
