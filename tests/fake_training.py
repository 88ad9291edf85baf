"""Training functions that only write their result, for the tests of the comparison's runner.

They live in a module of their own because worker processes import them by name.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch

from weightspace.training.data import ImageData
from weightspace.training.recipe import run_fingerprint


def load(recipe):
    """Forty tiny images of two classes; every call is noted in the file named by COUNT_LOADS."""
    if path := os.environ.get("COUNT_LOADS"):
        with Path(path).open("a") as stream:
            stream.write(f"{os.getpid()}\n")
    images = torch.arange(40 * 4, dtype=torch.uint8).reshape(40, 1, 2, 2)
    labels = torch.arange(40) % 2
    return ImageData("tiny", images, labels, images[:10], labels[:10], ("a", "b"), (0.5,), (0.25,), "made up")


def train(recipe, run_dir, *, seed, data, progress=None):
    """Accuracy is best at lr 0.02; smoothing adds a little. What it saw is noted beside the result."""
    assert not run_dir.exists() or not any(run_dir.iterdir()), "half-written runs must be cleared"
    run_dir.mkdir(parents=True)
    lr = recipe.train.optimizer.lr
    accuracy = 0.9 - abs(lr - 0.02) + 0.001 * seed % 0.01 + 0.01 * len(recipe.rules)
    (run_dir / "seen.json").write_text(
        json.dumps(
            {"lr": lr, "train": len(data.train_labels), "test": len(data.test_labels), "pid": os.getpid()}
            | {"threads": torch.get_num_threads(), "at": time.monotonic_ns()}
        )
    )
    result = {
        "status": "done",
        "reason": None,
        "seed": seed,
        "steps": 10,
        "epochs": recipe.train.epochs,
        "test_accuracy": accuracy,
        "test_loss": 1 - accuracy,
        "train_loss": 0.1,
        "seconds": 1.0,
        "seconds_per_step": 0.01,
        "parameters": 8,
        "fingerprint": run_fingerprint(recipe, seed),
    }
    (run_dir / "result.json").write_text(json.dumps(result))
    return result


def train_with_bug(recipe, run_dir, *, seed, data, progress=None):
    """Fails on the third final seed."""
    if seed == 2:
        raise ZeroDivisionError("a bug in the training function")
    return train(recipe, run_dir, seed=seed, data=data)


def train_diverging(recipe, run_dir, *, seed, data, progress=None):
    """Seed 1 of an arm with rules diverges, with a deceptively good accuracy."""
    result = train(recipe, run_dir, seed=seed, data=data)
    if seed == 1 and recipe.rules:
        result |= {"status": "diverged", "reason": "the loss is nan", "test_accuracy": 0.99, "test_loss": None}
        (run_dir / "result.json").write_text(json.dumps(result))
    return result


def train_slowly(recipe, run_dir, *, seed, data, progress=None):
    """Finishes tuning at once and then takes forever, telling its process id."""
    if seed >= 1000:
        return train(recipe, run_dir, seed=seed, data=data)
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.jsonl").write_text('{"kind": "epoch"')
    (run_dir / f"pid-{os.getpid()}").touch()
    time.sleep(600)
    return {}


def die(recipe, run_dir, *, seed, data, progress=None):
    """Ends its process the hard way, as the system does when memory runs out."""
    os._exit(9)
