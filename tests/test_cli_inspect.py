"""`weightspace inspect` on runs, checkpoints, recipes and factories, and what it says to bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from weightspace.cli.app import app
from weightspace.training.trained import fresh_model, trained_model

RECIPE = """
name: tiny
data: {name: digits, train_size: 120, test_size: 60}
model: {name: vgg, options: {widths: [4, 8], convs_per_stage: 1, hidden: []}}
train: {epochs: 1, batch_size: 32, optimizer: {name: SGD, lr: 0.1}}
"""

FACTORY = '''
"""A module beside the user."""
from torch import nn
import torch

def plain(width=4):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, 2, 3))

def with_input():
    return nn.Linear(3, 2), torch.ones(5, 3)

def broken():
    raise ValueError("no weights here")

def nothing():
    return 3

number = 4
'''


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["inspect", *map(str, arguments)], terminal_width=200)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(RECIPE)
    result = CliRunner().invoke(app, ["train", str(folder / "tiny.yaml"), "--out", str(folder / "out")])
    assert result.exit_code == 0, result.output
    return folder / "out"


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    name = f"factories_{abs(hash(tmp_path))}"  # a fresh name: imported modules stay
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return Path(name)


def test_a_run_is_inspected_with_its_weights_and_its_data(run, tmp_path):
    code, out, err = call(run, "--json", tmp_path / "r.json", "--html", tmp_path / "r.html", "--images", 8)
    assert code == 0, err
    assert "on 8 training images of" in err
    assert "gradient of the loss" in out
    assert "features.0" in out
    figures = json.loads((tmp_path / "r.json").read_text())
    assert figures["mode"] == "training"
    trained = trained_model(run).model
    assert isinstance(trained, nn.Module)
    norm = torch.linalg.matrix_norm(dict(trained.named_parameters())["features.0.weight"].flatten(1), 2)
    assert figures["layers"][0]["flattened_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert "<html" in (tmp_path / "r.html").read_text()[:200]


def test_weights_and_checkpoints_of_a_run_give_the_same_figures(run, tmp_path):
    checkpoint = max(run.glob("checkpoint-*"))
    found = []
    for target in (run / "model.safetensors", checkpoint):
        assert call(target, "--json", tmp_path / "r.json", "--detail", "moments", "--mode", "evaluation")[0] == 0
        figures = json.loads((tmp_path / "r.json").read_text())
        found.append([(layer["s2"], layer["measured"]["activation_rms"]) for layer in figures["layers"]])
    assert found[0] == found[1]
    fresh = fresh_model(trained_model(run).recipe).model
    assert not torch.equal(
        fresh.state_dict()["features.0.weight"], trained_model(run).model.state_dict()["features.0.weight"]
    )


def test_a_recipe_is_inspected_fresh_and_without_its_data_on_noise(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(RECIPE.replace("digits", "cifar10").replace("train_size: 120", "root: nowhere, train_size: 120"))
    code, out, err = call(recipe, "--detail", "moments", "--set", "model.options.widths=[4]")
    assert code == 0, err
    assert "a fresh vgg of the recipe tiny, seed 0, on 16 images of noise" in err
    assert "gradient of a random direction" in out
    assert "features.3" not in out


def test_factories_get_arguments_weights_and_sizes(beside, tmp_path):
    weights = tmp_path / "w.safetensors"
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
    arguments = (f"{beside}:plain", "--option", "width=3", "--input", "1x8x8", "--weights", weights)
    code, out, err = call(*arguments, "--json", tmp_path / "r.json", "--detail", "moments")
    assert code == 0, err
    figures = json.loads((tmp_path / "r.json").read_text())
    norm = torch.linalg.matrix_norm(model[0].weight.detach().flatten(1), 2)
    assert figures["layers"][0]["flattened_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert "Conv2d 1→3" in out
    code, out, err = call(f"{beside}:with_input")
    assert code == 0, err
    assert "Linear 3→2" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{m}:plain"], "give its size with --input"),
        (["{m}:plain", "--input", "1xax8"], "give whole numbers such as 3x224x224"),
        (["{m}:plain", "--input", "1x8x8", "--option", "depth=3"], "unexpected keyword argument"),
        (["{m}:plain", "--input", "3x8x8"], "forward pass of Sequential failed"),
        (["{m}:plain", "--set", "train.epochs=3"], "--set changes a recipe"),
        (["{m}:broken"], "no weights here; give its arguments with --option"),
        (["{m}:nothing"], "returned a int"),
        (["{m}:number"], "is a int; name a function"),
        (["{m}:missing"], "has no missing"),
        (["no_such_module:f"], "cannot import no_such_module"),
        (["nowhere"], "no file or folder, no recipe"),
        (["quickstart", "--input", "3x3"], "--input goes with module:factory"),
        (["quickstart", "--mode", "test"], "choose training or evaluation"),
        (["quickstart", "--detail", "all"], "choose one of moments"),
        (["."], "holds neither model.safetensors nor a checkpoint"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(beside, arguments, sentence):
    code, out, err = call(*[argument.replace("{m}", str(beside)) for argument in arguments])
    assert code == 2
    assert not out
    assert "error: " in err
    assert sentence in err


def test_foreign_damaged_and_pickled_files_are_refused(run, beside, tmp_path):
    shutil.copy(run / "model.safetensors", tmp_path / "alone.safetensors")
    assert "holds no run.json" in call(tmp_path / "alone.safetensors")[2]
    torch.save({}, tmp_path / "w.pt")
    assert (
        "pickled files are never opened"
        in call(f"{beside}:plain", "--input", "1x8x8", "--weights", tmp_path / "w.pt")[2]
    )
    assert (
        "does not fit Sequential"
        in call(f"{beside}:plain", "--input", "1x8x8", "--weights", tmp_path / "alone.safetensors")[2]
    )
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    (broken / "checkpoint-000000003.safetensors").write_bytes(b"no")
    assert "no whole checkpoint" in call(broken / "checkpoint-000000003.safetensors")[2]
    (broken / "run.json").write_text("{}")
    assert "it holds no recipe" in call(broken)[2]
