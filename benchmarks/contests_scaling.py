"""Time against channels, resolution, layers and chains: ours, peers, and the floor as a line."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import contests_manifolds as steps
from benchmarks import contests_operators as operators
from benchmarks import contests_sampling as sampling
from benchmarks.contests import CLOCKS, Entrant, Floor, Kind, Rates, Running, Settings, missing
from benchmarks.manifolds_kernels import MOMENTUM
from benchmarks.network import spectrum_flops
from benchmarks.timing import turns
from weightspace.manifolds import Manifold, Sphere, Stiefel
from weightspace.operators import operator_of

TURNS, FEWEST = 15, 3
SHARE = 0.15  # of a point's time: who takes longer in one call drops out at larger sizes
FIXED_CHANNELS, FIXED_SIZE, LAYER = 32, 8, 64


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: What is timed.
        label: Of the x axis.
        sizes: Its points; the first of them where it is only shown that it runs.
        entrants: Who takes part at a size.
        floor: At a size.
    """

    title: str
    label: str
    sizes: tuple[int, ...]
    entrants: Callable[[int], Sequence[Entrant]]
    floor: Callable[[int], Floor] | None = None


def _square(count: int, channels: int) -> steps.Shapes:
    return ((channels, channels, 3, 3),) * count


def _made(makers: Sequence[steps.Maker], manifold: Manifold, shapes: steps.Shapes) -> list[Entrant]:
    return [make(manifold, shapes) for make in makers]


def _orthonormal_makers() -> list[steps.Maker]:
    return [
        steps.submanifold("ours: `SubmanifoldSGD`, `Stiefel()`", Stiefel(), **steps.PLAIN),
        steps.attached("ours: `attach(SGD, Stiefel())`", Stiefel()),
        steps.geoopt("geoopt, `EuclideanStiefel`", lambda g: g.EuclideanStiefel(), steps.peers.tall),
        steps.geoopt("geoopt, `Stiefel` (its default)", lambda g: g.Stiefel(), steps.peers.tall),
        steps.pogo("POGO", lambda base: base.SGD(momentum=MOMENTUM), steps.LEARNING_RATE),
        steps.parametrized("orthogonium, Cholesky", steps.by_orthogonium("CHOLESKY_ORTHO_PARAMS"), "orthogonium"),
        steps.parametrized("deel-torchlip, Björck", steps.by_torchlip, "deel.torchlip"),
        steps.parametrized("torch `orthogonal`, cayley", steps.by_torch("cayley")),
    ]


def _unit_makers() -> list[steps.Maker]:
    return [
        steps.submanifold('ours: `SubmanifoldSGD`, `Sphere("filter")`', Sphere("filter"), **steps.PLAIN),
        steps.attached('ours: `attach(SGD, Sphere("filter"))`', Sphere("filter")),
        steps.geoopt("geoopt, `Sphere`", lambda g: g.Sphere(), steps.peers.rows),
        steps.parametrized("torch `weight_norm`", steps.peers.weight_norm),
        steps.parametrized("geotorch `sphere`", steps.by_geotorch("sphere"), "geotorch"),
        steps.entrant("torch, by hand", "by hand", steps.formula),
    ]


def _values(channels: int, size: int) -> list[Entrant]:
    chosen = ("`singular_values`", "numpy", "torch `rfft2`")
    found = operators.values_entrants(quick=False, channels=channels, size=size)
    return [e for e in found if e.name.startswith(chosen)]


def _values_floor(channels: int, size: int) -> Floor:
    geometry = operator_of(operators.layer(channels), size).geometry
    return Floor("tridiagonal reduction of every symbol", flops=spectrum_flops(geometry))


def _bounds(size: int) -> list[Entrant]:
    chosen = ("`norm_bound`", "orthogonium `get_conv_sv(n_iter=6)`", "deel")
    found = operators.bound_entrants("circular", quick=False, channels=FIXED_CHANNELS, size=size)
    return [e for e in found if e.name.startswith(chosen)]


def _free_chains(chains: int) -> list[Entrant]:
    makers: tuple[tuple[str, Kind, Callable[[Any], Callable[[], object]], str], ...] = (
        ("ours: `chains=True`", "ours", sampling.ours, ""),
        ("geoopt `RSGLD`, stacked", "peer", sampling.geoopt, "geoopt"),
        ("torch, by hand, stacked", "by hand", sampling.by_hand, ""),
    )

    def build(kind: Kind, make: Callable[[Any], Callable[[], object]]) -> Running:
        weights = sampling.free_weights([(chains, *sampling.CHAIN_SHAPE)])
        return Running(make([{"params": weights, "chains": True}] if kind == "ours" else weights))

    return [Entrant(name, kind, partial(build, kind, make), package) for name, kind, make, package in makers]


def _chain_floor(chains: int) -> Floor:
    return Floor("weights read and written", bytes=12.0 * chains * math.prod(sampling.CHAIN_SHAPE))


def _stacked_chains(chains: int) -> list[Entrant]:
    found = sampling.chain_entrants(quick=False, chains=chains)
    return [e for e in found if chains <= LOOPED or "loop" not in e.name]


LOOPED = 1000  # chains up to which a loop over them is waited for
PLOTS: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "channels": (
        "channels",
        (
            Panel(
                "a step on one orthonormal c x c x 3 x 3 kernel",
                "channels c",
                (16, 32, 64, 128, 256),
                lambda c: _made(_orthonormal_makers(), Stiefel(), _square(1, c)),
                lambda c: steps.floor_of(Stiefel(), _square(1, c)),
            ),
            Panel(
                f"all singular values at {FIXED_SIZE}x{FIXED_SIZE}",
                "channels c",
                (16, 32, 64, 128, 256),
                lambda c: _values(c, FIXED_SIZE),
                lambda c: _values_floor(c, FIXED_SIZE),
            ),
        ),
    ),
    "resolution": (
        "the side of the image",
        (
            Panel(
                f"all singular values of {FIXED_CHANNELS} channels",
                "image side",
                (8, 16, 32, 64),
                lambda n: _values(FIXED_CHANNELS, n),
                lambda n: _values_floor(FIXED_CHANNELS, n),
            ),
            Panel(
                f"a bound of the largest one, {FIXED_CHANNELS} channels, circular",
                "image side",
                (8, 16, 32, 64),
                _bounds,
            ),
        ),
    ),
    "layers": (
        "the number of layers",
        (
            Panel(
                f"a step on unit filters, {LAYER} x {LAYER} x 3 x 3 each",
                "layers",
                (1, 4, 16, 64),
                lambda n: _made(_unit_makers(), Sphere("filter"), _square(n, LAYER)),
                lambda n: steps.floor_of(Sphere("filter"), _square(n, LAYER)),
            ),
            Panel(
                f"a step on orthonormal kernels, {LAYER} x {LAYER} x 3 x 3 each",
                "layers",
                (1, 4, 16, 64),
                lambda n: _made(_orthonormal_makers(), Stiefel(), _square(n, LAYER)),
                lambda n: steps.floor_of(Stiefel(), _square(n, LAYER)),
            ),
        ),
    ),
    "chains": (
        "the number of chains",
        (
            Panel(
                "a Langevin step of 32 free weights a chain",
                "chains",
                (1, 10, 100, 1000, 10_000),
                _free_chains,
                _chain_floor,
            ),
            Panel(
                "a Langevin step of an orthonormal 8 x 4 matrix a chain",
                "chains",
                (1, 10, 100, 1000, 10_000),
                _stacked_chains,
                _chain_floor,
            ),
        ),
    ),
}


def measure(name: str, settings: Settings, rates: Rates) -> dict[str, Any]:
    """One plot's numbers."""
    words, panels = PLOTS[name]
    return {"words": words, "panels": [_panel(panel, settings, rates) for panel in panels]}


def _panel(panel: Panel, settings: Settings, rates: Rates) -> dict[str, Any]:
    sizes = panel.sizes[:2] if settings.quick else panel.sizes
    curves: dict[str, list[float | None]] = {}
    dropped: set[str] = set()
    for place, size in enumerate(sizes):
        times = _point(panel.entrants(size), dropped, settings)
        for label in {**curves, **times}:
            curves.setdefault(label, [None] * place).append(times.get(label))
        limit = SHARE * settings.seconds
        dropped |= {label for label, ms in times.items() if ms > 1e3 * limit}
    floors = None if panel.floor is None else [panel.floor(size) for size in sizes]
    return {
        "title": panel.title,
        "label": panel.label,
        "sizes": list(sizes),
        "curves": curves,
        "floor": None if floors is None else [1e3 * floor.seconds(rates) for floor in floors],
        "floor_words": "" if floors is None else floors[0].words,
    }


def _point(entrants: Sequence[Entrant], dropped: set[str], settings: Settings) -> dict[str, float]:
    """Median milliseconds of everyone at one size, in turns."""
    calls: dict[str, Callable[[], object]] = {}
    for entrant in entrants:
        label = _label(entrant)
        if label in dropped or missing(entrant.package):
            continue
        calls[label] = entrant.build().call
        calls[label]()  # the first call makes an optimizer's state
    found = turns(
        calls, rounds=TURNS, warm_up=0, seconds=settings.seconds / 3, fewest=FEWEST, clock=CLOCKS[settings.clock]
    )
    return {label: 1e3 * statistics.median(times) for label, times in found.items()}


def _label(entrant: Entrant) -> str:
    """As in the legend: without Markdown, ours marked."""
    plain = entrant.name.replace("`", "")
    return plain if entrant.kind != "ours" or plain.startswith("ours") else f"ours: {plain}"


def draw(plot: Mapping[str, Any], path: Path, machine: str) -> None:
    """Both axes logarithmic; ours in solid blue and green, the floor gray."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from weightspace.figures import STYLE

    with rc_context(STYLE):
        # No automatic layout: long legends below the axes would take the axes' width.
        figure = Figure(figsize=(9.6, 5.8))
        figure.subplots_adjust(left=0.08, right=0.98, bottom=0.38, top=0.88, wspace=0.22)
        FigureCanvasAgg(figure)
        for axes, panel in zip(figure.subplots(1, len(plot["panels"])), plot["panels"], strict=True):
            _draw_panel(axes, panel)
        figure.suptitle(machine, fontsize=8, color="#666666")
        figure.savefig(path, dpi=130)


OUR_COLORS, PEER_COLORS = (
    ("#0072B2", "#009E73", "#56B4E9"),
    ("#D55E00", "#CC79A7", "#E69F00", "#8C564B", "#7F7F7F", "#BCBD22"),
)
PEER_MARKERS = "s^vDPX"


def _draw_panel(axes: Any, panel: Mapping[str, Any]) -> None:
    sizes: list[int] = panel["sizes"]
    counts = {"ours": 0, "peer": 0}
    for label, values in panel["curves"].items():
        kind = "ours" if label.startswith("ours") else "peer"
        k = counts[kind]
        counts[kind] += 1
        points = [(n, ms) for n, ms in zip(sizes, values, strict=True) if ms is not None]
        color = (OUR_COLORS if kind == "ours" else PEER_COLORS)[k % (3 if kind == "ours" else 6)]
        style: dict[str, Any] = (
            {"marker": "o", "linewidth": 2.2}
            if kind == "ours"
            else {"marker": PEER_MARKERS[k % 6], "linewidth": 1.2, "linestyle": "--"}
        )
        axes.loglog(*zip(*points, strict=True), color=color, markersize=4.5, label=label, **style)
    if panel["floor"] is not None:
        axes.loglog(sizes, panel["floor"], color="#666666", linestyle=":", linewidth=1.5, label="floor")
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.set_xlabel(panel["label"])
    axes.set_ylabel("milliseconds")
    axes.set_title(panel["title"])
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(0.0, -0.15))
