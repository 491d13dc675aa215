"""Every weight as w = d + U theta: a fixed offset d, a fixed embedding U, few trainable numbers theta."""

from importlib.metadata import version

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
from subspace.summary import Summary, summary
from subspace.transforms import dct, fwht, idct

__version__ = version("torch-subspace")

__all__ = [
    "Key",
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
    "save",
    "share",
    "subspaces",
    "summary",
]
