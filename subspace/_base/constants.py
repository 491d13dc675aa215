"""Constants computed once: on a CPU the last few are kept, elsewhere all, as a captured graph goes on to read them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Make = TypeVar("Make", bound=Callable[..., Any])
CPU = torch.device("cpu")


def keep_constants(few: int) -> Callable[[Make], Make]:
    """Keep what a function of hashable arguments, the last of them a device, returns: on a CPU the last few."""

    def decorate(make: Make) -> Make:
        make = torch.inference_mode(False)(make)  # tensors born in it could never again be saved for a backward pass
        on_cpu, elsewhere = functools.lru_cache(few)(make), functools.cache(make)

        @functools.wraps(make)
        def kept(*arguments: Any) -> Any:
            return (on_cpu if arguments[-1] == CPU else elsewhere)(*arguments)

        return kept  # type: ignore[return-value]

    return decorate
