"""The runs that are killed: recipes whose random numbers, memories and schedules all matter, a few dozen steps long."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from weightspace.training.data import ImageData
    from weightspace.training.recipe import Recipe

_EPOCHS = 4  # of six steps


@dataclass(frozen=True)
class Trial:
    """One run to kill.

    Attributes:
        name: For details.
        method: One of `reliability.findings.METHODS`.
        rules: As in a recipe.
        train: What differs from SGD with momentum and a cosine schedule.
        model: What differs from a small convolutional network with dropout.
        chains: Sample so many chains, instead of training once.
    """

    name: str
    method: str
    rules: tuple[Mapping[str, Any], ...] = ()
    train: Mapping[str, Any] = field(default_factory=dict[str, Any])
    model: Mapping[str, Any] = field(default_factory=dict[str, Any])
    chains: int = 0

    def recipe(self) -> Recipe:
        """As `train_run` takes it; every batch is augmented."""
        from weightspace.training.recipe import Recipe

        train = {
            "epochs": _EPOCHS,
            "batch_size": 16,
            "optimizer": {"name": "SGD", "lr": 0.1, "options": {"momentum": 0.9, "weight_decay": 5e-4}},
            "schedule": {"name": "cosine", "warmup_epochs": 0.5},
            "measure_every": 4,
            **self.train,
        }
        options = {"widths": [4, 8], "convs_per_stage": 1, "hidden": [], "dropout": 0.2}
        values = {
            "name": "killed",
            "data": {"name": "digits", "augment": ["crop", "flip"]},
            "model": {"name": "vgg", "options": options, **self.model},
            "train": train,
            "rules": [dict(rule) for rule in self.rules],
        }
        if self.chains:
            values["sample"] = {"chains": self.chains, "burn_in_epochs": 1, "max_samples": 6}
        return Recipe.from_dict(values)


@cache
def images() -> ImageData:
    """Gray stripes of three classes, 96 to train on: six batches of 16."""
    from weightspace.training.data import ImageData

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    drawn = torch.randint(0, 120, (120, 1, 8, 8), generator=generator, dtype=torch.uint8)
    drawn[torch.arange(120), 0, labels * 2] += 100
    parts = (drawn[:96], labels[:96], drawn[96:], labels[96:])
    return ImageData("stripes", *parts, ("a", "b", "c"), (0.3,), (0.2,), source="drawn for killed runs")


def train_or_sample(folder: Path, trial: Trial, every: int | None) -> None:
    """Trains, or samples, from the newest checkpoint in `folder` on; saves every so many steps, or at the end only."""
    recipe = trial.recipe()
    if not trial.chains:
        from weightspace.training.loop import train_run

        often = recipe.train.epochs if every is None else 1
        cadence = {"checkpoint_every_steps": every, "checkpoint_every_epochs": often}
        train_run(recipe, folder, seed=1, data=images(), resume=True, **cadence)
        return
    from weightspace.chains import keeper

    for chain in range(trial.chains):
        order = keeper.ChainOrder(recipe, folder, chain, checkpoint_every_steps=every)
        if order.finished() is None:
            keeper.sample_chain(order, images())


def train_anew(folder: Path, trial: Trial, every: int) -> None:
    """Trains from the beginning, whatever `folder` holds of an earlier run."""
    from weightspace.training.loop import train_run

    train_run(
        trial.recipe(),
        folder,
        seed=1,
        data=images(),
        checkpoint_every_steps=every,
        checkpoint_every_epochs=1,
    )


def train_by_command(folder: Path, trial: Trial, every: int, resume: bool) -> None:
    """`weightspace train RECIPE --out FOLDER --seed 1 --checkpoint-every EVERY`, with `--resume` or without."""
    from weightspace.cli.train import train
    from weightspace.training import session

    file = folder.with_suffix(".yaml")
    file.write_text(json.dumps(trial.recipe().to_dict()), encoding="utf-8")  # JSON is YAML
    session.load_recipe_data = lambda _: images()  # pyright: ignore[reportAttributeAccessIssue] - a process of its own
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(str(file), out=folder, seed=1, checkpoint_every=every, resume=resume)


def _optimizer(name: str, lr: float, factor: float | None = None, **options: Any) -> dict[str, Any]:
    return {"name": name, "lr": lr, "options": options} | ({} if factor is None else {"manifold_lr_factor": factor})


_NOT_HEAD = "convs & ~head"
_LANGEVIN = _optimizer("ConstrainedLangevin", 0.02, momentum=0.9, temperature=1.0, weight_decay=0.01)

SHORT = Trial(
    "short",
    "channel gradients",
    (
        {"rule": "ChannelL2", "smoothing": 4.0},
        {"rule": "L2", "weight": 0.01, "gate": {"gate": "RandomGate", "duty": 0.5}},
    ),
    {"epochs": 1, "measure_every": 3},
)
"""Six steps, for what is tried very often."""
CHAINS = Trial(
    "short chains",
    "constrained Langevin",
    ({"rule": "Oblique", "on": _NOT_HEAD},),
    {"epochs": 2, "optimizer": _LANGEVIN, "schedule": {"name": "constant"}, "measure_every": 2},
    chains=2,
)
"""Twelve steps each."""

TRIALS = (
    Trial(
        "bands and norms, random frequencies, remembered vectors",
        "singular values",
        (
            {"rule": "SingularValueBand", "frequencies": 2, "weight": 0.01},
            {"rule": "LargestSingularValue", "bound": 0.5, "weight": 0.01},
            {"rule": "GramFrobenius", "every": 3, "weight": 0.01},
        ),
    ),
    Trial(
        "spectral norm of the Gram operator by probes, Adam, clipped",
        "singular values",
        ({"rule": "GramSpectralNorm", "weight": 0.01}, {"rule": "ConditionNumber", "frequencies": 3, "weight": 1e-3}),
        {"optimizer": _optimizer("AdamW", 0.01), "clip_norm": 1.0},
    ),
    Trial("ChannelL2, momentum", "channel gradients", ({"rule": "ChannelL2", "smoothing": 4.0, "keep_norm": True},)),
    Trial(
        "ChannelSobolev, AdamW, bf16-mixed, channels_last",
        "channel gradients",
        ({"rule": "ChannelSobolev", "smoothing": 4.0, "permutation_seed": 3},),
        {
            "optimizer": _optimizer("AdamW", 0.01, amsgrad=True),
            "precision": "bf16-mixed",
            "channels_last": True,
            "label_smoothing": 0.1,
        },
    ),
    Trial(
        "gates with history, random and delayed",
        "gated penalties",
        (
            {"rule": "L1", "weight": 0.003, "gate": {"gate": "Coherent", "against": "history"}},
            {"rule": "L2", "weight": 0.01, "gate": {"gate": "RandomGate", "duty": 0.5}},
            {"rule": "GroupL1", "weight": 0.01, "application": "proximal", "gate": {"gate": "Delayed", "steps": 8}},
        ),
    ),
    Trial(
        "gates that look back and ahead",
        "gated penalties",
        (
            {"rule": "L1", "weight": 0.01, "gate": {"gate": "Coherent", "against": "lookahead"}},
            {"rule": "SoftOrthogonality", "weight": 0.01, "gate": {"gate": "Coherent", "against": "previous"}},
        ),
        {"schedule": {"name": "step", "milestones": [1, 2.5]}},
    ),
    Trial(
        "weights that vanish, a gate that is asked every third step",
        "gated penalties",
        (
            {"rule": "L1", "weight": 1.0, "application": "proximal", "on": "name('features.3.*')"},
            {
                "rule": "L2",
                "weight": 0.01,
                "every": 3,
                "on": "linears",
                "gate": {"gate": "Coherent", "against": "total"},
            },
        ),
        {"epochs": 9},  # whether weights vanished is looked at after every 50 steps
    ),
    Trial(
        "SubmanifoldSGD, Stiefel, curvature steps",
        "submanifolds",
        ({"rule": "Stiefel", "on": _NOT_HEAD}, {"rule": "ChannelL2", "smoothing": 4.0}),
        {
            "optimizer": _optimizer("SubmanifoldSGD", 0.2, 0.5, momentum=0.9, step_size="curvature"),
            "schedule": {"name": "power", "rate": 0.1, "exponent": 0.75},
        },
    ),
    Trial(
        "SubmanifoldAdam, product drawn anew every four steps",
        "submanifolds",
        (
            {
                "rule": "Product",
                "parts": ["sphere(slice)", "stiefel(slice)"],
                "over": "slice",
                "assignment": "random",
                "every": 4,
            },
        ),
        {"optimizer": _optimizer("SubmanifoldAdam", 0.02, weight_decay=1e-4), "schedule": {"name": "constant"}},
    ),
    Trial(
        "AdamW with Oblique attached", "submanifolds", ({"rule": "Oblique"},), {"optimizer": _optimizer("AdamW", 0.01)}
    ),
    Trial(
        "temperature 1, Stiefel, cyclical",
        "constrained Langevin",
        ({"rule": "Stiefel", "on": _NOT_HEAD},),
        {"optimizer": _LANGEVIN, "schedule": {"name": "cyclical", "cycles": 2, "exploration": 0.5}, "measure_every": 2},
    ),
    Trial(
        "circles, preset c-cola-ud, temperature raised",
        "constrained Langevin",
        ({"rule": "Circle", "radius": 1.5, "on": _NOT_HEAD},),
        {
            "optimizer": _optimizer("ConstrainedLangevin", 0.09, scheme="BAOA", friction=1.0),
            "schedule": {"name": "constant", "temperature": {"start": 0.0, "end": 0.1, "epochs": 2}},
            "measure_every": 1,
        },
    ),
    Trial(
        "two chains with samples",
        "constrained Langevin",
        ({"rule": "Oblique", "on": _NOT_HEAD},),
        {"optimizer": _LANGEVIN, "schedule": {"name": "constant"}, "measure_every": 1, "evaluate_every": 2},
        chains=2,
    ),
)
