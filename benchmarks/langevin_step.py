"""A step of ConstrainedLangevin beside SGD, beside our SGD on Stiefel, beside geoopt's samplers, and many chains at once."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

import weightspace as ws
from benchmarks.metrics_page import met, table
from benchmarks.timing import Timing, copy_bandwidth, device, gemm_rate, interleave
from weightspace.manifolds import Circle, Manifold, Oblique, Sphere, Stiefel
from weightspace.optim._langevin_noise import NoiseSource

Call = Callable[[], object]
FLAT_TARGET, CIRCLE_TARGET, STIEFEL_TARGET = 1.3, 3.0, 2.5
SGD, OURS = "`torch.optim.SGD(foreach=True)`", "`SubmanifoldSGD`"
GRADIENTS = 4
NUM_DATA = 50_000
_DECAY = 0.9
# Time of the processor: other programs that run beside this one do not count.
CLOCK = time.perf_counter if torch.cuda.is_available() else time.process_time


def flat_sets(*, quick: bool) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of free weights: one large tensor, a small network of many tensors, a network of the paper, a large one."""
    stages = [(16, 3, 3, 3), *[(16, 16, 3, 3)] * 6, (32, 16, 3, 3), *[(32, 32, 3, 3)] * 5, (64, 32, 3, 3)]
    convolutions: list[tuple[int, ...]] = [*stages, *[(64, 64, 3, 3)] * 5]
    norms: list[tuple[int, ...]] = [(shape[0],) for shape in convolutions for _ in range(2)]
    sets: dict[str, list[tuple[int, ...]]] = {
        "one tensor of 1M": [(1000, 1049)],
        "ResNet-20": [*convolutions, *norms, (10, 64), (10,)],
        "MLP 784-1000-10": [(1000, 784), (1000,), (10, 1000), (10,)],
        "11M in 5 tensors": [*[(512, 512, 3, 3)] * 4, (1000, 1700)],
    }
    return dict(list(sets.items())[1:3]) if quick else sets


def weights(shapes: Sequence[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    """Small random weights with random gradients in place."""
    torch.manual_seed(0)
    found = [torch.nn.Parameter(0.05 * torch.randn(shape, device=device())) for shape in shapes]
    for weight in found:
        weight.grad = 1e-3 * torch.randn_like(weight)
    return found


def sampler(parameters: Any, temperature: float, scheme: Any = "BAOA", **options: Any) -> Call:
    """A step of ours; the learning rate is that of SGD beside it."""
    every: dict[str, Any] = {"lr": 1e-6, **({} if scheme == "overdamped" else {"momentum": _DECAY}), **options}
    return ws.optim.ConstrainedLangevin(
        parameters, temperature=temperature, num_data=NUM_DATA, scheme=scheme, seed=0, **every
    ).step


def flat_contestants(shapes: Sequence[tuple[int, ...]]) -> dict[str, Call]:
    """Free weights."""
    calls: dict[str, Call] = {
        SGD: torch.optim.SGD(weights(shapes), lr=1e-6, momentum=_DECAY, foreach=True).step,
        "`torch.optim.SGD(fused=True)`": torch.optim.SGD(weights(shapes), lr=1e-6, momentum=_DECAY, fused=True).step,
    }
    for temperature in (0.0, 1.0):
        for scheme in ("BAOA", "OBA", "OBABO", "overdamped"):
            calls[f"{scheme}, temperature {temperature:g}"] = sampler(weights(shapes), temperature, scheme)
    calls["BAOA, temperature 0, check_finite=False"] = sampler(weights(shapes), 0.0, check_finite=False)
    calls["the normal numbers alone"] = noise_alone(weights(shapes))
    return calls | geoopt_sampler(weights(shapes))


def noise_alone(parameters: list[torch.nn.Parameter]) -> Call:
    """What a step with a temperature draws."""
    source, step = NoiseSource(), [0]

    def draw() -> None:
        step[0] += 1
        source.begin(0, 0, step[0])
        source.like(parameters)

    return draw


def geoopt_sampler(parameters: Sequence[torch.nn.Parameter], *, is_stiefel: bool = False) -> dict[str, Call]:
    """geoopt's overdamped sampler with gradients that are there at once; nothing without geoopt.

    On Stiefel it takes kernels as tall matrices, and the only metric whose retraction it calls reversible.
    """
    try:
        geoopt, samplers = importlib.import_module("geoopt"), importlib.import_module("geoopt.samplers")
    except ImportError as error:
        print(f"geoopt is left out: {error}")
        return {}
    own: list[Any] = list(parameters)
    if is_stiefel:
        manifold = geoopt.CanonicalStiefel()
        starts = [torch.linalg.qr(p.detach().flatten(1).T)[0].contiguous() for p in parameters]
        own = [geoopt.ManifoldParameter(start, manifold=manifold) for start in starts]
        for p in own:
            p.grad = torch.randn_like(p) / p.shape[0] ** 0.5
    peer = samplers.RSGLD(own, epsilon=1e-6)

    class Loss:
        """Stands for a scalar; `backward` finds the gradients in place."""

        def backward(self) -> None:
            """Nothing."""

        def item(self) -> float:
            """No matter."""
            return 0.0

    return {"geoopt `RSGLD`": lambda: peer.step(Loss)}


def circle_contestants(shapes: Sequence[tuple[int, ...]]) -> dict[str, Call]:
    """Matrices and kernels on circles, vectors free."""
    calls: dict[str, Call] = {SGD: torch.optim.SGD(weights(shapes), lr=1e-6, momentum=_DECAY, foreach=True).step}
    for temperature in (0.0, 1.0):
        for scheme in ("BAOA", "OBA", "overdamped"):
            own = weights(shapes)
            groups: list[dict[str, Any]] = [
                {"params": [p for p in own if p.ndim > 1], "manifold": Circle(radius=1.0)},
                {"params": [p for p in own if p.ndim == 1]},
            ]
            call = sampler([g for g in groups if g["params"]], temperature, scheme)
            calls[f"{scheme}, temperature {temperature:g}"] = call
    return calls


def point_contestants(shapes: Sequence[tuple[int, ...]], manifold: Manifold, *, is_short: bool) -> dict[str, Call]:
    """Kernels on a manifold of points, beside our SGD on it."""

    def on(make: Callable[[Any], torch.optim.Optimizer]) -> Call:
        torch.manual_seed(0)
        own = [torch.nn.Parameter(torch.randn(shape, device=device())) for shape in shapes]
        optimizer = make([{"params": own, "manifold": manifold}])
        # a fixed gradient would let the weights arrive, and steps become cheap
        turns = [[torch.randn_like(p) / p[0].numel() ** 0.5 for p in own] for _ in range(GRADIENTS)]
        turn = [0]

        def step() -> None:
            turn[0] += 1
            for p, gradient in zip(own, turns[turn[0] % GRADIENTS], strict=True):
                p.grad = gradient
            optimizer.step()

        return step

    calls: dict[str, Call] = {
        OURS: on(lambda groups: ws.optim.SubmanifoldSGD(groups, lr=0.01, momentum=_DECAY, step_size="plain"))
    }
    for temperature in (0.0, 1.0):
        for scheme in ("BAOA",) if is_short else ("BAOA", "OBA", "OBABO", "overdamped"):
            damping: dict[str, Any] = {} if scheme == "overdamped" else {"momentum": _DECAY}

            def make(groups: Any, t: float = temperature, s: Any = scheme, d: dict[str, Any] = damping) -> Any:
                return ws.optim.ConstrainedLangevin(
                    groups, lr=0.01, temperature=t, num_data=NUM_DATA, scheme=s, seed=0, **d
                )

            calls[f"{scheme}, temperature {temperature:g}"] = on(make)
    if isinstance(manifold, Stiefel) and manifold.grouping == "matrix":
        calls |= geoopt_sampler(weights(shapes), is_stiefel=True)
    return calls


def chain_contestants(chains: int, shapes: Sequence[tuple[int, ...]]) -> dict[str, Call]:
    """Chains of a small model as one weight of one more dimension, and one optimizer a chain."""
    calls: dict[str, Call] = {}
    for name, manifold in (("free", None), ("Sphere", Sphere("filter")), ("Stiefel", Stiefel())):
        stacked = weights([(chains, *shape) for shape in shapes])
        group: dict[str, Any] = {"params": stacked, "chains": True}
        calls[f"{name}: {chains:,} chains in one step"] = sampler(
            [group | ({} if manifold is None else {"manifold": manifold})], 1.0, lr=1e-3
        )
    few = max(1, chains // 100)
    alone = [sampler(weights(shapes), 1.0, lr=1e-3) for _ in range(few)]
    calls[f"free: a loop over {few:,} optimizers"] = lambda: [step() for step in alone]
    return calls


def _measured(calls: Mapping[str, Call], reference: str, *, quick: bool, seconds: float = 12.0) -> dict[str, Timing]:
    if quick:
        return interleave(calls, reference, rounds=3, warm_up=1, seconds=5.0, fewest=2, clock=CLOCK)
    return interleave(calls, reference, rounds=40, warm_up=3, seconds=seconds, fewest=7, clock=CLOCK)


def _verdict(rows: Mapping[str, Timing], target: float, wanted: str) -> str:
    return ", ".join(
        f"{name} {met(timing.ratio <= target)} ({timing.ratio:.2f})"
        for name, timing in rows.items()
        if name.startswith(wanted) and "check" not in name
    )


def flat_section(*, quick: bool = False) -> str:
    """Free weights beside SGD."""
    parts: list[str] = []
    bandwidth = copy_bandwidth(1 if quick else 45, CLOCK)
    for name, shapes in flat_sets(quick=quick).items():
        rows = _measured(flat_contestants(shapes), SGD, quick=quick)
        count = sum(math.prod(shape) for shape in shapes)
        draw = rows["the normal numbers alone"]
        parts.append(f"""### {name}: {len(shapes)} tensors, {count / 1e6:.2f} million weights

{table(rows, SGD)}

Target, at most {FLAT_TARGET} times {SGD}: {"; ".join(_verdict(rows, FLAT_TARGET, f"{s},") for s in ("BAOA", "OBA", "OBABO"))}.
Floor: weight, gradient and velocity read, weight and velocity written, {20 * count / 1e6:.1f} MB: {20e3 * count / bandwidth:.2f} ms at a copy's {bandwidth / 1e9:.0f} GB/s.
Normal numbers: {1e9 * draw.seconds / count:.1f} ns each, {draw.ratio:.1f} times {SGD} for nothing else.
""")
    return f"""## Free weights

Times on this page are the processor's, not the clock's: others used the machine meanwhile. SGD has momentum {_DECAY:g}; so have ours. Ours look for NaN in every gradient first, torch does not.
"overdamped" at temperature 0 is SGD without momentum.

{chr(10).join(parts)}"""


def circle_section(*, quick: bool = False) -> str:
    """Circles beside SGD."""
    parts: list[str] = []
    for name, shapes in flat_sets(quick=quick).items():
        rows = _measured(circle_contestants(shapes), SGD, quick=quick)
        verdict = "; ".join(_verdict(rows, CIRCLE_TARGET, f"{s},") for s in ("BAOA", "OBA"))
        parts.append(f"### {name}\n\n{table(rows, SGD)}\n\nTarget, at most {CIRCLE_TARGET:g} times {SGD}: {verdict}.\n")
    return f"""## Circles

`Circle(radius=1.0)` on kernels and matrices; vectors are free, in the same optimizer. A step reads and writes 28 bytes a weight where SGD
with momentum has 20; what it computes stays in cache, where its arithmetic is the floor (a rotation without a sine or a cosine).

{chr(10).join(parts)}"""


def stiefel_flops(n: int, p: int, *, is_noisy: bool) -> float:
    """Of a BAOA step as executed on one matrix that is not cut into blocks, terms of p^3 left out."""
    return (16.0 if is_noisy else 10.0) * n * p**2


def points_section(*, quick: bool = False) -> str:
    """Manifolds of points beside our SGD on them."""
    sides = (8, 16) if quick else (64, 256, 512)
    rate = gemm_rate(64 if quick else 1024, CLOCK)
    parts: list[str] = []
    for side in sides:
        calls = point_contestants([(side, side, 3, 3)], Stiefel(), is_short=side > 256)
        rows = _measured(calls, OURS, quick=quick, seconds=16.0)
        floors = ", ".join(
            f"{1e3 * stiefel_flops(9 * side, side, is_noisy=noisy) / rate:.2g} ms {word} noise"
            for noisy, word in ((False, "without"), (True, "with"))
        )
        verdict = _verdict(rows, STIEFEL_TARGET, "BAOA")
        parts.append(f"""### Stiefel, {side} x {9 * side}

{table(rows, OURS)}

Target, at most {STIEFEL_TARGET} times {OURS}: {verdict}. Products of BAOA at a product's {rate / 1e9:.0f} Gflop/s: {floors}.
""")
    width = 8 if quick else 64
    others: list[tuple[str, list[tuple[int, ...]], Manifold]] = [
        (f"Stiefel, {4 * width**2:,} slices of 3 x 3", [(width, width, 3, 3)] * 4, Stiefel("slice")),
        ("Sphere, filters", [(4 * width, 4 * width, 3, 3)], Sphere("filter")),
        ("Oblique", [(4 * width, 4 * width, 3, 3)], Oblique()),
    ]
    for title, shapes, manifold in others:
        rows = _measured(point_contestants(shapes, manifold, is_short=True), OURS, quick=quick)
        parts.append(f"### {title}\n\n{table(rows, OURS)}\n")
    return f"""## Matrices and vectors

Learning rate 0.01, momentum {_DECAY:g}, {GRADIENTS} random gradients in turn, rows of norm about 1. {OURS} has `step_size="plain"`.

{chr(10).join(parts)}"""


def chains_section(*, quick: bool = False) -> str:
    """Many chains at once."""
    chains = 200 if quick else 10_000
    shapes = [(4, 8), (2, 4)]
    calls = chain_contestants(chains, shapes)
    reference = next(iter(calls))
    rows = _measured(calls, reference, quick=quick, seconds=16.0)
    loop = next(timing for name, timing in rows.items() if "loop" in name)
    few = max(1, chains // 100)
    gain = loop.seconds / few * chains / rows[reference].seconds
    return f"""## Many chains

A model of {sum(math.prod(s) for s in shapes)} weights in two matrices (4 x 8, 2 x 4), BAOA at temperature 1.

{table(rows, reference)}

A loop takes {loop.seconds / few * 1e6:.0f} µs a chain and step, one step for all chains {rows[reference].seconds / chains * 1e6:.3f} µs: {gain:,.0f} times less.
"""


def section(*, quick: bool = False) -> str:
    """The page."""
    sections = (flat_section, circle_section, points_section, chains_section)
    return "\n".join(part(quick=quick) for part in sections)
