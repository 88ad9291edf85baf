"""What the numerical modules of this room share: the dtypes they work in, and ready gradients."""

from __future__ import annotations

from typing import Any, cast

import torch

from weightspace.errors import OperatorError


def compute_dtype(weight: torch.Tensor) -> torch.dtype:
    """The dtype that a weight is worked on in: float32 for 16-bit weights, else its own."""
    return weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32


def sum_dtype(device: torch.device) -> torch.dtype:
    """The dtype of sums whose differences matter: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


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
