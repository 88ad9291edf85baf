"""What the training loop costs against a bare PyTorch loop over the same batches, model and optimizer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.timing import Timing, device, interleave
from weightspace.training.data import Batches, ImageData, load_data
from weightspace.training.interrupt import StopRequest
from weightspace.training.logs import RunLog
from weightspace.training.models import build_model
from weightspace.training.recipe import load_recipe
from weightspace.training.session import open_session
from weightspace.training.steps import TrainingLoop

OVERRIDES = ["rules=[]", "train.epochs=1000", "train.schedule.name=constant", "train.measure_every=null"]


def bare_epoch(data: ImageData) -> Callable[[], object]:
    """An epoch as one would write it by hand."""
    recipe = load_recipe("quickstart", OVERRIDES)
    torch.manual_seed(0)
    model = build_model("vgg", in_channels=1, image_size=8, num_classes=10, **recipe.model.options).to(device())
    settings = recipe.train.optimizer
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr, **settings.options)
    batches = Batches(
        data.train_images,
        data.train_labels,
        batch_size=recipe.train.batch_size,
        mean=data.mean,
        std=data.std,
        seed=0,
        device=device(),
    )

    def epoch() -> None:
        total = 0.0
        for images, labels in batches.epoch(0):
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()  # every loop that shows its loss pays this

    return epoch


def our_epoch(data: ImageData, folder: Path) -> Callable[[], object]:
    """The library's loop, logging included, evaluation and checkpoints left out on both sides."""
    session = open_session(load_recipe("quickstart", OVERRIDES), data, seed=0)
    loop = TrainingLoop(session, folder, "benchmark", RunLog(folder, records=0, tensorboard=False), stop=StopRequest())

    def epoch() -> None:
        loop._train_epoch(None)  # noqa: SLF001  # the inner loop alone
        session.progress.batch = 0

    return epoch


def measure(rounds: int = 200) -> dict[str, Timing]:
    """Epochs of the quickstart recipe: steps of two milliseconds, where overhead shows most."""
    data = load_data("digits")
    with tempfile.TemporaryDirectory() as folder:
        return interleave(
            {"bare loop": bare_epoch(data), "weightspace loop": our_epoch(data, Path(folder))},
            "bare loop",
            rounds=rounds,
            seconds=60,
        )
