"""A registered model brought off the meta device, without a dense weight ever being there.

Under `with torch.device("meta")` a model of any size is built in no memory, and a recipe registers it. What then needs
values is theta, dim numbers of every tensor, and the other Parameters and buffers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Size, Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from subspace._base.key import Key
from subspace._base.meta import Replacements, as_parameter_like, direct_tensors, empty_like, replaced_tensors
from subspace._base.qualified import named_modules
from subspace.parametrization import Subspace, subspaces

Init = Callable[[nn.Module], object]  # sets the tensors of a module in place, as a library's `_init_weights` does


def initialize(
    model: nn.Module, device: torch.device | str = "cpu", seed: int = 0, init: Init | None = None
) -> nn.Module:
    """Give every tensor of a model that is on the meta device its first values.

    A theta gets the start that it was registered with. One without, of kept weights (d = 0, U sparse or the identity),
    is drawn as its layer draws these weights, by the rule of nn.Linear, the convolutions, nn.MultiheadAttention or the
    recurrent layers, and so are the biases of such a layer. Every other Parameter and buffer is set by the
    `reset_parameters` of its module. Where a model has rules of its own, as those of transformers, they go first with
    `init=model._init_weights`: they set class tokens, norms and what a configuration says, as rotary frequencies, and
    draw kept weights. All is drawn on the CPU from a generator seeded by `seed` and the module's name; torch's own is
    not moved. Make the optimizer afterwards.

    Args:
        model: With registered subspaces; what of it is not on the meta device keeps its values.
        device: Where the model is afterwards.
        seed: Of all that is drawn.
        init: Called with each module that has tensors to be set, children first, to set those that it knows in place. A
            registered weight is there as a plain one, of which theta takes what it keeps.

    Returns:
        The model.

    Raises:
        ValueError: If nothing tells the first values of a tensor, which is named: no rule, `init` or
            `reset_parameters` sets it, or it is a theta without start of another (d, U). The model is then as it was.

    >>> from subspace import recipes, summary
    >>> with torch.device("meta"):
    ...     net = nn.Linear(1 << 15, 1 << 15)
    >>> net = initialize(recipes.dctps(net, dim=1000))
    >>> summary(net).weights, sum(p.numel() for p in net.parameters())
    (1073741824, 33769)
    """
    spaces = dict(subspaces(model))
    fresh: Replacements = {}
    unset: dict[nn.Module, dict[str, Tensor]] = {module: {} for module in model.modules()}  # what is to be drawn
    for name, space in spaces.items():
        theta, start = space.theta, space.parametrization.start
        if theta.is_meta and theta not in fresh:
            fresh[theta] = empty_like(theta) if start is None else as_parameter_like(start, theta)
        if theta.is_meta and start is None:
            _check_kept(name, space)
            unset[space.module][space.name] = fresh[theta]
    for module in model.modules():
        for name, tensor in direct_tensors(module):
            if tensor.is_meta and tensor not in fresh:
                fresh[tensor] = unset[module][name] = empty_like(tensor)

    with torch.random.fork_rng(devices=[]), torch.no_grad(), replaced_tensors(model, fresh):
        for name, module in reversed(list(named_modules(model))):  # a module may set what its children have drawn
            if unset[module]:
                torch.default_generator.manual_seed(int(Key(seed).fold("initialize").fold(name).bits(1)[0]))
                _set(name, module, unset[module], init)
    for space in spaces.values():
        space.parametrization._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t)
        space.parametrization.start = None
    return model.to(device)


def _check_kept(name: str, space: Subspace) -> None:
    d, U = space.parametrization.offset, space.parametrization.embedding
    structure = d.structure()
    if structure is None or not structure.is_zero or not U.keeps_entries():
        raise ValueError(
            f"{name} must be registered with a theta that has values, got none for {d.label()} and {U.label()}"
        )


def _set(name: str, module: nn.Module, unset: dict[str, Tensor], init: Init | None) -> None:
    """Set the tensors of a module that are to be drawn: by `init`, else by the rule of its kind."""
    if init is not None:
        unset = {each: unset[each] for each in _left_by_init(init, module, unset)}
    kind, of = type(module), parametrize.type_before_parametrizations(module).__name__
    reset = getattr(kind, "reset_parameters", None) or getattr(kind, "_reset_parameters", None)  # of attention
    if reset is None or not unset:
        left, got = list(unset), "none"
    elif not parametrize.is_parametrized(module):
        left, got = _left_by(lambda: reset(module), unset), "one that does not"
    else:  # which would build the weight
        left, got = list(unset), "one that is not known here"
        if rule := RULES.get(reset):
            for tensor_name, tensor in unset.items():
                rule(module, tensor_name, tensor)
            left = []
    if left:
        what = f"{name}.{left[0]}".lstrip(".")
        raise ValueError(f"{what} must be set by {of}.reset_parameters, got {got}: give an init that sets it")


def _left_by_init(init: Init, module: nn.Module, unset: Mapping[str, Tensor]) -> list[str]:
    """Let `init` set the tensors of a module, with plain weights for its subspaces; return those that it does not."""
    if not parametrize.is_parametrized(module):
        return _left_by(lambda: init(module), unset)
    plain, spaces = (
        _plain(module, unset),
        {space.name: space for _, space in subspaces(module) if space.module is module},
    )
    left = _left_by(lambda: init(plain), {each: getattr(plain, each) for each in unset})
    for each, theta in unset.items():
        if each in spaces and each not in left:
            theta.copy_(spaces[each].embedding.coordinates(getattr(plain, each)))
    return left


def _plain(module: nn.Module, unset: Mapping[str, Tensor]) -> nn.Module:
    """The module as before `register`: with a weight to be set for each theta that is to be, and others on meta."""
    plain: nn.Module = object.__new__(parametrize.type_before_parametrizations(module))
    vars(plain).update(vars(module))
    plain._modules = {name: child for name, child in module._modules.items() if name != "parametrizations"}
    plain._parameters = dict(module._parameters)
    for name, stack in cast(nn.ModuleDict, module.parametrizations).items():
        shape, like = _shape(module, name), next(stack.parameters())
        device = like.device if name in unset else "meta"
        plain._parameters[name] = nn.Parameter(torch.empty(shape, dtype=like.dtype, device=device))
    return plain


def _left_by(reset: Callable[[], object], tensors: Mapping[str, Tensor]) -> list[str]:
    """Let `reset` set the tensors; return the names of those that it does not."""
    for tensor in tensors.values():
        tensor.fill_(math.nan if tensor.is_floating_point() else 0)
    before = {name: tensor._version for name, tensor in tensors.items()}
    reset()
    same = [name for name, tensor in tensors.items() if tensor._version == before[name] and tensor.numel()]
    return [name for name in same if not tensors[name].is_floating_point() or bool(tensors[name].isnan().any())]


def _linear(layer: nn.Module, name: str, values: Tensor) -> None:
    """nn.Linear and the convolutions: uniform on +-(inputs of an output)^-1/2."""
    if isinstance(layer, NonDynamicallyQuantizableLinear) and name == "bias":  # the output's, of an attention
        values.zero_()
    else:
        _uniform(values, 1 / max(1, _shape(layer, "weight")[1:].numel()))


def _bilinear(layer: nn.Module, name: str, values: Tensor) -> None:
    _uniform(values, 1 / _shape(layer, "weight")[1])


def _attention(layer: nn.Module, name: str, values: Tensor) -> None:
    """nn.MultiheadAttention: weights uniform as Glorot and Bengio's (2010), biases 0 but for those of key and value."""
    if name.endswith("weight"):
        _uniform(values, 6 / sum(_shape(layer, name)))
    elif name in ("bias_k", "bias_v"):
        values.normal_(0, values.numel() ** -0.5)
    else:
        values.zero_()


def _recurrent(layer: nn.Module, name: str, values: Tensor) -> None:
    """nn.LSTM, GRU, RNN and their cells: all uniform on +-(hidden numbers)^-1/2."""
    _uniform(values, 1 / max(1, cast(int, layer.hidden_size)))


RULES: Mapping[Any, Callable[[nn.Module, str, Tensor], None]] = {
    nn.Linear.reset_parameters: _linear,
    _ConvNd.reset_parameters: _linear,
    nn.Bilinear.reset_parameters: _bilinear,
    nn.MultiheadAttention._reset_parameters: _attention,
    nn.RNNBase.reset_parameters: _recurrent,
    nn.RNNCellBase.reset_parameters: _recurrent,
}


def _uniform(values: Tensor, square: float) -> None:
    values.uniform_(-(square**0.5), square**0.5)


def _shape(layer: nn.Module, name: str) -> Size:
    if parametrize.is_parametrized(layer, name):
        shape: Size = layer.parametrizations[name][0].offset.shape  # type: ignore[index, union-attr]
        return shape
    tensor: Tensor = getattr(layer, name)
    return tensor.shape
