"""`weightspace train` and `show` in folders of every kind: advice is followed literally, and nothing of value is lost."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from test_cli import TINY, call, error_line
from weightspace.files import read_json
from weightspace.training.lock import locked


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert call("train", recipe, "--out", folder)[0] == 0
    return folder


@pytest.fixture
def folder(tmp_path: Path, finished: Path) -> Path:
    """A finished run to do harm to."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def result_of(folder: Path) -> dict[str, object]:
    return {key: value for key, value in read_json(folder / "result.json").items() if not key.startswith("seconds")}


def remove(folder: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink()


Harm = Callable[[Path], object]
HARMS: dict[str, tuple[Harm, str]] = {
    "damaged run.json": (
        lambda run: (run / "run.json").write_text('{"rec'),
        "and a damaged run.json; go on with --resume",
    ),
    "no run.json": (
        lambda run: (run / "run.json").unlink(),
        "but no run.json; go on with --resume if they are of this run",
    ),
    "damaged result.json": (lambda run: (run / "result.json").write_text("{"), "write it anew with --resume"),
    "no result.json": (lambda run: (run / "result.json").unlink(), "unfinished; go on with --resume"),
    "all damaged": (
        lambda run: [(run / name).write_bytes(b"\xff") for name in ("run.json", "result.json", "metrics.jsonl")],
        "go on with --resume",
    ),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("harm", HARMS)
def test_after_harm_the_advice_to_resume_works(recipe: Path, finished: Path, folder: Path, harm: str) -> None:
    do, sentence = HARMS[harm]
    do(folder)
    before = content(folder)
    code, _, err = call("train", recipe, "--out", folder)
    assert code == 2
    assert sentence in error_line(err)
    assert content(folder) == before
    assert call("train", recipe, "--out", folder, "--resume")[0] == 0
    assert result_of(folder) == result_of(finished)
    assert (folder / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert call("train", recipe, "--out", folder, "--resume")[0] == 0


def test_checkpoints_alone_are_a_run(recipe: Path, finished: Path, folder: Path) -> None:
    remove(folder, "run.json", "result.json", "model.safetensors", "checkpoint-000000006.*")
    code, _, err = call("train", recipe, "--out", folder, "--resume", "--set", "train.optimizer.lr=0.2")
    assert code == 2
    assert "was written with other settings" in error_line(err)
    assert call("train", recipe, "--out", folder, "--resume")[0] == 0
    assert result_of(folder) == result_of(finished)
    assert read_json(folder / "run.json")["seed"] == 0


def test_other_settings_are_named_and_fresh_replaces(recipe: Path, folder: Path) -> None:
    before = content(folder)
    changes = ["--set", "train.epochs=1", "--set", "train.optimizer.options.momentum=0.5", "--seed", "2"]
    for flags in ([], ["--resume"]):
        code, _, err = call("train", recipe, "--out", folder, *changes, *flags)
        assert code == 2
        sentence = "(seed: 0 -> 2; train.epochs: 2 -> 1; train.optimizer.options.momentum: 0.9 -> 0.5)"
        assert sentence in error_line(err)
        assert content(folder) == before
    assert call("train", recipe, "--out", folder, *changes, "--fresh")[0] == 0
    assert read_json(folder / "result.json")["seed"] == 2


def test_files_of_others_are_kept_even_with_resume(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("precious")
    for flags in ([], ["--resume"]):
        code, _, err = call("train", recipe, "--out", tmp_path, *flags)
        assert code == 2
        assert "holds model.safetensors but no run.json; choose another folder" in error_line(err)
    assert (tmp_path / "model.safetensors").read_text() == "precious"


def test_a_recipe_that_fails_does_not_block_the_corrected_one(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    bad = ["--set", "train.batch_size=1000"]
    for flags in ([], ["--fresh"]):
        code, _, err = call("train", recipe, "--out", folder, *bad, *flags)
        assert code == 2
        assert "A batch of 1,000 was asked for" in error_line(err)
        assert not (folder / "run.json").exists()
    (folder / "run.json").write_text(json.dumps({"fingerprint": "another", "recipe": {}, "seed": 0}))
    (folder / "metrics.jsonl").write_text('{"kind": "layer"}\n')  # killed before its first checkpoint
    code, _, err = call("train", recipe, "--out", folder, "--set", "train.epochs=1")
    assert code == 0
    assert "held another run that had saved nothing; this one takes its place" in err
    assert '"kind": "layer"}' not in (folder / "metrics.jsonl").read_text()


def test_fresh_with_a_recipe_that_fails_keeps_the_old_run(recipe: Path, folder: Path) -> None:
    before = content(folder)
    assert call("train", recipe, "--out", folder, "--fresh", "--set", "train.batch_size=1000")[0] == 2
    assert content(folder) == before


def test_resuming_nothing_says_so(recipe: Path, tmp_path: Path) -> None:
    code, _, err = call("train", recipe, "--out", tmp_path / "run", "--resume", "--set", "train.epochs=1")
    assert code == 0
    assert "holds no checkpoint: training starts from the beginning" in err


def test_an_empty_out_is_no_folder(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call("train", recipe, "--out", "")
    assert code == 2
    assert "an empty name is no folder" in err
    assert not list(tmp_path.iterdir())


def test_a_second_process_is_refused(recipe: Path, folder: Path) -> None:
    before = content(folder)
    with locked(folder, "training"):
        for flags in ([], ["--resume"], ["--fresh"]):
            code, _, err = call("train", recipe, "--out", folder, *flags)
            assert code == 2
            assert "another process is training in" in error_line(err)
    assert content(folder) == before


def test_other_data_than_before_are_refused(recipe: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "result.json").unlink()
    before = content(folder)

    def other(settings: object) -> object:
        return load(settings).take(119, 60)

    from weightspace.training import session

    load = session.load_recipe_data
    monkeypatch.setattr(session, "load_recipe_data", other)
    code, _, err = call("train", recipe, "--out", folder, "--resume")
    assert code == 2
    assert "are not those that this run was started with" in error_line(err)
    assert content(folder) == before


FOLDER_DATA = ["--set", "data={name: folder, root: pictures}", "--set", "compare=null"]


def test_missing_and_truncated_data_are_one_sentence(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mnist = ["--set", "data={name: mnist, root: digits}"]
    code, _, err = call("train", recipe, "--out", "run", *mnist)
    assert code == 2
    assert "root='digits' for the data set 'mnist' does not exist" in error_line(err)
    Path("digits").mkdir()
    code, _, err = call("train", recipe, "--out", "run", *mnist)
    assert code == 2
    assert "holds no MNIST in a known format" in error_line(err)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        Path("digits", f"{name}-ubyte").write_bytes(b"\0\0\x08\x03\0\0")
    code, _, err = call("train", recipe, "--out", "run", *mnist)
    assert code == 2
    assert "digits" in error_line(err)
    assert call("train", recipe, "--out", "run", *FOLDER_DATA)[0] == 2
    assert {path.name for path in Path("run").iterdir()} <= {".lock"}


def test_show_needs_no_data(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rules = ["--set", "rules=[{rule: ChannelL2}]"]
    code, out, _ = call("show", recipe, *rules, "--set", "data={name: cifar10, root: nowhere}")
    assert code == 0
    assert "features.0.weight" in out
    assert re.search(r"features\.0\.weight +│ 4\W+3\W+3\W+3 ", out)
    code, out, err = call("show", recipe, *rules, *FOLDER_DATA)
    assert code == 0
    assert "root: pictures" in out
    assert "which parameters the rules act on depends on the images, which are not here: root='pictures'" in err


def test_show_routes_manifolds_and_tells_what_a_schedule_lacks(recipe: Path) -> None:
    optimizer = ["--set", "train.optimizer={name: SubmanifoldSGD, lr: 0.1}"]
    rules = ["--set", "rules=[{rule: Stiefel}, {rule: ChannelL2}]"]
    code, out, err = call("show", recipe, *optimizer, *rules, "--set", "train.schedule={name: cosine}")
    assert code == 0
    assert "Stiefel()" in out
    assert "ChannelL2()" in out
    assert "the schedule breaks a condition of convergence on manifolds, cosine" in err
    power = ["--set", "train.schedule={name: power, rate: 0.01, exponent: 0.75}"]
    assert "breaks a condition" not in call("show", recipe, *optimizer, *rules, *power)[2]
    assert "breaks a condition" not in call("show", recipe, *rules, "--set", "train.schedule={name: cosine}")[2]
    assert "breaks a condition" in call("show", recipe, *optimizer, "--set", "rules=[]")[2]


def test_a_full_disk_is_one_sentence(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, _: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = call("train", recipe, "--out", tmp_path / "run")
    assert code == 2
    assert "no space left on device; nothing is saved yet" in error_line(err)
    monkeypatch.undo()
    assert not list((tmp_path / "run").glob(".*.tmp"))
    assert call("train", recipe, "--out", tmp_path / "run")[0] == 0


def test_the_report_of_a_harmed_run_is_no_traceback(folder: Path) -> None:
    for name in ("run.json", "result.json", "metrics.jsonl"):
        (folder / name).write_bytes(b"\xff\n")
    code, _, err = call("report", folder)
    assert code == 0
    assert "report.html" in err
    (folder / "compare.json").write_bytes(b"\xff")
    code, _, err = call("report", folder)
    assert code == 2
    assert "compare.json is damaged" in error_line(err)


def test_an_unwritable_folder_is_one_sentence(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    code, _, err = call("train", recipe, "--out", tmp_path / "run")
    assert code == 2
    assert "permission denied" in error_line(err)


def test_another_torch_is_a_warning(recipe: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "result.json").unlink()
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    with pytest.warns(RuntimeWarning, match="not bit for bit"):
        assert call("train", recipe, "--out", folder, "--resume")[0] == 0


@pytest.mark.parametrize(
    ("when", "flags", "advice"),
    [
        ("loading", ["--fresh"], ["--fresh"]),
        ("loading", ["--resume"], ["--resume"]),
        ("first step", ["--fresh"], []),
        ("second epoch", ["--fresh"], ["--resume"]),
        ("second epoch", [], ["--resume"]),
    ],
)
def test_an_interruption_that_saves_nothing_names_a_command_that_works(
    recipe: Path,
    finished: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
    flags: list[str],
    advice: list[str],
) -> None:
    """As a second Ctrl-C: the process stops wherever it is."""
    from weightspace.training import session, steps

    if not flags:
        remove(folder, "*")
    (folder / "result.json").unlink(missing_ok=True)
    words = ["train", str(recipe), "--out", str(folder)]
    monkeypatch.setattr("sys.argv", ["weightspace", *words, *flags])
    evaluations = [0]
    evaluate = steps.evaluate

    def stop(*arguments: Any) -> Any:
        evaluations[0] += 1
        if when == "loading" or evaluations[0] == {"first step": 1, "second epoch": 2}[when]:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    place = (session, "load_recipe_data") if when == "loading" else (steps, "evaluate")
    with monkeypatch.context() as patch:
        patch.setattr(*place, stop)
        code, _, err = call(*words, *flags)
    assert code == 130
    assert error_line(err).startswith("error: interrupted; go on with: weightspace train ")
    program, *again = shlex.split(err.partition("go on with: ")[2])
    assert (program, again) == ("weightspace", [*words, *advice])
    assert call(*again)[0] == 0
    assert result_of(folder) == result_of(finished)
