"""Weights that bitsandbytes has quantised, as tensors of the weight's own shape and dtype.

Its layers hold a Parameter of bytes, whose scales are attributes beside it: nothing that asks a tensor for its shape,
dtype or values can use that. These hold the same memory, and multiply by the library's own product; whatever else is
asked of them they do dequantised.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from typing_extensions import Self

SAME = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
LIBRARY = "bitsandbytes"


class BytesWeight(Tensor):
    """A quantised matrix. held: the tensors that it is made of; about: what else is known of it."""

    held: dict[str, Tensor]
    about: dict[str, Any]

    @staticmethod
    def __new__(cls, held: dict[str, Tensor], about: dict[str, Any]) -> Self:
        device = next(iter(held.values())).device
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls, about["shape"], dtype=about["dtype"], device=device, requires_grad=False
        )
        return made

    def __init__(self, held: dict[str, Tensor], about: dict[str, Any]) -> None:
        self.held, self.about = held, about
        for name, tensor in held.items():
            setattr(self, name, tensor)  # as torch looks for them

    def dequantize(self) -> Tensor:
        """Its values, as a plain tensor."""
        raise NotImplementedError

    def rows(self, first: int, last: int) -> Tensor:
        """The values of some rows, as a plain tensor."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """x w^T by the library: (..., n_in) -> (..., n_out)."""
        raise NotImplementedError

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, Any]]:
        return list(self.held), self.about

    @classmethod
    def __tensor_unflatten__(
        cls, held: dict[str, Tensor], about: dict[str, Any], outer_size: Any, outer_stride: Any
    ) -> Self:
        return cls(held, about)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            func is F.linear
            and len(args) > 1
            and isinstance(args[1], BytesWeight)
            and not isinstance(args[0], BytesWeight)
        ):
            x, weight, *rest = args
            bias = rest[0] if rest else (kwargs or {}).get("bias")
            y = weight.product(x)
            return y if bias is None else y + bias.to(y.dtype)
        with torch._C.DisableTorchFunctionSubclass():  # so that what is plain stays it
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        first = args[0] if args else None
        if isinstance(first, BytesWeight):
            if func in SAME:
                return type(first)(first.held, first.about)
            if func is torch.ops.aten.clone.default:
                return type(first)({name: t.clone() for name, t in first.held.items()}, first.about)
            if func is torch.ops.aten._to_copy.default:
                return first._moved(**(kwargs or {}))
            if func is torch.ops.aten.slice.Tensor and len(args) == 4 and args[1] == 0:
                start, stop, _ = slice(*args[2:]).indices(len(first))
                return first.rows(start, max(start, stop))
            if func is torch.ops.aten.copy_.default:
                return first._overwritten(args[1])
        if func._schema.is_mutable:
            raise NotImplementedError(f"a quantised weight must not be written into, got {func}")
        plain = tree_map_only(BytesWeight, lambda t: t.dequantize(), (args, kwargs or {}))
        return func(*plain[0], **plain[1])

    def _overwritten(self, other: Tensor) -> Self:
        """With the bytes of another one, as `load_state_dict` writes them."""
        if not (type(other) is type(self) and other.about == self.about):
            raise ValueError(f"a quantised weight must be given one of its kind and shape, got {other!r}")
        for name, tensor in self.held.items():
            tensor.copy_(other.held[name])
        return self

    def _moved(self, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Self:
        """With its bytes on another device, or another dtype for its values."""
        held = {name: t.to(device) for name, t in self.held.items()}
        return type(self)(held, self.about | {"dtype": dtype or self.dtype})


class Weight4bit(BytesWeight):
    """fp4 or nf4 in blocks, whose scales may be quantised too (Dettmers et al. 2023)."""

    @classmethod
    def of(cls, module: Any, dtype: torch.dtype | None) -> Weight4bit:
        """Of a Linear4bit, which computes in a dtype of its own."""
        state, data = module.weight.quant_state, module.weight.data
        if getattr(state, "packing_format_for_cpu", False):
            from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

            data, state = _convert_weight_packed_for_cpu_inverse(data, copy.copy(state))
        held = {"data_bytes": data.detach(), "absmax": state.absmax, "code": state.code}
        about = {"shape": tuple(state.shape), "dtype": dtype or state.dtype, "blocksize": state.blocksize}
        about |= {"kind": state.quant_type, "of": state.dtype, "computes in": module.compute_dtype}
        if state.nested:
            held |= {"offset": state.offset, "absmax2": state.state2.absmax, "code2": state.state2.code}
            about |= {"blocksize2": state.state2.blocksize, "of2": state.state2.dtype}
        return cls(held, about)

    def _state(self) -> Any:
        from bitsandbytes.functional import QuantState

        held, about, inner = self.held, self.about, None
        if "absmax2" in held:
            inner = QuantState(held["absmax2"], None, held["code2"], about["blocksize2"], None, about["of2"])
        return QuantState(
            held["absmax"],
            torch.Size(about["shape"]),
            held["code"],
            about["blocksize"],
            about["kind"],
            about["of"],
            held.get("offset"),
            inner,
        )

    def dequantize(self) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        values: Tensor = dequantize_4bit(self.held["data_bytes"].view(-1, 1), self._state())
        return values.to(self.dtype)

    def rows(self, first: int, last: int) -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit, dequantize_blockwise

        (n_out, n_in), size, state = self.about["shape"], self.about["blocksize"], self._state()
        start, stop = first * n_in // size, min(-(-last * n_in // size), len(state.absmax))  # in whole blocks
        absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
        here = slice(start * size, min(stop * size, n_out * n_in))
        taken = self.held["data_bytes"].view(torch.uint8).view(-1, 1)[here.start // 2 : -(-here.stop // 2)]
        entries = torch.Size((here.stop - here.start,))
        part = QuantState(absmax[start:stop].float(), entries, state.code, size, state.quant_type, state.dtype)
        values: Tensor = dequantize_4bit(taken.contiguous(), part)
        cut = first * n_in - here.start
        return values.flatten()[cut : cut + (last - first) * n_in].view(last - first, n_in).to(self.dtype)

    def product(self, x: Tensor) -> Tensor:
        from bitsandbytes import matmul_4bit

        y: Tensor = matmul_4bit(x.to(self.about["computes in"] or x.dtype), self.held["data_bytes"], self._state())
        return y.to(x.dtype)


class Weight8bit(BytesWeight):
    """int8 with a scale for each row, as of LLM.int8() (Dettmers et al. 2022)."""

    @classmethod
    def of(cls, module: Any, dtype: torch.dtype | None) -> Weight8bit:
        """Of a Linear8bitLt, which keeps the scales with the weight until it is first called."""
        weight, state = module.weight, module.state
        scales = weight.SCB if weight.SCB is not None else state.SCB
        dtype = dtype or (torch.float32 if module.bias is None else module.bias.dtype)
        about = {"shape": tuple(weight.shape), "dtype": dtype, "threshold": state.threshold}
        return cls({"data_bytes": weight.data.detach(), "scales": scales}, about)

    def dequantize(self) -> Tensor:
        return self.rows(0, len(self))

    def rows(self, first: int, last: int) -> Tensor:
        here = slice(first, last)
        return (self.held["data_bytes"][here] * (self.held["scales"][here, None] / 127)).to(self.dtype)

    def product(self, x: Tensor) -> Tensor:
        from bitsandbytes import MatmulLtState, matmul

        state = MatmulLtState()
        state.CB, state.SCB, state.has_fp16_weights = self.held["data_bytes"], self.held["scales"], False
        y: Tensor = matmul(x, state.CB, state=state, threshold=self.about["threshold"])
        return y


def is_of_bitsandbytes(tensor: Tensor | None) -> bool:
    """Whether it is one of that library's Parameters whose values are bytes."""
    return type(tensor).__module__.split(".")[0] == LIBRARY and not (tensor is None or tensor.is_floating_point())


def weight_of(module: nn.Module, dtype: torch.dtype | None) -> BytesWeight:
    """The weight of one of that library's linear layers; ValueError if it is none that is quantised.

    dtype: of its values; by default that of the weight before, or of the bias.
    """
    weight: Any = module.weight
    if getattr(weight, "quant_state", None) is not None:
        return Weight4bit.of(module, dtype)
    if hasattr(weight, "SCB") and (weight.SCB is not None or cast(Any, module).state.SCB is not None):
        return Weight8bit.of(module, dtype)
    raise ValueError(f"weight must be quantised by {LIBRARY}, got {type(weight).__name__} without its scales")


torch.serialization.add_safe_globals([Weight4bit, Weight8bit])  # so that a state_dict loads with weights_only=True
