"""Diagnosis of networks: layers as linear maps, what a batch does on its way through them, and advice."""

from weightspace.inspection.advice import Advice, Alert
from weightspace.inspection.diagnosis import inspect
from weightspace.inspection.jacobian import JacobianSpectrum, jacobian_singular_values
from weightspace.inspection.layers import DETAILS, Detail, LayerSpectrum
from weightspace.inspection.limits import Limits
from weightspace.inspection.lipschitz import LipschitzBound, certified_radius, lipschitz_bound
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
    "LipschitzBound",
    "Measured",
    "Unsupported",
    "certified_radius",
    "inspect",
    "jacobian_singular_values",
    "lipschitz_bound",
]
