"""Movers and deltas in Hugging Face's Trainer: `Trainer(..., callbacks=[DeltaCallback(mover)])`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from subspace._base.files import write_atomically
from subspace.checkpoint import save
from subspace.integrations.resuming import MakeMover, Moves, of_the_base, record, resume

WEIGHTS, DELTA, STATE = "model.safetensors", "delta.safetensors", "subspace.pt"


class DeltaCallback(TrainerCallback):
    """Moves U after every step of the optimizer, and leaves the base out of every checkpoint of the Trainer.

    A checkpoint's model.safetensors holds what trains alone: from it the Trainer resumes to the bit, with the same base
    and recipe. Beside it is delta.safetensors, which `subspace.load` and `subspace.Deltas` take.

    Args:
        mover: (model, optimizer) -> a mover, as `lambda model, optimizer: RigL(model, optimizer, t_end=1000)`.
        objective: What the mover is given; by default the loss that the model returns for the last batch.
        resume_from: The folder of the checkpoint that training goes on from, if it is not in `output_dir`.

    Raises, when training begins, ValueError for a model without subspaces, or one that is not as the checkpoint left
    it, and FileNotFoundError for a checkpoint that this callback has not made.
    """

    def __init__(
        self,
        mover: MakeMover | None = None,
        *,
        objective: Callable[[nn.Module], Tensor] | None = None,
        resume_from: str | Path | None = None,
    ) -> None:
        self.make, self.objective, self.resume_from = mover, objective, resume_from
        self.mover: Moves | None = None
        self._batch: tuple[Any, Any] = (), {}
        self._hook: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        of_the_base(model)
        self.mover = self.make and self.make(model, getattr(optimizer, "optimizer", optimizer))
        if state.global_step:
            path = Path(self.resume_from or args.resume_from_checkpoint or _folder(args, state)) / STATE
            if not path.is_file():
                raise FileNotFoundError(f"resume_from must be a folder with {STATE}, got {path.parent}")
            resume(model, self.mover, torch.load(path, map_location="cpu", weights_only=True))
        if self.mover and not self.objective:
            self._hook = model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._batch = args, kwargs

    def _loss(self, model: nn.Module) -> Tensor:
        args, kwargs = self._batch
        loss: Tensor = model(*args, **kwargs).loss
        return loss

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.mover:
            self.mover.step(self.objective or self._loss)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not args.should_save:
            return
        model, folder = kwargs["model"], _folder(args, state)
        left_out = of_the_base(model)
        kept = {name: t.detach().clone() for name, t in model.state_dict().items() if name not in left_out}
        write_atomically(folder / WEIGHTS, to_safetensors(kept, {"format": "pt"}))
        for piece in folder.glob("model-*-of-*.safetensors"):
            piece.unlink()
        (folder / f"{WEIGHTS}.index.json").unlink(missing_ok=True)
        save(model, folder / DELTA)
        torch.save(record(model, self.mover), folder / STATE)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._hook:
            self._hook.remove()
        self._batch = (), {}


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
