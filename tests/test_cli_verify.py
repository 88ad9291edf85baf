"""`weightspace verify`: what holds, what a broken constraint looks like, and what it says to bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from weightspace.cli.app import app
from weightspace.errors import RunError
from weightspace.manifolds import Product, Stiefel
from weightspace.training.constraints import measure_constraints

RECIPE = """
name: tiny
data: {name: digits, train_size: 120, test_size: 60}
model: {name: vgg, options: {widths: [4, 8], convs_per_stage: 1, hidden: []}}
train: {epochs: 2, batch_size: 32, optimizer: {name: SubmanifoldSGD, lr: 0.1}}
rules: [{rule: Stiefel}]
"""

FACTORY = '''
"""A module beside the user."""
from torch import nn

def plain(width=4):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, 2, 1)).requires_grad_(False)
'''


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["verify", *map(str, arguments)], terminal_width=200)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def trained(folder: Path, recipe: str) -> Path:
    (folder / "tiny.yaml").write_text(recipe)
    result = CliRunner().invoke(app, ["train", str(folder / "tiny.yaml"), "--out", str(folder / "out")])
    assert result.exit_code == 0, result.output
    return folder / "out"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"), RECIPE)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def change(file: Path, name: str, act) -> None:
    state = load_file(file)
    state[name] = act(state[name])
    save_file(state, file)


def test_a_run_its_weights_and_its_checkpoints_hold(run, tmp_path):
    for target in (run, run / "model.safetensors", max(run.glob("checkpoint-*"))):
        code, out, err = call(target, "--json", tmp_path / "found.json")
        assert code == 0, err
        assert "every constraint holds (2, in" in err
        rows = [line.split() for line in out.splitlines()[1:]]
        assert [(row[0], row[1], row[2], row[-1]) for row in rows] == [
            ("features.0.weight", "stiefel(matrix)", "1", "holds"),
            ("features.3.weight", "stiefel(matrix)", "1", "holds"),
        ]
        found = json.loads((tmp_path / "found.json").read_text())
        assert found["holds"] is True
        assert all(0 <= c["violation"] <= c["bound"] < 1e-5 for c in found["constraints"])


@pytest.mark.parametrize("harm", ["scaled", "one entry", "nan"])
def test_a_broken_constraint_is_named_and_gives_1(copy, tmp_path, harm):
    def act(weight: torch.Tensor) -> torch.Tensor:
        if harm == "scaled":
            return weight * 1.001
        weight[0, 0, 0, 0] += float("nan") if harm == "nan" else 0.01
        return weight

    change(copy / "model.safetensors", "features.3.weight", act)
    code, out, err = call(copy, "--json", tmp_path / "found.json")
    assert code == 1
    assert "error: 1 of 2 constraints are broken in" in err
    assert "features.3.weight is not on stiefel(matrix), violation" in err
    assert "features.3.weight stiefel(matrix) 1" in " ".join(out.split())
    assert "BROKEN (1 of 1)" in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert [c["holds"] for c in found["constraints"]] == [True, False]
    assert (found["constraints"][1]["violation"] is None) == (harm == "nan")


def test_the_checkpoint_is_looked_at_where_there_are_no_weights(copy):
    (copy / "model.safetensors").unlink()
    code, _, err = call(copy)
    assert code == 0
    assert "checkpoint-" in err


def test_other_manifolds_may_be_asked_for(run):
    assert call(run, "--rule", "oblique(matrix)", "--on", "convs")[0] == 0  # orthonormal rows or columns have norm one
    code, _, err = call(run, "--set", "rules=[{rule: Sphere, radius: 2.0}]")
    assert code == 1
    assert "2 of 2 constraints are broken" in err
    assert "is not on sphere(filter, radius=2.0), violation 5.0e-01" in err
    assert "and 1 more" in err


def test_a_product_that_is_drawn_anew_depends_on_the_steps(tmp_path):
    rule = "{rule: Product, parts: [sphere(slice), stiefel(slice)], over: slice, assignment: random, every: 2}"
    out = trained(tmp_path, RECIPE.replace("{rule: Stiefel}", rule))  # three steps an epoch: the last draw is the third
    code, table, err = call(out)
    assert code == 0, err
    assert table.count("sphere(slice)") == table.count("stiefel(slice)") == 2
    assert call(out, "--steps", 2)[0] == 1
    (out / "result.json").unlink()
    code, _, err = call(out)
    assert code == 2
    assert "is drawn anew every 2 steps, and how many were taken is not known here; give it with --steps" in err
    assert call(out, "--steps", 6)[0] == 0


def test_what_is_corrected_now_and_then_is_allowed_what_its_steps_carried(tmp_path):
    rule = "{rule: Stiefel, every: 4}"  # six steps: two after the last correction
    out = trained(tmp_path, RECIPE.replace("{rule: Stiefel}", rule))
    carried = json.loads((out / "result.json").read_text())["constraints"]["slack"]
    assert set(carried) == {"features.0.weight", "features.3.weight"}
    for target in (out, max(out.glob("checkpoint-*"))):
        code, _, err = call(target, "--json", tmp_path / "found.json")
        assert code == 0, err
        found = json.loads((tmp_path / "found.json").read_text())["constraints"]
        assert max(c["violation"] for c in found) > 1e-6
        assert [c["bound"] for c in found] == [carried[c["parameter"]] for c in found]
    assert call(out, "--rule", "stiefel(matrix)")[0] == 1  # asked for without slack
    change(out / "model.safetensors", "features.3.weight", lambda weight: weight * 1.5)
    assert call(out)[0] == 1


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    name = f"networks_{abs(hash(tmp_path))}"  # a fresh name: imported modules stay
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        model[0].weight /= torch.linalg.vector_norm(model[0].weight, dim=(1, 2, 3), keepdim=True)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    return Path(name)


def test_any_safetensors_file_with_its_factory(beside):
    arguments = ("w.safetensors", "--model", f"{beside}:plain", "--option", "width=3")
    code, out, err = call(*arguments, "--rule", "sphere(filter)")
    assert code == 0, err
    assert out.count("holds") == 1  # the head is left out
    code, out, err = call(*arguments, "--rule", "sphere(filter)", "--on", "convs")
    assert code == 1
    assert "2.weight is not on sphere(filter)" in err
    assert "BROKEN (2 of 2)" in out
    code, _, err = call(*arguments, "--rule", "sphere(slice)", "--on", "convs")
    assert code == 0  # with one input channel a filter is a slice
    assert "not constrained: 2.weight: 2.weight is a 1x1 kernel" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere does not exist; give a run's folder"),
        (["."], "holds neither model.safetensors nor a checkpoint"),
        (["w.safetensors"], "so the model of w.safetensors is not known; name it as module:factory with --model"),
        (["w.safetensors", "--model", "{m}:plain"], "give --rule 'stiefel(matrix)' --on convs"),
        (["w.safetensors", "--model", "{m}:plain", "--rule", "sphere"], "does not fit Sequential"),
        (["w.safetensors", "--model", "{m}:plain", "--set", "rules=[]", "--rule", "sphere"], "--set changes a recipe"),
        (["w.safetensors", "--model", "{m}:missing", "--rule", "sphere"], "has no missing"),
        (["{r}", "--option", "width=3"], "give --model module:factory as well"),
        (["{r}", "--rule", "spere(filter)"], "There is no manifold 'spere'"),
        (["{r}", "--rule", "sphere(filter)", "--on", "conv"], "The selection 'conv' holds"),
        (["{r}", "--on", "convs"], "0 --rule and 1 --on were given"),
        (["{r}", "--set", "rules=[]"], "nothing to verify: the recipe of"),
        (["{r}", "--set", "rules=[{{rule: ChannelL2}}]"], "has no manifold among its rules; name one with --rule"),
        (["{r}", "--rule", "sphere", "--on", "name('layer9.*')"], "selects no parameter of the model"),
        (["{r}", "--rule", "sphere(slice)", "--on", "linears"], "can hold none of the parameters that it selects"),
        (["{m}.py"], "holds no run.json"),
        (["{m}.py", "--model", "{m}:plain", "--rule", "sphere"], "pickled files are never opened"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(beside, run, arguments, sentence):
    code, out, err = call(*[argument.format(m=beside, r=run) for argument in arguments])
    assert code == 2, err
    assert not out
    assert "error: " in err
    assert sentence in err


def test_only_the_weights_are_looked_at():
    """A model that nobody constrained: every measured figure is the one that is computed by hand."""
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Conv2d(3, 2, 1))
    singular = torch.linalg.svdvals(model[0].weight.detach().flatten(1).double())
    measured = measure_constraints(model, [Stiefel()], steps=None)
    assert [check.parameter for check in measured.checks] == ["0.weight"]
    assert measured.checks[0].violation == pytest.approx(float((singular - 1).abs().max()), rel=1e-6)
    assert measured.broken == measured.checks
    assert measured.to_json()["verdict"] == "1 broken"
    with torch.no_grad():
        u, _, v = torch.linalg.svd(model[0].weight.flatten(1), full_matrices=False)
        model[0].weight.copy_((u @ v).view_as(model[0].weight))
    assert not measure_constraints(model, [Stiefel()], steps=None).broken
    product = Product(("sphere(slice)", "stiefel(slice)"), assignment="random", every=3)
    with pytest.raises(RunError, match="drawn anew every 3 steps"):
        measure_constraints(model, [product], steps=None)


def test_help_names_the_exit_codes():
    result = CliRunner().invoke(app, ["verify", "--help"], terminal_width=200)
    assert "0 every constraint holds, 1 one is broken" in " ".join(result.stdout.split())
