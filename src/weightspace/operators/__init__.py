"""Layers as linear maps: apply, adjoint, matrix, singular values, certified bounds."""

from weightspace.operators.bounds import norm_bound
from weightspace.operators.conv import ConvOperator, operator_of
from weightspace.operators.extremes import Extremes, extreme_singular_values
from weightspace.operators.geometry import PADDING_MODES, ConvGeometry, PaddingMode
from weightspace.operators.moments import Moments, singular_value_moments, stochastic_moments
from weightspace.operators.spectrum import (
    CircularSpectrum,
    circular_spectrum,
    singular_values,
    singular_values_of,
)

__all__ = [
    "PADDING_MODES",
    "CircularSpectrum",
    "ConvGeometry",
    "ConvOperator",
    "Extremes",
    "Moments",
    "PaddingMode",
    "circular_spectrum",
    "extreme_singular_values",
    "norm_bound",
    "operator_of",
    "singular_value_moments",
    "singular_values",
    "singular_values_of",
    "stochastic_moments",
]
