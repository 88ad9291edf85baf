"""Jobs for the tests of engines, in a module of their own because workers import them by name."""

from __future__ import annotations

import os
import signal
import time

from weightspace.training import steps as steps_module
from weightspace.training.loop import train_run


def train_and_be_killed_once(recipe, run_dir, *, seed, data, mark, accelerator="auto"):
    """Real training. One run in all, of seed 1, which finds no file `mark`, is killed with signal 9 in its middle."""

    def progress(step, steps):
        if seed == 1 and step > 3 and not mark.exists():
            assert list(run_dir.iterdir())  # half-written
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    steps_module._PROGRESS_SECONDS = -1.0  # progress after every step
    return train_run(recipe, run_dir, seed=seed, data=data, progress=progress, accelerator=accelerator)


def train_and_always_be_killed(recipe, run_dir, *, seed, data, accelerator="auto"):
    """Seed 1 never lives."""
    if seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_run(recipe, run_dir, seed=seed, data=data, accelerator=accelerator)


def environment(name):
    """What a worker's environment says, and who it is."""
    return os.environ.get(name), os.getpid()


def threads():
    """Torch's threads in a worker."""
    import torch

    return torch.get_num_threads()


def die():
    """End the hard way."""
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(path):
    """Wait until a file is there."""
    while not path.exists():
        time.sleep(0.05)


def stop_when_asked(mark):
    """Wait as a chain does for a signal, and tell which one came."""
    from weightspace.training.interrupt import stop_requests

    with stop_requests() as request:
        mark.with_suffix(".begun").touch()
        while not request.signal_number:
            time.sleep(0.05)
        mark.write_text(str(request.signal_number))


def fail():
    """Raise what is no error of weightspace."""
    raise ZeroDivisionError("a bug")
