"""The inspection as one HTML file: verdict, advice, pictures, the table of all figures, and what every word means."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure

from weightspace.figures import STYLE, page_text
from weightspace.inspection import plots
from weightspace.inspection.advice import Alert
from weightspace.inspection.columns import COLUMNS, Column, name_of, written
from weightspace.inspection.report import Inspection, LayerReport
from weightspace.inspection.selection import alerted, with_map, with_values

_TEMPLATE = Path(__file__).parent / "page.html.j2"
_NOTHING = "–"
_MOST_ALERTS = 12  # in sight; the others unfold
_MOST_NAMES = 8
_DETAILS = {
    "moments": "closed forms only; detail='extremes' adds sigma_max and sigma_min, 'spectra' all singular values",
    "extremes": "sigma_max and sigma_min; detail='spectra' adds all singular values, histograms and frequency maps",
    "spectra": "all singular values, of large layers those of the circular counterpart",
    "exact": "all singular values, under the layer's own padding wherever its matrix is small enough",
}


@dataclass(frozen=True)
class Picture:
    """A picture of the page: heading, how to read it, what it shows in words, and layers without their own panel."""

    name: str
    title: str
    caption: str
    alternative: str
    draw: Callable[[Inspection], Figure | None]
    left_out: Sequence[str] = ()


def render(report: Inspection) -> str:
    """The page as HTML text: one file, nothing to load, no scripts; every word of the report is escaped.

    Cost: seconds for the pictures; some 0.1 MB each, more where there are many layers.
    """
    columns = [c for c in COLUMNS if any(c.cell(layer) is not None for layer in report.layers)]
    absent = [f"{c.group}: {c.title}" for c in COLUMNS if c not in columns]
    names = alerted(report)
    return page_text(
        _TEMPLATE,
        report=report,
        about=_about(report),
        jacobian=_jacobian(report),
        alerts=_equal_alerts(report),
        places={layer.name: index for index, layer in reversed(list(enumerate(report.layers)))},
        advice=[(_several(entry.layers), entry) for entry in report.advice],
        name_of=name_of,
        most_alerts=_MOST_ALERTS,
        most_names=_MOST_NAMES // 2,
        pictures=_encoded_pictures(report),
        groups=_groups(columns),
        columns=columns,
        rows=[(layer.name in names, [column.cell(layer) or _NOTHING for column in columns]) for layer in report.layers],
        absent=absent,
        problems=[*report.problems, *_problems(report.layers)],
        detail=f"{report.detail}: {_DETAILS[report.detail]}",
        versions=", ".join(f"{package} {version(package)}" for package in ("weightspace", "torch")),
    )


# ----------------------------------------------------------------------------------------------------------- sentences


def _about(report: Inspection) -> str:
    of = f"the loss ({report.loss:.4g})" if report.loss is not None else f"a {report.gradient_of}"
    count = len(report.layers)
    layers = f"{count} layer{'s' if count != 1 else ''}"
    return f"In {report.mode} mode · gradients of {of} · {layers} · detail {report.detail} · {report.seconds:.3g} s"


def _jacobian(report: Inspection) -> str | None:
    """The whole map in a sentence."""
    found = report.jacobian
    if found is None:
        return None
    text = f"Jacobian of the whole map at the example: {found}"
    if found.mean_square is not None:
        text += f"; a small random change of the input comes out {written(math.sqrt(found.mean_square))} times as long"
    return text + "."


def _several(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    more = len(names) - _MOST_NAMES
    shown = ", ".join(map(name_of, names[:_MOST_NAMES])) or "network"
    return f"{shown} and {more} more" if more > 0 else shown


def _equal_alerts(report: Inspection) -> list[tuple[list[str | None], Alert]]:
    """Alerts in their order, those with the same words joined: where they are, and one of them."""
    groups: dict[tuple[str, str, str], list[Alert]] = {}
    for alert in report.alerts:
        groups.setdefault((alert.kind, alert.evidence, alert.advice), []).append(alert)
    return [([alert.layer for alert in group], group[0]) for group in groups.values()]


def _problems(layers: Sequence[LayerReport]) -> list[str]:
    return [f"{name_of(layer.name)}: {problem}" for layer in layers for problem in layer.spectrum.problems]


# ------------------------------------------------------------------------------------------------------------ pictures


def _encoded_pictures(report: Inspection) -> list[dict[str, object]]:
    """All pictures that there is something to draw for, in a style that the user's settings do not touch."""
    shown: list[dict[str, object]] = []
    with style.context(["default", STYLE], after_reset=False):
        for picture in _pictures(report):
            drawn = picture.draw(report)
            if drawn is not None:
                shown.append({"picture": picture, "data": _png(drawn)})
    return shown


def _png(drawn: Figure) -> str:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # A layer's name may hold letters that the font lacks: they are drawn as boxes, and the table has the name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        drawn.savefig(stream, format="png", metadata={"Software": None})
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _pictures(report: Inspection) -> list[Picture]:
    without_values, without_map = with_values(report)[1], with_map(report)[1]
    return [
        Picture(
            "depth",
            "Signal and gradient over depth",
            f"Layers in the order of execution{', in red those with an alert' if alerted(report) else ''}. Upper "
            "panel: root mean square (RMS) of what a layer writes; lower panel: of the gradient that comes back to it, "
            "so read it from right to left. Squares: what the weights alone predict, starting again "
            "from the measured value after an operation without a prediction (maximum pooling, attention); no square: "
            "no prediction. Where the curves part, signals line up with large or small singular vectors.",
            f"Line plot over {len(report.layers)} layers. {_range_in_words(report)}",
            plots.depth_figure,
        ),
        Picture(
            "gains",
            "Gain of every layer",
            "Factor by which a layer alone multiplies the norm of the gradient on its way back (left) and of the "
            "signal on its way forward (right): below 1 it shrinks, above 1 it grows. Bar: measured in this batch; "
            f"circle: by the weights, for white signals{_with_norm(report)}.",
            "Bars of the backward and the forward gain of every layer; the numbers are in the table of layers.",
            plots.gain_figure,
        ),
        Picture(
            "singular-values",
            "Singular values of every layer",
            "On a logarithmic axis, with a line at 1: a layer whose values all lie there is an isometry. Orange: the "
            "certified interval of the largest, under the layer's own padding; often narrower than its two marks."
            f"{_underflow(report)}{_circular(report)}",
            "Quantiles of the singular values of every layer; the numbers are in the table of layers.",
            plots.strip_figure,
        ),
        Picture(
            "histograms",
            "Distribution of the singular values",
            "Share of a layer's singular values over their logarithm. What lies left of the dotted line is dead: it "
            "passes on less than a thousandth of what the strongest mode does."
            f"{' Green: values of the circular counterpart.' if _circular(report) else ''}",
            "Histograms of the singular values of single layers on a logarithmic axis.",
            plots.histogram_figure,
            [name_of(layer.name) for layer in without_values],
        ),
        Picture(
            "frequencies",
            "Largest singular value over frequency",
            "How to read them: the middle is the constant image, the edges are the finest stripes; a bright middle "
            "amplifies brightness and blur (low-pass gain), bright corners amplify checkerboards. Above each map: its "
            "smallest and largest value. Color runs between the two, but over a factor of 1.5 at least, so that "
            "nearly flat maps look flat. Maps are those of the circular counterpart; with a stride, a frequency stands "
            "for all waves that fold onto it. Left out: layers that treat all frequencies alike, such as 1x1 kernels.",
            "Heat maps of the largest singular value over horizontal and vertical frequency, one for each layer.",
            plots.frequency_figure,
            [name_of(layer.name) for layer in without_map],
        ),
    ]


def _with_norm(report: Inspection) -> str:
    if all(layer.folded_backward_gain is None for layer in report.layers):
        return ""
    return "; diamond: by the weights with the factors of the batch norm that follows"


def _underflow(report: Inspection) -> str:
    quantiles = [values for layer in report.layers if (values := layer.spectrum.quantiles()) is not None]
    if all(values[0] >= plots.UNDERFLOW * values[-1] for values in quantiles):
        return ""
    return " Red arrow: the smallest values are below a millionth of the largest."


def _circular(report: Inspection) -> str:
    """Whose singular values are those of the circular counterpart."""
    known = [layer for layer in report.layers if layer.spectrum.values is not None]
    names = [name_of(layer.name) for layer in known if not layer.spectrum.is_true_padding]
    if not names:
        return ""
    which = "all layers" if len(names) == len(known) else ", ".join(names)
    own = [name_of(layer.name) for layer in known if layer.spectrum.is_true_padding]
    if 0 < len(own) < len(names):
        which = f"all layers but {_several(own)}"
    return (
        " Green: quantiles of the circular counterpart (the same kernel on a torus, without a border), which is what "
        f"{which} are shown by; the smallest values may differ much from those under the own padding, the largest "
        "hardly do."
    )


def _range_in_words(report: Inspection) -> str:
    measured = [layer.measured for layer in report.layers if layer.measured is not None]
    words: list[str] = []
    for label, values in (
        ("Activation", [m.activation_rms for m in measured]),
        ("Gradient", [m.gradient_rms for m in measured if m.gradient_rms is not None]),
    ):
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            words.append(f"{label} RMS from {min(finite):.3g} to {max(finite):.3g}.")
    return " ".join(words)


# --------------------------------------------------------------------------------------------------------------- table


def _groups(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Headings over neighboring columns, and how many each spans."""
    groups: list[tuple[str, int]] = []
    for column in columns:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    return groups
