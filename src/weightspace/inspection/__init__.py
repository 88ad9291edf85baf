"""Diagnosis of networks: layers as linear maps, what a batch does on its way through them, and advice."""

from weightspace.inspection.advice import Advice, Alert
from weightspace.inspection.diagnosis import inspect
from weightspace.inspection.jacobian import JacobianSpectrum, jacobian_singular_values
from weightspace.inspection.layers import DETAILS, Detail, LayerSpectrum
from weightspace.inspection.limits import Limits
from weightspace.inspection.report import Inspection, LayerReport, Measured, Unsupported

__all__ = [
    "DETAILS",
    "Advice",
    "Alert",
    "Detail",
    "Inspection",
    "JacobianSpectrum",
    "LayerReport",
    "LayerSpectrum",
    "Limits",
    "Measured",
    "Unsupported",
    "inspect",
    "jacobian_singular_values",
]
