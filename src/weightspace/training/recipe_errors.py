"""Turns pydantic's validation errors into sentences that name the key, what came, and the nearest known key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from weightspace.errors import nearest

Location = Sequence[int | str]
# pydantic's words for these are those of a programmer.
_SHOULD = {
    "int_type": "be a whole number",
    "int_from_float": "be a whole number",
    "int_parsing": "be a whole number",
    "int_parsing_size": "be a smaller number",
    "float_type": "be a number",
    "float_parsing": "be a number",
    "finite_number": "be a finite number",
    "bool_type": "be true or false",
    "bool_parsing": "be true or false",
    "string_type": "be text",
    "string_pattern_mismatch": "be one word of letters, digits, '.', '_' and '-' that begins with a letter or digit",
    "model_type": "hold keys of its own",
    "model_attributes_type": "hold keys of its own",
    "dict_type": "hold keys of its own",
    "list_type": "be a list such as [a, b]",
    "tuple_type": "be a list such as [a, b]",
    "string_too_long": "have at most {max_length} characters",
    "less_than_equal": "be at most {le:,}",
    "too_short": "have at least {min_length} entry",
    "too_long": "have at most {max_length} entries",
}
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


def unknown_key(location: Location, model: type[BaseModel]) -> str:
    """The sentence for a key that the recipe does not have.

    Args:
        location: Full location of the key, itself included.
        model: The recipe model.
    """
    *parents, key = location
    here = _known_keys(model, parents)
    guess = nearest(key, here, "{}")
    if guess:
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
    if detail["type"] in _SHOULD:
        wanted = _SHOULD[detail["type"]].format(**detail.get("ctx", {}))
        return f"{path} should {wanted}, not {_shown(detail['input'])}"
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
