"""What `weightspace compress` works on: a model, the images that judge it, and the training that it comes from."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from weightspace.cli.console import progress_bar
from weightspace.cli.factories import make_model
from weightspace.errors import CompressError
from weightspace.files import read_json
from weightspace.training.recipe_files import parse_overrides

if TYPE_CHECKING:
    from torch import Tensor, nn

    from weightspace.compress import Masks
    from weightspace.training.data import ImageData
    from weightspace.training.recipe import Recipe

BATCH = 16  # images in the batch that is timed
_EVALUATED_AT_ONCE = 250
_HELD_OUT = 5000  # training images that --max-loss looks at, at most a fifth of all


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with all that is known of it.

    Attributes:
        model: On the CPU, in evaluation mode.
        example: What it is called with: `BATCH` training images, or what the user's factory returned.
        recipe: The recipe that trained it; None for a user's own model.
        data: Its images; None likewise.
        seed: The seed of its training.
        words: Where it comes from.
    """

    model: nn.Module
    example: Any
    recipe: Recipe | None
    data: ImageData | None
    seed: int
    words: str

    def accuracy(self, model: nn.Module) -> float | None:
        """The share of test images that a model gets right, in evaluation mode; None without data."""
        return None if self.data is None else self._share(model, self.data.test_images, self.data.test_labels)

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Training images, as many of each class, on which a ratio may be chosen: the test images stay unseen."""
        if self.data is None:
            raise CompressError("--max-loss needs images to measure accuracy on; give a run's folder, or use --ratio")
        held = self.data.hold_out(min(0.2, _HELD_OUT / len(self.data.train_labels)), seed=self.seed)
        return held.test_images, held.test_labels

    def accuracy_on(self, model: nn.Module, images: Tensor, labels: Tensor) -> float:
        """The share of some images that a model gets right."""
        return self._share(model, images, labels)

    def _share(self, model: nn.Module, images: Tensor, labels: Tensor) -> float:
        import torch

        from weightspace.training.data import Batches

        if self.data is None:
            raise CompressError("there are no images to measure accuracy on")
        batches = Batches(
            *(images, labels),
            batch_size=_EVALUATED_AT_ONCE,
            mean=self.data.mean,
            std=self.data.std,
            seed=0,
            device="cpu",
            shuffle=False,
            drop_last=False,
        )
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        with torch.inference_mode():
            right = sum(int((model(batch).argmax(1) == wanted).sum()) for batch, wanted in batches.epoch(0))
        for module, training in modes:
            module.training = training
        return right / len(labels)


def subject_of_run(file: Path, overrides: tuple[str, ...]) -> Subject:
    """The model of a run's folder, its weights or a checkpoint, with the recipe's data.

    Raises:
        RunError: There are no weights, or no `run.json` beside them.
        DataError: The data are not at hand.
    """
    from weightspace.training.data import Batches
    from weightspace.training.logs import RUN_FILE
    from weightspace.training.session import load_recipe_data
    from weightspace.training.trained import trained_model

    trained = trained_model(file, factory_option="--model")
    recipe = trained.recipe.with_overrides(parse_overrides(overrides))
    data = load_recipe_data(recipe)
    seed = read_json(Path(trained.source).parent / RUN_FILE).get("seed")
    batches = Batches(
        *(data.train_images, data.train_labels), batch_size=BATCH, mean=data.mean, std=data.std, seed=0, device="cpu"
    )
    images, _ = next(iter(batches.epoch(0)))
    known = seed if isinstance(seed, int) else 0
    return Subject(trained.model.eval(), images, recipe, data, known, f"{trained.source}, on {data.label}")


def users_subject(file: Path, factory: str, options: tuple[str, ...], size: str | None) -> Subject:
    """The model of a user's factory with the weights of a file.

    Raises:
        InspectionError: The factory fails.
        CompressError: It returns no example input, and no size was given.
        RunError: The file does not fit the model.
    """
    import torch

    from weightspace.training.trained import load_weights

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, example = make_model(factory, parse_overrides(options))
        if size is not None:
            example = torch.randn(BATCH, *_sizes(size))
    if example is None:
        raise CompressError(
            f"{factory} returned a model but no example input; give its size with --input, such as --input 3x32x32"
        )
    load_weights(model, file)
    return Subject(model.eval(), example, None, None, 0, f"{factory} with the weights of {file}")


def fine_tuned(subject: Subject, model: nn.Module, masks: Masks, epochs: int, accelerator: str) -> nn.Module:
    """Train some epochs more as the run's recipe says, with the zeros kept; a new model on the CPU.

    Optimizer, learning rate and schedule are the recipe's, as for a training of that many epochs; rules and penalties
    act as they did.

    Raises:
        CompressError: There is no recipe, or training diverged.
        RecipeError: The recipe does not allow so few epochs.
    """
    from weightspace.compress import masks_of
    from weightspace.training.interrupt import StopRequest
    from weightspace.training.logs import RunLog
    from weightspace.training.reproducible import reproducible
    from weightspace.training.session import open_session
    from weightspace.training.steps import TrainingLoop

    if subject.recipe is None or subject.data is None:
        raise CompressError("--fine-tune needs the recipe of a run; give a run's folder, or fine-tune in a script")
    recipe = subject.recipe.with_overrides({"train.epochs": epochs, "train.evaluate_every": epochs})
    with reproducible(deterministic=recipe.train.deterministic), TemporaryDirectory() as folder:
        session = open_session(recipe, subject.data, seed=subject.seed, accelerator=accelerator)
        session.module.load_state_dict(model.state_dict())
        kept = masks_of(session.module)
        kept.load_state_dict(masks.state_dict())
        kept.attach(session.inner)
        with RunLog(Path(folder)) as log, progress_bar("steps") as move:
            loop = TrainingLoop(
                *(session, Path(folder), "", log),
                stop=StopRequest(),
                progress=lambda done, total: move("fine-tuning", done, total),
            )
            reason = loop.train(None, None)
        kept.remove()
        if session.rules is not None:
            session.rules.remove()
    if reason is not None:
        raise CompressError(f"fine-tuning diverged ({reason}); lower the rate with --set train.optimizer.lr=...")
    twin = copy.deepcopy(subject.model)  # of its memory format and on the CPU, wherever training was
    twin.load_state_dict(session.module.state_dict())
    return twin.eval()


def _sizes(text: str) -> list[int]:
    parts = text.replace(",", "x").lower().split("x")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise CompressError(f"--input is {text!r}; give whole numbers such as 3x32x32, without the batch")
    return [int(part) for part in parts]
