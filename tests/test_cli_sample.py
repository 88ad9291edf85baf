"""`weightspace sample` and the report of chains as users meet them: files, table, pictures, Ctrl-C, and refusals."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from test_cli import call, command, environment, error_line
from weightspace.files import read_json
from weightspace.sampling import open_chains

pytestmark = pytest.mark.filterwarnings("ignore::weightspace.errors.TemperatureWarning")
TINY = """
name: tiny
description: for tests
data: {name: digits, train_size: 96, test_size: 60}
model: {name: mlp, options: {hidden: 8}}
train:
  epochs: 4
  batch_size: 32
  optimizer: {name: ConstrainedLangevin, lr: 0.02, options: {temperature: 1.0, weight_decay: 0.02}}
  measure_every: 1
sample: {chains: 2, max_samples: 5}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> tuple[Path, str, str]:
    folder = tmp_path_factory.mktemp("finished") / "run"
    code, out, err = call("sample", recipe, "--out", folder, "--workers", 1, "--accelerator", "cpu")
    assert code == 0, err
    return folder, out, err


def test_one_table_tells_what_averaging_is_worth(finished: tuple[Path, str, str]) -> None:
    folder, out, err = finished
    lines = out.splitlines()
    assert re.match(r"prediction of +averaged +accuracy, % +NLL +Brier score +calibration error", lines[0])
    names = (
        "the last weights of a chain",
        "the last weights of all chains, averaged",
        "the samples of a chain, averaged",
    )
    for line, name, count in zip(lines[1:4], names, (1, 2, 5), strict=True):
        assert re.match(rf"{name} +{count} +\d+\.\d \[\d+\.\d, \d+\.\d\] +\d\.\d+ \[", line), line
    assert lines[5].startswith("all chains − last point")
    assert "…" not in out
    assert "bootstrap over the 60 test images" in out
    assert "Averaging 10 samples of 2 chains changes the negative log-likelihood by" in out
    assert "Temperatures, chain by chain: euclidean" in out
    assert f"report: {folder / 'report.html'}" in err
    assert "functions of the network have not converged" in err


def test_the_files_are_there_and_hold_the_same_numbers(finished: tuple[Path, str, str]) -> None:
    folder, out, _ = finished
    results = read_json(folder / "sample.json")["results"]
    best = results["rows"][3]["nll"]["value"]
    assert f"{best:.3f}" in out.splitlines()[4]
    page, text = (folder / "report.html").read_text(), (folder / "sample.md").read_text()
    for phrase in (
        f"{best:.3f} [",
        "Have the chains converged?",
        "Temperatures",
        "Reliability of the average",
        "Traces",
    ):
        assert phrase in page
    assert page.count("data:image/png;base64,") == 5
    assert "http" not in page.split("<body>")[1]
    for name in ("predictions", "reliability-point", "reliability", "traces", "temperatures"):
        assert (folder / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"](plots/{name}.png)" in text
    for phrase in ("## Chain by chain", "| last point of chain 1 |", "## Temperatures", "## Convergence"):
        assert phrase in text
    assert "NaN" not in (folder / "sample.json").read_text()
    assert len(open_chains(folder)) == 2


def test_every_chain_is_a_run_that_other_commands_read(finished: tuple[Path, str, str]) -> None:
    folder, _, _ = finished
    assert read_json(folder / "chain-1" / "run.json")["seed"] == 1
    assert call("inspect", folder / "chain-1")[0] == 0


def test_report_is_written_again_and_the_table_printed(finished: tuple[Path, str, str]) -> None:
    folder, out, _ = finished
    code, again, _ = call("report", folder)
    assert code == 0
    assert again == out


def test_the_same_command_keeps_what_is_there(finished: tuple[Path, str, str], recipe: Path) -> None:
    folder, out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.glob("chain-*/*") if path.name != "samples.json"}
    code, again, _ = call("sample", recipe, "--out", folder, "--workers", 1, "--accelerator", "cpu")
    assert code == 0
    assert again == out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_folder_of_others_is_left_alone(finished: tuple[Path, str, str], recipe: Path, tmp_path: Path) -> None:
    folder, _, _ = finished
    for arguments, sentence in (
        (("--set", "train.epochs=5"), "holds chains of another recipe (train.epochs: 4 -> 5)"),
        (("--set", "sample.max_samples=2"), "holds chains of another recipe (sample.max_samples: 5 -> 2)"),
    ):
        code, _, err = call("sample", recipe, "--out", folder, *arguments)
        assert code == 2
        assert sentence in error_line(err)
    for name, what in (("compare.json", "a comparison"), ("run.json", "a single training run")):
        other = tmp_path / name
        other.mkdir()
        (other / name).write_text("{}")
        for flags in ((), ("--fresh",)):
            code, _, err = call("sample", recipe, "--out", other, *flags)
            assert (code, (other / name).read_text()) == (2, "{}")
            assert f"holds {what}; choose another folder with --out" in error_line(err)
    for command_ in ("train", "compare"):
        code, _, err = call(command_, "quickstart", "--out", folder)
        assert code == 2
        assert "holds sampled chains; choose another folder with --out" in error_line(err)


def test_chains_without_their_record_are_not_deleted(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "chain-0").mkdir()
    (tmp_path / "chain-0" / "precious").write_text("x")
    for flags in ((), ("--fresh",)):
        code, _, err = call("sample", recipe, "--out", tmp_path, *flags)
        assert code == 2
        assert "holds chains but no sample.json" in error_line(err)
    assert (tmp_path / "chain-0" / "precious").exists()


def test_bad_options_are_one_sentence(recipe: Path, tmp_path: Path) -> None:
    for arguments, sentence in (
        (("--set", "sample.burn_in_epochs=4"), "sample.burn_in_epochs (4) should be below train.epochs (4)"),
        (("--set", "sample.chain=3"), "did you mean 'sample.chains'?"),
        (("--set", "train.schedule={name: cyclical, cycles: 3}"), "should be a multiple of schedule.cycles (3)"),
        (("--accelerator", "warp"), "cannot use the accelerator 'warp'"),
        (("--set", "train.optimizer.options.temperature=-1"), "temperature"),
    ):
        code, _, err = call("sample", recipe, "--out", tmp_path / "run", *arguments)
        assert code == 2
        assert sentence in error_line(err)
        assert not (tmp_path / "run").exists()


def test_a_damaged_record_says_what_to_do(recipe: Path, finished: tuple[Path, str, str], tmp_path: Path) -> None:
    (tmp_path / "sample.json").write_text("{")
    code, _, err = call("sample", recipe, "--out", tmp_path)
    assert code == 2
    assert "is damaged" in error_line(err)
    assert "sample anew with --fresh" in err
    code, _, err = call("report", tmp_path)
    assert code == 2
    assert "is damaged" in error_line(err)


def test_a_report_of_unfinished_chains_says_so(finished: tuple[Path, str, str], tmp_path: Path) -> None:
    facts = read_json(finished[0] / "sample.json")
    del facts["results"]
    (tmp_path / "sample.json").write_text(json.dumps(facts))
    assert call("report", tmp_path)[0] == 0
    page = (tmp_path / "report.html").read_text()
    assert "No chain has begun." in page
    assert "the same command, without --fresh, goes on" in page


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_after_ctrl_c_the_same_command_goes_on_bit_for_bit(recipe: Path, tmp_path: Path, workers: int) -> None:
    options = ["--set", "train.epochs=60", "--set", "train.measure_every=10", "--workers", workers]
    words = command("sample", recipe, "--accelerator", "cpu", *options, "--out")
    process = subprocess.Popen(
        [*words, str(tmp_path / "stopped")], env=environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while not list((tmp_path / "stopped").glob("chain-0/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert "the same command continues" in err
    saved = sorted((tmp_path / "stopped" / "chain-0").glob("checkpoint-*"))
    assert saved
    env = environment()
    for name in ("stopped", "whole"):
        subprocess.run([*words, str(tmp_path / name)], env=env, check=True, capture_output=True, timeout=400)
    one, other = (
        {(s.chain, s.step): s.load() for store in open_chains(tmp_path / name) for s in store}
        for name in ("stopped", "whole")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(state[key], other[place][key]) for place, state in one.items() for key in state)


def test_show_names_the_sampler_and_asks_no_convergence_of_it() -> None:
    code, out, err = call("show", "quickstart-sample")
    assert code == 0
    assert "no rules: weightspace.optim.ConstrainedLangevin as it is" in out + err
    assert "convergence" not in out + err
