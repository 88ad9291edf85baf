"""What every public function of this room accepts as a layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from weightspace.errors import OperatorError
from weightspace.operators.conv import ConvOperator, operator_of


def as_operator(layer: nn.Module | ConvOperator, input_size: int | Sequence[int] | None = None) -> ConvOperator:
    """The layer as an operator; an operator is taken as it is.

    Raises:
        OperatorError: An operator came with an input size (it has one), or the layer cannot be analyzed.
    """
    if isinstance(layer, ConvOperator):
        if input_size is not None:
            raise OperatorError("A ConvOperator has its input size already; leave input_size out.")
        return layer
    return operator_of(layer, input_size)
