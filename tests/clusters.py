"""What the tests of the launchers have in common: a study of which some runs fail, one way each."""

from __future__ import annotations

from subspace.study.callbacks import Callback
from subspace.study.config import Choice, Run, Training
from subspace.study.runner import carry_out

MODULE = """
import os, signal
from torch import nn

def build(num_classes, fault=""):
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "raises":
        raise LookupError("no such thing")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


def run(fault="", threads=1):
    """A run on the scikit-learn digits, a second at most."""
    model = Choice("fragile:build", {"fault": fault} if fault else {})
    train = Training(epochs=2, batch=500, threads=threads)
    return Run(Choice("dctps"), model, Choice("digits"), density=0.5, train=train)


def carried_out(runs, store, launcher):
    """Carry out the runs; (run, status) as they end, and all that was said."""

    class Told(Callback):
        ended, said, epochs = [], [], []

        def epoch(self, run, figures):
            self.epochs.append((run, figures["epoch"]))

        def end(self, run, record):
            self.ended.append((run, record["status"]))

        def say(self, text):
            self.said.append(text)

    told = Told()
    carry_out(runs, store, launcher, told)
    return told
