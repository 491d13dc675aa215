"""Live figures of every run in TensorBoard, or in a tracker with W&B's interface, by their own libraries.

After each epoch "train_loss" (nats), "test_accuracy", "validation_accuracy" (fractions) and "learning_rate", at the
step that is the epoch's number; at the end all single numbers of the record's metrics as "final/NAME", or the "error".

No point is there twice. A run that is begun again, in a resumed study or after a failure, reports all of its epochs
again: TensorBoard forgets the run's earlier events, and to the other trackers it is a new run, whole; the earlier one
stays as it was left. The configuration of each has the run's "hash", and those of a group differ in the seed alone.
"""

from __future__ import annotations

import importlib
import inspect
import io
import re
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from contextvars import Context
from pathlib import Path
from typing import Any

from subspace.study.entries.entry import Choice
from subspace.study.entries.lookup import require_known
from subspace.study.execution.callbacks import Callback
from subspace.study.results.store import Record
from subspace.study.spec.study import Run

TRACKERS = ("tensorboard", "wandb", "trackio")
CURVES = ("train_loss", "test_accuracy", "validation_accuracy", "learning_rate")


def find_tracker(name: str, folder: Path | str) -> Callback:
    """The tracker of that name for a study with this folder; ValueError if there is none, or no library.

    TensorBoard's events are in FOLDER/tensorboard, a folder for every run; wandb's files in FOLDER/wandb. The name of
    the folder, the study's, is that of the project of wandb and trackio.
    """
    require_known([name], TRACKERS, "tracker must be one of")
    try:
        module = importlib.import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
        usable = hasattr(module, "SummaryWriter") or hasattr(module, "init")  # not a mere folder called wandb
    except ImportError:
        usable = False
    if not usable:
        raise ValueError(f"{name} must be installed to track with it, got none: pip install {name}")
    if name == "tensorboard":
        return TensorBoard(Path(folder) / "tensorboard")
    return Tracker(module, Path(folder).absolute().name, folder)


class TensorBoard(Callback):
    """Events of every run in its own folder, with its configuration and last figures as hyperparameters.

    Look at them with `tensorboard --logdir FOLDER`.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.writers: dict[Run, Any] = {}
        self.steps: dict[Run, int] = {}  # the last epoch of each

    def path(self, run: Run) -> Path:
        """Where a run's events are."""
        return self.folder / f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', str(run))}-{run.hash}"

    def begin(self, run: Run) -> None:
        self.steps.pop(run, None)
        if run in self.writers:
            self.writers.pop(run).close()

    def epoch(self, run: Run, figures: dict[str, Any]) -> None:
        writer, self.steps[run] = self._writer(run), figures["epoch"]
        for name, value in curves(figures).items():
            writer.add_scalar(name, value, figures["epoch"])
        writer.flush()

    def end(self, run: Run, record: Record) -> None:
        from torch.utils.tensorboard.summary import hparams

        writer = self._writer(run)
        if record["status"] == "finished":
            figures = final(record)
            for summary in hparams(hyperparameters(run), figures):  # type: ignore[no-untyped-call]
                writer.file_writer.add_summary(summary)
            for name, value in figures.items():
                writer.add_scalar(name, value, self.steps.get(run, 0))
        else:
            writer.add_text("error", str(record["error"]))
        self.writers.pop(run).close()

    def close(self) -> None:
        while self.writers:
            self.writers.popitem()[1].close()

    def _writer(self, run: Run) -> Any:
        """Made when there is something to write: a cluster may be handed hundreds of runs at once."""
        from torch.utils.tensorboard import SummaryWriter

        if run not in self.writers:
            self.writers[run] = SummaryWriter(self.path(run), purge_step=1)
        return self.writers[run]


class Tracker(Callback):
    """Tracks with a module that has W&B's interface: init(...) returns a run, which has log(...) and finish(...).

    Of the options that W&B's functions take, a module is given those that it takes too. folder: where wandb keeps its
    own. Several runs are tracked at once, and none of them is the module's present one.
    """

    def __init__(self, module: Any, project: str, folder: Path | str | None = None) -> None:
        self.module, self.project, self.folder = module, project, folder
        self.tracked: dict[Run, Any] = {}
        self.steps: dict[Run, int] = {}  # the last epoch of each

    def begin(self, run: Run) -> None:
        self.steps.pop(run, None)
        self._finish(run, 1)

    def epoch(self, run: Run, figures: dict[str, Any]) -> None:
        self.steps[run] = figures["epoch"]
        self._log(run, curves(figures))

    def end(self, run: Run, record: Record) -> None:
        finished = record["status"] == "finished"
        self._log(run, final(record) if finished else {"error": str(record["error"])})
        self._finish(run, 0 if finished else 1)

    def close(self) -> None:
        for run in list(self.tracked):
            self._finish(run, 1)

    def _log(self, run: Run, figures: dict[str, Any]) -> None:
        if run not in self.tracked:
            if self.folder is not None:
                Path(self.folder).mkdir(parents=True, exist_ok=True)
            self.tracked[run] = _called(
                self.module.init,
                project=self.project,
                name=str(run),
                group=", ".join(filter(None, [str(run.data), str(run.model), run.label, run.size])),
                config={**run.configuration(), "hash": run.hash},
                dir=None if self.folder is None else str(self.folder),
                reinit="create_new",
                settings={"silent": True, "console": "off"},
                embed=False,
                auto_log_cpu=False,  # this process is not the one that trains
                auto_log_gpu=False,
            )
        _called(self.tracked[run].log, figures, step=self.steps.get(run, 0))

    def _finish(self, run: Run, exit_code: int) -> None:
        if run in self.tracked:
            _called(self.tracked.pop(run).finish, exit_code=exit_code)


def curves(figures: dict[str, Any]) -> dict[str, float]:
    """What is drawn of an epoch, as far as it is known."""
    return {name: figures[name] for name in CURVES if figures.get(name) is not None}


def final(record: Record) -> dict[str, float]:
    """The single numbers of a finished run's metrics, and its last accuracies."""
    metrics = record["metrics"]
    last = {name: value for name, value in curves(metrics["epochs"][-1]).items() if name.endswith("accuracy")}
    beside = {f"beside_{kind}": count for kind, count in metrics["beside"].items()}
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return {f"final/{name}": value for name, value in (numbers | beside | last).items()}


def hyperparameters(run: Run) -> dict[str, Any]:
    """The configuration as a flat table of numbers and words."""
    about = {"method": run.label, "model": str(run.model), "data": str(run.data)}
    train = run.configuration()["train"]
    words = {name: str(Choice.of(train[name], name)) for name in ("optimizer", "schedule") if train[name]}
    return {**about, "density": run.density, "dim": run.dim, "seed": run.seed, **train, **words, "hash": run.hash}


def _called(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The function called with those of the options that it takes, outside any run of its module and silently."""
    parameters = inspect.signature(function).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        options = {name: value for name, value in options.items() if name in parameters}
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*compatibility with wandb")  # of an option that does nothing
        return Context().run(lambda: function(*arguments, **options))
