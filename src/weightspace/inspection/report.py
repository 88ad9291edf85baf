"""What an inspection found: plain figures, and the ways to show them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace.files import finite, write_text_atomically
from weightspace.inspection.advice import Advice, Alert
from weightspace.inspection.jacobian import JacobianSpectrum
from weightspace.inspection.layers import QUANTILES, Detail, LayerSpectrum

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, eq=False)
class Measured:
    """What one pass forward and backward showed at a layer; root mean squares (RMS) are per entry.

    Attributes:
        input_rms: Of what the layer read.
        activation_rms: Of what it wrote.
        expected_activation_rms: What the weights predict for that, see `inspection.expectation`; None if nothing.
        gradient_rms: Of the gradient at what it wrote; None if none came back.
        expected_gradient_rms: What the weights predict for that.
        forward_gain: Factor on the Euclidean norm of the signal, without the bias.
        backward_gain: Factor on the norm of the gradient on its way back through the layer.
        dead_inputs: Input channels that were zero for every image and place.
        images: Rows of the batch that it read.
        weight_gradient_rms: Of the gradient of the weight.
        update_ratio: Norm of the optimizer's next step over the norm of the weight, if an optimizer was given.
    """

    input_rms: float
    activation_rms: float
    expected_activation_rms: float | None
    gradient_rms: float | None
    expected_gradient_rms: float | None
    forward_gain: float
    backward_gain: float | None
    dead_inputs: int
    images: int
    weight_gradient_rms: float | None
    update_ratio: float | None

    @property
    def gradient_ratio(self) -> float | None:
        """Measured over expected gradient RMS."""
        if self.gradient_rms is None or not self.expected_gradient_rms:
            return None
        return self.gradient_rms / self.expected_gradient_rms


@dataclass(frozen=True, eq=False)
class LayerReport:
    """One layer.

    Attributes:
        name: Qualified name of the module; `""` if the model itself is the layer.
        operator: The layer in words: kind, channels, kernel, stride, padding.
        input_size: Spatial sizes of what it read; `()` for a linear layer.
        channels: Channels that it reads and writes.
        spectrum: Its figures as a linear map.
        measured: What was seen of it; None if the forward pass did not call it.
        after: Operations between the layers before and this one ("Relu", "NativeBatchNorm", "Add", ...).
        norm: The batch norm that reads the layer's output, if one does.
        folded_forward_gain: As `spectrum.forward_gain`, with the factors of that batch norm.
        folded_backward_gain: As `spectrum.backward_gain`, with them.
        notes: Frozen, parametrized, shared.
    """

    name: str
    operator: str
    input_size: tuple[int, ...]
    channels: tuple[int, int]
    spectrum: LayerSpectrum
    measured: Measured | None
    after: tuple[str, ...]
    norm: str | None
    folded_forward_gain: float | None
    folded_backward_gain: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Unsupported:
    """A module with weights that is not in the table of layers, and why."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True, eq=False)
class Inspection:
    """The diagnosis of a network; printing it shows the verdict, the table and the advice.

    Attributes:
        model: The model's class.
        mode: "training" or "evaluation".
        detail: Cost tier.
        gradient_of: "loss" or "random direction": what the measured gradients are derivatives of.
        loss: Value of the loss, if one was given.
        forward_gain: RMS of the outputs over the RMS of the inputs; NaN without floating-point inputs.
        backward_gain: Norm of the gradient at the inputs (at the first layer, if inputs have none) over that at the
            outputs.
        layers: In the order of execution, those that were not called last.
        unsupported: Modules with weights that are not layers with a linear map.
        jacobian: Singular values of the whole map at (a part of) the example batch.
        verdict: Sentences, the most important first.
        alerts: Findings beyond a limit, worst first.
        advice: What to do, each with a rule to paste where one would act.
        problems: What could not be computed for the network as a whole.
        seconds: Time that the inspection took.
    """

    model: str
    mode: str
    detail: Detail
    gradient_of: str
    loss: float | None
    forward_gain: float
    backward_gain: float | None
    layers: tuple[LayerReport, ...]
    unsupported: tuple[Unsupported, ...]
    jacobian: JacobianSpectrum | None
    verdict: tuple[str, ...]
    alerts: tuple[Alert, ...]
    advice: tuple[Advice, ...]
    problems: tuple[str, ...]
    seconds: float

    def __getitem__(self, name: str) -> LayerReport:
        """The first layer of a name.

        Raises:
            KeyError: There is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer is called {name!r}; there are {', '.join(layer.name for layer in self.layers)}")

    def table(self, *, width: int | None = None) -> Table:
        """The table of layers, for `rich.print` or `print`."""
        from weightspace.inspection.tables import layer_table

        return layer_table(self, width=width)

    def __str__(self) -> str:
        from weightspace.inspection.tables import as_text

        return as_text(self)

    def to_dict(self) -> dict[str, Any]:
        """All figures as nested plain values, without the singular values themselves."""
        return {
            "model": self.model,
            "mode": self.mode,
            "detail": self.detail,
            "gradient_of": self.gradient_of,
            "loss": self.loss,
            "forward_gain": self.forward_gain,
            "backward_gain": self.backward_gain,
            "jacobian": _jacobian_dict(self.jacobian),
            "verdict": list(self.verdict),
            "alerts": [vars(alert) for alert in self.alerts],
            "advice": [vars(advice) for advice in self.advice],
            "layers": [_layer_dict(layer) for layer in self.layers],
            "unsupported": [vars(entry) for entry in self.unsupported],
            "problems": list(self.problems),
            "seconds": self.seconds,
        }

    def to_json(self, path: str | Path) -> Path:
        """Writes `to_dict()` as JSON, atomically; figures that are not finite become null.

        Raises:
            RunError: The file cannot be written.
        """
        text = json.dumps(finite(self.to_dict()), indent=2, ensure_ascii=False, allow_nan=False)
        write_text_atomically(Path(path), text + "\n")
        return Path(path)

    def to_html(self, path: str | Path) -> Path:
        """Writes one self-contained HTML file: verdict, advice, table, and plots if matplotlib is installed.

        Raises:
            InspectionError: jinja2 or matplotlib is missing.
            RunError: The file cannot be written.
        """
        try:
            from weightspace.inspection.page import render

            text = render(self)
        except ImportError as error:
            from weightspace.errors import InspectionError

            raise InspectionError(
                f"The HTML report needs {error.name}, which is not installed; pip install matplotlib jinja2, or use "
                "to_json() or print(report)."
            ) from error
        write_text_atomically(Path(path), text)
        return Path(path)

    def scalars(self) -> dict[str, float]:
        """Figures to log over training: `{"inspect/<layer>/sigma_max": ...}`, one number each.

        Example: `for tag, value in report.scalars().items(): writer.add_scalar(tag, value, step)`
        """
        return dict(_scalars(self))


def _scalars(report: Inspection) -> Iterator[tuple[str, float]]:
    yield "inspect/forward_gain", report.forward_gain
    if report.backward_gain is not None:
        yield "inspect/backward_gain", report.backward_gain
    for layer in report.layers:
        spectrum, measured = layer.spectrum, layer.measured
        figures: dict[str, float | None] = {
            "isometry_defect": spectrum.isometry_defect,
            "expected_forward_gain": spectrum.forward_gain,
            "expected_backward_gain": spectrum.backward_gain,
        }
        if spectrum.extremes is not None:
            figures["sigma_max"] = spectrum.extremes.sigma_max
            figures["sigma_max_bound"] = spectrum.extremes.sigma_max_bound
        if measured is not None:
            figures["activation_rms"] = measured.activation_rms
            figures["gradient_rms"] = measured.gradient_rms
            figures["update_ratio"] = measured.update_ratio
        for label, value in figures.items():
            if value is not None and math.isfinite(value):
                yield f"inspect/{layer.name}/{label}", value


def _layer_dict(layer: LayerReport) -> dict[str, Any]:
    spectrum, extremes = layer.spectrum, layer.spectrum.extremes
    condition = spectrum.condition_number
    return {
        "name": layer.name,
        "operator": layer.operator,
        "input_size": list(layer.input_size),
        "shape": list(spectrum.shape),
        "notes": list(layer.notes),
        "after": list(layer.after),
        "batch_norm": layer.norm,
        "s2": spectrum.s2,
        "s4": spectrum.s4,
        "mean_square_over_inputs": spectrum.s2 / spectrum.shape[1],
        "mean_square_over_outputs": spectrum.s2 / spectrum.shape[0],
        "variance_of_squares": spectrum.variance,
        "isometry_defect": spectrum.isometry_defect,
        "participation_rank": spectrum.participation_rank,
        "padding_loss": spectrum.padding_loss,
        "flattened_norm": spectrum.flattened_norm,
        "flattened_ratio": spectrum.flattened_ratio,
        "stable_rank": spectrum.stable_rank,
        "sigma_max": None if extremes is None else extremes.sigma_max,
        "sigma_max_bound": None if extremes is None else extremes.sigma_max_bound,
        "sigma_max_converged": None if extremes is None else extremes.is_converged,
        "sigma_min": None if extremes is None else extremes.sigma_min,
        "sigma_min_is_exact": None if extremes is None else extremes.is_sigma_min_exact,
        "method": None if extremes is None else extremes.method,
        "condition_number": None if condition is None else condition[0],
        "condition_number_is_exact": None if condition is None else condition[1],
        "quantiles": _quantile_dict(spectrum),
        "values_under_true_padding": spectrum.is_true_padding if spectrum.values is not None else None,
        "dead_modes": spectrum.dead_modes,
        "expected_forward_gain": spectrum.forward_gain,
        "expected_backward_gain": spectrum.backward_gain,
        "folded_forward_gain": layer.folded_forward_gain,
        "folded_backward_gain": layer.folded_backward_gain,
        "measured": None if layer.measured is None else vars(layer.measured),
        "problems": list(spectrum.problems),
        "seconds": spectrum.seconds,
    }


def _quantile_dict(spectrum: LayerSpectrum) -> dict[str, float] | None:
    values = spectrum.quantiles()
    return None if values is None else {f"{q:g}": value for q, value in zip(QUANTILES, values, strict=True)}


def _jacobian_dict(jacobian: JacobianSpectrum | None) -> dict[str, Any] | None:
    if jacobian is None:
        return None
    return {
        "sigma_max": float(jacobian.values[0]),
        "is_exact": jacobian.is_exact,
        "sigma_min": float(jacobian.values[-1]) if jacobian.is_exact else None,
        "rows": jacobian.rows,
        "columns": jacobian.columns,
        "mean_square_over_inputs": jacobian.mean_square,
        "values": jacobian.values.tolist() if jacobian.is_exact else None,
    }
