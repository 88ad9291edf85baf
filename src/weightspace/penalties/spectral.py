"""The base of penalties that are functions of all singular values: a new term is one small class.

Its `phi` gives the penalty of a spectrum and the derivative by every singular value; everything else is here.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from weightspace.kernels.options import whole_number
from weightspace.operators import ConvOperator
from weightspace.penalties._spectra import Sample, on_matrix, on_torus
from weightspace.penalties.base import Memory, OperatorPenalty
from weightspace.precision import full_precision


@dataclass(frozen=True)
class SpectralPenalty(OperatorPenalty):
    """A function phi of all singular values: a new term is a subclass with its options and `phi`.

    Args:
        frequencies: How many random frequencies to look at in each evaluation, in place of all; drawn anew at each
            step, alike on every rank and after a resume. Sums stay right on average and their gradients get noisy;
            extremes become those of the frequencies looked at. No effect with `padding_mode="layer"`.
        weight, every, gate, input_size, padding_mode, on: See `OperatorPenalty`. `"layer"` takes the dense
            matrix, for small layers.

    Cost of an evaluation on a torus of `m x m` outputs: `m^2 / 2` SVDs of `c x c` matrices (or `frequencies` of them).
    """

    is_sum: ClassVar[bool] = False
    frequencies: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frequencies is not None:
            self._settle(frequencies=whole_number(type(self).__name__, "frequencies", self.frequencies))

    @abstractmethod
    def phi(self, sigma: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The penalty of a spectrum and its derivative by every value.

        Args:
            sigma: `(matrices, values)`, float64, descending in each row and group.
            share: `(matrices, 1)`: how often each row counts, over the number of outputs of the grid.

        Returns:
            R, 0-dimensional, and `dR/dsigma`, like `sigma`. With `is_sum`, R must be a sum over rows.
        """

    def evaluate(self, operator: ConvOperator, memory: Memory | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """By the SVD of every symbol, or of the dense matrix, and the gradient formula."""
        with torch.no_grad(), full_precision():
            if self.padding_mode == "layer" and not operator.geometry.is_block_circulant():
                return on_matrix(operator, self.phi)
            sample = None
            if self.frequencies is not None:
                sample = Sample(self.frequencies, (memory or Memory()).generator())
            return on_torus(operator, self.phi, is_sum=self.is_sum, sample=sample)
