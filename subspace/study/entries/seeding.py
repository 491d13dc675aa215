"""Others' functions, which draw from the global generators: seeded by a key for a while, then as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from subspace import Key


@contextmanager
def seeded(key: Key) -> Iterator[None]:
    """Python's, numpy's and torch's generators, of every device in use, start from the key; restored afterwards."""
    seed = int(key.bits(1)[0])
    python, array = random.getstate(), np.random.get_state()
    # where CUDA is not in use there is no generator of it yet, and asking for one would start it
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if cuda else []):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed_all(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
