"""The columns of the full table of layers: what stands in them, and what their headings mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from weightspace.inspection.report import LayerReport, Measured
from weightspace.inspection.tables import extreme_cells


@dataclass(frozen=True)
class Column:
    """A column of the table of layers.

    Attributes:
        group: Heading that it shares with its neighbors.
        title: Its own heading.
        meaning: Its entry in the glossary.
        cell: Its text for a layer; None where the layer has no such figure.
        is_text: Whether it holds words, which are aligned to the left.
    """

    group: str
    title: str
    meaning: str
    cell: Callable[[LayerReport], str | None]
    is_text: bool = False


def name_of(name: str | None) -> str:
    """The name of a layer; None is the network, and the model itself has an empty name."""
    return "network" if name is None else name or "(model)"


def written(value: float | None) -> str | None:
    """A figure in three significant digits, and words for what is no number."""
    if value is None:
        return None
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _seen(read: Callable[[Measured], float | None]) -> Callable[[LayerReport], str | None]:
    """A figure of what was measured, as a cell."""
    return lambda layer: None if layer.measured is None else written(read(layer.measured))


def _quantile(index: int) -> Callable[[LayerReport], str | None]:
    def cell(layer: LayerReport) -> str | None:
        values = layer.spectrum.quantiles()
        return None if values is None else written(values[index])

    return cell


def _extreme(index: int) -> Callable[[LayerReport], str | None]:
    return lambda layer: None if layer.spectrum.extremes is None else extreme_cells(layer)[index]


def _condition(layer: LayerReport) -> str | None:
    found = layer.spectrum.condition_number
    return None if found is None else f"{'' if found[1] else '≥ '}{written(found[0])}"


def _share(value: float | None) -> str | None:
    if value is None or not math.isfinite(value):
        return written(value)
    return "0" if value < 1e-6 else "< 0.1 %" if value < 0.001 else f"{100 * value:.1f} %"


def _dead_inputs(layer: LayerReport) -> str | None:
    return None if layer.measured is None else f"{layer.measured.dead_inputs} of {layer.channels[0]}"


COLUMNS: tuple[Column, ...] = (
    Column("", "layer", "Name of the module; ▲ marks a layer with an alert.", lambda r: name_of(r.name), is_text=True),
    Column("", "operator", "Kind, channels in → out, kernel, stride, padding.", lambda r: r.operator, is_text=True),
    Column(
        "", "input", "Size of what it reads, without the channels.", lambda r: "×".join(map(str, r.input_size)) or None
    ),
    Column(
        "",
        "modes",
        "Number of singular values that the geometry leaves room for; a 1x1 kernel with a stride skips part of its "
        "input, and the other singular values are zero whatever the weight is.",
        lambda r: f"{r.spectrum.rank_bound:,}",
    ),
    Column(
        "singular values",
        "σ max",
        "Largest singular value of the layer as a map of whole images; in brackets the certified interval.",
        _extreme(0),
    ),
    Column("singular values", "σ min", "Smallest; ≤ where only a bound is proved.", _extreme(1)),
    Column("singular values", "cond", "Condition number σ max / σ min; ≥ where σ min is a bound.", _condition),
    Column("singular values", "5 %", "A twentieth of the singular values is smaller.", _quantile(1)),
    Column("singular values", "50 %", "Their median.", _quantile(3)),
    Column("singular values", "95 %", "A twentieth is larger.", _quantile(5)),
    Column(
        "singular values",
        "dead",
        "Share of modes below a thousandth of the largest.",
        lambda r: _share(r.spectrum.dead_modes),
    ),
    Column("spread", "var σ²", "Variance of σ² over the modes.", lambda r: written(r.spectrum.variance)),
    Column(
        "spread",
        "defect",
        "Isometry defect: root mean square of σ² − 1; 0 for an isometry.",
        lambda r: written(r.spectrum.isometry_defect),
    ),
    Column(
        "spread",
        "part. rank",
        "Participation rank S₂² / S₄, with Sₖ the sum of all σᵏ: how many equal singular values have these sums.",
        lambda r: written(r.spectrum.participation_rank),
    ),
    Column("spread", "stable rank", "S₂ / σ² max; at most the rank.", lambda r: written(r.spectrum.stable_rank)),
    Column(
        "spread",
        "lost to padding",
        "Share of a white signal's variance that is missing because windows reach into the zeros at the border.",
        lambda r: _share(r.spectrum.padding_loss),
    ),
    Column(
        "flattened weight",
        "norm",
        "Largest singular value of the weight as a matrix (c_out, rest), which torch's spectral_norm sets to one.",
        lambda r: written(r.spectrum.flattened_norm),
    ),
    Column(
        "flattened weight",
        "σ max / norm",
        "How many times larger the layer's own norm is than that.",
        lambda r: written(r.spectrum.flattened_ratio),
    ),
    Column(
        "gain forward",
        "weights",
        "Root of the mean σ² over inputs: factor on the norm of a white signal.",
        lambda r: written(r.spectrum.forward_gain),
    ),
    Column(
        "gain forward",
        "+ norm",
        "The same with the factors of the batch norm that reads the layer.",
        lambda r: written(r.folded_forward_gain),
    ),
    Column(
        "gain forward",
        "measured",
        "Factor on the norm of this batch, without the bias.",
        _seen(lambda m: m.forward_gain),
    ),
    Column(
        "gain backward",
        "weights",
        "Root of the mean σ² over outputs: factor on the norm of a white gradient on its way back.",
        lambda r: written(r.spectrum.backward_gain),
    ),
    Column("gain backward", "+ norm", "The same with the batch norm.", lambda r: written(r.folded_backward_gain)),
    Column(
        "gain backward", "measured", "Factor on the norm of the gradient that came.", _seen(lambda m: m.backward_gain)
    ),
    Column("RMS of the activation", "read", "Root mean square of what the layer reads.", _seen(lambda m: m.input_rms)),
    Column("RMS of the activation", "written", "Of what it writes.", _seen(lambda m: m.activation_rms)),
    Column(
        "RMS of the activation",
        "expected",
        "What the weights predict for what it writes.",
        _seen(lambda m: m.expected_activation_rms),
    ),
    Column(
        "RMS of the gradient",
        "measured",
        "Of the gradient at what the layer writes.",
        _seen(lambda m: m.gradient_rms),
    ),
    Column("RMS of the gradient", "expected", "What the weights predict.", _seen(lambda m: m.expected_gradient_rms)),
    Column("RMS of the gradient", "ratio", "Measured over expected.", _seen(lambda m: m.gradient_ratio)),
    Column("weight", "gradient", "Root mean square of the weight's gradient.", _seen(lambda m: m.weight_gradient_rms)),
    Column(
        "weight",
        "update",
        "Norm of the optimizer's next step over the norm of the weight.",
        _seen(lambda m: m.update_ratio),
    ),
    Column("remarks", "zero inputs", "Input channels that were zero for all images and places.", _dead_inputs),
    Column(
        "remarks",
        "reads through",
        "Operations between the layers before and this one.",
        lambda r: ", ".join(r.after) or None,
        is_text=True,
    ),
    Column("remarks", "batch norm", "The batch norm that reads the layer.", lambda r: r.norm, is_text=True),
    Column(
        "remarks",
        "method",
        "How σ max and σ min were found.",
        lambda r: None if r.spectrum.extremes is None else r.spectrum.extremes.method,
        is_text=True,
    ),
    Column("remarks", "notes", "Frozen, parametrized, shared.", lambda r: "; ".join(r.notes) or None, is_text=True),
    Column("remarks", "seconds", "Time spent on the layer's figures.", lambda r: written(r.spectrum.seconds)),
)
