"""Runs that are killed, cut off or damaged go on bit for bit; so do scripts without the trainer."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reliability.cases import Case, cases, make_model, train
from reliability.kills import Kill, attempt
from reliability.outcomes import outcome, unequal
from reliability.resume import kill_at_random
from reliability.resume_faults import SCENARIOS, Scenario, kill_everywhere
from reliability.resume_scripts import THROUGH, differences, resumed_differences
from reliability.resume_trials import SHORT, TRIALS, Trial, images, train_or_sample

import weightspace as ws
from weightspace.errors import RunError
from weightspace.training import session
from weightspace.training.loop import train_run

CASES = cases()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------- scripts


@pytest.mark.parametrize(
    ("case", "through"), [*zip(CASES, itertools.cycle(THROUGH))], ids=[case.name for case in CASES]
)
def test_a_script_goes_on_bit_for_bit(case: Case, through: Any) -> None:
    assert resumed_differences(case, through) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "through"), [*zip(CASES, itertools.cycle(THROUGH[::-1]))], ids=[case.name for case in CASES]
)
def test_a_script_goes_on_through_the_other_kind_of_file(case: Case, through: Any) -> None:
    assert resumed_differences(case, through) == []


def test_a_difference_of_one_bit_is_seen() -> None:
    tree = {"a": [torch.zeros(2), (1, float("nan"))], 3: torch.tensor(-0.0)}
    assert differences(tree, {"a": [torch.zeros(2), (1, float("nan"))], 3: torch.tensor(-0.0)}) == []
    assert differences(tree, {"a": [torch.zeros(2), (1, float("nan"))], 3: torch.tensor(0.0)}) == ["[3]"]
    assert differences(tree, {"a": [torch.zeros(2), (True, float("nan"))], 3: tree[3]}) == [
        "['a'][1][0]: int, not bool"
    ]
    assert differences([1.0], [1.0, 2.0]) == [": 1 entries, not 2"]
    assert differences(torch.zeros(2, 3), torch.zeros(3, 2).t()) == [""]  # the order in memory decides what comes next


# ---------------------------------------------------------------- what rules remember


def opened(*rules: Any) -> tuple[torch.nn.Module, torch.optim.Optimizer, Any]:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return model, optimizer, ws.attach(optimizer, model, *rules)


def take_steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Steps without a loss."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(steps):
        optimizer.step()


def test_values_of_penalties_that_are_not_due_survive() -> None:
    penalties = (
        ws.penalties.SingularValueBand(0.5, 1.5, weight=1e-2, every=3),
        ws.penalties.L1(1e-3, every=3, gate=ws.gates.Coherent(threshold=0.3), on=ws.on.linears),
    )
    model, optimizer, rules = opened(*penalties)
    train(model, (optimizer, rules), 2)
    before = rules.measurements
    assert before["0.weight"]["SingularValueBand"] > 0
    assert "cosine" in before["8.weight"]
    twin, _, resumed = opened(*penalties)
    twin.load_state_dict(model.state_dict())
    resumed.load_state_dict(rules.state_dict())
    assert resumed.measurements == before


def test_vanished_weights_and_exact_retractions_are_known_after_resuming() -> None:
    heavy = ws.penalties.L1(1.0, application="proximal", on=ws.on.name("2.weight"))
    model, optimizer, rules = opened(heavy, ws.manifolds.Stiefel(on=ws.on.name("4.weight")))
    with pytest.warns(ws.errors.VanishedWeightsWarning):
        take_steps(model, optimizer, 50)
    assert rules.vanished == {"2.weight": 50}
    rules._plan.manifolds.tasks[0].fallbacks = 3  # what hardly ever happens
    twin, other, resumed = opened(heavy, ws.manifolds.Stiefel(on=ws.on.name("4.weight")))
    twin.load_state_dict(model.state_dict())
    resumed.load_state_dict(rules.state_dict())
    assert resumed.vanished == {"2.weight": 50}
    assert resumed.fallbacks == {"4.weight": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was told before
        take_steps(twin, other, 50)
    assert resumed.vanished == {"2.weight": 50}
    earlier = {key: value for key, value in rules.state_dict().items() if key not in {"watch", "fallbacks"}}
    resumed.load_state_dict(earlier)  # of an earlier version
    assert resumed.vanished == {}


# ---------------------------------------------------------------- killed runs


def test_a_run_that_is_killed_at_random_ends_with_the_same_bits() -> None:
    found = kill_at_random(SHORT, kills=2, seed=1)
    assert found.kills >= 2
    assert found.runs >= 1
    assert found.different == []


def test_a_run_that_is_killed_between_file_operations_ends_with_the_same_bits() -> None:
    kills, different = kill_everywhere(SCENARIOS[1], step=6)
    assert kills >= 8
    assert different == []


def forgetful(folder: Path, trial: Trial, every: int) -> None:
    """Goes on with whatever torch's generators hold: dropout draws other numbers."""
    session.set_random_states = lambda *_: None
    train_or_sample(folder, trial, every)


def test_a_state_that_is_forgotten_is_seen(tmp_path: Path) -> None:
    attempt(train_or_sample, tmp_path / "whole", SHORT, 2)
    assert attempt(forgetful, tmp_path / "killed", SHORT, 2, kill=Kill(at=30)).is_killed
    attempt(forgetful, tmp_path / "killed", SHORT, 2)
    found = unequal(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))
    assert "model.safetensors differs" in found
    assert "result.json differs" in found


def test_a_failing_function_is_told_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="unsupported operand"):
        attempt(train_or_sample, tmp_path, SHORT, "two")


@pytest.mark.parametrize("place", [20, -100])
def test_a_flipped_bit_is_told_and_the_checkpoint_before_is_used(tmp_path: Path, place: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    attempt(train_or_sample, whole, SHORT, 2)
    attempt(train_or_sample, killed, SHORT, 2)
    for name in ("result.json", "model.safetensors"):  # as if killed after the last checkpoint
        (killed / name).unlink()
    newest = killed / "checkpoint-000000006.safetensors"
    content = bytearray(newest.read_bytes())
    content[place] ^= 4
    newest.write_bytes(content)
    begun: list[int] = []
    options: dict[str, Any] = {"seed": 1, "data": images(), "resume": True, "checkpoint_every_steps": 2}
    with pytest.warns(
        RuntimeWarning, match=r"checkpoint-000000006.safetensors is damaged \(.*\); trying the checkpoint"
    ):
        train_run(SHORT.recipe(), killed, started=begun.append, checkpoint_every_epochs=1, **options)
    assert begun == [4]
    assert unequal(outcome(killed), outcome(whole)) == []
    for path in killed.glob("checkpoint-*"):
        path.write_bytes(b"nothing")
    (killed / "result.json").unlink()
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(RunError, match="no checkpoint in .* can be read; start the run anew"),
    ):
        train_run(SHORT.recipe(), killed, **options)


@pytest.mark.slow
@pytest.mark.parametrize("trial", TRIALS, ids=[trial.name for trial in TRIALS])
def test_every_method_survives_kills(trial: Trial) -> None:
    found = kill_at_random(trial, kills=5, seed=2)
    assert found.different == []


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario.name for scenario in SCENARIOS])
def test_every_state_that_a_kill_leaves_can_be_gone_on_from(scenario: Scenario) -> None:
    kills, different = kill_everywhere(scenario)
    assert kills >= 35
    assert different == []
