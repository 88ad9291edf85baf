"""Small runs that several processes train together: what each process does, for `run_ranks`."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from weightspace.errors import WeightspaceError
from weightspace.training import steps as steps_module
from weightspace.training.data import ImageData, TextData
from weightspace.training.data.tokens import character_vocabulary, encode_characters
from weightspace.training.distribution import Processes, start_processes
from weightspace.training.interrupt import Interrupted
from weightspace.training.loop import train_run
from weightspace.training.recipe import Recipe

SEED = 3
VGG = {"name": "vgg", "options": {"widths": [4, 6], "convs_per_stage": 1, "hidden": [], "dropout": 0.0}}
DROPOUT = {"name": "vgg", "options": {"widths": [4, 6], "convs_per_stage": 1, "hidden": [], "dropout": 0.3}}
RESNET = {"name": "resnet20", "options": {"width": 4}}
TRANSFORMER = {"name": "transformer", "options": {"width": 16, "layers": 2, "heads": 2}}


def small_data(train: int = 96, test: int = 24) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    count = train + test
    labels = torch.arange(count) % 3
    images = torch.randint(0, 120, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    images[torch.arange(count), 0, labels * 2] += 100
    return ImageData(
        "stripes",
        *(images[:train], labels[:train], images[train:], labels[train:]),
        class_names=("a", "b", "c"),
        mean=(0.3,),
        std=(0.2,),
        source="drawn for this test",
    )


def images() -> ImageData:
    return small_data(66, 21)  # two ranks share 21 images unevenly


def text() -> TextData:
    words = "the cat sat on the mat. " * 20
    vocabulary = character_vocabulary(words)
    tokens = encode_characters(words, vocabulary)
    # 16 tokens in a window and 61 to test on: the last window is short and of one rank only
    return TextData("cats", tokens[:-61], tokens[-61:], vocabulary, 16, "character", source="written for this test")


def recipe(model: dict[str, Any] = VGG, rules: Sequence[dict[str, Any]] = (), **train: Any) -> Recipe:
    values = {
        "epochs": 2,
        "batch_size": 12,
        "optimizer": {"name": "SGD", "lr": 0.1, "options": {"momentum": 0.9, "weight_decay": 5e-4}},
        "schedule": {"name": "cosine"},
        "measure_every": 4,
    }
    is_text = model["name"] == "transformer"
    data = {"name": "verses", "context": 16} if is_text else {"name": "digits", "augment": ["crop", "flip"]}
    return Recipe.from_dict(
        {"name": "test", "data": data, "model": model, "train": values | train, "rules": list(rules)}
    )


def processes_of(rank: int, ranks: int, strategy: str, precision: str = "32-true") -> Processes:
    """In a process of `run_ranks`, whose group is ready."""
    os.environ["LOCAL_RANK"] = str(rank)
    return start_processes(strategy, accelerator="cpu", devices=ranks, precision=precision)


def run(processes: Processes | None, folder: Path, settings: Recipe, **options: Any) -> dict[str, Any]:
    data = text() if settings.model.name == "transformer" else images()
    options = {"checkpoint_every_epochs": 1, "accelerator": "cpu"} | options
    return train_run(settings, folder, seed=SEED, data=data, processes=processes, **options)


def outcome(action: Callable[[], Any]) -> tuple[str, str]:
    """What became of it: ("", the result) or the error's class and sentence."""
    try:
        return "", str(action())
    except (WeightspaceError, Interrupted, OSError) as error:
        return type(error).__name__, str(error)


def warnings_of(action: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(entry.message) for entry in caught]


@contextmanager
def signal_at(step: int, *, here: bool) -> Any:
    """This process gets SIGTERM while step number `step` is taken, if it is `here`."""
    original = steps_module.TrainingLoop._join

    def join(loop: Any, losses: Any) -> None:
        if here and loop.session.progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        original(loop, losses)

    steps_module.TrainingLoop._join = join
    try:
        yield
    finally:
        steps_module.TrainingLoop._join = original
