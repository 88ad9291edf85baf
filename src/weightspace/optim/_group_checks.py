"""What the optimizers on manifolds refuse in a parameter group, each with one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from weightspace.errors import AttachError, RuleError
from weightspace.kernels.options import number_from_zero

_NOT_OFFERED = ("capturable", "differentiable", "fused")


def check_options(optimizer: str, group: Mapping[str, Any]) -> None:
    """Raises RuleError for a learning rate out of range and for switches of torch that ours do not have.

    Args:
        optimizer: Its name, for messages.
        group: All options, defaults included; a scheduler may have made `lr` a tensor of one element.
    """
    lr = group["lr"]
    if isinstance(lr, torch.Tensor) and lr.numel() != 1:
        raise RuleError(f"{optimizer} got lr={lr!r}; a tensor must hold one number.")
    number_from_zero(optimizer, "lr", float(lr) if isinstance(lr, torch.Tensor) else lr)
    for name in _NOT_OFFERED:
        if group.get(name):
            raise RuleError(f"{optimizer} got {name}=True, which it does not offer; leave it out.")


def check_listed_once(optimizer: str, params: object) -> None:
    """Raises RuleError for a parameter that a group lists twice: it would step twice."""
    if not isinstance(params, list | tuple):
        return
    seen: set[int] = set()
    for entry in params:
        name, parameter = entry if isinstance(entry, tuple) and len(entry) == 2 else ("a parameter", entry)
        if id(parameter) in seen:
            raise RuleError(f"A group of {optimizer} lists {name!r} twice, which would step twice; list it once.")
        seen.add(id(parameter))


def refuse_complex(optimizer: str, name: str) -> NoReturn:
    """Raises AttachError for a complex parameter."""
    raise AttachError(
        f"{name} is complex; {optimizer} takes real weights here: make torch.view_as_real of it the parameter."
    )


def check_saved(optimizer: str, name: str, mine: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raises AttachError for a state whose tensors do not have the shapes that this optimizer keeps."""
    for key in mine.keys() & saved.keys():
        own, other = mine[key], saved[key]
        if isinstance(own, torch.Tensor) and isinstance(other, torch.Tensor) and own.shape != other.shape:
            raise AttachError(
                f"The state's {key} of {name} has shape {tuple(other.shape)}, {optimizer} keeps {tuple(own.shape)}: it "
                "was saved by another optimizer or for another model."
            )
