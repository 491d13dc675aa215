"""Products with w = scale T + S that never build w: T the DCT, Hadamard or zero, S sparse."""

from subspace.products.geometry import LINEAR, Geometry
from subspace.products.native.load import status
from subspace.products.product import conv, linear
from subspace.products.routes import ROUTES, Route
from subspace.products.weight import Weight

__all__ = ["LINEAR", "ROUTES", "Geometry", "Route", "Weight", "conv", "linear", "status"]
