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
    library = TensorBoard(Path(folder) / "tensorboard") if name == "tensorboard" else module
    return Tracker(library, Path(folder).absolute().name, folder)


class Tracker(Callback):
    """Tracks with a library that has W&B's interface: init(...) returns a run, which has log(...) and finish(...).

    Of the options that W&B's functions take, a library is given those that it takes too. folder: where wandb keeps its
    own. Several runs are tracked at once, and none of them is the library's present one.
    """

    def __init__(self, library: Any, project: str, folder: Path | str | None = None) -> None:
        self.library, self.project, self.folder = library, project, folder
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
        if run not in self.tracked:  # not before there is something: a cluster may be given hundreds of runs at once
            if self.folder is not None:
                Path(self.folder).mkdir(parents=True, exist_ok=True)
            self.tracked[run] = _call(
                self.library.init,
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
        _call(self.tracked[run].log, figures, step=self.steps.get(run, 0))

    def _finish(self, run: Run, exit_code: int) -> None:
        if run in self.tracked:
            _call(self.tracked.pop(run).finish, exit_code=exit_code)


class TensorBoard:
    """TensorBoard with W&B's interface: the events of every run are in a folder, `tensorboard --logdir FOLDER`."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def init(self, name: str, config: dict[str, Any]) -> Events:
        """The events of a run; what an earlier one of this name and configuration left is forgotten."""
        return Events(self.path(name, config["hash"]), hyperparameters(config))

    def path(self, name: str, hash: str) -> Path:
        """The folder of a run."""
        return self.folder / f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', name)}-{hash}"


class Events:
    """The events of one run, with its configuration and last figures as hyperparameters."""

    def __init__(self, path: Path, known: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(path, purge_step=1)
        self.known = known

    def log(self, figures: dict[str, Any], step: int) -> None:
        """Write numbers at a step, and text."""
        from torch.utils.tensorboard.summary import hparams

        for name, value in figures.items():
            self.writer.add_text(name, value) if name == "error" else self.writer.add_scalar(name, value, step)
        if any(name.startswith("final/") for name in figures):
            for summary in hparams(self.known, figures):  # type: ignore[no-untyped-call]
                self.writer.file_writer.add_summary(summary)
        self.writer.flush()

    def finish(self) -> None:
        """Close the file."""
        self.writer.close()


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


def hyperparameters(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as a flat table of numbers and words."""
    flat = {**config, **config["train"]}
    del flat["train"]
    for name in ("method", "model", "data"):
        flat[name] = str(Choice(**flat[name]))
    for name in ("optimizer", "schedule"):
        flat[name] = flat[name] and str(Choice.of(flat[name], name))
    return flat


def _call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call the function with those of the options that it takes, outside any run of its library and silently."""
    parameters = inspect.signature(function).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        options = {name: value for name, value in options.items() if name in parameters}
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*compatibility with wandb")  # of an option that does nothing
        return Context().run(lambda: function(*arguments, **options))
