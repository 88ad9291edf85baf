"""Turns pydantic's validation errors into sentences that name the key, what came, and the nearest known key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Location = Sequence[int | str]
_SHOWN = 4  # sentences; more of them hide the first


def dotted(location: Location) -> str:
    """Join a location as users write it in overrides.

    >>> dotted(("compare", "arms", "SGD", "rules", 0))
    'compare.arms.SGD.rules.0'
    """
    return ".".join(str(part) for part in location)


def explain(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """One line that explains a validation error.

    Args:
        error: What pydantic raised.
        model: The model that was validated: unknown keys are compared with its keys.
        source: File or recipe name, put first.

    Returns:
        `"source: sentence; sentence"`, at most four sentences and a count of the others.
    """
    details = error.errors(include_url=False)
    sentences = [_sentence(detail, model) for detail in details[:_SHOWN]]
    if len(details) > _SHOWN:
        sentences.append(f"and {len(details) - _SHOWN} more")
    return f"{source}: {'; '.join(sentences)}"


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The entry of `known` most like `name`, or None when none is similar.

    >>> nearest("epoch", ["epochs", "batch_size"])
    'epochs'
    """
    by_lower = {entry.lower(): entry for entry in known}
    found = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def unknown_key(location: Location, model: type[BaseModel]) -> str:
    """The sentence for a key that the recipe does not have.

    Args:
        location: Full location of the key, itself included.
        model: The recipe model.
    """
    *parents, key = location
    here = _known_keys(model, parents)
    guess = nearest(str(key), here)
    if guess is not None:
        suggestion = dotted([*parents, guess])
    else:  # right key, wrong place: `epochs` at the top means `train.epochs`
        everywhere = list(_paths(model))
        suggestion = next((path for path in everywhere if path.rpartition(".")[2] == str(key)), None)
    if suggestion is not None:
        return f"unknown key '{dotted(location)}', did you mean '{suggestion}'?"
    where = f"'{dotted(parents)}'" if parents else "a recipe"
    return f"unknown key '{dotted(location)}'; {where} knows {', '.join(here)}"


def _sentence(detail: ErrorDetails, model: type[BaseModel]) -> str:
    location = [part for part in detail["loc"] if part != "[key]"]
    path = dotted(location) or "the recipe"
    if detail["type"] == "extra_forbidden":
        return unknown_key(location, model)
    if detail["type"] == "missing":
        return f"'{path}' is missing"
    message = detail["msg"]
    if detail["type"] == "value_error":
        text = message.removeprefix("Value error, ")
        return f"{path}: {text}" if location else text
    if detail["type"] == "too_short":
        return f"{path} should not be empty"
    if message.startswith("Input should"):
        return f"{path} should{message.removeprefix('Input should')}, not {_shown(detail['input'])}"
    return f"{path}: {message[:1].lower()}{message[1:]}, not {_shown(detail['input'])}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every pydantic model named in an annotation such as `dict[str, Arm] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _is_table(annotation: Any) -> bool:
    """Whether keys below this field are chosen by the user (arms by their names)."""
    return any(
        part is dict or getattr(part, "__origin__", None) is dict for part in (annotation, *get_args(annotation))
    )


def _known_keys(model: type[BaseModel], parents: Location) -> list[str]:
    current = model
    rest = [str(part) for part in parents]
    while rest:
        field = current.model_fields.get(rest.pop(0))
        inner = next(_models_in(field.annotation), None) if field is not None else None
        if field is None or inner is None:
            return []
        if _is_table(field.annotation) and rest:
            rest.pop(0)
        current = inner
    return list(current.model_fields)


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted paths below a model, tables of user-chosen names left out."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if not _is_table(field.annotation):
            for inner in _models_in(field.annotation):
                yield from _paths(inner, f"{prefix}{name}.")
