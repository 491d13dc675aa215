"""All routes: to add one, write its file here and name it in ROUTES."""

from subspace.products.routes.apart import Apart
from subspace.products.routes.base import Route
from subspace.products.routes.bottleneck import Bottleneck
from subspace.products.routes.channels_last import ChannelsLast
from subspace.products.routes.dense import Dense
from subspace.products.routes.fft import Fft
from subspace.products.routes.native import Native
from subspace.products.routes.remat import Remat
from subspace.products.routes.triton import Triton

DENSE = Dense()
ROUTES: tuple[Route, ...] = (DENSE, ChannelsLast(), Remat(), Fft(), Bottleneck(), Native(), Triton(), Apart())
NAMES = ("auto", *(route.name for route in ROUTES))


def table_of_routes() -> str:
    """A Markdown table of the names that `structured` takes: for which layers, and how the product is computed."""
    rows = [("auto", "all", "the fastest by a cost model, measured once per machine, chosen at every call")]
    rows += [(route.name, route.layers, route.how) for route in ROUTES]
    return "\n".join(f"| {' | '.join(row)} |" for row in [("route", "layers", "how"), ("---", "---", "---"), *rows])


__all__ = ["DENSE", "NAMES", "ROUTES", "Route", "table_of_routes"]
