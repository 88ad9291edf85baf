"""The fast Langevin steps are the reference's steps, and the noise is the same whatever draws it."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import weightspace as ws
from weightspace.errors import NonFiniteGradientError
from weightspace.kernels.stacking import Workspace
from weightspace.manifolds import Circle, Stiefel
from weightspace.manifolds._flows import Solver
from weightspace.optim import _langevin_circle, _langevin_flat, _langevin_stiefel
from weightspace.optim._finite import gradients_finite
from weightspace.optim._langevin_noise import CHUNK, LANES, NoiseSource, span_of, stream_seed
from weightspace.optim._langevin_pace import Pace, Scheme
from weightspace.optim._langevin_steps import angle_step, flat_step, point_step

UNDERDAMPED: tuple[Scheme, ...] = ("BAOA", "OBA", "OBABO")
SCHEMES: tuple[Scheme, ...] = (*UNDERDAMPED, "overdamped")
schemes, coins, sizes = st.sampled_from(SCHEMES), st.booleans(), st.integers(1, 7)


@pytest.fixture(autouse=True)
def threads() -> Generator[None]:
    """Tests of this file set the number of threads."""
    before = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


# --------------------------------------------------------------------------- noise


def test_noise_does_not_depend_on_the_number_of_threads() -> None:
    like = [
        torch.empty(3 * CHUNK + 5),
        torch.empty(2, 8, 4, 5).to(memory_format=torch.channels_last),
        torch.empty(7, dtype=torch.float64),
        torch.empty(5, dtype=torch.bfloat16),
        torch.empty(6, 8)[:, :4],
    ]
    drawn: list[list[torch.Tensor]] = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        source = NoiseSource()
        source.begin(5, 1, 7)
        drawn.append([t.clone() for _ in range(2) for t in source.like(like)])
    for other in drawn[1:]:
        assert all(torch.equal(a, b) for a, b in zip(drawn[0], other, strict=True))
    first, second = drawn[0][0], drawn[0][len(like)]
    assert not torch.equal(first, second), "the stream goes on within a step"
    assert [t.dtype for t in drawn[0][:5]] == [
        torch.float32,
        torch.float32,
        torch.float64,
        torch.float32,
        torch.float32,
    ]
    assert drawn[0][1].stride() == like[1].stride(), "foreach takes its fast path for equal strides"


def test_no_two_chunks_repeat_each_other_and_all_are_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightspace.optim._langevin_noise.CHUNK", 512)
    source = NoiseSource()
    span = span_of(3 * LANES)
    source.begin(0, 0, 0, span)
    first = source.of_shape((3 * LANES * 512,), torch.empty(0)).clone()
    source.begin(0, 0, 1, span)
    second = source.of_shape((3 * LANES * 512,), torch.empty(0)).clone()
    rows = torch.cat([first, second]).view(-1, 512).double()
    correlation = rows @ rows.T / 512
    off = correlation - torch.diag(correlation.diagonal())
    assert off.abs().max() < 6 / 512**0.5
    flat = rows.flatten()
    z = torch.stack([flat.mean(), (flat.square().mean() - 1) / 2**0.5, (flat**4).mean().sub(3) / 96**0.5])
    assert (z * flat.numel() ** 0.5).abs().max() < 4


def test_streams_of_two_groups_are_no_shifts_of_each_other() -> None:
    a, b = ([stream_seed(3, group, k) for k in range(4096)] for group in (0, 1))
    assert len(set(a)) == len(set(b)) == 4096
    assert len(set(a) & set(b)) <= 2


def trained(steps: int, manifold: str, *, resume_at: int | None = None, count: int = 1) -> list[torch.Tensor]:
    torch.set_num_threads(count)
    torch.manual_seed(1)
    weights = [torch.nn.Parameter(0.1 * torch.randn(6, 5)), torch.nn.Parameter(0.1 * torch.randn(7))]

    def make() -> ws.optim.ConstrainedLangevin:
        groups = [{"params": weights[:1], "manifold": manifold}, {"params": weights[1:]}]
        return ws.optim.ConstrainedLangevin(groups, lr=0.01, temperature=1.0, num_data=100, seed=3)

    sampler = make()
    for k in range(steps):
        if k == resume_at:
            saved = copy.deepcopy(sampler.state_dict())
            sampler = make()
            sampler.load_state_dict(saved)
        for p in weights:
            p.grad = p.detach().clone()
        sampler.step()
    return [p.detach().clone() for p in weights]


@pytest.mark.parametrize("manifold", ["circle(entry, radius=2.0)", "stiefel(matrix)", "euclidean(entry)"])
def test_a_resumed_run_repeats_an_uninterrupted_one_on_any_number_of_threads(manifold: str) -> None:
    if manifold.startswith("euclidean"):
        manifold = ws.manifolds.Euclidean().text()
    whole = trained(21, manifold)
    for other in (trained(21, manifold, resume_at=11), trained(21, manifold, count=2)):
        assert all(torch.equal(a, b) for a, b in zip(whole, other, strict=True))


# --------------------------------------------------------------------------- free weights


@settings(max_examples=40, deadline=None)
@given(schemes, coins, st.floats(1e-4, 1.0), st.floats(0.0, 0.99), st.lists(sizes, min_size=1, max_size=4), coins)
def test_free_step_is_the_reference(
    scheme: Scheme, is_noisy: bool, h: float, c: float, shape: list[int], is_double: bool
) -> None:
    dtype = torch.float64 if is_double else torch.float32
    pace = Pace(scheme, h, c, 0.3 if is_noisy else 0.0)
    x, v, g, noise = ([torch.randn(shape, dtype=dtype), torch.randn(3, dtype=dtype)] for _ in range(4))
    for step, wide in ((_langevin_flat.free_step, False), (flat_step, True)):
        own = [[t.double() if wide else t.clone() for t in ts] for ts in (x, v, g, noise)]
        step(own[0], own[1], own[2], own[3] if is_noisy else None, pace)
        if not wide:
            fast = own
            assert all(torch.equal(a, b) for a, b in zip(own[2], g, strict=True)), "gradients are the user's"
        else:
            for a, b in zip([*fast[0], *fast[1]], [*own[0], *own[1]], strict=True):  # pyright: ignore[reportPossiblyUnboundVariable]
                torch.testing.assert_close(a.double(), b, rtol=0, atol=4e-15 if is_double else 8e-6)


def test_the_fused_kernel_is_kept_from_what_it_would_misread() -> None:
    x = torch.randn(2, 8, 3, 3)
    last = x.clone(memory_format=torch.channels_last)
    assert _langevin_flat.can_fuse(x, torch.zeros_like(x), x)
    assert _langevin_flat.can_fuse(last, torch.zeros_like(last), last)
    assert not _langevin_flat.can_fuse(x, torch.zeros_like(x), last)
    part = torch.randn(6, 8)[:, :4]
    assert not _langevin_flat.can_fuse(part, torch.zeros_like(part), part)
    half = x.bfloat16()
    assert not _langevin_flat.can_fuse(half, half, half), "torch's kernel is wrong for bfloat16 and dampening"
    before = x._version
    _langevin_flat.free_step([x], [torch.zeros_like(x)], [x.clone()], None, Pace("OBA", 0.1, 0.9, 0.0))
    assert x._version > before, "autograd is told"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(3,), (70_000,)])
def test_what_is_not_finite_is_found_and_what_is_only_large_is_not(bad: float, shape: tuple[int, ...]) -> None:
    grads = [torch.randn(5, 4), torch.full(shape, 1e38), torch.randn(3, dtype=torch.float64), torch.zeros(0)]
    assert gradients_finite(grads), "sums that overflow take a longer look"
    assert gradients_finite([])
    grads[1][2] = bad
    assert not gradients_finite(grads)
    weight = torch.nn.Parameter(torch.ones(shape))
    weight.grad = grads[1]
    sampler = ws.optim.ConstrainedLangevin([weight], temperature=0)
    with pytest.raises(NonFiniteGradientError):
        sampler.step()
    assert torch.equal(weight.detach(), torch.ones(shape))


# --------------------------------------------------------------------------- circles


@settings(max_examples=40, deadline=None)
@given(schemes, coins, st.sampled_from([0.02, 0.4, 1.2, 30.0]), st.lists(sizes, min_size=1, max_size=4), coins, coins)
def test_circle_step_is_the_reference(
    scheme: Scheme, is_noisy: bool, speed: float, shape: list[int], is_double: bool, renew: bool
) -> None:
    dtype, r = torch.float64 if is_double else torch.float32, 0.7
    pace = Pace(scheme, 0.3, 0.8, 0.1 * speed if is_noisy else 0.0)
    angle, u, g = 6 * torch.rand(shape, dtype=dtype), *(speed * torch.randn(2, *shape, dtype=dtype)).unbind(0)
    noise = [torch.randn(shape, dtype=dtype) for _ in range(2 if pace.is_overdamped else 1)] if is_noisy else []
    x, y, own = r * angle.cos(), r * angle.sin(), u.clone()
    _langevin_circle.circle_step(x, y, own, g, noise, pace, r, Workspace(), renew=renew)
    drawn = None if not noise else torch.stack(noise) if pace.is_overdamped else noise[0]
    angle_step(angle, u, g, drawn, pace, r)
    bound = (1e-13 if is_double else 1e-5) * (1 + speed)
    torch.testing.assert_close(x, r * angle.cos(), rtol=0, atol=bound)
    torch.testing.assert_close(y, r * angle.sin(), rtol=0, atol=bound)
    torch.testing.assert_close(own, u, rtol=0, atol=bound)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "gaps"])
def test_blocks_are_the_whole(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = list((0.1 * torch.randn(4, 6, 8, 5, 5)).unbind(0))
    tensors[0] = tensors[0].clamp(-0.5, 0.5)
    tensors[1] = (0.25 - tensors[0].square()).sqrt()
    if layout == "channels_last":
        tensors = [t.clone(memory_format=torch.channels_last) for t in tensors]
    elif layout == "gaps":
        tensors = [torch.stack([t, t], -1)[..., 0] for t in tensors]
    results: list[list[torch.Tensor]] = []
    for block in (64, 1 << 17):
        monkeypatch.setattr(_langevin_circle, "BLOCK", block)
        own = [t.clone() if layout != "gaps" else torch.stack([t, t], -1)[..., 0] for t in tensors]
        pace = Pace("BAOA", 0.3, 0.8, 0.0)
        _langevin_circle.circle_step(own[0], own[1], own[2], own[3], [], pace, 0.5, Workspace(), renew=True)
        results.append(own)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        assert a.stride() == tensors[0].stride() or layout == "gaps"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_circles_stay_circles(dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(0.04 * torch.rand(40, 50, dtype=dtype))
    sampler = ws.optim.ConstrainedLangevin(
        [{"params": [weight], "manifold": Circle(radius=0.05)}], lr=0.09, temperature=1.0, num_data=1e4, seed=0
    )
    weight.grad = torch.randn_like(weight)
    for _ in range(2000):
        sampler.step()
    slack = sampler.state[weight]["slack_variables"]
    error = (torch.hypot(weight.detach().double(), slack.double()) / 0.05 - 1).abs().max()
    assert error < (2e-6 if dtype == torch.float32 else 1e-14)
    sampler.verify()


# --------------------------------------------------------------------------- Stiefel


def stepped(shape: tuple[int, ...], scheme: Scheme, dtype: torch.dtype, *, is_noisy: bool) -> None:
    m, h, size = Stiefel(), 0.1, max(shape[-2:]) ** -0.5
    x = m.random_uniform(shape, like=torch.empty(0, dtype=torch.float64))
    v = 0.4 * size * m.project_tangent(x, torch.randn_like(x))
    g, noise = (2 * size * torch.randn(2, *shape, dtype=torch.float64)).unbind(0)
    pace = Pace(scheme, h, 0.8, 0.1 if is_noisy else 0.0)
    fast_x, fast_v = x.to(dtype), v.to(dtype)
    assert _langevin_stiefel.is_covered(m, fast_x, pace)
    for _ in range(2):
        flow = point_step(m, x, v, g, noise if is_noisy else None, pace)
        x, v = flow.point, flow.velocity
        drawn = noise.to(dtype) if is_noisy else None
        assert _langevin_stiefel.stiefel_step(m, fast_x, fast_v, g.to(dtype), drawn, pace) == 0
    bound = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(fast_x.double(), x, rtol=0, atol=bound)
    torch.testing.assert_close(fast_v.double(), v, rtol=0, atol=4 * bound)
    tangent = m.project_tangent(fast_x, fast_v)
    torch.testing.assert_close(tangent, fast_v, rtol=0, atol=bound)


@pytest.mark.parametrize("shape", [(1, 140, 130), (1, 130, 140)])
def test_stiefel_step_cut_into_blocks_is_the_reference(shape: tuple[int, ...]) -> None:
    for scheme in UNDERDAMPED:
        stepped(shape, scheme, torch.float64, is_noisy=True)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(UNDERDAMPED),
    coins,
    coins,
    st.lists(st.integers(1, 3), min_size=0, max_size=3),
    st.integers(2, 9),
    st.integers(2, 9),
)
def test_stiefel_step_is_the_reference(
    scheme: Scheme, is_noisy: bool, is_double: bool, lead: list[int], n: int, p: int
) -> None:
    stepped((*lead, n, p), scheme, torch.float64 if is_double else torch.float32, is_noisy=is_noisy)


def test_what_the_solver_cannot_do_goes_to_the_reference() -> None:
    m, pace = Stiefel(), Pace("BAOA", 1.0, 0.9, 0.1, solver=Solver(None, 8))
    x = m.random_uniform((2, 6, 3), like=torch.empty(0, dtype=torch.float64))
    v = m.project_tangent(x, torch.randn_like(x)) * torch.tensor([0.01, 3.0]).view(2, 1, 1)
    g, noise = torch.randn_like(x), torch.randn_like(x)
    flow = point_step(m, x, v, g, noise, pace)
    fallbacks = _langevin_stiefel.stiefel_step(m, x, v, g, noise, pace)
    assert fallbacks >= 1
    assert flow.fallbacks >= 1
    torch.testing.assert_close(x, flow.point, rtol=0, atol=1e-9)
    torch.testing.assert_close(v, flow.velocity, rtol=0, atol=1e-9)


def test_others_are_not_covered() -> None:
    m, x = Stiefel(), torch.eye(3)[None]
    assert not _langevin_stiefel.is_covered(m, x, Pace("overdamped", 0.1, 0.0, 0.0))
    assert not _langevin_stiefel.is_covered(m, x, Pace("BAOA", 0.1, 0.9, 0.0, flow="geodesic"))
    assert not _langevin_stiefel.is_covered(m, x[:, :1], Pace("BAOA", 0.1, 0.9, 0.0))


def worst_after(steps: int, manifold: Any, shape: tuple[int, ...]) -> float:
    weight = torch.nn.Parameter(torch.randn(shape))
    sampler = ws.optim.ConstrainedLangevin(
        [{"params": [weight], "manifold": manifold}], lr=0.04, temperature=1.0, num_data=500, seed=0
    )
    target, worst = torch.randn(shape), 0.0
    for k in range(steps):
        weight.grad = -0.1 * target
        sampler.step()
        if k % 50 == 49:
            flat = weight.detach().flatten(1).double()
            worst = max(worst, float((flat @ flat.T - torch.eye(len(flat))).abs().max()))
    return worst


def test_the_constraint_does_not_drift_in_float32() -> None:
    assert worst_after(500, Stiefel(), (6, 4, 3, 3)) < 1e-5


@pytest.mark.slow
def test_the_constraint_does_not_drift_in_ten_thousand_steps() -> None:
    assert worst_after(10_000, Stiefel(), (6, 4, 3, 3)) < 1e-5


def test_the_benchmark_page_is_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    step = importlib.import_module("benchmarks.langevin_step")
    main = importlib.import_module("benchmarks.__main__")
    assert "langevin" in main.NAMES
    assert sum(torch.Size(s).numel() for s in step.flat_sets(quick=True)["MLP 784-1000-10"]) == 795_010
    assert len(step.flat_sets(quick=True)["ResNet-20"]) == 59
    for call in step.point_contestants([(4, 2, 3, 3)], Stiefel(), is_short=True).values():
        call()
