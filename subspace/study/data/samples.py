"""Samples in a fixed order, to train or to test on: tensors in memory, or the items of any map-style Dataset.

The batches of an epoch are a pure function of their places and a key, so that a run which is resumed at an epoch goes
on with the same bits. A sample's augmentation depends on the key and its own place only: an epoch that several
processes divide among them sees the same images as one process would.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from subspace import Key

Augment: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # inputs (b, ...), random words (b,) in int64 -> inputs


class Samples(abc.ABC):
    """n inputs and their labels, (n,) or, of sequences, (n, length), in int64, on the CPU."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def batch(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs (b, ...) and labels (b, ...) at these places as they are, without augmentation."""

    @abc.abstractmethod
    def batches(self, order: Iterable[Tensor], key: Key) -> Iterator[tuple[Tensor, Tensor]]:
        """To train on: a batch, augmented, for each of these tensors of places; the key fixes how."""

    @abc.abstractmethod
    def subset(self, places: Tensor) -> Samples:
        """Those at these places, in this order."""


class Data(NamedTuple):
    """Samples to train on and to test on, with labels in range(num_classes)."""

    train: Samples
    test: Samples
    num_classes: int


class Tensors(Samples):
    """Inputs (n, ...) in memory; `prepare` makes a batch of them what a network takes, as floats of pixels.

    augment: from a batch of inputs as they are kept and 63 random bits for each, in int64, to inputs like them.
    """

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor,
        augment: Augment | None = None,
        prepare: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if len(inputs) != len(labels):
            raise ValueError(f"inputs and labels must be equally many, got {len(inputs)} and {len(labels)}")
        self.inputs, self.labels, self.augment, self.prepare = inputs, integers(labels), augment, prepare

    def batch(self, places: Tensor) -> tuple[Tensor, Tensor]:
        return self._prepared(self.inputs[places]), self.labels[places]

    def batches(self, order: Iterable[Tensor], key: Key) -> Iterator[tuple[Tensor, Tensor]]:
        if self.augment is None:
            yield from map(self.batch, order)
            return
        words = torch.from_numpy((key.bits(len(self)) >> 1).astype("int64"))
        for places in order:
            yield self._prepared(self.augment(self.inputs[places], words[places])), self.labels[places]

    def subset(self, places: Tensor) -> Tensors:
        return Tensors(self.inputs[places], self.labels[places], self.augment, self.prepare)

    def _prepared(self, inputs: Tensor) -> Tensor:
        return inputs if self.prepare is None else self.prepare(inputs)


class Items(Samples):
    """The items (input, label) of a map-style Dataset, loaded one by one when a batch asks for them.

    Random transforms of the dataset's own draw from the global generators, in training and in testing; our own loading
    does not move them. The labels are the dataset's `targets` or `labels`, or else found in one pass over it.
    """

    def __init__(self, dataset: Dataset[Any], labels: Tensor | None = None) -> None:
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise ValueError(f"samples must be a map-style Dataset, got {type(dataset).__name__}")
        self.dataset = dataset
        self.labels = integers(labels_of(dataset)) if labels is None else labels

    def batch(self, places: Tensor) -> tuple[Tensor, Tensor]:
        return next(self.batches([places], Key(0)))

    def batches(self, order: Iterable[Tensor], key: Key) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(int(key.bits(1)[0]) >> 1)  # else a loader draws from torch's own
        sampler = [places.tolist() for places in order]
        for inputs, labels in DataLoader(self.dataset, batch_sampler=sampler, generator=generator):
            yield inputs, integers(labels)

    def subset(self, places: Tensor) -> Items:
        return Items(Subset(self.dataset, places.tolist()), self.labels[places])


def labels_of(dataset: Dataset[Any]) -> Tensor:
    """The labels of all items, (n,); ValueError for items that are no pairs, or labels that are no numbers."""
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    n = len(cast("Sized", dataset))
    for name in ("targets", "labels"):
        found = getattr(dataset, name, None)
        if isinstance(found, Sized) and len(found) == n:
            return numbers(found)
    labels = []
    for place in range(n):
        item = dataset[place]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ValueError(f"items must be pairs of an input and a label, got {type(item).__name__} at {place}")
        labels.append(item[1])
    return numbers(labels)


def numbers(labels: Any) -> Tensor:
    """A list of labels as a tensor; no label at all is a tensor of integers too."""
    try:
        if not len(labels):
            return torch.empty(0, dtype=torch.int64)
        of_tensors = not isinstance(labels, Tensor) and isinstance(labels[0], Tensor)
        return torch.stack(tuple(labels)) if of_tensors else torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"labels must be one integer a sample, got {labels[0]!r}") from None


def integers(labels: Tensor) -> Tensor:
    """Labels (n,) or (n, length) in int64; ValueError if they are not integers, one or a row of them a sample."""
    if labels.ndim not in (1, 2) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels must be one integer a sample, or a row of them, got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    return labels.long()
