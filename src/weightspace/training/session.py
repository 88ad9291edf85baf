"""Everything one training run holds: model, optimizer, schedule, rules and data on their device, and its position."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from weightspace.errors import RecipeError, RunError
from weightspace.training.data import Batches, ImageData, load_data
from weightspace.training.models import build_model
from weightspace.training.recipe import Recipe
from weightspace.training.reproducible import random_states, seed_stream, set_random_states
from weightspace.training.schedule import make_scheduler

if TYPE_CHECKING:
    from weightspace.optim import Rules

# Images at a time. On a CPU 1,000 fall out of the cache and take twice as long as 250; an accelerator wants many.
_EVALUATION_BATCH_ON_CPU, _EVALUATION_BATCH = 250, 1000


@dataclass
class Progress:
    """Where a run stands, and what it has added up. Saved with every checkpoint.

    Attributes:
        epoch: Epoch in progress, counted from 0.
        batch: Batches done in this epoch.
        step: Steps done in the whole run.
        loss_sum: Sum of this epoch's batch losses, on the device: reading it there would stop the accelerator.
        train_loss: Mean loss of the last whole epoch.
        test_loss: Mean loss on the test images at the last evaluation.
        test_accuracy: Fraction of the test images classified right at the last evaluation.
        step_seconds: Wall-clock seconds of each step (on accelerators: means over the steps between two checks).
        seconds: Their sum over all steps.
    """

    loss_sum: Tensor
    epoch: int = 0
    batch: int = 0
    step: int = 0
    train_loss: float = float("nan")
    test_loss: float = float("nan")
    test_accuracy: float = float("nan")
    seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list[float])

    @property
    def median_step(self) -> float:
        """Median seconds of a step, 0.0 before the first."""
        return statistics.median(self.step_seconds) if self.step_seconds else 0.0


@dataclass
class Session:
    """The parts of one run. `model` and `optimizer` are Fabric's wrappers, `module` and `inner` what they wrap."""

    recipe: Recipe
    fabric: Fabric
    module: nn.Module
    model: Any
    inner: torch.optim.Optimizer
    optimizer: Any
    scheduler: LambdaLR
    rules: Rules | None
    train: Batches
    test: Batches
    num_classes: int
    progress: Progress

    @property
    def forward(self) -> Callable[[Tensor], Tensor]:
        """What to call on a batch. On one device in plain float32 Fabric's wrapper changes nothing but costs 45 µs."""
        return self.module if self.recipe.train.precision == "32-true" else self.model

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.recipe.train.epochs * len(self.train)

    @property
    def parameters(self) -> int:
        """Trainable numbers of the model."""
        return sum(parameter.numel() for parameter in self.module.parameters() if parameter.requires_grad)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the run continues, for a checkpoint."""
        return {
            "model": dict(self.module.state_dict()),
            "optimizer": self.inner.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rules": self.rules.state_dict() if self.rules is not None else None,
            "precision": self.fabric.strategy.precision.state_dict(),
            "random": random_states(),
            "progress": {**vars(self.progress), "step_seconds": torch.tensor(self.progress.step_seconds).double()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            RunError: The state does not fit the model or optimizer.
        """
        try:
            self.module.load_state_dict(state["model"])
            self.inner.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            if self.rules is not None:
                self.rules.load_state_dict(state["rules"])
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"the checkpoint does not fit this model and optimizer ({error}); use --fresh") from error
        set_random_states(state["random"])
        saved = dict(state["progress"])
        saved["step_seconds"] = saved["step_seconds"].tolist()
        saved["loss_sum"] = saved["loss_sum"].to(self.fabric.device)
        self.progress = Progress(**saved)


def load_recipe_data(recipe: Recipe) -> ImageData:
    """The images a recipe asks for, cut to its sizes (one subset for all seeds and arms).

    Raises:
        DataError: The data set is not there; says the ways to get it.
    """
    data = load_data(recipe.data.name, root=recipe.data.root)
    return data.take(recipe.data.train_size, recipe.data.test_size)


def open_session(recipe: Recipe, data: ImageData, *, seed: int, accelerator: str = "auto") -> Session:
    """Build the parts of a run and put them on their device. Seeds torch's generators: the caller restores them.

    Args:
        recipe: What to train.
        data: The images.
        seed: Decides initial weights, dropout and the order of the images, each by a stream of its own.
        accelerator: Lightning Fabric's name: "auto", "cpu", "cuda" (or "gpu"), "mps".

    Raises:
        RecipeError: Model, optimizer or accelerator cannot be built as asked.
        DataError: The data set has fewer images than a batch.
        SelectionError, RuleError, AttachError: A rule does not fit the model.
    """
    train = recipe.train
    fabric = _launch(accelerator, train.precision)
    seed_stream(seed, "initialization")
    module = build_model(
        recipe.model.name,
        in_channels=data.in_channels,
        image_size=data.image_size,
        num_classes=data.num_classes,
        **recipe.model.options,
    )
    if train.channels_last:
        module = module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch's stub lacks it
    inner = _make_optimizer(recipe, module)
    model, optimizer = fabric.setup(module, inner)
    rules = _attach(recipe, inner, module)
    batches = Batches(
        data.train_images,
        data.train_labels,
        batch_size=train.batch_size,
        mean=data.mean,
        std=data.std,
        augment=recipe.data.augment,
        seed=seed,
        device=fabric.device,
    )
    test = Batches(
        data.test_images,
        data.test_labels,
        batch_size=_EVALUATION_BATCH_ON_CPU if fabric.device.type == "cpu" else _EVALUATION_BATCH,
        mean=data.mean,
        std=data.std,
        seed=0,
        device=fabric.device,
        shuffle=False,
        drop_last=False,
    )
    steps = train.epochs * len(batches)
    scheduler = make_scheduler(inner, train.schedule, steps_per_epoch=len(batches), steps=steps)
    seed_stream(seed, "training")
    progress = Progress(loss_sum=torch.zeros((), device=fabric.device))
    return Session(
        *(recipe, fabric, module, model, inner, optimizer, scheduler, rules, batches, test, data.num_classes),
        progress=progress,
    )


def _launch(accelerator: str, precision: str) -> Fabric:
    try:
        with warnings.catch_warnings():
            # Fabric's advice for multi-process and 16-bit use on machines that have neither
            warnings.filterwarnings("ignore", module="lightning_fabric")
            return Fabric(accelerator=accelerator, devices=1, precision=precision)  # pyright: ignore[reportArgumentType] - a checked literal
    except (ValueError, RuntimeError, ModuleNotFoundError) as error:
        text = " ".join(str(error).split())
        raise RecipeError(
            f"cannot use the accelerator '{accelerator}' with precision {precision} here: {text}"
        ) from error


def _make_optimizer(recipe: Recipe, module: nn.Module) -> torch.optim.Optimizer:
    settings = recipe.train.optimizer
    try:
        return getattr(torch.optim, settings.name)(module.parameters(), lr=settings.lr, **settings.options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise RecipeError(f"torch.optim.{settings.name} refuses the model '{recipe.model.name}': {error}") from error


def _attach(recipe: Recipe, optimizer: torch.optim.Optimizer, module: nn.Module) -> Rules | None:
    """The recipe's rules on the inner optimizer: Fabric's wrapper calls its `step` (after unscaling) with all hooks."""
    if not recipe.rules:
        return None
    import weightspace

    return weightspace.attach(optimizer, module, *recipe.make_rules(), measure_every=recipe.train.measure_every)
