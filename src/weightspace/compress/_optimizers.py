"""Which optimizers can keep zeros, and which weights must not have any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.optim import Optimizer

from weightspace.errors import CompressError
from weightspace.kernels import ParameterInfo
from weightspace.optim._checks import unwrap_optimizer


def stepping(optimizer: Optimizer) -> Optimizer:
    """The optimizer whose step does the work, inside wrappers.

    Raises:
        CompressError: It is none.
    """
    if not isinstance(optimizer, Optimizer):
        raise CompressError(f"attach() needs a torch.optim.Optimizer; got a {type(optimizer).__name__}.")
    return unwrap_optimizer(optimizer)


def check_optimizer(optimizer: Optimizer, infos: Sequence[ParameterInfo]) -> None:
    """Raises CompressError unless the optimizer can keep zeros in at least one of the weights."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise CompressError(
            "LBFGS keeps its past directions where masks cannot zero them; fine-tune with SGD, AdamW or their like."
        )
    if not getattr(type(optimizer).step, "hooked", False):
        raise CompressError(
            f"{type(optimizer).__name__} has no step hooks, so the zeros would not be kept; pass the torch optimizer "
            "that it wraps, or call super().__init__() in its constructor."
        )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(info.parameter) in held for info in infos):
        names = ", ".join(info.name for info in infos[:4])
        raise CompressError(
            f"The optimizer holds none of the {len(infos)} masked weights ({names}); build it from the model that "
            "was pruned."
        )


def refuse_constraints(optimizer: Optimizer, masked: Mapping[int, str]) -> None:
    """Raises CompressError if a weight with zeros (parameter id -> name) is constrained to a manifold here.

    The constraints of rules and of groups are read from the marks that they leave on the optimizer.
    """
    for group in optimizer.param_groups:
        manifold = str(group.get("manifold", "euclidean"))
        if not manifold.startswith("euclidean"):
            for parameter in group["params"]:
                _refuse(masked.get(id(parameter)), manifold)
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", {})
    for hook in hooks.values():
        constrained = getattr(getattr(hook, "_weightspace_rules", None), "fallbacks", {})
        for name in masked.values():
            _refuse(name if name in constrained else None, "a manifold")


def _refuse(name: str | None, manifold: str) -> None:
    if name is not None:
        raise CompressError(
            f"{name} is constrained to {manifold} in this optimizer, which its zeros would leave; take the constraint "
            "off (rules.remove(), or a plain optimizer), or leave the weight unpruned with on=."
        )
