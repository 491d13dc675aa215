"""Choosing and moving U: budgets, saliencies, selection, lottery tickets, dynamic sparse training.

Choosing is a function from a model and an objective to scores, and from scores to an index for every tensor; nothing is
changed by it. Moving writes the index of a `Sparse` embedding in place. A new saliency is a file of a few lines, a line
here and a line in tests/methods/test_saliency.py: docs/extending.md.
"""

from subspace.methods import budgets
from subspace.methods.doping import KroneckerProduct, dope
from subspace.methods.gradual_pruning import GradualPruning
from subspace.methods.groups import blocks, rows
from subspace.methods.lottery_ticket import LotteryTicket
from subspace.methods.moving import Mover, constant, cosine, linear
from subspace.methods.prune import force, supports
from subspace.methods.ranking import Supports, select, shuffle
from subspace.methods.rigl import RigL
from subspace.methods.saliencies.base import Objective, Saliency, Scores, gradient, saliency
from subspace.methods.saliencies.grasp import grasp
from subspace.methods.saliencies.inverted import inverted
from subspace.methods.saliencies.magnitude import magnitude, random
from subspace.methods.saliencies.snip import snip
from subspace.methods.saliencies.synflow import flow, synflow
from subspace.methods.set import SET
from subspace.methods.structure_aware import ScaledUpdate, said
from subspace.methods.trajectory import Trajectory

__all__ = [
    "SET",
    "GradualPruning",
    "KroneckerProduct",
    "LotteryTicket",
    "Mover",
    "Objective",
    "RigL",
    "Saliency",
    "ScaledUpdate",
    "Scores",
    "Supports",
    "Trajectory",
    "blocks",
    "budgets",
    "constant",
    "cosine",
    "dope",
    "flow",
    "force",
    "gradient",
    "grasp",
    "inverted",
    "linear",
    "magnitude",
    "random",
    "rows",
    "said",
    "saliency",
    "select",
    "shuffle",
    "snip",
    "supports",
    "synflow",
]
