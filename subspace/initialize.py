"""A registered model brought off the meta device, without a dense weight ever being there.

Under `with torch.device("meta")` a model of any size is built in no memory, and a recipe registers it. What then needs
values is theta, dim numbers of every tensor, and the other Parameters and buffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Size, Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from subspace.embeddings import Identity, Sparse
from subspace.meta import Fresh, blank, exchange, like_it, own
from subspace.offsets import Zero
from subspace.parametrization import Subspace, subspaces
from subspace.random import Key


def initialize(model: nn.Module, device: torch.device | str = "cpu", seed: int = 0) -> nn.Module:
    """Give every tensor of the model that is on the meta device its first values, on `device`; return the model.

    A theta gets the start that it was registered with; one without, of kept weights (d = 0, U sparse or the identity),
    is drawn as its module's reset_parameters would draw these weights. Every other Parameter and buffer is set by the
    reset_parameters of its module, drawn on the CPU from a generator seeded by `seed` and the module's name; torch's
    own is not moved. What was real stays as it is, on `device`. Make the optimizer afterwards.

    Raises ValueError naming a tensor whose first values nothing tells: one that no reset_parameters sets, or a theta
    without start, of another (d, U) or of weights not drawn independently of each other. The model is then as it was.

    >>> from subspace import recipes, summary
    >>> with torch.device("meta"):
    ...     net = nn.Linear(1 << 15, 1 << 15)
    >>> net = initialize(recipes.dctps(net, dim=1000))
    >>> summary(net).weights, sum(p.numel() for p in net.parameters())
    (1073741824, 33769)
    """
    fresh: Fresh = {}
    weights: dict[nn.Module, dict[str, nn.Parameter]] = {}
    drawn: dict[nn.Module, list[str]] = {}
    samples: dict[int, _Sample] = {}
    for q, space in subspaces(model):
        theta, start, shape = space.theta, space.parametrization.start, space.parametrization.offset.shape
        weight = nn.Parameter(theta.new_empty(shape, device="meta"))
        weights.setdefault(space.module, {})[space.name] = weight
        if theta.is_meta:
            fresh.setdefault(theta, blank(theta) if start is None else like_it(start, theta))
            if start is None:
                _check(q, space)
                drawn.setdefault(space.module, []).append(space.name)
                samples[_place(weight)] = _Sample(shape, fresh[theta].detach())

    unset: list[tuple[str, nn.Module, list[str]]] = []
    for name, module in model.named_modules():
        missing = {n: t for n, t in own(module) if t.is_meta and t not in fresh}
        fresh |= {t: blank(t) for t in missing.values()}
        if names := [*missing, *drawn.get(module, [])]:
            unset.append((name, module, names))

    plain: dict[nn.Module, nn.Module] = {}
    _skeleton(model, fresh, weights, plain)
    with torch.random.fork_rng(devices=[]), _Sampling(samples) as sampling:
        for name, module, names in reversed(unset):  # a module may set what its children have drawn
            torch.default_generator.manual_seed(int(Key(seed).fold("initialize").fold(name).bits(1)[0]))
            _reset(plain[module], name, names, sampling)

    exchange(model, fresh)
    for _, space in subspaces(model):
        space.parametrization._apply(  # type: ignore[no-untyped-call]
            lambda t: torch.empty_like(t, device=device) if t.is_meta else t
        )
        space.parametrization.start = None
    return model.to(device)


class _Sample(NamedTuple):
    """Some entries of a weight of that shape, to be drawn as all are: (dim,)."""

    shape: Size
    entries: Tensor


class _Sampling(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """In-place operations on a weight on meta change the sample of its entries; `written` are all tensors changed."""

    def __init__(self, samples: Mapping[int, _Sample]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.samples, self.written = samples, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func._schema.name.endswith("_"):
            self.written.add(place := _place(args[0]))
            if sample := self.samples.get(place):
                if args[0].shape != sample.shape or any(isinstance(argument, Tensor) for argument in args[1:]):
                    raise NotImplementedError(f"{func._schema.name} does not treat all entries of a weight alike")
                func(sample.entries, *args[1:], **options)
                return args[0]
        return func(*args, **options)


def _place(tensor: Tensor) -> int:
    """What tells its memory, on the meta device too."""
    return int(tensor.untyped_storage()._cdata)


def _check(q: str, space: Subspace) -> None:
    d, U = space.parametrization.offset, space.parametrization.embedding
    if not (isinstance(d, Zero) and isinstance(U, Identity | Sparse)):
        raise ValueError(
            f"{q} must be registered with a theta that has values, got none for {d.label()} and {U.label()}"
        )


def _skeleton(
    module: nn.Module,
    fresh: Fresh,
    weights: Mapping[nn.Module, Mapping[str, nn.Parameter]],
    made: dict[nn.Module, nn.Module],
) -> nn.Module:
    """The module and all in it as before they were registered, only their fresh tensors real."""
    if module not in made:
        cls = cast("type[nn.Module]", parametrize.type_before_parametrizations(module))
        plain = made[module] = cls.__new__(cls)
        plain.__dict__.update(module.__dict__)
        for store in ("_parameters", "_buffers"):
            tensors = module.__dict__[store].items()
            plain.__dict__[store] = {n: t if t is None else fresh.get(t, blank(t, "meta")) for n, t in tensors}
        plain._parameters.update(weights.get(module, {}))
        children = {n: child for n, child in module._modules.items() if n != "parametrizations"}
        plain._modules = {n: c if c is None else _skeleton(c, fresh, weights, made) for n, c in children.items()}
    return made[module]


def _reset(plain: nn.Module, name: str, names: list[str], sampling: _Sampling) -> None:
    """Let reset_parameters set the tensors of these names; raises ValueError for one that it does not."""
    rule = f"{type(plain).__name__}.reset_parameters"
    reset = getattr(plain, "reset_parameters", None) or getattr(plain, "_reset_parameters", None)  # of attention
    tensors, got = dict(own(plain)), "none"
    if reset is not None:
        try:
            reset()
        except RuntimeError as error:  # of what asks for values on meta, too
            got = f"one that fails: {error}"
        else:
            got = "one that does not"
            names = [n for n in names if tensors[n].numel() and _place(tensors[n]) not in sampling.written]
    if names:
        raise ValueError(f"{name}.{names[0]}".lstrip(".") + f" must be set, entry by entry, by {rule}, got {got}")
