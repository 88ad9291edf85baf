"""Our optimizers on weights that `fully_shard` sharded: as one process, whatever the number of processes."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reliability.cases import case, cases, make_model, train, weights
from reliability.processes import run_ranks
from torch import nn

import sharded_manifolds
import sharded_training
import weightspace as ws
from sharded_training import KINDS, STEPS, live, max_difference, open_kind, restore
from weightspace.kernels.points import Channels, lies_in_rows, steps_in_rows
from weightspace.manifolds import Constraint
from weightspace.manifolds._free_steps import FreeStep
from weightspace.optim._langevin_noise import NoiseSource
from weightspace.optim._noise_places import Share, places_for, span_for
from weightspace.sharding import ShardLayout

OURS = ("SubmanifoldSGD", "SubmanifoldAdam", "ConstrainedLangevin")
CASES = [c.name for c in cases() if c.name.startswith(OURS)]
QUICK = [
    "SubmanifoldSGD sphere(filter)",
    "SubmanifoldSGD stiefel(slice)",
    "SubmanifoldSGD curvature",
    "SubmanifoldAdam",
    "ConstrainedLangevin euclidean(kernel)",
    "ConstrainedLangevin circle(entry)",
    "ConstrainedLangevin OBABO",
]


@functools.cache
def alone(name: str, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """The weights of one process after the same steps."""
    model = make_model(dtype)
    train(model, case(name).open(model), STEPS)
    return weights(model)


@functools.cache
def alone_live(kind: str) -> dict[str, Any]:
    return live(0, 1, kind, None)


def check_cases(ranks: int, how: str, names: list[str], dtype: torch.dtype, bound: float) -> None:
    for found in run_ranks(sharded_training.train_cases, ranks, ranks, names, how, dtype):
        for name in names:
            assert max_difference(alone(name, dtype), found[name]) < bound, (name, how, ranks)


# --------------------------------------------------------------------------- as one process


def test_two_processes_train_as_one() -> None:
    check_cases(2, "layers", QUICK, torch.float64, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "how", "dtype", "bound"),
    [
        (2, "root", torch.float64, 1e-10),
        (4, "layers", torch.float64, 1e-10),
        (4, "replicas", torch.float64, 1e-10),
        (4, "root", torch.float32, 1e-5),
    ],
)
def test_any_number_of_processes_trains_as_one(ranks: int, how: str, dtype: torch.dtype, bound: float) -> None:
    check_cases(ranks, how, CASES, dtype, bound)


def check_lives(ranks: int, how: str, kinds: list[str]) -> None:
    for found in run_ranks(sharded_training.lives, ranks, ranks, how, kinds):
        for kind in kinds:
            for part, expected in alone_live(kind).items():
                assert max_difference(expected, found[kind][part]) < 1e-10, (kind, part)


def test_states_figures_schedules_later_groups_plain_weights_and_writes_from_outside() -> None:
    check_lives(2, "root", ["SubmanifoldSGD", "ConstrainedLangevin"])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["layers", "replicas"])
def test_lives_on_four_processes(how: str) -> None:
    check_lives(4, how, list(KINDS))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_manifold_and_step(ranks: int) -> None:
    expected = {name: sharded_manifolds.run_manifold(name, None) for name in sharded_manifolds.manifold_cases()}
    for found in run_ranks(sharded_manifolds.run_manifolds, ranks, ranks):
        differences = {name: max_difference(expected[name], found[name]) for name in expected}
        assert max(differences.values()) < 1e-10, differences


# --------------------------------------------------------------------------- checkpoints


def goes_on_alone(kind: str, folder: Any, first: int, last: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights of one process that never stopped, and of one that loaded what others saved."""
    model, other = make_model(), make_model(seed=1)
    optimizer, resumed = open_kind(kind, model), open_kind(kind, other)
    restore(other, resumed, folder / kind)
    train(model, (optimizer, None), last)
    train(other, (resumed, None), last - first, first=first)
    return weights(model), weights(other)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_one_process_goes_on_with_what_two_saved(tmp_path: Any) -> None:
    kinds = ["SubmanifoldAdam", "ConstrainedLangevin"]
    run_ranks(sharded_training.save_or_load, 2, 2, str(tmp_path), kinds, (0, 2), False)
    for kind in kinds:
        expected, found = goes_on_alone(kind, tmp_path, 2, 4)
        assert max_difference(expected, found) < 1e-10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_of_two_processes_goes_on_four_then_on_one(tmp_path: Any) -> None:
    kinds = list(KINDS)
    run_ranks(sharded_training.save_or_load, 2, 2, str(tmp_path), kinds, (0, 2), False)
    run_ranks(sharded_training.save_or_load, 4, 4, str(tmp_path), kinds, (2, 4), True)
    for kind in kinds:
        expected, found = goes_on_alone(kind, tmp_path, 4, 6)
        assert max_difference(expected, found) < 1e-10


@pytest.mark.slow
def test_the_state_of_one_process_goes_on_several_and_optimizers_can_be_copied() -> None:
    for found in run_ranks(sharded_training.other_ways, 2, 2):
        assert max(found.values()) < 1e-10, found


# --------------------------------------------------------------------------- failures


def check_refusals(ranks: int) -> None:
    found = run_ranks(sharded_training.refusals, ranks, ranks)
    for rank, told in enumerate(found):
        prefix = "" if rank == 1 else "rank 1: "
        assert told["one gradient is not finite"].startswith(
            f"NonFiniteGradientError: {prefix}The gradient of 2.weight"
        )
        assert told["left alone"]
        assert told["one owner fails"] is not None
        assert "division by zero" in told["one owner fails"]
        for what in ("a row", "a matrix"):
            assert "2.weight holds NaN or infinity" in told[f"{what} holds infinity"], told
        assert "2.weight: circle" in told["beyond a radius"]
        assert "has no spatial slices" in told["no slices"]
        assert told["groups"][0] == told["groups"][1]


def test_an_error_of_one_process_is_raised_by_all() -> None:
    check_refusals(2)


@pytest.mark.slow
def test_an_error_of_one_process_is_raised_by_four() -> None:
    check_refusals(4)


# --------------------------------------------------------------------------- what is sent


def test_rows_send_nothing_but_a_flag_and_owners_gradient_and_weight() -> None:
    ranks = 2
    numbers, flags = 4 * 8 * 8 * 9, 2 * (ranks - 1)  # of the weights; one to each of the others, there and back
    found = run_ranks(sharded_training.sent_bytes, ranks, ranks)
    assert all(sent["rows 1"] == 0 for sent in found)
    # Gradients to owners, weights from owners: N (R - 1) / R numbers each, over all processes N (R - 1) R / R.
    assert sum(sent["owners 1"] for sent in found) == 4 * (2 * numbers * (ranks - 1) // ranks + ranks * flags)
    assert max(sent["owners 1"] for sent in found) == min(sent["owners 1"] for sent in found)  # two matrices each


# --------------------------------------------------------------------------- noise


def whole_noise(group: dict[str, Any], tensors: list[torch.Tensor], draws: int) -> list[list[torch.Tensor]]:
    """What one process draws: free weights at once, others one by one."""
    source = NoiseSource()
    source.begin(5, 1, 7, span_for(group, [_whole(t) for t in tensors]))
    if group["manifold"].startswith("euclidean"):
        return [[t.clone()] for t in source.like(tensors)]
    return [[n.clone() for n in source.like([t] * draws)] for t in tensors]


def _whole(tensor: torch.Tensor) -> Share:
    return Share(id(tensor), tensor.numel(), 0, tensor.numel(), tensor.dtype, tensor.device, True)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    ranks=st.integers(1, 4),
    manifold=st.sampled_from(["euclidean(kernel)", "sphere(filter)", "circle(entry, radius=1.0)"]),
    data=st.data(),
)
def test_parts_draw_the_noise_of_their_place(
    shapes: list[tuple[int, int]], ranks: int, manifold: str, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weightspace.optim._langevin_noise.CHUNK", 16)
        dtypes = [data.draw(st.sampled_from([torch.float32, torch.float64])) for _ in shapes]
        owned = [data.draw(st.booleans()) for _ in shapes]
        whole = [torch.zeros(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        group = {"manifold": manifold, "scheme": "overdamped"}
        draws = 2 if "circle" in manifold else 1
        expected = whole_noise(group, whole, draws)
        for rank in range(ranks):
            layouts = [ShardLayout(shape, 0, rank, ranks, None) for shape in shapes]
            parts = [
                (t if rank == k % ranks else t[:0]) if is_owned else layout.cut(t, rank)
                for k, (t, is_owned, layout) in enumerate(zip(whole, owned, layouts, strict=True))
            ]
            shares = [
                Share(
                    id(p), t.numel(), 0 if is_owned else layout.rows(rank)[0] * t.shape[1], 0, t.dtype, t.device, True
                )
                for p, t, is_owned, layout in zip(parts, whole, owned, layouts, strict=True)
            ]
            source = NoiseSource()
            source.begin(5, 1, 7, span_for(group, shares), places_for(group, shares))
            here = [k for k, p in enumerate(parts) if p.numel()]
            if manifold.startswith("euclidean"):
                found = [[n.clone()] for n in source.like([parts[k] for k in here])]
            else:
                found = [[n.clone() for n in source.like([parts[k]] * draws)] for k in here]
            for k, numbers in zip(here, found, strict=True):
                for mine, all_of_it in zip(numbers, expected[k], strict=True):
                    assert torch.equal(mine, all_of_it if owned[k] else layouts[k].cut(all_of_it, rank))


# --------------------------------------------------------------------------- rows


@pytest.mark.parametrize(
    "manifold",
    [
        ws.manifolds.Sphere(),
        ws.manifolds.Sphere("slice"),
        ws.manifolds.Sphere("kernel"),
        ws.manifolds.ZeroMeanSphere(),
        ws.manifolds.Oblique(),
        ws.manifolds.Oblique(by="column"),
        ws.manifolds.Oblique("both"),
        ws.manifolds.Stiefel(),
        ws.manifolds.Stiefel("input"),
        ws.manifolds.Stiefel("slice", tolerance=1e-3),
        ws.manifolds.Euclidean(),
        ws.manifolds.Product((ws.manifolds.Sphere("slice"), ws.manifolds.Stiefel("slice"))),
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [Channels(), Channels(1), Channels(0, chains=True)], ids=["out", "in", "chains"])
def test_rows_that_are_said_to_be_apart_are(manifold: ws.manifolds.Manifold, channels: Channels) -> None:
    torch.manual_seed(0)
    weight = torch.randn((4, 3, 4, 3, 3) if channels.chains else (4, 3, 3, 3), dtype=torch.float64)
    if not manifold.acts_on_rows(channels):
        return
    ends = []
    for part in (weight, weight[:1], weight[1:]):
        end = part.clone()
        constraint = Constraint(manifold, end, channels)
        constraint.project_(end)
        step = end - 0.1 * torch.sin(part)
        constraint.follow_(end, step, FreeStep())
        ends.append(step)
    assert torch.allclose(ends[0], torch.cat(ends[1:]), rtol=0, atol=1e-12)


def test_what_one_step_size_spans() -> None:
    found = {g: steps_in_rows(g, Channels(1)) for g in ("slice", "input", "output", "both", "filter", "matrix")}
    assert found == {"slice": True, "input": False, "output": True, "both": False, "filter": False, "matrix": False}
    assert lies_in_rows("matrix", Channels(chains=True))
    assert not steps_in_rows("both", Channels(chains=True))
    assert not lies_in_rows("filter", Channels(groups=2))
    assert ws.manifolds.Oblique().acts_on_rows(Channels())
    assert not ws.manifolds.Oblique().acts_on_rows(Channels(groups=2))
    assert not ws.manifolds.Circle().acts_on_rows(Channels())
    assert ws.manifolds.Circle(radius=2.0).acts_on_rows(Channels())


def test_without_sharded_weights_there_is_no_twin() -> None:
    optimizer = ws.optim.SubmanifoldSGD(nn.Linear(2, 2).parameters(), lr=0.1)
    assert optimizer._twin is None
