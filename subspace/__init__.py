"""Every weight as w = d + U theta: a fixed offset d, a fixed embedding U, few trainable numbers theta."""

from subspace import embeddings, methods, offsets, recipes
from subspace.checkpoint import load, save
from subspace.initialize import initialize
from subspace.methods import budgets
from subspace.parametrization import (
    Subspace,
    SubspaceParametrization,
    materialize,
    register,
    share,
    subspaces,
)
from subspace.random import Key
from subspace.routes import Routes, routes
from subspace.structured import structured, unstructured
from subspace.summary import Summary, summary
from subspace.targets import targets
from subspace.transforms import dct, fwht, idct
from subspace.version import VERSION

__version__ = VERSION

__all__ = [
    "Key",
    "Routes",
    "Subspace",
    "SubspaceParametrization",
    "Summary",
    "budgets",
    "dct",
    "embeddings",
    "fwht",
    "idct",
    "initialize",
    "load",
    "materialize",
    "methods",
    "offsets",
    "recipes",
    "register",
    "routes",
    "save",
    "share",
    "structured",
    "subspaces",
    "summary",
    "targets",
    "unstructured",
]
