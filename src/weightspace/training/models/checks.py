"""Checks shared by the model builders: every refusal is one sentence that names the model, the option and the remedy.

Options reach the builders from YAML and the command line, so they are checked by value here even where the
signature already states a type.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor

from weightspace.errors import DataError, RecipeError, nearest

LARGEST = 1 << 30
MOST_LAYERS = 10_000


def hint(word: object, known: Iterable[str]) -> str:
    """Suggests the known word closest to `word` and lists all of them, as the tail of an error sentence.

    >>> hint("resnet19", ["mlp", "resnet18"])
    'did you mean "resnet18"? Known: mlp, resnet18.'
    >>> hint("zebra", ["mlp", "vgg"])
    'known: mlp, vgg.'
    """
    names = list(known)
    listed = ", ".join(names) if names else "none"
    guess = nearest(word, names, 'did you mean "{}"?')
    return f"{guess} Known: {listed}." if guess else f"known: {listed}."


def positive_int(model: str, option: str, value: object) -> int:
    """Returns `value` if it is an integer of at least 1; a `RecipeError` otherwise (True is no integer here)."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RecipeError(
            f'Model "{model}" needs {option} to be an integer of at least 1, got {value!r}; give for example 16.',
        )
    if value > LARGEST:
        raise RecipeError(
            f'Model "{model}" got {option} of {value.bit_length()} bits, beyond any network; give at most {LARGEST:,}.'
        )
    return value


def count_of_layers(model: str, option: str, value: object) -> int:
    """As `positive_int`, for options that are numbers of layers: modules take time and memory even without weights."""
    count = positive_int(model, option, value)
    if count > MOST_LAYERS:
        raise RecipeError(f'Model "{model}" got {option}={count:,}; give at most {MOST_LAYERS:,} layers.')
    return count


def positive_ints(model: str, option: str, value: object, *, empty: bool = False) -> tuple[int, ...]:
    """Returns one integer or a sequence of integers as a tuple.

    Args:
        model: Model name for the error.
        option: Option name for the error.
        value: One integer or a list or tuple of integers, each at least 1.
        empty: Whether an empty sequence is meaningful for this option.

    Raises:
        RecipeError: An element is no positive integer, or the sequence is empty although `empty` is False.

    >>> positive_ints("mlp", "hidden", 1000), positive_ints("mlp", "hidden", [300, 100])
    ((1000,), (300, 100))
    """
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        entries = cast("Sequence[object]", value)
        numbers = tuple(positive_int(model, f"every entry of {option}", entry) for entry in entries)
        if len(numbers) > MOST_LAYERS:
            raise RecipeError(
                f'Model "{model}" got {len(numbers):,} entries in {option}; give at most {MOST_LAYERS:,}.'
            )
        if not numbers and not empty:
            raise RecipeError(
                f'Model "{model}" needs at least one entry in {option}, got an empty list; give [16, 32].'
            )
        return numbers
    return (positive_int(model, option, value),)


def probability(model: str, option: str, value: object) -> float:
    """Returns `value` as a float if it is a number in [0, 1); a `RecipeError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise RecipeError(
            f'Model "{model}" needs {option} to be at least 0 and below 1, got {value!r}; 0 switches it off.',
        )
    return float(value)


def choice(model: str, option: str, value: object, known: Sequence[str]) -> None:
    """Raises a `RecipeError` naming the nearest choice unless `value` is one of `known`."""
    if value not in known:
        raise RecipeError(f'Model "{model}" has no {option}={value!r}: {hint(value, known)}')


def flag(model: str, option: str, value: object) -> None:
    """Raises a `RecipeError` unless `value` is True or False."""
    if not isinstance(value, bool):
        raise RecipeError(f'Model "{model}" needs {option} to be true or false, got {value!r}.')


def check_images(images: Tensor, model: str, in_channels: int, image_size: int, *, any_size: bool) -> None:
    """Refuses a batch that the model cannot take, before a layer deep inside says it in its own terms.

    Reads shapes only: no synchronization with the device, and no graph break under `torch.compile`.

    Args:
        images: The batch; expected (N, in_channels, image_size, image_size).
        model: Model name for the error.
        in_channels: Channels the model was built for.
        image_size: Height and width the model was built for, in pixels.
        any_size: True where height and width are free, because the model averages over the map.

    Raises:
        DataError: Rank, channels or (unless `any_size`) height and width differ.
    """
    fits = images.dim() == 4 and images.shape[1] == in_channels
    if fits and not any_size:
        fits = images.shape[2] == image_size and images.shape[3] == image_size
    if not fits:
        side = "H, W" if any_size else f"{image_size}, {image_size}"
        raise DataError(
            f'Model "{model}" takes images of shape (N, {in_channels}, {side}), got {tuple(images.shape)}; '
            "build the model for this data set or pass a batch of that shape.",
        )
