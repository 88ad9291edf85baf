"""`weightspace tolerance`: options against the recipe's sweep, refusals, and one real sweep of two small runs."""

from __future__ import annotations

import json

import pytest

from here_engine import run_here
from weightspace.cli.app import run
from weightspace.cli.tolerance import with_sweep
from weightspace.errors import RecipeError
from weightspace.training.recipe import load_recipe

TINY = (
    "--set",
    "model={name: mlp, options: {hidden: [8]}}",
    "--set",
    "data.train_size=100",
    "--set",
    "train={epochs: 3, batch_size: 10, optimizer: {name: SGD, lr: 0.1}}",
)


def call(*words):
    with pytest.raises(SystemExit) as caught:
        run(["tolerance", *words])
    return caught.value.code


def test_options_replace_parts_of_the_recipes_sweep():
    gates = "{mine: {gate: Coherent, against: previous}, always: {gate: Always, strengths: [1, 2]}}"
    recipe = load_recipe("quickstart", [f"sweep={{strengths: [0.5, 1.0], seeds: 3, gates: {gates}}}"])
    sweep = with_sweep(recipe, "L2", None, "always, mine,delayed", None).sweep
    assert sweep.rule == {"rule": "L2"}
    assert sweep.strengths == (0.5, 1.0)
    assert sweep.seeds == 3
    assert list(sweep.gates) == ["always", "mine", "delayed"]
    assert sweep.gates["always"]["strengths"] == [1, 2]  # the recipe's own, not the known one of that name
    assert with_sweep(recipe, None, "0.1:0.4", None, 2).sweep.octaves_of("mine") == (0.1, 0.2, 0.4)
    assert with_sweep(load_recipe("quickstart"), None, None, None, None).sweep.rule == {"rule": "L1"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((None, "0.1", None, None), "--strengths 0.1 should be two numbers and a colon"),
        ((None, "a:b", None, None), "--strengths a:b should be two numbers"),
        ((None, "0.2:0.1", None, None), "strengths should go up"),
        ((None, None, "alway", None), "there is no gate 'alway', did you mean 'always'?"),
        ((None, None, "always,random", None), "which is not among the gates"),
        (("L11", None, None, None), "There is no rule 'L11'"),
    ],
)
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(RecipeError) as caught:
        with_sweep(load_recipe("quickstart"), *options)
    assert sentence in str(caught.value)


def test_a_sweep_from_the_command_line(tmp_path, capsys, monkeypatch):
    run_here(monkeypatch)
    folder = tmp_path / "sweep"
    words = ("quickstart", *TINY, "--gates", "always", "--strengths", "2:2", "--workers", "1", "--out", str(folder))
    assert call(*words) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "always: tolerance level below 2." in printed
    assert "In the scalar picture" in printed
    found = json.loads((folder / "tolerance.json").read_text())
    assert found["levels"]["always"]["collapses_at"] == 2.0
    assert [cell["gate"] for cell in found["cells"]] == ["no penalty", "always"]
    assert (folder / "tolerance.md").exists()
    assert (folder / "tolerance.png").exists()
    before = (folder / "arms/always-2/final/seed0/result.json").stat().st_mtime_ns
    assert call(*words) == 0
    assert (folder / "arms/always-2/final/seed0/result.json").stat().st_mtime_ns == before


def test_a_single_runs_folder_is_refused(tmp_path, capsys):
    (tmp_path / "run.json").write_text("{}")
    assert call("quickstart", *TINY, "--out", str(tmp_path)) == 2
    assert "holds a single training run" in " ".join(capsys.readouterr().err.split())
