"""w = d + U theta on any tensor of any module, through `torch.nn.utils.parametrize`.

The tensor's own Parameter becomes theta, re-shaped in place: optimizers, state_dict, autocast, torch.func,
torch.compile and DistributedDataParallel need to know nothing of it. This room alone knows parametrize's internals.

Two rules follow from that. Register before the optimizer's first step: its state would keep the weight's old shape. And
every read of a parametrized tensor computes it: where a forward pass reads one twice, wrap it in
`torch.nn.utils.parametrize.cached()`. With `torch.func.functional_call`, override theta
(`parametrizations.weight.original`), not the weight: an override of the weight would be projected onto the subspace.

theta has a dtype of its own, float32 for a weight of half precision: in bfloat16 a step of 1e-3 from 1 is no step at
all. d + U theta is summed in float32 at least, and rounded once. A theta without numbers (dim 0) is no Parameter but a
buffer: some optimizers divide by their Parameters' lengths.
"""

from subspace.parametrization.handle import Subspace, require_thetas, share, share_theta, subspaces
from subspace.parametrization.parametrization import SubspaceParametrization
from subspace.parametrization.registration import Registration, prepare, register
from subspace.parametrization.removal import at_offset, materialize, require_whole, taken_off, unregister

__all__ = [
    "Registration",
    "Subspace",
    "SubspaceParametrization",
    "at_offset",
    "materialize",
    "prepare",
    "register",
    "require_thetas",
    "require_whole",
    "share",
    "share_theta",
    "subspaces",
    "taken_off",
    "unregister",
]
