"""What to do with samples of weights, however they were made: keep them, average their predictions, judge both.

What needs an extra (safetensors, ArviZ, matplotlib) is imported inside the functions that use it.
"""

from __future__ import annotations

from weightspace.sampling._index import Sample
from weightspace.sampling.calibration import (
    Reliability,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
    reliability_plot,
)
from weightspace.sampling.diagnostics import Diagnostics, QuantityDiagnostics, chain_diagnostics, trace_plot
from weightspace.sampling.predictive import (
    Predictive,
    SampleScore,
    batch_norm_statistics,
    posterior_predictive,
    predictive_plot,
)
from weightspace.sampling.quantities import ChainQuantities, chain_quantities
from weightspace.sampling.store import SampleStore, chain_folder, open_chains
from weightspace.sampling.summary import Calibration, Estimate, measure_calibration

__all__ = [
    "Calibration",
    "ChainQuantities",
    "Diagnostics",
    "Estimate",
    "Predictive",
    "QuantityDiagnostics",
    "Reliability",
    "Sample",
    "SampleScore",
    "SampleStore",
    "batch_norm_statistics",
    "brier_score",
    "chain_diagnostics",
    "chain_folder",
    "chain_quantities",
    "expected_calibration_error",
    "measure_calibration",
    "negative_log_likelihood",
    "open_chains",
    "posterior_predictive",
    "predictive_plot",
    "reliability",
    "reliability_plot",
    "trace_plot",
]
