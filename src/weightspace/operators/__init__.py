"""Layers as linear maps: apply, adjoint, matrix, singular values, certified bounds."""

from weightspace.operators.conv import ConvOperator, operator_of
from weightspace.operators.geometry import PADDING_MODES, ConvGeometry, PaddingMode

__all__ = ["PADDING_MODES", "ConvGeometry", "ConvOperator", "PaddingMode", "operator_of"]
