"""Sweeps of strengths: settings, arms, random controls at equal duty, levels, files; with a made-up training."""

from __future__ import annotations

import dataclasses
import json

import pytest

import fake_sweep
import fake_training
from here_engine import run_here
from weightspace.compare._sweep import BASELINE, comparison_recipe, like_arms, own_arms, results_in
from weightspace.compare._tolerance_text import markdown, table_cells, theory_lines, verdict_lines
from weightspace.compare.execution import Execution
from weightspace.compare.tolerance import Cell, Level, Tolerance, load_tolerance, read_tolerance, run_tolerance
from weightspace.errors import RecipeError, RunError
from weightspace.gates.theory import largest_strength, tolerance_level
from weightspace.report.tolerance import write_tolerance
from weightspace.training.recipe import Recipe, run_fingerprint
from weightspace.training.recipe_sweep import octaves

GATES = {
    "always": {"gate": "Always"},
    "delayed": {"gate": "Delayed", "share": 0.5},
    "coherent": {"gate": "Coherent", "against": "history"},
    "random": {"like": "coherent"},
    "by layer": {"like": "coherent", "per": "layer", "seed": 3},
    "cautious": {"rule": "CautiousWeightDecay", "strengths": [0.1, 0.2]},
}


def make_recipe(gates=None, **sweep):
    values = {
        "rule": {"rule": "L1"},
        "strengths": [0.001, 0.032],
        "seeds": 2,
        "gates": GATES if gates is None else gates,
    } | sweep
    return Recipe.from_dict(
        {
            "name": "tiny",
            "data": {"name": "digits"},
            "model": {"name": "mlp", "options": {"hidden": [4]}},
            "train": {"epochs": 2, "batch_size": 4, "optimizer": {"name": "SGD", "lr": 0.1}},
            "sweep": values,
        }
    )


def sweep(recipe, folder, **options):
    return run_tolerance(
        recipe, folder, Execution(workers=1), train=fake_sweep.train, load=fake_training.load, **options
    )


@pytest.fixture(scope="module", autouse=True)
def _in_this_process():
    with pytest.MonkeyPatch.context() as patch:
        run_here(patch)
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return sweep(make_recipe(), folder), folder


# ---------------------------------------------------------------- settings


def test_octaves_double_up_to_the_end():
    assert octaves(1e-4, 1.28e-2) == (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3, 6.4e-3, 1.28e-2)
    assert octaves(0.1, 0.1) == (0.1,)
    assert octaves(0.1, 0.399) == (0.1, 0.2)


def test_defaults_make_a_sweep():
    recipe = make_recipe()
    plain = Recipe.from_dict(recipe.to_dict() | {"sweep": {}})
    assert plain.sweep.rule == {"rule": "L1"}
    assert plain.sweep.names[-1] == "random"
    assert len(plain.sweep.octaves_of("always")) == 8
    assert Recipe.from_dict(plain.to_dict()) == plain


def test_a_sweep_decides_no_number_of_a_run():
    recipe = make_recipe()
    without = Recipe.from_dict(recipe.to_dict() | {"sweep": None})
    assert run_fingerprint(recipe, 0) == run_fingerprint(without, 0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rule": {"rule": "L9"}}, "There is no rule 'L9'"),
        ({"rule": {"rule": "L1", "weight": 0.1}}, "the rule L1 has 'weight', which the sweep sets; leave it out"),
        ({"rule": {"rule": "ChannelL2"}}, "gates.always: ChannelL2 has no option 'weight'"),
        ({"strengths": [0.1, 0.01]}, "strengths should go up, but 0.1 is above 0.01"),
        ({"strengths": [0.0, 0.1]}, "strengths.0"),
        ({"seeds": 0}, "seeds"),
        ({"gates": {}}, "gates"),
        ({"gates": {"a": {}}}, "gates.a needs exactly one of gate, like and rule"),
        ({"gates": {"a": {"gate": "Always", "like": "b"}}}, "gates.a needs exactly one"),
        ({"gates": {"a": {"gate": "Coherent", "against": "futur"}}}, "gates.a: Coherent"),
        ({"gates": {"a": {"gate": "Delayed", "share": 1.5}}}, "gates.a: share=1.5 is for"),
        ({"gates": {"a": {"gate": "Coherent", "share": 0.5}}}, "gates.a: share=0.5 is for"),
        ({"gates": {"a": {"gate": "Delayed", "share": 0.5, "steps": 3}}}, "in place of steps"),
        ({"gates": {"a": {"gate": "Always", "strengths": [2, 1]}}}, "gates.a.strengths should be two positive numbers"),
        ({"gates": {"a": {"gate": "Always", "strengths": "1:2"}}}, "gates.a.strengths should be two positive numbers"),
        ({"gates": {"a": {"like": "always"}}}, "gates.a is like 'always', which is not among the gates; add it"),
        ({"gates": {"alway": {"gate": "Always"}, "r": {"like": "always"}}}, "did you mean 'alway'?"),
        ({"gates": {"b": {"gate": "Always"}, "r": {"like": "b"}}}, "which has no gate that is ever closed"),
        ({"gates": {"b": {"gate": "Coherent"}, "r": {"like": "b", "per": "kernel"}}}, "per should be run or layer"),
        ({"gates": {"b": {"gate": "Coherent"}, "r": {"like": "b", "duty": 0.5}}}, "gates.r has no key 'duty'"),
    ],
)
def test_bad_sweeps_are_refused_in_one_sentence(changes, sentence):
    with pytest.raises(RecipeError) as caught:
        make_recipe(**changes)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- arms


def test_own_arms_are_gates_times_octaves():
    recipe = make_recipe()
    arms = {arm.name: arm for arm in own_arms(recipe.sweep, steps=20)}
    assert len(arms) == 1 + 3 * 6 + 2
    assert arms[BASELINE].rules == ()
    assert arms["delayed 0.002"].rules == ({"rule": "L1", "weight": 0.002, "gate": {"gate": "Delayed", "steps": 10}},)
    assert arms["cautious 0.2"].rules == ({"rule": "CautiousWeightDecay", "weight": 0.2},)


def test_arms_are_not_tuned_and_keep_the_recipes_own_rules():
    recipe = make_recipe().with_overrides({"rules": [{"rule": "L2", "weight": 0.1}]})
    comparison = comparison_recipe(recipe, own_arms(recipe.sweep, steps=20))
    assert comparison.sweep is None
    assert comparison.compare.baseline == BASELINE
    assert not any(arm.tune for arm in comparison.compare.arms.values())
    assert [r["rule"] for r in comparison.for_arm("always 0.004").rules] == ["L2", "L1"]
    assert [r["rule"] for r in comparison.for_arm(BASELINE).rules] == ["L2"]


def test_a_rule_that_is_there_already_is_refused():
    recipe = make_recipe().with_overrides({"rules": [{"rule": "L1", "weight": 0.1}]})
    with pytest.raises(RecipeError, match="has the rule L1 already"):
        comparison_recipe(recipe, [])


def test_random_gates_are_open_as_often_as_what_they_control():
    recipe = make_recipe()
    arms = own_arms(recipe.sweep, steps=20)
    rule = "L1(weight=0.004, gate=Coherent(against='history'))"
    runs = [{"duty": {rule: {"layers": {"a.weight": 0.5, "b.weight": b}}}} for b in (0.2, 0.4)]
    found = like_arms(recipe, arms, {"coherent 0.004": runs, "always 0.004": [{"duty": {}}]})
    assert [arm.name for arm in found] == ["random 0.004", "by layer 0.004"]
    assert found[0].rules == ({"rule": "L1", "weight": 0.004, "gate": {"gate": "RandomGate", "duty": 0.4, "seed": 0}},)
    assert [(r["on"], r["gate"]["duty"], r["gate"]["seed"]) for r in found[1].rules] == [
        ("name('a.weight')", 0.5, 3),
        ("name('b.weight')", 0.3, 3),
    ]


def test_gates_of_the_recipes_own_rules_do_not_count():
    recipe = make_recipe().with_overrides({"rules": [{"rule": "L2", "gate": {"gate": "Delayed", "steps": 2}}]})
    [other] = recipe.make_rules()
    layers = {"a.weight": 1.0}
    runs = [{"duty": {str(other): {"layers": layers}, "L1(...)": {"layers": {"a.weight": 0.25}}}}]
    found = like_arms(recipe, own_arms(recipe.sweep, steps=20), {"coherent 0.001": runs})
    assert found[0].rules[0]["gate"]["duty"] == 0.25


# ---------------------------------------------------------------- running


def test_a_sweep_finds_the_levels(done):
    found, folder = done
    assert found.chance == 0.5
    assert found.baseline.accuracies == (0.9, 0.91)
    assert found.threshold == pytest.approx((0.5 + 0.905) / 2)
    assert found.level("always") == Level("always", 0.002, 0.004)
    assert found.level("delayed") == Level("delayed", 0.016, 0.032)
    assert found.level("coherent") == Level("coherent", 0.032, None)
    assert found.level("random") == Level("random", 0.002, 0.004)
    assert found.missing == ()
    [cell] = [cell for cell in found.of("random") if cell.strength == 0.008]
    [control] = [cell for cell in found.of("coherent") if cell.strength == 0.008]
    assert control.duty == pytest.approx((0.25 + (0.125 + 0.135) / 2) / 2, abs=1e-4)
    _, results = results_in(folder)
    rule = json.loads((folder / "compare.json").read_text())["recipe"]["compare"]["arms"]["random 0.008"]["rules"][0]
    assert rule["gate"] == {"gate": "RandomGate", "duty": control.duty, "seed": 0}
    assert cell.vanished == ("b.weight",)
    assert cell.zeros == 0.25
    assert len(results) == 1 + 3 * 6 + 2 + 2 * 6


def test_a_finished_sweep_trains_nothing_and_finds_the_same(done):
    found, folder = done
    before = {path: path.stat().st_mtime_ns for path in folder.glob("arms/**/result.json")}
    assert sweep(make_recipe(), folder) == found
    assert {path: path.stat().st_mtime_ns for path in folder.glob("arms/**/result.json")} == before


def test_a_sweep_goes_on_where_it_stopped_and_takes_up_new_gates(tmp_path):
    small = {"always": GATES["always"], "coherent": GATES["coherent"], "random": GATES["random"]}
    first = make_recipe(small, seeds=1, strengths=[0.002, 0.004])
    sweep(first, tmp_path)
    gone = next(tmp_path.glob("arms/coherent-0-004/final/seed0/result.json"))
    gone.unlink()
    random_run = tmp_path / "arms/random-0-004/final/seed0/result.json"
    before = random_run.stat().st_mtime_ns
    sweep(first, tmp_path)  # its random control stays as it is, as it has the same duty cycle again
    assert gone.exists()
    assert random_run.stat().st_mtime_ns == before
    more = make_recipe({**small, "delayed": GATES["delayed"]}, seeds=1, strengths=[0.002, 0.008])
    found = sweep(more, tmp_path)
    assert {cell.strength for cell in found.of("random")} == {0.002, 0.004, 0.008}
    assert len(found.of("delayed")) == 3


def test_another_recipe_in_the_folder_is_refused(done, tmp_path):
    _, folder = done
    with pytest.raises(RunError, match="another recipe"):
        sweep(make_recipe().with_overrides({"train.epochs": 5}), folder)
    with pytest.raises(RunError, match="no finished run of the arm 'no penalty'"):
        read_tolerance(make_recipe(), tmp_path, steps=20)
    with pytest.raises(RecipeError, match="has no 'sweep' part"):
        sweep(Recipe.from_dict(make_recipe().to_dict() | {"sweep": None}), tmp_path)


# ---------------------------------------------------------------- levels and words


def fabricated(accuracies, *, baseline=0.9, chance=0.1, rule="L1"):
    """One gate at strengths 1, 2, 4, ... with these accuracies."""
    cells = [Cell(BASELINE, 0.0, (baseline,), None, None, None, {}, 0.0, (), 0)]
    cells += [Cell("g", 2.0**k, (a,), None, None, None, {}, 0.0, (), 0) for k, a in enumerate(accuracies)]
    return Tolerance("t", rule, "vgg", 6, "made up", chance, 0.95, ("g", "not run"), tuple(cells), (), {})


@pytest.mark.parametrize(
    ("accuracies", "level"),
    [
        ([0.9, 0.8, 0.1], Level("g", 2.0, 4.0)),
        ([0.9, 0.51, 0.49], Level("g", 2.0, 4.0)),  # half way is 0.5
        ([0.9, 0.5], Level("g", 2.0, None)),
        ([0.1, 0.1], Level("g", None, 1.0)),
        ([0.9, 0.2, 0.8, 0.1, 0.9], Level("g", 1.0, 2.0, (4.0, 16.0))),
    ],
)
def test_the_level_is_below_the_first_collapse(accuracies, level):
    assert fabricated(accuracies).level("g") == level


def test_a_network_that_does_not_learn_has_no_level():
    lines = verdict_lines(fabricated([0.1], baseline=0.14))
    assert len(lines) == 1
    assert "hardly learns in this budget even without the penalty" in lines[0]


def test_the_theory_is_of_the_networks_depth_and_of_the_penaltys_kind():
    first, second = theory_lines(fabricated([0.9], rule="L2"))
    assert f"up to a strength of {tolerance_level(6, 0.5):.3g}," in first
    assert f"up to {largest_strength(6):.3g}: 2.4 octaves more" in first
    assert "weight decay" in first
    assert "predicts no number" in second
    assert f"{tolerance_level(6, 0.5, power=1):.3g}" in theory_lines(fabricated([0.9]))[0]


def test_files_hold_everything_and_can_be_read_back(done, tmp_path):
    found, _ = done
    page = write_tolerance(found, tmp_path)
    assert load_tolerance(tmp_path / "tolerance.json") == found
    assert (tmp_path / "tolerance.png").stat().st_size > 10_000
    text = page.read_text()
    assert text == markdown(found, "tolerance.png")
    assert "- always: tolerance level between 0.002 and 0.004." in text
    assert "| 0.004 | 50.0 % x<br>zeros 25.0 %<br>gone 1 |" in text
    headings, rows = table_cells(found)
    assert headings == ["strength", *GATES]
    assert all(len(row) == len(headings) for row in rows)
    values = json.loads((tmp_path / "tolerance.json").read_text())
    assert values["levels"]["always"] == {
        "gate": "always", "learns_up_to": 0.002, "collapses_at": 0.004, "again": []
    }  # fmt: skip


def test_one_strength_and_a_gate_that_was_not_run_can_be_drawn(tmp_path):
    for index, accuracies in enumerate(([0.9], [0.1], [0.9, 0.1, 0.9])):
        write_tolerance(dataclasses.replace(fabricated(accuracies)), tmp_path / str(index))
        assert (tmp_path / str(index) / "tolerance.png").exists()


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "tolerance.json").write_text('{"cells": 3}')
    with pytest.raises(RunError, match="is no result of `weightspace tolerance`"):
        load_tolerance(tmp_path / "tolerance.json")
