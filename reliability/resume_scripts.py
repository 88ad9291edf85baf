"""A script without the trainer that stops and goes on: its state through a file, into fresh objects."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from reliability.cases import Case, Opened, make_model, train
from weightspace.training.checkpoint import load_checkpoint, save_checkpoint

Through = Literal["safetensors", "torch.save"]
THROUGH: tuple[Through, ...] = ("safetensors", "torch.save")
_BEFORE, _AFTER = 3, 3  # steps


def resumed_differences(case: Case, through: Through) -> list[str]:
    """What differs between six steps and three, a file, and three more: nothing, if resuming is exact.

    Compared bit for bit: weights, the optimizer's state and settings, the rules' state and what they measured. The
    fresh model has other weights and torch's generators stand elsewhere: all that decides the rest is in the file.

    Args:
        case: What trains.
        through: The file: one of our checkpoints, or `torch.save` read with `weights_only=True`.
    """
    whole = _open(case, seed=0)
    train(*whole, _BEFORE + _AFTER)
    first = _open(case, seed=0)
    train(*first, _BEFORE)
    state = _through_a_file(_state(*first), through)
    second = _open(case, seed=1)
    torch.manual_seed(99)
    _load(state, *second)
    train(*second, _AFTER, first=_BEFORE)
    found = list(differences(_state(*second), _state(*whole)))
    pair = [opened[1].measurements if opened[1] is not None else {} for _, opened in (second, whole)]
    return found + [f"measurements{path}" for path in differences(*pair)]


def differences(  # noqa: PLR0911 - one for every kind
    one: Any, other: Any, path: str = ""
) -> list[str]:
    """Where two trees of dicts, lists, tuples, tensors and numbers differ in a bit, as paths; NaN equals NaN."""
    if type(one) is not type(other):
        return [f"{path}: {type(one).__name__}, not {type(other).__name__}"]
    if isinstance(one, torch.Tensor):
        return [] if _same_bits(one, other) else [path]
    if isinstance(one, Mapping):
        pair = cast("tuple[Mapping[Any, Any], Mapping[Any, Any]]", (one, other))
        if pair[0].keys() != pair[1].keys():
            return [f"{path}: {key!r} is only in one" for key in pair[0].keys() ^ pair[1].keys()]
        return [text for key in pair[0] for text in differences(pair[0][key], pair[1][key], f"{path}[{key!r}]")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{path}: {len(one)} entries, not {len(other)}"]
        rows = enumerate(zip(one, other, strict=True))
        return [text for k, (a, b) in rows for text in differences(a, b, f"{path}[{k}]")]
    return [] if repr(one) == repr(other) else [f"{path}: {one!r}, not {other!r}"]


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype or one.stride() != other.stride():
        return False
    return torch.equal(*(t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (one, other)))


def _open(case: Case, seed: int) -> tuple[nn.Module, Opened]:
    model = make_model(seed=seed)
    return model, case.open(model)


def _state(model: nn.Module, opened: Opened) -> dict[str, Any]:
    optimizer, rules = opened
    return {
        "model": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "rules": None if rules is None else rules.state_dict(),
    }


def _load(state: Mapping[str, Any], model: nn.Module, opened: Opened) -> None:
    optimizer, rules = opened
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if rules is not None:
        rules.load_state_dict(state["rules"])


def _through_a_file(state: dict[str, Any], through: Through) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        if through == "torch.save":
            torch.save(state, Path(folder) / "state.pt")
            return cast("dict[str, Any]", torch.load(Path(folder) / "state.pt", weights_only=True))
        save_checkpoint(Path(folder), _BEFORE, state, fingerprint="script")
        return cast("dict[str, Any]", load_checkpoint(Path(folder), fingerprint="script"))
