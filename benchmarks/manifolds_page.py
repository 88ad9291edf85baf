"""The sections of docs/benchmarks-manifolds.md: unit filters, orthonormal matrices, slices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks import manifolds_batches, manifolds_peers, manifolds_step
from benchmarks.manifolds_kernels import (
    GRADIENTS,
    LEARNING_RATE,
    MOMENTUM,
    Contestant,
    Kernels,
    Shape,
    kernels,
    resnet18_shapes,
    resnet50_shapes,
)
from benchmarks.manifolds_step import ADAM_LEARNING_RATE, FLOOR, REFERENCE, plain_sgd
from benchmarks.metrics_page import met
from benchmarks.timing import Timing, gemm_rate, interleave
from weightspace.manifolds import Manifold, Oblique, Sphere, Stiefel

SPHERE_TARGET, STIEFEL_TARGET, SLICE_TARGET = 1.3, 25.0, 3.0
SUBSET = 5  # ResNet-18's stem and layer 1: parametrizations of n x n matrices take minutes for all of it
Build = Callable[[Kernels], list[Contestant]]
SETUP = (
    f"Kernels as in the network, on the manifold from the start; {GRADIENTS} random gradients in turn, whose rows have norm about 1; learning "
    f"rate {LEARNING_RATE:g} (Adam: {ADAM_LEARNING_RATE:g}), momentum {MOMENTUM:g}. Errors are those of the weights after as many steps as were timed, all the largest over all "
    "points, measured in float64: relative error of a norm, or error of a singular value. N is the number of weights; matrices are n x p, n >= p, summed over all."
)


@dataclass(frozen=True)
class Measured:
    """One run of contestants on one kernel set."""

    kernels: Kernels
    contestants: list[Contestant]
    timings: dict[str, Timing]

    def rows(self, *, with_reference: bool = True) -> str:
        """The rows of a table."""
        return "\n".join(
            _row(c, self.timings[c.name]) for c in self.contestants if with_reference or c.name != REFERENCE
        )

    def verdict(self, target: float, prefix: str) -> str:
        """How the contestants whose names begin so meet a target."""
        return ", ".join(
            f"{c.name} {met(self.timings[c.name].ratio <= target)} ({self.timings[c.name].ratio:.2f})"
            for c in self.contestants
            if c.name.startswith(prefix)
        )


def _row(contestant: Contestant, timing: Timing) -> str:
    flops = f"{contestant.flops():.2g}"  # before the error: counting takes steps
    if contestant.work.counted_steps:
        flops += " counted"
    error = "–" if contestant.grouping == "none" else f"{contestant.error():.1e} after {contestant.steps}"
    return f"| {contestant.name} | {contestant.grouping} | {timing.cells()} | {contestant.work.formula}, {flops} | {error} |"


def _head() -> str:
    return (
        f"| contestant | points | ms (median) | ratio to {REFERENCE}: median (quartiles) | flops of a step | error |\n"
        "|---|---|---|---|---|---|"
    )


def _sets(quick: bool) -> list[tuple[str, list[Shape]]]:
    width = 8 if quick else 64
    return [("ResNet-18", resnet18_shapes(width)), ("ResNet-50", resnet50_shapes(width))]


def _measure(
    on: Sequence[Kernels], builds: Iterable[Build], *, rounds: int, warm_up: int, seconds: float, quick: bool
) -> Measured:
    """Every build on every one of some kernel sets (of equal shapes), beside one SGD."""
    contestants = [plain_sgd(on[0]), *(c for build in builds for k in on for c in build(k))]
    calls: dict[str, Callable[[], object]] = {c.name: c for c in contestants}
    if quick:
        rounds, warm_up, seconds = 3, 0, 5.0
    return Measured(
        on[0],
        contestants,
        interleave(calls, REFERENCE, rounds=rounds, warm_up=warm_up, seconds=seconds, fewest=3),
    )


def _title(on: Kernels) -> str:
    return f"{on.name}: {len(on.weights)} kernels, N = {sum(w.numel() for w in on.weights) / 1e6:.2f} million."


def sphere_section(*, quick: bool = False) -> str:
    """Filters of norm 1."""
    builds: list[Build] = [
        lambda k: [plain_sgd(k, fused=True)],
        manifolds_step.on_spheres,
        manifolds_peers.geoopt_spheres,
        manifolds_peers.oblique_formula,
        manifolds_peers.sphere_parametrizations,
    ]
    found = [
        _measure(
            [kernels(name, shapes, Sphere("filter"))], builds, rounds=40, warm_up=3, seconds=25 + 10 * k, quick=quick
        )
        for k, (name, shapes) in enumerate(_sets(quick))
    ]
    targets = "\n".join(
        f"- {m.kernels.name}: {m.verdict(SPHERE_TARGET, '`Sphere')}; {m.verdict(SPHERE_TARGET, '`Oblique')}"
        for m in found
    )
    return f"""## Unit filters: Sphere and Oblique

{SETUP}
What is timed is the optimizer's step; of parametrizations the forward and backward pass of the parametrization, too.

{_tables(found)}

Floor: SGD with momentum reads weight, gradient and buffer and writes weight and buffer, 20 bytes a weight. So must a step on spheres; what
it computes besides needs no other memory. The fused SGD shows what the machine does for those bytes.

torch's `spectral_norm` is left out: it bounds one singular value and keeps no norm.

Target: at most {SPHERE_TARGET} times {REFERENCE}.
{targets}
"""


def _tables(found: Sequence[Measured]) -> str:
    return "\n\n".join(f"{_title(m.kernels)}\n\n{_head()}\n{m.rows()}" for m in found)


def stiefel_section(*, quick: bool = False) -> str:
    """Kernels as matrices with orthonormal rows or columns."""
    peers: list[Build] = [lambda k: manifolds_peers.geoopt_stiefel(k, canonical=False), manifolds_peers.pogo]
    sets = [kernels(name, shapes, Stiefel()) for name, shapes in _sets(quick)]
    found = [
        _measure([k], [manifolds_step.on_stiefel, *peers], rounds=12, warm_up=1, seconds=45 + 25 * n, quick=quick)
        for n, k in enumerate(sets)
    ]
    default = _measure(
        sets[:1],
        [lambda k: manifolds_peers.geoopt_stiefel(k, canonical=True)],
        rounds=3,
        warm_up=0,
        seconds=1,
        quick=quick,
    )
    subset = sets[0].subset("Stem and layer 1 of ResNet-18", SUBSET)
    first: list[Build] = [lambda k: manifolds_step.on_stiefel(k)[:1], manifolds_peers.orthogonal_parametrizations]
    small = _measure([subset], first, rounds=3, warm_up=0, seconds=1, quick=quick)
    rate = gemm_rate(256 if quick else 1024)
    floors = "\n".join(
        f"- {m.kernels.name}: {m.kernels.flops(FLOOR) / 1e9:.1f} Gflop, {m.kernels.flops(FLOOR) / rate * 1e3:.0f} ms, "
        f"{m.kernels.flops(FLOOR) / rate / m.timings[REFERENCE].seconds:.1f} times {REFERENCE}"
        for m in found
    )
    targets = "\n".join(f"- {m.kernels.name}: {m.verdict(STIEFEL_TARGET, '`Stiefel(')}" for m in found)
    return f"""## Orthonormal filters: Stiefel on the kernel as a matrix

{SETUP}

{_tables(found)}

geoopt's default, on ResNet-18 only, {default.timings[REFERENCE].seconds * 1e3:.1f} ms for {REFERENCE} in the same turns ({len(default.contestants) - 1} contestant, 3 turns):

{_head()}
{default.rows(with_reference=False)}

Parametrizations: their forward and backward pass and an SGD step. They form n x n matrices or apply p reflections one by one, so they are
measured on the largest part of the network that takes seconds and not minutes, beside ours on the same part (3 turns):

{_title(subset)}

{_head()}
{small.rows()}

Floor of a step that is corrected every time, {FLOOR.formula}: two products for the gradient, one for the retraction, and half of one for a Gram matrix,
which is symmetric. At the rate of a float32 matrix product, {rate / 1e9:.0f} Gflop/s:

{floors}

`tolerance` and `every` go below it: see what they let the error become. POGO corrects by one polynomial of its momentum step, too, with six
products; geoopt's Euclidean variant is a QR by LAPACK.

Target: at most {STIEFEL_TARGET:g} times {REFERENCE}.
{targets}
"""


def slices_section(*, quick: bool = False) -> str:
    """Every spatial slice a point."""
    manifolds: tuple[Manifold, ...] = (Stiefel("slice"), Oblique("slice"), Sphere("slice"))
    found: list[Measured] = []
    for n, (name, shapes) in enumerate(_sets(quick)):
        sets = [kernels(name, shapes, manifold) for manifold in manifolds]
        builds: list[Build] = [manifolds_step.on_slices]
        if n == 0:
            builds += [_only_stiefel(manifolds_peers.geoopt_slices), _only_stiefel(manifolds_peers.pogo)]
        found.append(_measure(sets, builds, rounds=12, warm_up=1, seconds=40, quick=quick))
    counts = ", ".join(
        f"{sum(m.kernels.weights[k][..., 0, 0].numel() for k in m.kernels.constrained()) / 1e6:.2f} million on {m.kernels.name}"
        for m in found
    )
    targets = "\n".join(
        f"- {m.kernels.name}: "
        + "; ".join(m.verdict(SLICE_TARGET, prefix) for prefix in ("`Sphere", "`Oblique", "`Stiefel", "`Orthogonal"))
        for m in found
    )
    return f"""## Slices

{SETUP}
A point is a 3x3 slice (7x7 in the stem): {counts}. 1x1 kernels are free, in the same optimizer. The peers are measured on ResNet-18.

{_tables(found)}

Target: at most {SLICE_TARGET:g} times {REFERENCE}.
{targets}

### What other packages make of a 4-D kernel

geoopt, geotorch and torch take leading dimensions for a batch. Given `conv.weight` as it is, they constrain other things than one may
mean, and none warns. Errors of four readings of the constraint after what one would write (random gradient, one step with learning rate 0.1 for geoopt):

{manifolds_batches.table()}

Here the grouping has a name in the manifold (`Stiefel("slice")`, `Stiefel("matrix")`), and `param_groups(...).table()` says what became of every weight.
"""


def _only_stiefel(build: Build) -> Build:
    return lambda k: build(k) if isinstance(k.manifold, Stiefel) else []
