"""What the numerical modules of this room share: precision beyond the user's switches, and ready gradients."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch

from weightspace.errors import OperatorError


def compute_dtype(weight: torch.Tensor) -> torch.dtype:
    """The dtype that a weight is worked on in: float32 for 16-bit weights, else its own."""
    return weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32


def sum_dtype(device: torch.device) -> torch.dtype:
    """The dtype of sums whose differences matter: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def full_precision() -> Generator[None]:
    """Matrix products and convolutions in the precision of their arguments, whatever the user chose for training.

    Reduced settings round the factors of a product to 8 or 11 bits (on CPUs too), and cuDNN does so for convolutions
    unless told not to. A bound computed from such products bounds nothing.
    """
    name = "fp32_precision"  # torch >= 2.9: one setting a backend; before: two switches
    backends: list[Any] = [
        torch.backends.cuda.matmul,
        getattr(torch.backends.mkldnn, "matmul", None),
        getattr(torch.backends.cudnn, "conv", None),
        getattr(torch.backends.mkldnn, "conv", None),
    ]
    if hasattr(torch.backends.cuda.matmul, name):
        settings = [(backend, name, getattr(backend, name), "ieee") for backend in backends if hasattr(backend, name)]
    else:
        settings = [(switch, "allow_tf32", switch.allow_tf32, False) for switch in (backends[0], torch.backends.cudnn)]
    changed = [setting for setting in settings if setting[2] not in ("ieee", "none", False)]
    try:
        for backend, attribute, _, full in changed:
            setattr(backend, attribute, full)
        yield
    finally:
        for backend, attribute, before, _ in changed:
            setattr(backend, attribute, before)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: torch.Tensor) -> torch.Tensor:
        weight, value, gradient = arguments
        ctx.save_for_backward(weight, gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, gradient = ctx.saved_tensors
        scale = grad_outputs[0].to(gradient.dtype)
        result = scale.reshape(*scale.shape, *[1] * (gradient.ndim - scale.ndim)) * gradient
        if torch.is_grad_enabled():  # create_graph=True: what depends on the weight must not look constant
            result = cast("torch.Tensor", _OnlyOnce.apply(weight, result))
        return result, None, None


class _OnlyOnce(torch.autograd.Function):
    """A gradient that does depend on the weight, in a way that is not known."""

    @staticmethod
    def forward(_ctx: Any, *arguments: torch.Tensor) -> torch.Tensor:
        return arguments[1].clone()

    @staticmethod
    def backward(ctx: Any, *_grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        del ctx
        raise OperatorError(
            "This function of a weight has a first derivative only; take its gradient without create_graph, or detach "
            "it before the second derivative of something else is taken."
        )


def with_gradient(weight: torch.Tensor, value: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """`value` as a function of `weight` whose derivative is already known.

    Args:
        weight: `(*batch, ...)`, what is differentiated by.
        value: `(*batch)`, one number for each weight of the batch.
        gradient: Like `weight`: the derivative of each value by its own weight.

    Differentiating twice raises an error instead of giving a wrong number.
    """
    return cast("torch.Tensor", _WithGradient.apply(weight, value.detach(), gradient.detach()))
