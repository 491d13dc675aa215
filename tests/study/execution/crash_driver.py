"""Kills a study again and again, at random moments, and carries it on; used by test_crashes.py.

usage: python crash_driver.py FOLDER KILLS SEED. Prints JSON: the kills by kind, the sentences that were said, and how
many times the study was brought to its end, each time in a folder of its own, FOLDER/0, FOLDER/1, ... beside
FOLDER/undisturbed. One process imports torch, and what its optimizers import, and every study is a fork of it, so that
a kill costs no time.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch
import torch._dynamo

from subspace import Key
from subspace.study import data
from subspace.study.entries.entry import Choice
from subspace.study.execution.callbacks import Callback
from subspace.study.execution.launchers.pool import Pool
from subspace.study.execution.runner import carry_out, unfinished
from subspace.study.results.store import Store
from subspace.study.spec.study import Run, Training

TRAIN = Training(epochs=3, batch=20, schedule={"name": "StepLR", "step_size": 1})
METHODS = (
    ("ordinary", {}, None),
    ("dctps", {}, 0.01),
    ("dctps_rigl", {"delta_t": 2}, 0.02),
    ("imp", {"rounds": 2}, 0.05),
    ("freezenet", {}, 0.01),
    ("snip", {}, 0.02),
)
KINDS = ("all", "parent", "all", "worker")
DATA = Choice("crash_driver:digits")
RUNS = [Run(Choice(name, options), data=DATA, density=density, train=TRAIN) for name, options, density in METHODS]


def digits():
    """Sixty images without meaning to train on, and thirty to test on."""
    images = torch.from_numpy(Key(1).normal(90 * 784, dtype="float32")).reshape(90, 1, 28, 28)
    labels = torch.arange(90) % 10
    return data.Data(data.Tensors(images[:60], labels[:60]), data.Tensors(images[60:], labels[60:]), 10)


class Said(Callback):
    """Writes down what a study says."""

    def __init__(self, folder):
        self.path = folder.parent / "said.txt"

    def say(self, text):
        with self.path.open("a") as file:
            file.write(text + "\n")


def study(folder, retry=False):
    """What `subspace run` does, up to its tables."""
    store = Store(folder)
    missing = unfinished(RUNS, store, Said(folder), retry)
    carry_out(missing, store, Pool(store.folder, 2, method="fork"), Said(folder), elsewhere=0.2)


def forked(folder):
    """The study in a process group of its own."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.setpgid(0, 0)
            study(folder)
            status = 0
        finally:
            os._exit(status)
    return pid


def children(pid):
    """The processes that a process has started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def kill(pid, kind):
    """Kill the study, all of it, or one of its workers; whether there was one."""
    try:
        if kind == "all":
            os.killpg(pid, signal.SIGKILL)
        elif kind == "parent":
            os.kill(pid, signal.SIGKILL)
        else:
            os.kill(random.choice(children(pid)), signal.SIGKILL)
    except (ProcessLookupError, IndexError, FileNotFoundError):
        return False
    return True


def main(folder, kills, seed):
    random.seed(seed)
    study(folder / "undisturbed")
    counts, ended = Counter(), 0
    while counts.total() < kills:
        pid = forked(folder / str(ended))
        kind = KINDS[counts.total() % len(KINDS)]
        time.sleep(random.uniform(0, 0.5))
        done, status = os.waitpid(pid, os.WNOHANG)
        counts[kind] += not done and kill(pid, kind)
        if not done and kind == "worker":
            done, status = os.waitpid(pid, 0)
        elif not done:
            os.waitpid(pid, 0)
        if done and status == 0:
            study(folder / str(ended), retry=True)  # what two killed workers gave up
            ended += 1
    study(folder / str(ended), retry=True)
    print(json.dumps({"kills": counts, "studies": ended + 1}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
