"""Singular values of a model's Jacobian at an input, without the Jacobian.

The graph of one forward pass gives `u -> J^T u` by a backward pass. If the model has few outputs, the rows of J are
taken one by one and all singular values are exact. Else Golub-Kahan-Lanczos steps need `v -> J v` too: forward-mode
differentiation, or, where an operation does not offer it, the derivative of `u -> J^T u`, which is linear in u.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from weightspace.errors import InspectionError
from weightspace.inspection.trace import as_inputs, differentiable, run, untouched
from weightspace.operators.lanczos import bidiagonalize

MOST_ROWS = 128  # outputs of all images together, up to which the Jacobian is taken row by row
STEPS = 20


@dataclass(frozen=True, eq=False)
class JacobianSpectrum:
    """Singular values of the derivative of all outputs by all floating-point inputs, at one batch.

    Attributes:
        values: Descending. All of them if `is_exact`, else Ritz values: the largest is a lower bound of sigma_max.
        is_exact: Whether every singular value is there.
        rows: Outputs, those of all images of the batch together.
        columns: Inputs.
        residual: Of the largest value; zero if exact.
        mean_square: Mean of sigma^2 over the inputs: how much larger the squared norm of a small random change of the
            input comes out. None unless exact.
    """

    values: torch.Tensor
    is_exact: bool
    rows: int
    columns: int
    residual: float
    mean_square: float | None

    def __str__(self) -> str:
        sign = "=" if self.is_exact else ">="
        smallest = f", sigma_min = {float(self.values[-1]):.4g}" if self.is_exact else ""
        return f"sigma_max {sign} {float(self.values[0]):.4g}{smallest} ({self.rows} x {self.columns})"


def jacobian_singular_values(
    model: nn.Module, example_input: Any, *, steps: int = STEPS, exact: bool | None = None, seed: int = 0
) -> JacobianSpectrum:
    """Singular values of the whole map from inputs to outputs, linearized at an input.

    A batch counts as one input: in evaluation mode the Jacobian then falls into one block for each image, so the
    largest value is that of the image that is amplified most; batch norm in training mode couples the images.

    Args:
        model: Any module, a block of a network too. It is left as it was.
        example_input: One tensor, a tuple of positional or a mapping of keyword arguments.
        steps: Lanczos steps, each one derivative forward and one backward.
        exact: True takes every row of the Jacobian whatever it costs, False never does; left out: up to 128.
        seed: Decides dropout and the first Lanczos vector.

    Cost: `rows` backward passes, or `steps` forward and backward ones.

    Raises:
        InspectionError: The forward pass fails, or outputs cannot be differentiated by any input.

    Example:
        >>> double = nn.Linear(2, 2, bias=False)
        >>> _ = double.weight.data.copy_(torch.diag(torch.tensor([3.0, 0.5])))
        >>> jacobian_singular_values(double, torch.ones(1, 2)).values.tolist()
        [3.0, 0.5]
    """
    with untouched(model, seed):
        jacobian = _Jacobian(model, example_input, seed)
        if exact or (exact is None and jacobian.rows <= MOST_ROWS):
            return jacobian.all_values()
        return jacobian.extremes(steps, seed)


class _Jacobian:
    """The linear map and its adjoint on flat vectors."""

    def __init__(self, model: nn.Module, example: Any, seed: int) -> None:
        self.model, self.seed = model, seed
        self.has_forward_mode = True
        self.arguments = differentiable(as_inputs(example))
        self.inputs = [t for t in tree_leaves(self.arguments) if isinstance(t, torch.Tensor) and t.requires_grad]
        if not self.inputs:
            raise InspectionError(
                "The example input holds no floating-point tensor, and a Jacobian is a derivative by one; inspect the "
                "part of the model that comes after the embedding."
            )
        self.outputs = self._outputs(self.arguments)
        self.rows = sum(t.numel() for t in self.outputs)
        self.columns = sum(t.numel() for t in self.inputs)
        self.dtype = torch.float64 if self.inputs[0].dtype == torch.float64 else torch.float32
        self.device = self.inputs[0].device

    def all_values(self) -> JacobianSpectrum:
        """Row by row; the smaller Gram matrix in float64 would lose digits, so the rows are decomposed as they are."""
        matrix = torch.stack(
            [self.adjoint(unit) for unit in torch.eye(self.rows, dtype=self.dtype, device=self.device)]
        )
        _check_finite(matrix)
        values = torch.linalg.svdvals(matrix)
        return JacobianSpectrum(
            values, True, self.rows, self.columns, 0.0, float(values.double().square().sum()) / self.columns
        )

    def extremes(self, steps: int, seed: int) -> JacobianSpectrum:
        """By Lanczos steps from a random vector on the smaller side."""
        swapped = self.rows < self.columns
        inputs, outputs = (self.rows, self.columns) if swapped else (self.columns, self.rows)
        generator = torch.Generator("cpu").manual_seed(seed)
        start = torch.randn(1, 1, inputs, generator=generator, dtype=self.dtype, device="cpu").to(self.device)
        forward, backward = _on_blocks(self.apply), _on_blocks(self.adjoint)
        if swapped:
            forward, backward = backward, forward
        ritz = bidiagonalize(forward, backward, start, outputs, steps=min(steps, inputs, outputs))
        _check_finite(ritz.values)
        return JacobianSpectrum(
            ritz.values[0], steps >= min(inputs, outputs), self.rows, self.columns, float(ritz.residuals[0, 0]), None
        )

    def adjoint(self, u: torch.Tensor) -> torch.Tensor:
        """`J^T u`, by one backward pass."""
        return self._flat(self._backward(self._split(u, self.outputs), create_graph=False), self.inputs).detach()

    def apply(self, v: torch.Tensor) -> torch.Tensor:
        """`J v`, by forward-mode differentiation or by two backward passes."""
        if self.has_forward_mode:
            try:
                return self._forward_mode(v)
            except (InspectionError, RuntimeError):  # an operation without a forward derivative
                self.has_forward_mode = False
        return self._twice_backward(v)

    def _forward_mode(self, v: torch.Tensor) -> torch.Tensor:
        tangents = {id(t): part for t, part in zip(self.inputs, self._split(v, self.inputs), strict=True)}
        with forward_ad.dual_level(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of what it compiles its formulas with
            dual = tree_map(
                lambda t: forward_ad.make_dual(t.detach(), tangents[id(t)]) if id(t) in tangents else t, self.arguments
            )
            parts = [forward_ad.unpack_dual(t).tangent for t in self._outputs(dual, must_require_grad=False)]
            return self._flat(parts, self.outputs).detach()

    def _twice_backward(self, v: torch.Tensor) -> torch.Tensor:
        u = [torch.zeros_like(t, requires_grad=True) for t in self.outputs]
        back = self._backward(u, create_graph=True)
        pairs = [(g, part) for g, part in zip(back, self._split(v, self.inputs), strict=True) if g is not None]
        forward = torch.autograd.grad([g for g, _ in pairs], u, [p for _, p in pairs], allow_unused=True)
        return self._flat(forward, self.outputs).detach()

    def _backward(self, u: list[torch.Tensor], *, create_graph: bool) -> tuple[torch.Tensor | None, ...]:
        return torch.autograd.grad(
            self.outputs, self.inputs, u, retain_graph=True, create_graph=create_graph, allow_unused=True
        )

    def _outputs(self, arguments: Any, *, must_require_grad: bool = True) -> list[torch.Tensor]:
        torch.manual_seed(self.seed)  # the same dropout in every pass
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            output = run(self.model, arguments)
        found = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor)]
        found = [t for t in found if t.is_floating_point() and (t.requires_grad or not must_require_grad)]
        if not found:
            raise InspectionError(
                "No output of the model can be differentiated by its inputs; pass a model that returns floating-point "
                "tensors computed outside torch.no_grad()."
            )
        return found

    def _split(self, flat: torch.Tensor, like: list[torch.Tensor]) -> list[torch.Tensor]:
        parts = flat.split([t.numel() for t in like])
        return [part.view(t.shape).to(t) for part, t in zip(parts, like, strict=True)]

    def _flat(self, parts: Any, like: list[torch.Tensor]) -> torch.Tensor:
        whole = [torch.zeros_like(t) if p is None else p for p, t in zip(parts, like, strict=True)]
        return torch.cat([p.reshape(-1).to(self.dtype) for p in whole])


def _on_blocks(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function of vectors as one of blocks `(1, vectors, entries)`."""
    return lambda block: torch.stack([function(vector) for vector in block[0]])[None]


def _check_finite(values: torch.Tensor) -> None:
    if not math.isfinite(float(values.sum())):
        raise InspectionError("The Jacobian holds NaN or infinity at this input; look for the first layer that does.")
