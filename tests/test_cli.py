from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from here_engine import run_here
from weightspace.cli.app import app
from weightspace.errors import RunError
from weightspace.files import read_json

TINY = """
name: tiny
description: for tests
data: {name: digits, train_size: 120, test_size: 60}
model: {name: vgg, options: {widths: [4, 8], convs_per_stage: 1, hidden: [], dropout: 0.1}}
train:
  epochs: 2
  batch_size: 32
  optimizer: {name: SGD, lr: 0.1, options: {momentum: 0.9}}
  measure_every: 2
compare:
  baseline: tuned SGD
  seeds: 2
  tune: {grid: {train.optimizer.lr: [0.05, 0.1]}}
  arms:
    tuned SGD: {}
    ChannelL2: {rules: [{rule: ChannelL2, smoothing: 4.0}]}
"""
LONG = ["--set", "train.epochs=100000"]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def call(*arguments: object) -> tuple[int, str, str]:
    """Run a command in this process; (exit code, stdout, stderr)."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from weightspace.cli import main; main()", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def error_line(stderr: str) -> str:
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert "Traceback" not in stderr
    return stderr


def test_help_names_every_command() -> None:
    code, out, _ = call("--help")
    assert code == 0
    for name in ("compare", "train", "sample", "report", "recipes", "show", "inspect", "verify", "Exit codes"):
        assert name in out
    for name in ("compare", "train", "sample", "report", "recipes", "show", "inspect", "verify"):
        assert call(name, "--help")[0] == 0


def test_version_and_recipes() -> None:
    code, out, _ = call("--version")
    assert code == 0
    assert out.startswith("weightspace ")
    code, out, _ = call("recipes")
    assert code == 0
    assert "quickstart" in out


def test_show_prints_recipe_and_routing(recipe: Path) -> None:
    code, out, err = call("show", recipe, "--set", "train.epochs=7")
    assert code == 0
    assert "epochs: 7" in out
    assert "features.0.weight" in out
    assert "rules of the arm 'ChannelL2'" in err
    code, out, err = call("show", recipe, "--arm", "tuned SGD")
    assert code == 0
    assert "no rules" in err


def test_train_then_train_again(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, out, _ = call("train", recipe, "--out", folder, "--seed", 3)
    assert code == 0
    assert "test accuracy" in out
    names = {path.name for path in folder.iterdir()}
    assert {"run.json", "metrics.jsonl", "result.json", "model.safetensors"} <= names
    assert read_json(folder / "run.json")["data"]["train"] == 120
    before = (folder / "result.json").read_bytes()
    code, _, err = call("train", recipe, "--out", folder, "--seed", 3)
    assert code == 0
    assert "already finished" in err
    code, _, err = call("train", recipe, "--out", folder, "--seed", 4)
    assert code == 2
    assert "holds another run (seed: 3 -> 4)" in error_line(err)
    assert "--out" in err
    assert "--fresh" in err
    assert (folder / "result.json").read_bytes() == before
    assert call("train", recipe, "--out", folder, "--seed", 4, "--fresh")[0] == 0
    assert read_json(folder / "result.json")["seed"] == 4


def test_bad_input_is_one_line_and_code_2(recipe: Path, tmp_path: Path) -> None:
    for arguments, sentence in [
        (["train", recipe, "--set", "train.epocs=3"], "did you mean 'train.epochs'?"),
        (["train", recipe, "--set", "train.epochs"], "write key=value"),
        (["train", "quickstrat"], "did you mean 'quickstart'?"),
        (["train", recipe, "--out", recipe], "is a file"),
        (["train", recipe, "--out", tmp_path / "a", "--accelerator", "gpuu"], "cannot use the accelerator 'gpuu'"),
        (["compare", recipe, "--set", "compare.seeds=0"], "compare.seeds should be greater"),
        (["compare", recipe, "--out", recipe], "is a file"),
        (["report", tmp_path / "nothing"], "does not exist"),
        (["report", tmp_path], "holds neither compare.json"),
        (["show", recipe, "--arm", "Adam"], "its arms are tuned SGD, ChannelL2"),
    ]:
        code, _, err = call(*arguments)
        assert code == 2, arguments
        assert sentence in error_line(err), arguments


def test_a_wrong_option_has_code_2() -> None:
    assert call("train", "quickstart", "--epochs", "3")[0] == 2
    assert call("trian")[0] == 2


def test_a_diverged_run_has_code_1(recipe: Path, tmp_path: Path) -> None:
    code, _, err = call("train", recipe, "--out", tmp_path / "run", "--set", "train.optimizer.lr=1e30")
    assert code == 1
    assert "the run diverged: the training loss became non-finite at step" in error_line(err)
    assert read_json(tmp_path / "run" / "result.json")["status"] == "diverged"


def test_a_half_written_run_is_refused_until_fresh(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert call("train", recipe, "--out", folder)[0] == 0
    (folder / "result.json").write_text('{"status": "do')
    code, _, err = call("train", recipe, "--out", folder)
    assert code == 2
    assert "result.json is damaged" in error_line(err)
    (folder / "result.json").unlink()
    code, _, err = call("train", recipe, "--out", folder)
    assert code == 2
    assert "unfinished; go on with --resume" in error_line(err)
    assert call("train", recipe, "--out", folder, "--resume")[0] == 0
    (folder / "run.json").write_text("")
    code, _, err = call("train", recipe, "--out", folder)
    assert code == 2
    assert "damaged run" in error_line(err)
    assert call("train", recipe, "--out", folder, "--fresh")[0] == 0


def test_kinds_of_runs_are_not_mixed(recipe: Path, tmp_path: Path) -> None:
    assert call("train", recipe, "--out", tmp_path / "run")[0] == 0
    code, _, err = call("compare", recipe, "--out", tmp_path / "run")
    assert code == 2
    assert "holds a single training run" in error_line(err)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "compare.json").write_text("{}")
    code, _, err = call("train", recipe, "--out", tmp_path / "other")
    assert code == 2
    assert "holds a comparison" in error_line(err)


def test_a_bug_shows_its_traceback(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("weightspace.training.loop.train_run", bug)
    with pytest.raises(ZeroDivisionError):
        call("train", recipe, "--out", tmp_path / "run")

    def refused(*_: object, **__: object) -> None:
        raise RunError("said so")

    monkeypatch.setattr("weightspace.training.loop.train_run", refused)
    assert call("train", recipe, "--out", tmp_path / "run", "--fresh") == (2, "", "error: said so\n")


def test_without_the_extra_one_sentence_says_what_to_install() -> None:
    block = "import sys; sys.modules['pydantic'] = None; from weightspace.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", block, "recipes"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert error_line(done.stderr).endswith('run: pip install "weightspace[train]"\n')


def train_until(folder: Path, arguments: list[str], number: signal.Signals) -> tuple[int, str]:
    """Run a command until it has saved a new checkpoint, send the signal; (exit code, stderr)."""
    before = set(folder.glob("checkpoint-*"))
    process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True, env=environment())
    deadline = time.monotonic() + 90
    while not set(folder.glob("checkpoint-*")) - before and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=90)
    return process.returncode, err


def newest_step(folder: Path) -> int:
    return int(max(folder.glob("checkpoint-*")).stem.removeprefix("checkpoint-"))


def test_interrupted_and_resumed_by_the_command_that_the_message_names(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["train", str(recipe), "--out", str(folder), "--accelerator", "cpu", "--fresh", *LONG]
    code, err = train_until(folder, options, signal.SIGINT)
    assert code == 130
    first = newest_step(folder)
    assert f"stopped at step {first} of" in error_line(err)
    assert f"the state is saved in {folder}; go on with: weightspace train " in err
    records = (folder / "metrics.jsonl").read_text()
    program, *words = shlex.split(err.partition("go on with: ")[2])
    assert program == "weightspace"
    code, err = train_until(folder, words, signal.SIGTERM)
    assert code == 143
    assert newest_step(folder) > first
    assert (folder / "metrics.jsonl").read_text().startswith(records)  # it went on: what was there stays as it is
    assert shlex.split(err.partition("go on with: ")[2]) == [program, *words]
    (resumed,) = read_json(folder / "run.json")["resumed"]
    assert resumed["step"] == first


def test_compare_end_to_end(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    run = command("compare", recipe, "--out", folder, "--workers", 2)
    first = subprocess.run(run, capture_output=True, text=True, env=environment(), check=False, timeout=120)
    assert first.returncode == 0, first.stderr
    assert "ChannelL2" in first.stdout
    assert "Traceback" not in first.stderr
    for name in ("compare.json", "table.json", "table.md", "report.html"):
        assert (folder / name).stat().st_size > 0, name
    assert json.loads((folder / "table.json").read_text())
    results = {path: path.read_bytes() for path in folder.glob("arms/*/*/*/result.json")}
    assert len(results) == 2 * 2 + 2 * 2  # two arms: two trials and two seeds each
    code, out, _ = call("compare", recipe, "--out", folder)
    assert code == 0
    assert "ChannelL2" in out
    assert {path: path.read_bytes() for path in results} == results  # nothing was trained again
    assert call("report", folder)[0] == 0
    code, _, err = call("compare", recipe, "--out", folder, "--set", "train.epochs=1")
    assert code == 2
    assert "holds a comparison of another recipe (train.epochs: 2 -> 1)" in error_line(err)
    assert {path: path.read_bytes() for path in results} == results
    html = (folder / "report.html").read_text()
    assert "http://" not in html.replace("http://www.w3.org", "")  # self-contained


def test_the_trained_weights_load_into_the_model(recipe: Path, tmp_path: Path) -> None:
    from weightspace.training.models import build_model

    assert call("train", recipe, "--out", tmp_path / "run")[0] == 0
    options = {"widths": [4, 8], "convs_per_stage": 1, "hidden": [], "dropout": 0.1}
    model = build_model("vgg", in_channels=1, image_size=8, num_classes=10, **options)
    model.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def test_compare_refuses_before_it_touches_anything(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    gone = ["--set", "data.name=folder", "--set", f"data.root={tmp_path / 'gone'}"]
    for arguments, sentence in [
        (["--accelerator", "gpuu"], "cannot use the accelerator 'gpuu'"),
        (["--set", "compare.arms.ChannelL2.set={data.test_size: 30}"], "sets data.test_size to 30 (the recipe: 60)"),
        (gone, "gone"),  # the data are loaded once before any worker starts
    ]:
        code, _, err = call("compare", recipe, "--out", folder, *arguments)
        assert code == 2, arguments
        assert sentence in error_line(err), arguments
        assert not (folder / "compare.json").exists()
        assert not (folder / "arms").exists()
    assert call("compare", recipe, "--out", "")[0] == 2


def test_compare_logs_every_run_and_a_corrected_recipe_takes_the_folder(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here(monkeypatch)
    folder = tmp_path / "comparison"
    small = ["--out", folder, "--workers", 1, "--accelerator", "cpu", "--set", "compare.tune=null"]
    small += ["--set", "compare.seeds=1", "--set", "train.epochs=1"]
    monkeypatch.setattr(sys, "argv", ["weightspace", "compare", "--fresh"])  # what the sentence tells to leave out
    code, _, err = call("compare", recipe, *small, "--fresh", "--set", "train.batch_size=5000")
    assert code == 2
    assert err.count("error: ") == 1
    assert "the same command without --fresh continues" in err
    code, _, err = call("compare", recipe, *small)
    assert code == 0, err
    assert "[1/2] " in err
    assert "[2/2] " in err
    assert "error" not in err


def test_fresh_deletes_nothing_but_an_idle_comparison(recipe: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "plots").mkdir(parents=True)
    (mine / "plots" / "figure.png").write_text("mine")
    code, _, err = call("compare", recipe, "--out", mine, "--fresh")
    assert code == 2
    assert "deletes only comparisons" in error_line(err)
    code, _, err = call("compare", recipe, "--set", "compare=null", "--out", mine, "--fresh")
    assert code == 2
    assert (mine / "plots" / "figure.png").read_text() == "mine"


def test_train_overwrites_nothing_that_it_does_not_know(recipe: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "model.safetensors").write_text("precious")
    code, _, err = call("train", recipe, "--out", mine)
    assert code == 2
    assert "model.safetensors but no run.json" in error_line(err)
    assert (mine / "model.safetensors").read_text() == "precious"
    code, _, err = call("train", recipe, "--out", mine, "--resume", "--fresh")
    assert code == 2
    assert "give one of them" in error_line(err)


def test_weights_lost_at_the_last_step_count_as_diverged(recipe: Path, tmp_path: Path) -> None:
    options = ["train.epochs=1", "train.batch_size=120", "train.optimizer.lr=1e30"]
    code, _, err = call("train", recipe, "--out", tmp_path / "run", *(x for o in options for x in ("--set", o)))
    assert code == 1
    assert "test loss became non-finite" in error_line(err)
