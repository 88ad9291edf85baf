"""The report in the terminal: verdict, table of layers, what was left out, advice."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from weightspace.inspection.advice import Advice
    from weightspace.inspection.report import Inspection, LayerReport

WIDTH = 150


def as_text(report: Inspection, width: int = WIDTH) -> str:
    """The whole report as plain text."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(as_renderable(report))
    return stream.getvalue().rstrip() + "\n"


def as_renderable(report: Inspection) -> Group:
    """Everything but the plots, for a rich console."""
    what = "the loss" if report.gradient_of == "loss" else f"a {report.gradient_of}"
    parts: list[Text | Table] = [Text(f"{report.model} in {report.mode} mode, gradient of {what}", style="bold")]
    parts += [Text(sentence) for sentence in report.verdict]
    if report.jacobian is not None:
        parts.append(Text(f"Jacobian of the whole map: {report.jacobian}"))
    parts += [Text(""), layer_table(report), Text(_LEGEND, style="dim")]
    notes = [f"{layer.name}: {'; '.join(found)}" for layer in report.layers if (found := layer_notes(layer))]
    left_out = [f"{entry.name or 'the model itself'} ({entry.kind}): {entry.reason}" for entry in report.unsupported]
    problems = [*report.problems, *(f"{r.name}: {p}" for r in report.layers for p in r.spectrum.problems)]
    for title, lines in (("Notes", notes), ("Not in the table", left_out), ("Not computed", problems)):
        if lines:
            parts += [Text(""), Text(title, style="bold"), *(Text(f"  {line}") for line in lines)]
    if report.advice:
        parts += [Text(""), Text("Advice", style="bold")]
    for number, advice in enumerate(report.advice, start=1):
        parts.append(Text(f"{number}. {_where(advice)}{advice.reason}."))
        parts.append(Text(f"   {advice.words[0].upper()}{advice.words[1:]}."))
        if advice.rule is not None:
            parts.append(Text(f"   {advice.rule}", style="green"))
    return Group(*parts)


def _where(advice: Advice) -> str:
    more = f" and {len(advice.layers) - 4} more" if len(advice.layers) > 4 else ""
    return f"{', '.join(advice.layers[:4])}{more}: " if advice.layers else ""


_LEGEND = (
    "sigma: singular values of the layer as a map of images, with a certified interval; cond: sigma_max / sigma_min; "
    "flat: sigma_max over the norm of the flattened weight; gain: factor on the norm of a white signal forward and of "
    "a gradient backward, by the weights, and as seen in this batch; act, grad: root mean square of the output and of "
    "its gradient (in parentheses: what the weights predict); dead: input channels that are zero for all images."
)


def layer_table(report: Inspection, *, width: int | None = None) -> Table:
    """One row a layer, in the order of execution."""
    table = Table(box=None, header_style="bold", padding=(0, 1), width=width)
    table.add_column("layer", overflow="fold", min_width=12)
    table.add_column("operator", overflow="fold", min_width=20)
    for title in (
        "input",
        "sigma_max",
        "sigma_min",
        "cond",
        "flat",
        "gain →",
        "seen",
        "gain ←",
        "seen",
        "act",
        "grad",
        "dead",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for layer in report.layers:
        table.add_row(*layer_row(layer))
    return table


def layer_row(layer: LayerReport) -> list[str]:
    """The cells of a layer."""
    spectrum, measured = layer.spectrum, layer.measured
    condition, flat = spectrum.condition_number, spectrum.flattened_ratio
    return [
        layer.name or "(model)",
        layer.operator,
        "x".join(map(str, layer.input_size)) or "-",
        *extreme_cells(layer),
        "-" if condition is None else f"{'' if condition[1] else '≥'}{number(condition[0])}",
        "-" if flat is None else f"{flat:.2f}",
        number(spectrum.forward_gain),
        number(None if measured is None else measured.forward_gain),
        number(spectrum.backward_gain),
        number(None if measured is None else measured.backward_gain),
        "-" if measured is None else _beside(measured.activation_rms, measured.expected_activation_rms),
        "-" if measured is None else _beside(measured.gradient_rms, measured.expected_gradient_rms),
        "-" if measured is None else f"{measured.dead_inputs}/{layer.channels[0]}",
    ]


def layer_notes(layer: LayerReport) -> list[str]:
    """What does not fit into a cell: frozen, parametrized, shared, how far the next step goes."""
    notes, measured = list(layer.notes), layer.measured
    if measured is not None and measured.update_ratio is not None:
        notes.append(f"the next step is {number(measured.update_ratio)} of the weight")
    return notes


def extreme_cells(layer: LayerReport) -> tuple[str, str]:
    """sigma_max as a value or an interval, sigma_min as a value or a bound."""
    extremes = layer.spectrum.extremes
    if extremes is None:
        return "-", "-"
    low, high = extremes.sigma_max, extremes.sigma_max_bound
    close = high - low <= 5e-4 * high
    top = number(low) if close else f"[{number(low, up=False)}, {number(high, up=True)}]"
    return top, number(extremes.sigma_min) if extremes.is_sigma_min_exact else f"≤{number(extremes.sigma_min, up=True)}"


def number(value: float | None, *, up: bool | None = None) -> str:
    """Three significant digits; `up` rounds a bound to its safe side."""
    if value is None:
        return "-"
    if math.isnan(value):
        return "NaN"
    if up is not None and value and math.isfinite(value):
        unit = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
        value = (math.ceil if up else math.floor)(value / unit) * unit
    return f"{value:.3g}"


def _beside(measured: float | None, expected: float | None) -> str:
    if measured is None:
        return "-"
    return f"{measured:.2g}" if expected is None else f"{measured:.2g} ({expected:.2g})"
