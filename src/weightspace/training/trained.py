"""A model without its training run: from a recipe fresh, from a run's folder with its weights; and a batch for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from weightspace.errors import DataError, RunError
from weightspace.files import read_json
from weightspace.training.checkpoint import newest_checkpoint, read_checkpoint
from weightspace.training.constraints import slack_in
from weightspace.training.data import DATASETS
from weightspace.training.logs import RUN_FILE
from weightspace.training.loop import RESULT_FILE, WEIGHTS_FILE
from weightspace.training.models import build_model
from weightspace.training.recipe import Recipe
from weightspace.training.reproducible import seed_stream
from weightspace.training.session import load_recipe_data


@dataclass(frozen=True, eq=False)
class Trained:
    """A model with the recipe that it belongs to.

    Attributes:
        model: In training mode, on the CPU.
        recipe: Its recipe.
        source: Where its weights come from, in words.
    """

    model: nn.Module
    recipe: Recipe
    source: str


@dataclass(frozen=True, eq=False)
class LabelledBatch:
    """Images `(N, C, H, W)`, normalized as in training, and labels `(N,)`; or tokens and the tokens that follow.

    Attributes:
        images: The images, or noise of mean square one; of text the tokens `(N, context)`, or random ones.
        labels: Their classes; None where the data are not at hand.
        source: What it is, in words.
    """

    images: Tensor
    labels: Tensor | None
    source: str


def model_arguments(recipe: Recipe) -> dict[str, int]:
    """What a recipe's model needs to know of its data. Published data sets need not be there for that.

    Raises:
        DataError: The data set is a folder or a text of the user's that is not there.
    """
    info = DATASETS[recipe.data.name]
    size = info.vocabulary.get(recipe.data.level or "")
    if size is not None and recipe.data.context is not None:
        return {"vocabulary": size, "context": recipe.data.context}
    if info.shape is not None and info.class_names:
        channels, _, size = info.shape
        return {"in_channels": channels, "image_size": size, "num_classes": len(info.class_names)}
    return load_recipe_data(recipe, download=False).model_arguments


def fresh_model(recipe: Recipe, seed: int = 0) -> Trained:
    """The recipe's model as a run with this seed starts. Torch's generators are left as they were.

    Raises:
        DataError: See `model_arguments`.
        RecipeError: The model cannot be built.
    """
    with torch.random.fork_rng():
        seed_stream(seed, "initialization")
        model = build_model(recipe.model.name, **model_arguments(recipe), **recipe.model.options)
    return Trained(model, recipe, f"a fresh {recipe.model.name} of the recipe {recipe.name}, seed {seed}")


def trained_model(path: Path, *, factory_option: str = "TARGET") -> Trained:
    """The model of a run with its weights.

    Args:
        path: A run's folder (its `model.safetensors`, else its newest checkpoint), or one of these files in it.
        factory_option: Where the command line takes a factory, for the advice in an error: its target, with the file
            under `--weights`, or an option beside the file.

    Raises:
        RunError: There are no weights, no `run.json` beside them, or they do not fit the recipe's model.
    """
    file = path if path.is_file() else weights_in(path)
    if not (file.parent / RUN_FILE).exists():
        advice = "and give the file with --weights" if factory_option == "TARGET" else f"with {factory_option}"
        raise RunError(
            f"{file.parent} holds no {RUN_FILE}, so the model of {file.name} is not known; name it as module:factory "
            f"{advice}"
        )
    recorded = read_json(file.parent / RUN_FILE).get("recipe")
    if not isinstance(recorded, dict):
        raise RunError(f"{file.parent / RUN_FILE} is damaged: it holds no recipe")
    recipe = Recipe.from_dict(cast("dict[str, Any]", recorded), source=str(file.parent / RUN_FILE))
    model = fresh_model(recipe).model
    load_weights(model, file)
    return Trained(model, recipe, str(file))


def load_weights(model: nn.Module, file: Path) -> None:
    """Puts the weights of a safetensors file, or of a checkpoint of ours, into a model.

    Raises:
        RunError: The file cannot be read (pickled files never are), or does not fit the model.
    """
    state = _state_of(file)
    try:
        model.load_state_dict(state)
    except (
        RuntimeError,
        TypeError,
        AttributeError,
    ) as error:  # the last two: an entry is no tensor, or its name no text
        raise RunError(f"{file} does not fit {type(model).__name__}: {' '.join(str(error).split())}") from error


def batch_for(recipe: Recipe, size: int, seed: int = 0) -> LabelledBatch:
    """The first training images, or windows of text, of a run with this seed; noise if the data are not at hand.

    Images are not augmented.

    Raises:
        DataError: The shape of the data is not known without them, or there are fewer than `size`.
    """
    try:
        data = load_recipe_data(recipe)
    except DataError as error:
        noise, what = _noise(model_arguments(recipe), size, torch.Generator("cpu").manual_seed(seed))
        return LabelledBatch(noise, None, f"{size} {what}, because the data are not at hand ({error})")
    batches = data.train_batches(batch_size=size, seed=seed, device="cpu")
    inputs, labels = next(iter(batches.epoch(0)))
    what = "training images" if data.kind == "images" else "windows of training text"
    return LabelledBatch(inputs, labels, f"{size} {what} of {data.label}")


def _noise(arguments: Mapping[str, int], size: int, generator: torch.Generator) -> tuple[Tensor, str]:
    """Random inputs for a model that was built with these arguments, and what they are."""
    if "vocabulary" in arguments:
        shape = (size, arguments["context"])
        return torch.randint(
            arguments["vocabulary"], shape, generator=generator, device="cpu"
        ), "windows of random tokens"
    side = arguments["image_size"]
    noise = torch.randn(size, arguments["in_channels"], side, side, generator=generator, device="cpu")
    return noise, "images of noise"


def weights_in(folder: Path) -> Path:
    """The file with the weights of a run: `model.safetensors`, else its newest checkpoint.

    Raises:
        RunError: There is neither, or no such folder.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} does not exist; give a run's folder, its {WEIGHTS_FILE} or a checkpoint")
    if (folder / WEIGHTS_FILE).exists():
        return folder / WEIGHTS_FILE
    newest = newest_checkpoint(folder)
    if newest is None:
        raise RunError(f"{folder} holds neither {WEIGHTS_FILE} nor a checkpoint; give a folder of `weightspace train`")
    return newest


@dataclass(frozen=True)
class History:
    """What led to the weights in a file, as far as it decides where they may be.

    Attributes:
        steps: Optimizer steps; None where nothing tells.
        slack: Violations that the optimizer allowed between two corrections, by the weight's name.
    """

    steps: int | None
    slack: Mapping[str, float]


def history_of(file: Path) -> History:
    """What a checkpoint tells of its weights, or the `result.json` beside a run's weights.

    Raises:
        RunError: The checkpoint or the `result.json` is damaged.
    """
    if is_checkpoint(file):
        state = read_checkpoint(file)
        try:
            return History(int(state["progress"]["step"]), slack_in(state["optimizer"]))
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
            raise RunError(f"{file} is no whole checkpoint ({error!r}); restore a copy") from error
    result = file.parent / RESULT_FILE
    found = read_json(result) if file.name == WEIGHTS_FILE and result.exists() else {}
    steps, constraints = found.get("steps"), found.get("constraints")
    slack = cast("dict[str, Any]", constraints).get("slack") if isinstance(constraints, dict) else None
    return History(
        steps if isinstance(steps, int) else None, cast("dict[str, float]", slack) if isinstance(slack, dict) else {}
    )


def is_checkpoint(file: Path) -> bool:
    """Whether a file has the name of a checkpoint of ours."""
    return file.name.startswith("checkpoint-")


def _state_of(file: Path) -> Mapping[str, Tensor]:
    if is_checkpoint(file):
        state = read_checkpoint(file).get("model")
        if not isinstance(state, dict):
            raise RunError(f"{file} is no whole checkpoint (it holds no model); restore a copy")
        return cast("Mapping[str, Tensor]", state)
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            return {name: cast("Tensor", opened.get_tensor(name)).clone() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"cannot read {file} as safetensors ({error}); pickled files are never opened: convert it with "
            "safetensors.torch.save_file(model.state_dict(), ...)"
        ) from error
