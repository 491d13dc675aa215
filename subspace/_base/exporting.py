"""Programs that are recorded to run without this package: by torch.export (ONNX, AOTInductor) or torch.jit.trace."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

P = ParamSpec("P")
_C: Any = torch._C


def is_exporting() -> bool:
    """Whether such a program is being recorded, which may have none but torch's own operators."""
    if torch.compiler.is_compiling():
        # Not is_exporting(), which before torch 2.13 says so in whatever is compiled.
        return bool(torch.compiler._is_exporting_flag)
    return _C._get_tracing_state() is not None


def as_constant(make: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Let what a function computes from its arguments, no tensors, be a constant of graphs and exported programs.

    It is a tensor with numbers, whatever is recorded, transformed or pretended around the call; and no tensor of
    inference mode, which could never again be saved for a backward pass.
    """

    @functools.wraps(make)
    def constant(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        tracer = _C._get_tracing_state()
        if tracer is not None:  # below torch's dispatch modes it cannot even be set to None
            _C._set_tracing_state(None)
        try:
            with torch.inference_mode(False), _disable_current_modes(), temporarily_clear_interpreter_stack():
                return make(*args, **kwargs)
        finally:
            if tracer is not None:
                _C._set_tracing_state(tracer)

    # As torch.compiler.assume_constant_result does, with which all of the compiler would be imported at once.
    constant._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return constant
