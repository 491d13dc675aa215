"""Every weight as w = d + U theta: a fixed offset d, a fixed embedding U, few trainable numbers theta."""

from subspace import checkpoint, deltas, embeddings, methods, offsets, parametrization, products, recipes, tune
from subspace._alpha_group import add_alpha_group
from subspace._base.key import Key
from subspace._base.kinds import set_layouts
from subspace._base.layout import Layout
from subspace._base.preserve import preserved
from subspace._base.qualified import owner_of
from subspace._base.selection import is_default_target, targets
from subspace._base.transforms import dct, fwht, idct
from subspace._base.version import VERSION
from subspace._bitsandbytes import from_bitsandbytes
from subspace._initialize import initialize
from subspace._parameter_groups import parameter_groups
from subspace._shard_offsets import shard_offsets
from subspace._structured.forward import is_structured, structured, unstructured
from subspace._structured.report import Routes, routes
from subspace._summary import Summary, summary
from subspace.checkpoint import Packed, load, pack, rounded, save
from subspace.deltas import Deltas, disabled
from subspace.methods import budgets
from subspace.parametrization import (
    Subspace,
    SubspaceParametrization,
    materialize,
    register,
    share,
    subspaces,
    unregister,
)

__version__ = VERSION

__all__ = [
    "Deltas",
    "Key",
    "Layout",
    "Packed",
    "Routes",
    "Subspace",
    "SubspaceParametrization",
    "Summary",
    "add_alpha_group",
    "budgets",
    "checkpoint",
    "dct",
    "deltas",
    "disabled",
    "embeddings",
    "from_bitsandbytes",
    "fwht",
    "idct",
    "initialize",
    "is_default_target",
    "is_structured",
    "load",
    "materialize",
    "methods",
    "offsets",
    "owner_of",
    "pack",
    "parameter_groups",
    "parametrization",
    "preserved",
    "products",
    "recipes",
    "register",
    "rounded",
    "routes",
    "save",
    "set_layouts",
    "shard_offsets",
    "share",
    "structured",
    "subspaces",
    "summary",
    "targets",
    "tune",
    "unregister",
    "unstructured",
]
