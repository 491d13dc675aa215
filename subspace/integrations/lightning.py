"""Movers and deltas in Lightning's Trainer: `Trainer(..., callbacks=[DeltaCallback(mover)])`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric

from subspace.integrations.resuming import MakeMover, Moves, of_the_base, record, resume

STATE = "subspace"


class DeltaCallback(Callback):
    """Moves U after every step of the optimizer, and leaves the base out of every checkpoint of the Trainer.

    A checkpoint's state_dict holds what trains alone: from it `fit(ckpt_path=...)` resumes to the bit, with the same
    base and recipe. `subspace.save(module, path)` writes a delta for others at any time.

    Args:
        mover: (module, optimizer) -> a mover, as `lambda module, optimizer: RigL(module, optimizer, t_end=1000)`.
        objective: (module, batch) -> what the mover wants to be small; by default the module's `training_step`, without
            what it logs.

    Raises, when fitting begins, ValueError for a module without subspaces, or one that is not as the checkpoint left
    it, or for several optimizers where there is a mover.
    """

    def __init__(
        self, mover: MakeMover | None = None, *, objective: Callable[[nn.Module, Any], Tensor] | None = None
    ) -> None:
        self.make, self.objective = mover, objective
        self.mover: Moves | None = None
        self._recorded: Mapping[str, Any] | None = None
        self._steps = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        of_the_base(pl_module)
        pl_module.strict_loading = False  # the base is not in the checkpoint, but compared in `on_fit_start`

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if STATE not in checkpoint:
            raise ValueError(f"the checkpoint must be one of this callback, got one without {STATE!r}")
        self._recorded = checkpoint[STATE]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.make:
            if len(trainer.optimizers) != 1:
                raise ValueError(f"a mover must have one optimizer, got {len(trainer.optimizers)}")
            if not (pl_module.automatic_optimization or self.objective):
                raise ValueError("objective must be given where the module optimizes by itself, got None")
            self.mover = self.make(pl_module, trainer.optimizers[0])
        if self._recorded is not None:
            resume(pl_module, self.mover, self._recorded)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.mover and trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self.mover.step(lambda module: self._value(trainer, module, batch, batch_idx))

    def _value(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> Tensor:
        with trainer.precision_plugin.train_step_context():
            if self.objective:
                return self.objective(module, batch)
            module.log = module.log_dict = lambda *args, **kwargs: None
            try:
                with _uncounted(module):
                    output = module.training_step(batch, batch_idx)
            finally:
                del module.log, module.log_dict
        loss: Tensor = output["loss"] if isinstance(output, Mapping) else output
        return loss

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for name in of_the_base(pl_module):
            checkpoint["state_dict"].pop(name, None)
        checkpoint[STATE] = record(pl_module, self.mover)


@contextmanager
def _uncounted(module: nn.Module) -> Iterator[None]:
    """The metrics of a module are afterwards as they were: a batch that is seen again does not count."""
    metrics = [each for each in module.modules() if isinstance(each, Metric)]
    before = [{**vars(metric), **{n: _own(state) for n, state in metric.metric_state.items()}} for metric in metrics]
    try:
        yield
    finally:
        for metric, attributes in zip(metrics, before, strict=True):
            vars(metric).clear()
            vars(metric).update(attributes)


def _own(state: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """A state that later updates do not change."""
    return state.clone() if isinstance(state, Tensor) else list(state)
