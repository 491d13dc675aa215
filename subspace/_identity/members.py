"""Ensembles of models by vmap, as `torch.func.stack_module_state` makes them: one base runs the tensors of all members.

What is no tensor of the module is the base's for every member. So that members of several (d, U) are noticed, each
carries a few signs that are drawn from its d and U as a buffer, which is stacked with the others.
"""

from __future__ import annotations

import json
from hashlib import blake2b

import torch
from torch import Tensor

from subspace._base.first_values import checksum
from subspace._identity.state import describe, packed_supports
from subspace.embeddings import Embedding
from subspace.offsets import Offset

Signs = tuple[int, ...]


def signs_of(offset: Offset, embedding: Embedding) -> Signs:
    """32 numbers of +-1, others for another d or U: they survive rounding to any dtype, and averaging among equals."""
    tensors = (t for part in (offset, embedding) for child in part.modules() for t in vars(child).values())
    with torch.device("cpu"):  # under meta as the default device there would be no numbers
        about, packed = packed_supports(*describe(offset, embedding))
        sums = [checksum(t) for t in tensors if isinstance(t, Tensor)]
    content = json.dumps([about, sums]).encode() + packed.numpy().tobytes()
    bits = int.from_bytes(blake2b(content, digest_size=4).digest(), "big")
    return tuple(1 - 2 * (bits >> i & 1) for i in range(32))


def check_members(stacked: Tensor, signs: Signs, embedding: Embedding) -> None:
    """Raise ValueError unless the signs of all members, stacked under vmap, are these, of a U that does not move."""
    while torch._C._functorch.is_functorch_wrapped_tensor(stacked):
        bdim = torch._C._functorch.maybe_get_bdim(stacked)
        stacked = torch._C._functorch.get_unwrapped(stacked)
        stacked = stacked if bdim < 0 else stacked.movedim(bdim, 0)
    moves = any(U.moves for U in embedding.modules() if isinstance(U, Embedding))
    if moves or not bool((stacked == stacked.new_tensor(signs)).all()):
        got = "some whose places move" if moves else "others: their keys, places or pretrained weights differ"
        raise ValueError(f"the members of an ensemble under vmap must have one d and U, got {got}; run each by itself")
