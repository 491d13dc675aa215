"""Many deltas on one base: held by name, switched, stacked, merged, and one for every row of a batch.

A linear layer computes as it is, quantised or not, and what the chosen deltas add is computed beside it: choosing them
takes microseconds, and nothing of the weight's size is ever there. A delta of any other tensor (a convolution, an
embedding table, a norm) is chosen by building that tensor's w.
"""

from __future__ import annotations

import contextlib
import io
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils.hooks import RemovableHandle

from subspace._base.dtypes import at_least_float32
from subspace._base.plug_in import PlugIn
from subspace._base.qualified import named_modules, named_parameters
from subspace._base.quantised import is_quantised
from subspace.checkpoint import save
from subspace.checkpoint.names import Names
from subspace.checkpoint.sealed import Place
from subspace.deltas.choice import Beside, Choice
from subspace.deltas.reader import Delta, Reader
from subspace.parametrization import at_offset, subspaces

_ALL: weakref.WeakSet[Deltas] = weakref.WeakSet()


class Deltas:
    """Deltas of one base by name, and which of them it computes with: at first none.

    The base stays the model that it is: its class and names are the same, and with no delta in use its state_dict, for
    nothing is ever written into its tensors. It must stay on its device and not train while a delta is in use. Threads
    of a process share what is in use: let them serve different deltas by `each`.

    Args:
        base: With the weights that the deltas were trained on; not registered.

    Raises:
        ValueError: If the base has registered subspaces, or `Deltas` already.

    >>> import copy, subspace
    >>> base = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> tuned = subspace.recipes.sparse_finetuning(copy.deepcopy(base), density=0.01)
    >>> deltas = Deltas(base)
    >>> deltas.add("one", tuned)
    >>> deltas.use("one")
    """

    def __init__(self, base: nn.Module) -> None:
        if next(subspaces(base), None):
            raise ValueError("base must be plain, as before register, got one with registered subspaces")
        if any(other.base is base for other in _ALL):
            raise ValueError("base must have no other Deltas, got one that has: close them first")
        self.base: nn.Module = base
        self.active: tuple[str, ...] = ()
        self._reader, self._choice = Reader(base), Choice()
        self._held: dict[str, Delta] = {}
        self._built: dict[str, _Built] = {}
        self._beside = dict(_linear_layers(base))
        self._hooks = [
            layer.register_forward_hook(Beside(self._choice, name), with_kwargs=True)
            for name, layer in self._beside.items()
        ]
        self._state: tuple[Callable[..., None], Sequence[Any]] = (Deltas.use, ())  # what is in use, and how
        self._at_end = weakref.finalize(self, _leave, self._hooks, self._built, self._reader)
        self._at_end.atexit = False
        _ALL.add(self)

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def add(
        self,
        name: str,
        delta: Place | nn.Module,
        *,
        plugins: Sequence[type[PlugIn]] = (),
        prefix: Names = "",
        replace: bool = False,
    ) -> None:
        """Hold another delta.

        Args:
            name: Of the delta.
            delta: A file of `save`, or the tuned model itself, registered on the base's weights.
            plugins: Classes of your own embeddings that the file names.
            prefix: Of the file's names in the base, as of `load`.
            replace: Whether it takes the place of one of that name, in use or not.

        Raises:
            OSError: If there is no such file.
            ValueError: If the name is taken, or the delta is not one of this base; nothing has changed then.
        """
        if name in self._held and not replace:
            raise ValueError(f"name must be a new one without replace=True, got {name!r}")
        if isinstance(delta, nn.Module):
            file = io.BytesIO()
            save(delta, file)
            file.seek(0)
            delta = file
        with self._as_it_was(), torch.inference_mode(False):
            read = self._reader.read(delta, plugins, prefix)
        self._held[name] = read
        if name in self.active:
            self._renew(self._state)

    def remove(self, name: str) -> None:
        """Forget a delta; raises ValueError for one that is not held, or is in use."""
        self._get(name)
        if name in self.active:
            raise ValueError(f"name must be of a delta that is not in use, got {name!r}")
        del self._held[name]

    def use(self, *names: str) -> None:
        """Compute with w = d + U_1 theta_1 + U_2 theta_2 + ... from now on: with these deltas, or with none, the base.

        Raises ValueError for a name that is not held; what was in use is then in use still.
        """
        chosen = [self._get(name) for name in names]
        self._restore()
        self._build(chosen, [name for delta in chosen for name in delta.form if not self._is_beside(name)])
        self._choice.set(chosen)
        self.active, self._state = names, (Deltas.use, names)

    @contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """`use` for a block, and then what was in use before, merged or by rows."""
        before = self._state
        self.use(*names)
        try:
            yield
        finally:
            self._renew(before)

    @contextmanager
    def each(self, names: Sequence[str | None]) -> Iterator[None]:
        """For a block, compute row i of a batch with the delta of the i-th name; None is the base.

        Every linear layer must get an x whose first axis is the batch.

        Raises:
            ValueError: For a name that is not held, and for a delta of something else than linear layers.
        """
        chosen = [None if name is None else self._get(name) for name in names]
        for delta in chosen:
            if delta and (other := [name for name in delta.form if not self._is_beside(name)]):
                raise ValueError(f"a row's own delta must be one of linear layers, got one of {other[0]}")
        before = self._state
        self._by_rows(*chosen)
        try:
            yield
        finally:
            self._renew(before)

    def merge(self, *names: str) -> None:
        """Put w = d + U_1 theta_1 + ... in the place of the base's weights, so that layers cost what they did.

        `use` puts the base's own tensors back, bit for bit: they are kept, so that both are in memory. They are back
        as well when nobody holds the deltas any more.

        Raises:
            ValueError: For a name that is not held, or a quantised weight; what was in use is then in use still.
        """
        chosen = [self._get(name) for name in names]
        wanted = [name for delta in chosen for name in delta.form]
        if bad := [name for name in wanted if is_quantised(self._reader.tensor(name))]:
            raise ValueError(f"{bad[0]} must be a plain tensor to be merged, got a quantised one")
        self._restore()
        self._build(chosen, wanted)
        self._choice.set()
        self.active, self._state = names, (Deltas.merge, names)

    def close(self) -> None:
        """Leave the base as it was, without anything of this on it; it is left so too when nobody holds the deltas."""
        self.use()
        _leave(self._hooks, self._built, self._reader)
        _ALL.discard(self)

    def _by_rows(self, *deltas: Delta | None) -> None:
        self.use()
        self._choice.set(each=deltas)
        self._state = (Deltas._by_rows, deltas)

    def _renew(self, state: tuple[Callable[..., None], Sequence[Any]]) -> None:
        """Let be in use what was."""
        choose, what = state
        choose(self, *what)

    def _get(self, name: str) -> Delta:
        if name not in self._held:
            raise ValueError(f"name must be of a delta that is held, got {name!r}")
        return self._held[name]

    def _is_beside(self, name: str) -> bool:
        prefix, _, last = name.rpartition(".")
        return last in ("weight", "bias") and prefix in self._beside

    def _build(self, deltas: Sequence[Delta], names: Sequence[str]) -> None:
        """Let the tensors of these names have their w."""
        for name in dict.fromkeys(names):
            tensor = self._reader.tensor(name)
            with torch.no_grad():
                w = tensor.detach().to(at_least_float32(tensor.dtype), copy=True)
                for form, theta in deltas:
                    if (part := form.get(name)) is not None:
                        w += part.embedding(part.of(theta)).to(w.dtype)
            own, tensor.data = tensor.data, w.to(tensor.dtype)
            self._built[name] = _Built(own, tensor._version)

    def _restore(self) -> None:
        """Give the tensors that were built their own values again."""
        for name, built in self._built.items():
            if self._reader.tensor(name)._version != built.version:
                raise ValueError(f"{name} must not be written to while a delta is in use, got a write")
        for name, built in self._built.items():
            self._reader.tensor(name).data = built.own
        self._built.clear()

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """Within, the tensors that were built have the base's values."""
        now = {name: self._reader.tensor(name).data for name in self._built}
        try:
            for name, built in self._built.items():
                self._reader.tensor(name).data = built.own
            yield
        finally:
            for name, data in now.items():
                self._reader.tensor(name).data = data


class _Built(NamedTuple):
    """own: the base's values of a tensor. version: its count of writes, when w took their place."""

    own: Tensor
    version: int


def _leave(hooks: list[RemovableHandle], built: dict[str, _Built], reader: Reader) -> None:
    for hook in hooks:
        hook.remove()
    for name, each in built.items():
        reader.tensor(name).data = each.own


def _linear_layers(base: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that alone have their weight and multiply by it in a call of their own; attention's is looked at."""
    owners = Counter(id(tensor) for _, tensor in named_parameters(base, ties=True))
    for name, module in named_modules(base):
        plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
        own = all(owners[id(tensor)] == 1 for tensor in module._parameters.values() if tensor is not None)
        if plain and own and not isinstance(module, NonDynamicallyQuantizableLinear):
            yield name, module


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Run a model without its deltas for a block: every registered w is its d, and no held delta is in use.

    Args:
        model: With registered subspaces, or the base of `Deltas`.

    Yields:
        Nothing; afterwards the model is as it was.

    Raises:
        ValueError: If there is nothing to leave out.
    """
    modules = set(model.modules())
    held = [deltas for deltas in _ALL if deltas.base in modules]
    spaces = [space for _, space in subspaces(model)]
    if not (held or spaces):
        raise ValueError("model must have registered subspaces or be the base of Deltas, got neither")
    with contextlib.ExitStack() as stack:
        stack.enter_context(at_offset(spaces))
        for deltas in held:
            stack.enter_context(deltas.using())
        yield
