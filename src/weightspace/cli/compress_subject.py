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
    from torch import nn

    from weightspace.compress import Masks
    from weightspace.training.data import Data
    from weightspace.training.recipe import Recipe

BATCH = 16  # images or windows of text in the batch that is timed
_HELD_OUT = 5000  # training images (or tokens) that --max-loss looks at, at most a fifth of all


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with all that is known of it.

    Attributes:
        model: On the CPU, in evaluation mode.
        example: What it is called with: `BATCH` images or windows of text, or what the user's factory returned.
        recipe: The recipe that trained it; None for a user's own model.
        data: Its images or text; None likewise.
        seed: The seed of its training.
        words: Where it comes from.
    """

    model: nn.Module
    example: Any
    recipe: Recipe | None
    data: Data | None
    seed: int
    words: str

    def accuracy(self, model: nn.Module) -> float | None:
        """The share of test images (or tokens) that a model gets right, in evaluation mode; None without data."""
        return None if self.data is None else share_right(model, self.data)

    def held_out(self) -> Data:
        """Data whose test part is held out of training data, to choose a ratio by: the test data stay unseen."""
        if self.data is None:
            raise CompressError("--max-loss needs images to measure accuracy on; give a run's folder, or use --ratio")
        return self.data.hold_out(min(0.2, _HELD_OUT / self.data.num_data), seed=self.seed)


def share_right(model: nn.Module, data: Data) -> float:
    """The share of the labels of a test part that a model gets right, in evaluation mode."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    right = count = 0
    with torch.inference_mode():
        for batch, wanted in data.test_batches(device="cpu").epoch(0):
            right += int((model(batch).argmax(-1) == wanted).sum())
            count += wanted.numel()
    for module, training in modes:
        module.training = training
    return right / count


def subject_of_run(file: Path, overrides: tuple[str, ...]) -> Subject:
    """The model of a run's folder, its weights or a checkpoint, with the recipe's data.

    Raises:
        RunError: There are no weights, or no `run.json` beside them.
        DataError: The data are not at hand.
    """
    from weightspace.training.logs import RUN_FILE
    from weightspace.training.session import load_recipe_data
    from weightspace.training.trained import trained_model

    trained = trained_model(file, factory_option="--model")
    recipe = trained.recipe.with_overrides(parse_overrides(overrides))
    data = load_recipe_data(recipe)
    seed = read_json(Path(trained.source).parent / RUN_FILE).get("seed")
    images, _ = next(iter(data.train_batches(batch_size=BATCH, seed=0, device="cpu").epoch(0)))
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
