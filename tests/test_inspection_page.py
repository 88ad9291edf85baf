"""The HTML report of an inspection: what stands in it, what its pictures show, and that no model breaks it."""

from __future__ import annotations

import base64
import html
import math
import re
import warnings
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from weightspace.errors import RunError
from weightspace.inspection import Inspection, Limits, inspect, page, plots
from weightspace.inspection.columns import COLUMNS, written
from weightspace.inspection.page import render
from weightspace.inspection.selection import MOST_PANELS, with_map, with_values

TITLES = ("over depth", "Gain of every layer", "Singular values of every layer", "Distribution", "over frequency")


# ------------------------------------------------------------------------------------------------------------- models


def small_net() -> nn.Sequential:
    """Every kind of layer: batch norm behind one, groups, stride, a 1x1 kernel, transposed, linear."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(4, 6, 1),
        nn.ConvTranspose2d(6, 3, 4, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(192, 5),
    )


def linear(*diagonal: float) -> nn.Linear:
    layer = nn.Linear(len(diagonal), len(diagonal), bias=False)
    layer.weight.data.copy_(torch.diag(torch.tensor(diagonal)))
    return layer


def with_zeros() -> nn.Module:
    net = small_net()
    for layer in (net[3], net[7]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return net


def with_nan() -> nn.Module:
    net = small_net()
    net[3].weight.data[0] = math.nan
    return net


class Attention(nn.Module):
    """`out_proj` is not called as a module, `spare` not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)
        self.spare = nn.Conv2d(3, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0])


class OtherDimensions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.three = nn.Conv1d(2, 3, 3, padding=1), nn.Conv3d(1, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.three(self.one(x).reshape(-1, 1, 3, 4, 2))


IMAGES = (4, 3, 8, 8)
MODELS = {
    "small": (small_net, IMAGES),
    "one layer": (lambda: nn.Linear(3, 2), (4, 3)),
    "zero weights": (with_zeros, IMAGES),
    "a layer with NaN": (with_nan, IMAGES),
    "not called": (Attention, (2, 5, 8)),
    "one and three dimensions": (OtherDimensions, (2, 2, 8)),
    "only NaN": (lambda: nn.Sequential(linear(math.nan, 1.0)), (2, 2)),
    "110 layers": (lambda: nn.Sequential(*[nn.Linear(2, 2) for _ in range(110)]), (3, 2)),
}


def inspected(name: str, detail: str = "spectra") -> Inspection:
    return _inspected(name, detail)  # a cache keeps a default and the same value given apart


def rendered(name: str, detail: str = "spectra") -> str:
    return _rendered(name, detail)


@cache
def _inspected(name: str, detail: str) -> Inspection:
    torch.manual_seed(0)
    model, shape = MODELS[name]
    return inspect(model(), torch.randn(*shape), detail=detail)  # type: ignore[arg-type]


@cache
def _rendered(name: str, detail: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return render(inspected(name, detail))


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that read words only: figures are made, but not painted, which is what takes time."""
    monkeypatch.setattr(page, "_png", lambda _: "")


def drawn(draw, report: Inspection) -> Figure:
    figure = draw(report)
    assert figure is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    return figure


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


# --------------------------------------------------------------------------------------------------------- reading HTML


class Reader(HTMLParser):
    """Checks that elements are closed in order, and collects what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.contents: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
            self.contents.setdefault(tag, []).append("")

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open:
            self.contents[self.open[-1]][-1] += data

    def of(self, tag: str, name: str) -> list[str]:
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


def without_images(text: str) -> str:
    return re.sub(r"base64,[A-Za-z0-9+/=]+", "base64,", text)


def table_rows(text: str) -> list[list[str]]:
    """The cells of the table of layers, without their markup."""
    body = text.split('class="layers"')[1].split("<tbody>")[1].split("</tbody>", maxsplit=1)[0]
    rows = re.findall(r"<tr .*?</tr>", body, flags=re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in rows]
    return [[html.unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in row] for row in cells]


def column(text: str, group: str, title: str, report: Inspection) -> list[str]:
    shown = [c for c in COLUMNS if any(c.cell(layer) is not None for layer in report.layers)]
    place = next(i for i, c in enumerate(shown) if (c.group, c.title) == (group, title))
    return [row[place] for row in table_rows(text)]


# ------------------------------------------------------------------------------------------------------------ the page


@pytest.mark.parametrize(
    ("name", "detail", "images"),
    [
        ("small", "moments", 2),
        ("small", "extremes", 3),
        ("small", "spectra", 5),
        ("one layer", "moments", 2),
        ("one layer", "spectra", 4),  # no frequencies
        ("zero weights", "spectra", 5),
        ("a layer with NaN", "moments", 2),
        ("a layer with NaN", "spectra", 5),
        ("not called", "spectra", 4),
        ("one and three dimensions", "spectra", 4),
        ("only NaN", "extremes", 0),
        ("110 layers", "extremes", 3),
    ],
)
def test_every_report_renders_without_a_warning(name: str, detail: str, images: int) -> None:
    """Strict filters while rendering; the page is well-formed, one row a layer, one PNG a picture with words for it."""
    report, text = inspected(name, detail), rendered(name, detail)
    reader = Reader(without_images(text))
    assert len(reader.of("img", "src")) == images
    for data in re.findall(r"base64,([A-Za-z0-9+/=]+)", text):
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    assert all(len(words) > 40 for words in reader.of("img", "alt"))
    assert len(reader.of("img", "alt")) == images
    if report.layers:
        assert [row[0].removeprefix("▲ ") for row in table_rows(text)] == [
            layer.name or "(model)" for layer in report.layers
        ]
    assert len(set(reader.of("h2", "id"))) == len(reader.of("h2", "id"))
    for tag, attribute, value in reader.attributes:
        if attribute == "href":
            assert value.startswith("#"), tag
            assert value[1:] in {v for _, n, v in reader.attributes if n == "id"}


def test_the_page_loads_nothing() -> None:
    text = without_images(rendered("small"))
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text
    assert "url(" not in text
    assert set(Reader(text).of("img", "src")) == {"data:image/png;base64,"}
    assert "default-src 'none'" in text


def test_parts_stand_in_their_order() -> None:
    report, text = inspected("small"), without_images(rendered("small"))
    assert report.alerts, "the small map loses variance to its padding"
    order = [
        report.verdict[0],
        '<h2 id="advice"',
        '<h2 id="alerts"',
        *TITLES,
        "All figures</h2>",
        "What the words mean",
        "What is not here</h2>",
    ]
    body = html.unescape(text.split("</style>")[1])
    places = [body.index(part, body.index("</nav>") if part in TITLES else 0) for part in order]
    assert places == sorted(places)
    for part in ("training mode", "random direction", "5 layers", "detail spectra", *report.verdict):
        assert part in body
    assert str(report.jacobian) in body
    assert f"torch {torch.__version__}" in body
    assert "weightspace 0" in body


@pytest.mark.usefixtures("unpainted")
def test_advice_shows_the_rule_to_paste() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    net[0].weight.data *= 100
    report = inspect(net, torch.randn(2, 3, 8, 8), detail="extremes")
    rules = [advice.rule for advice in report.advice if advice.rule is not None]
    assert any('ws.on.name("0")' in rule for rule in rules)
    shown = Reader(without_images(render(report))).contents
    assert [text.strip() for text in shown["pre"]] == rules
    assert all(alert.remedy in shown["code"] for alert in report.alerts if alert.remedy)


@pytest.mark.usefixtures("unpainted")
def test_alerts_with_the_same_words_share_a_row_and_link_to_their_layers() -> None:
    report = inspect(
        nn.Sequential(linear(1e3, 1e3), linear(1e3, 1e3), linear(1.0, 1.0)), torch.randn(4, 2), detail="extremes"
    )
    same = [alert for alert in report.alerts if alert.kind == "sigma_max"]
    assert [alert.layer for alert in same] == ["0", "1"]
    text = without_images(render(report))
    row = next(row for row in re.findall(r"<tr>.*?</tr>", text) if "<td>sigma_max</td>" in row)
    assert '<a href="#layer-0">0</a>, <a href="#layer-1">1</a>' in row
    assert text.count("<td>sigma_max</td>") == 1
    assert "<td>network</td><td>end to end</td>" in text
    assert [row[0] for row in table_rows(text)] == ["▲ 0", "▲ 1", "2"]


@pytest.mark.usefixtures("unpainted")
def test_many_alerts_unfold() -> None:
    layers = [linear(*[float(i + 10)] * 2) for i in range(30)]
    report = inspect(nn.Sequential(*layers), torch.randn(4, 2), detail="extremes", limits=Limits(end_to_end=1e60))
    text = without_images(render(report))
    kinds = {(alert.kind, alert.evidence, alert.advice) for alert in report.alerts}
    hidden = text.split("<details>")[1].split("</details>")[0]
    assert len(kinds) > page._MOST_ALERTS
    assert hidden.count("<tr>") - 1 == len(kinds) - page._MOST_ALERTS
    assert f"<summary>{len(kinds) - page._MOST_ALERTS} more</summary>" in hidden
    assert text.count("and 22 more</strong>") == len([a for a in report.advice if len(a.layers) == 30])


def test_names_are_escaped() -> None:
    evil = "a<b>&\"c' $x^$ <img src=x> 層"
    net = nn.Sequential()
    net.add_module(evil, nn.Conv2d(3, 4, 3))
    net[0].weight.data *= 1000
    report = inspect(net, torch.randn(2, 3, 8, 8))
    report = Inspection(**{**vars(report), "model": "<Evil & Co>", "problems": ("<problem>",)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = render(report)
    assert report.alerts
    assert html.escape(evil, quote=False).replace('"', "&#34;").replace("'", "&#39;") in text
    for raw in ("<b>", "<img src=x>", "<Evil", "<problem>"):
        assert raw not in text
    reader = Reader(without_images(text))
    assert reader.contents["h1"] == ["Inspection of <Evil & Co>"]
    assert any(evil in item for item in reader.contents["th"])


def test_table_has_the_figures() -> None:
    """Against the report's own numbers; what is unknown is a dash, what is no number is named."""
    report, text = inspected("small"), rendered("small")
    first = report.layers[0]
    measured = first.measured
    assert measured is not None
    assert first.spectrum.extremes is not None
    row = table_rows(text)[0]
    assert row[:3] == ["0", "Conv2d 3→4, 3x3, pad 1", "8×8"]
    assert column(text, "singular values", "σ max", report)[0] == f"{first.spectrum.extremes.sigma_max:.3g}"
    for title, share in (("5 %", 0.05), ("50 %", 0.5), ("95 %", 0.95)):
        quantile = torch.quantile(first.spectrum.values, share, interpolation="nearest")
        assert column(text, "singular values", title, report)[0] == f"{quantile:.3g}"
    assert column(text, "gain backward", "+ norm", report) == [f"{first.folded_backward_gain:.3g}", *"––––"]
    assert column(text, "RMS of the activation", "written", report)[0] == f"{measured.activation_rms:.3g}"
    assert column(text, "RMS of the gradient", "ratio", report)[0] == f"{measured.gradient_ratio:.3g}"
    assert column(text, "remarks", "batch norm", report) == ["1", *"––––"]
    assert column(text, "remarks", "reads through", report)[1] == ", ".join(report.layers[1].after)
    broken = inspected("a layer with NaN")
    assert "NaN" in column(rendered("a layer with NaN"), "RMS of the activation", "written", broken)
    zero = inspected("zero weights")
    assert "0" in column(rendered("zero weights"), "singular values", "σ max", zero)
    idle = rendered("not called")
    assert column(idle, "gain forward", "measured", inspected("not called"))[-1] == "–"


def test_columns_without_a_figure_are_named_instead() -> None:
    report, text = inspected("one layer", "moments"), without_images(rendered("one layer", "moments"))
    heads = [head.strip() for head in Reader(text).contents["th"]]
    assert "σ max" not in heads
    missing = text.split("Columns that no layer has a figure for:")[1].split("</p>")[0]
    for name in ("singular values: σ max", "gain forward: + norm", "weight: update"):
        assert name in missing
    assert "detail=&#39;extremes&#39; adds" in text
    assert report.layers[0].name == ""


def test_every_heading_is_explained() -> None:
    text = without_images(rendered("small"))
    reader = Reader(text)
    heads = text.split('class="layers"')[1].split("<thead>")[1].split("</thead>")[0].split("</tr>")[1]
    titles = [html.unescape(title) for title in re.findall(r"<th[^>]*>(.*?)</th>", heads)]
    assert [title for title in reader.contents["dt"] if title not in {c.group for c in COLUMNS}] == titles
    assert len(reader.contents["dd"]) == len(titles)
    assert all(c.meaning.endswith(".") for c in COLUMNS)


def test_what_is_not_here_is_said() -> None:
    text = without_images(rendered("not called"))
    report = inspected("not called")
    assert {entry.name for entry in report.unsupported} >= {"attention", "spare"}
    for entry in report.unsupported:
        assert html.escape(entry.reason) in text
    assert "Every module with weights is in the table" in rendered("one layer")
    broken = inspected("a layer with NaN")
    assert broken.problems
    assert all(html.escape(problem) in rendered("a layer with NaN") for problem in broken.problems)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        (0.0, "0"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (1234.5, "1,234"),
        (1.5e-7, "1.5e-07"),
        (0.31, "0.31"),
        (2e9, "2e+09"),
    ],
)
def test_numbers(value: float | None, text: str | None) -> None:
    assert written(value) == text


# ----------------------------------------------------------------------------------------------------------- the file


def test_file_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "report.html"
    report = inspected("one layer", "extremes")
    assert report.to_html(path) == path
    text = path.read_text(encoding="utf-8")
    assert text == rendered("one layer", "extremes")
    assert Reader(without_images(text)).contents["h1"] == ["Inspection of Linear"]
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]

    def fail(report: Inspection) -> Figure:
        raise ValueError

    monkeypatch.setattr(plots, "depth_figure", fail)
    with pytest.raises(ValueError):
        report.to_html(path)
    assert path.read_text(encoding="utf-8") == text
    monkeypatch.undo()
    with pytest.raises(RunError, match="cannot write"):
        report.to_html(path / "below a file.html")


def test_template_is_beside_the_module_and_so_in_the_wheel() -> None:
    assert (Path(page.__file__).parent / page._TEMPLATE).is_file()


def test_matplotlib_is_left_alone_and_a_users_style_leaves_the_page_alone() -> None:
    usual = rendered("small", "extremes")
    with mpl.rc_context(
        {"text.usetex": True, "axes.facecolor": "black", "font.size": 40, "savefig.dpi": 20, "savefig.bbox": "tight"}
    ):
        before = dict(mpl.rcParams)
        assert render(inspected("small", "extremes")) == usual
        assert dict(mpl.rcParams) == before


# --------------------------------------------------------------------------------------------------------- the pictures


def test_depth_shows_measured_and_expected() -> None:
    report = inspected("zero weights")
    figure = drawn(plots.depth_figure, report)
    seen = [layer.measured for layer in report.layers if layer.measured is not None]
    upper, lower = figure.axes
    for axes, name in ((upper, "activation_rms"), (lower, "gradient_rms")):
        for line, prefix in zip(axes.lines, ("", "expected_"), strict=True):
            values = [getattr(m, prefix + name) for m in seen]
            logs = [math.log10(v) if v else math.nan for v in values]
            np.testing.assert_allclose(line.get_ydata(), logs)
    zeros = [m.activation_rms for m in seen].count(0.0) + [m.gradient_rms for m in seen].count(0.0)
    assert zeros > 0
    assert texts(figure) == ["0"] * zeros
    red = [label.get_text() for label in lower.get_xticklabels() if label.get_color() == plots._ALARM]
    assert red == [layer.name for layer in report.layers if layer.name in {alert.layer for alert in report.alerts}]


def test_layers_that_were_not_called_have_no_depth() -> None:
    figure = drawn(plots.depth_figure, inspected("not called"))
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["head"]


@pytest.mark.parametrize("draw", [plots.depth_figure, plots.gain_figure, plots.strip_figure])
def test_names_do_not_overlap(draw) -> None:
    for name in ("small", "110 layers"):
        figure = drawn(draw, inspected(name))
        axes = figure.axes[-1] if draw is plots.depth_figure else figure.axes[0]
        labels = axes.get_xticklabels() if draw is plots.depth_figure else axes.get_yticklabels()
        boxes = [label.get_window_extent() for label in labels]
        assert len(boxes) > 4
        side = ("x0", "x1") if draw is plots.depth_figure else ("y0", "y1")
        spans = sorted((getattr(box, side[0]), getattr(box, side[1])) for box in boxes)
        assert all(second[0] >= first[1] - 1 for first, second in pairwise(spans))


def test_gains_are_bars_from_one() -> None:
    report = inspect(nn.Sequential(linear(2.0, 2.0), linear(0.25, 0.25)), torch.randn(4, 2), detail="moments")
    figure = drawn(plots.gain_figure, report)
    for axes in figure.axes:
        np.testing.assert_allclose([bar.get_width() for bar in axes.patches], np.log10([2, 0.25]), rtol=1e-5)
        circles = next(line for line in axes.lines if line.get_marker() == "o")
        np.testing.assert_allclose(circles.get_xdata(), np.log10([2, 0.25]), rtol=1e-5)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["measured", "by the weights"]
    assert "batch norm" in drawn(plots.gain_figure, inspected("small")).legends[0].get_texts()[2].get_text()


@pytest.mark.usefixtures("unpainted")
def test_strip_shows_quantiles_and_the_interval() -> None:
    report = inspect(linear(100.0, *[1.0] * 20, 1e-9), torch.randn(2, 22), jacobian=False)
    axes = drawn(plots.strip_figure, report).axes[0]
    thin, thick, box, median, *others = axes.lines
    np.testing.assert_allclose(thin.get_xdata(), [-4, 2])  # a millionth of the largest, and the largest
    for line in (thick, box):
        np.testing.assert_allclose(line.get_xdata(), [0, 0], atol=1e-6)
    np.testing.assert_allclose(median.get_xdata(), [0], atol=1e-6)
    assert others[0].get_marker() == "<"
    interval = next(line for line in others if line.get_color() == plots._ORANGE)
    extremes = report.layers[0].spectrum.extremes
    assert extremes is not None
    np.testing.assert_allclose(interval.get_xdata(), np.log10([extremes.sigma_max, extremes.sigma_max_bound]))
    assert "Red arrow" in render(report)
    assert "Red arrow" not in rendered("small")


@pytest.mark.usefixtures("unpainted")
def test_circular_layers_are_named() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"))
    report = inspect(net, torch.randn(1, 2, 24, 24), jacobian=False)
    assert [layer.spectrum.is_true_padding for layer in report.layers] == [False, True]
    assert "which is what 0 are shown by" in render(report)
    colors = {line.get_color() for line in drawn(plots.strip_figure, report).axes[0].lines}
    assert {plots._BLUE, plots._GREEN} <= colors
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in drawn(plots.histogram_figure, report).axes[:2]]
    assert [", circular" in title for title in titles] == [True, False]


def test_histogram_counts_all_values() -> None:
    report = inspect(linear(1.0, 1.0, 0.1, 1e-9), torch.randn(2, 4), jacobian=False)
    axes = drawn(plots.histogram_figure, report).axes[0]
    stairs, bar = axes.patches
    assert stairs.get_data().values.sum() == pytest.approx(0.75)
    assert bar.get_height() == pytest.approx(0.25)
    assert bar.get_x() + bar.get_width() < stairs.get_data().edges[1]
    assert [text.strip() for text in texts(drawn(plots.histogram_figure, report))] == ["25%"]
    assert sorted(round(float(line.get_xdata()[0]), 6) for line in axes.lines) == [-3.0, 0.0]


@pytest.mark.usefixtures("unpainted")
def test_singular_values_that_geometry_forbids_are_not_shown() -> None:
    """A 1x1 kernel with stride 2, twice as many channels: half of the singular values are zero for any weight."""
    torch.manual_seed(0)
    report = inspect(nn.Sequential(nn.Conv2d(2, 4, 1, stride=2)), torch.randn(1, 2, 8, 8), jacobian=False)
    layer = report.layers[0]
    assert layer.spectrum.values is not None
    assert len(layer.spectrum.room()) == 32
    assert (layer.spectrum.room() > 0.01).all()
    quantiles = layer.spectrum.quantiles()
    assert quantiles is not None
    assert quantiles[0] == pytest.approx(float(layer.spectrum.room().min()))
    assert texts(drawn(plots.histogram_figure, report)) == []
    assert column(render(report), "", "modes", report) == ["32"]


@pytest.mark.parametrize("size", [8, 7])
def test_frequency_map_is_centered(size: int) -> None:
    """A blur passes the constant wave most, an alternating kernel the checkerboard: middle and corners."""
    net = nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(2)))
    net[0].weight.data.fill_(1 / 9)
    net[1].weight.data.copy_(torch.tensor([[1.0, -1, 1], [-1, 1, -1], [1, -1, 1]]) / 9)
    report = inspect(net, torch.randn(1, 1, size, size), jacobian=False)
    _, blur, alternating = (
        axes.images[0].get_array() if axes.images else None for axes in drawn(plots.frequency_figure, report).axes[:3]
    )
    for grid in (blur, alternating):
        assert grid.shape == (size + 1 - size % 2,) * 2
        np.testing.assert_allclose(grid, grid[::-1, ::-1], atol=1e-6)
    middle, corner = (size // 2, size // 2), (0, 0)
    assert blur[middle] == blur.max() == pytest.approx(1, abs=1e-6)
    assert alternating[corner] == alternating.max()
    assert alternating[middle] == pytest.approx(1 / 9, abs=1e-6)


@pytest.mark.usefixtures("unpainted")
def test_panels_are_chosen_by_alerts_and_depth() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 2, 3, padding=1) for _ in range(40)]
    for place in (3, 4, 5, 17, 18, 19):  # an even choice has no three in a row
        layers[place].weight.data *= 1000
    layers.append(nn.Conv2d(2, 2, 1))  # no map: all frequencies alike
    report = inspect(
        nn.Sequential(*layers),
        torch.randn(1, 2, 4, 4),
        jacobian=False,
        limits=Limits(layer_gain=1e9, disagreement=1e9, dead_modes=1.0, sigma_max=100, padding_loss=0.99),
    )
    for choose, count in ((with_values, 41), (with_map, 40)):
        shown, rest = choose(report)
        places = [int(layer.name) for layer in shown]
        assert len(places) == MOST_PANELS
        assert places == sorted(places)
        assert {0, 3, 4, 5, 17, 18, 19, count - 1} <= set(places)
        assert max(b - a for a, b in pairwise(places)) <= 3
        assert sorted(places + [int(layer.name) for layer in rest]) == list(range(count))
    text = render(report)
    assert "17 more layers, without a panel" in text
    assert "16 more layers, without a panel" in text
    assert ", ".join(layer.name for layer in with_values(report)[1]) in text


@pytest.mark.parametrize("exponent", [-300, -40, -6, 0, 5, 30])
@pytest.mark.parametrize("span", [0.0, 0.1, 0.7, 2.3, 9.0, 300.0])
@pytest.mark.parametrize("most", [4, 6, 9])
def test_ticks_are_few_and_inside(exponent: int, span: float, most: int) -> None:
    low, high = exponent - 0.31, exponent + span + 0.3
    if high > 300:
        return
    ticks = plots._ticks(low, high, most)
    assert 1 <= len(ticks) <= most + 1
    assert ticks == sorted(ticks)
    assert all(low - 1e-9 <= math.log10(tick) <= high + 1e-9 for tick in ticks)


def test_of_too_many_alerts_the_worst_get_panels() -> None:
    net = nn.Sequential(*[linear(10.0 + place, 1.0) for place in range(30)]).double()
    limits = Limits(dead_modes=1.0, layer_gain=1e9)
    report = inspect(net, torch.randn(2, 2, dtype=torch.float64), jacobian=False, limits=limits)
    assert {alert.kind for alert in report.alerts if alert.layer is not None} <= {"sigma_max", "alignment"}
    worst = list(dict.fromkeys(alert.layer for alert in report.alerts if alert.layer is not None))
    assert len(worst) == 30
    assert [layer.name for layer in with_values(report)[0]] == sorted(worst[:MOST_PANELS], key=int)
