"""`weightspace compress`: the table, the files, fine-tuning with zeros kept, and what it says to bad input."""

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
from weightspace.cli.compress_table import as_table, in_bytes, in_millions
from weightspace.compress import load_shrunk, load_sparse, zeros
from weightspace.training.trained import trained_model

pytest.importorskip("torch_pruning")

RECIPE = """
name: tiny
data: {name: digits, train_size: 200, test_size: 100}
model: {name: vgg, options: {widths: [6, 8], convs_per_stage: 1, hidden: 12, dropout: 0.0, pooling: flatten}}
train: {epochs: 6, batch_size: 20, optimizer: {name: SGD, lr: 0.1, options: {momentum: 0.9}}}
"""

FACTORY = '''
"""A module beside the user."""
import torch
from torch import nn

def plain(width=4):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 2))

def with_example(width=4):
    return plain(width), torch.randn(3, 1, 8, 8)
'''


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["compress", *map(str, arguments)], terminal_width=200)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def cells(out: str) -> dict[str, list[str]]:
    """The rows of the table by stage; "as trained" is two words."""
    rows = [line.replace("as trained", "as-trained").split() for line in out.splitlines()[1:]]
    return {row[0]: row for row in rows if row}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are tested elsewhere."""
    from weightspace import compress

    real = compress.latency
    monkeypatch.setattr(compress, "latency", lambda *a, **k: real(*a, **{**k, "seconds": 0.0}))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(RECIPE)
    result = CliRunner().invoke(app, ["train", str(folder / "tiny.yaml"), "--out", str(folder / "out")])
    assert result.exit_code == 0, result.output
    return folder / "out"


def accuracy_of(run: Path) -> float:
    return json.loads((run / "result.json").read_text())["test_accuracy"]


def test_a_ratio_prunes_and_everything_is_measured_after(run, tmp_path):
    code, out, err = call(run, "--ratio", 0.75, "--output", tmp_path / "small", "--json", tmp_path / "all.json")
    assert code == 0, err
    found = json.loads((tmp_path / "small" / "compress.json").read_text())
    assert found == json.loads((tmp_path / "all.json").read_text())
    trained, pruned = found["stages"]
    assert [stage["stage"] for stage in found["stages"]] == ["as trained", "pruned"]
    assert trained["accuracy"] == accuracy_of(run) > 0.5
    state = load_sparse(tmp_path / "small" / "model.sparse.safetensors")
    model = trained_model(run).model
    dense = sum(p.numel() for p in model.parameters())
    assert trained["numbers"] == pruned["numbers"] == dense
    model.load_state_dict(state)
    assert zeros(model) == (pruned["zeros"], dense)
    weights = [p for p in model.parameters() if p.dim() > 1]
    assert sum(int((w == 0).sum()) for w in weights) == int(0.75 * sum(w.numel() for w in weights))
    file = tmp_path / "small" / "model.sparse.safetensors"
    assert pruned["bytes"]["sparse"] == file.stat().st_size == found["files"][file.name]["bytes"]
    assert pruned["bytes"]["sparse"] < pruned["bytes"]["plain"]
    assert found["files"][file.name]["accuracy"] == pruned["accuracy"]
    assert pruned["macs"] == trained["macs"]
    rows = cells(out)
    assert rows["pruned"][1] == f"{100 * pruned['zeros'] / dense:.1f}%"
    assert rows["pruned"][-1] == f"{100 * pruned['accuracy']:.2f}%"
    assert "accuracy: on all 100 test images" in err
    assert "times fewer nonzero numbers, a file" in err
    assert (run / "model.safetensors").exists()
    assert not any("small" in path.name for path in run.iterdir())


def test_channels_go_through_all_stages(run, tmp_path):
    folder = tmp_path / "small"
    arguments = ("--groups", "out", "--ratio", 0.4, "--fine-tune", 2, "--shrink", "--bits", 8)
    code, out, err = call(run, *arguments, "--output", folder, "--program", tmp_path / "model.pt2")
    assert code == 0, err
    found = json.loads((folder / "compress.json").read_text())
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert (
        list(stages)
        == ["as trained", "pruned", "fine-tuned", "shrunk", "8-bit"]
        == [name.replace("as-", "as ") for name in cells(out)]
    )
    assert stages["fine-tuned"]["zeros"] >= stages["pruned"]["zeros"] > 0  # zeros stayed zero
    assert stages["shrunk"]["accuracy"] == stages["fine-tuned"]["accuracy"]
    assert stages["shrunk"]["macs"] < 0.7 * stages["as trained"]["macs"]
    assert stages["shrunk"]["numbers"] < 0.7 * stages["as trained"]["numbers"]
    assert stages["8-bit"]["bytes"]["sparse"] < stages["shrunk"]["bytes"]["sparse"]
    model = trained_model(run).model
    before = model.classifier[-1].bias.detach().clone()
    small = load_shrunk(model, folder / "model.small.safetensors")
    assert not torch.equal(small.classifier[-1].bias, before)  # it was trained
    assert small.features[0].out_channels == 4  # 40 % of 6 are 2
    assert small.classifier[-1].out_features == 10  # a class is no channel
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    batch = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(loaded(batch), small.eval()(batch), rtol=1e-4, atol=1e-5)
    assert "model.pt2" in err
    assert "read back, its outputs differ by" in err


def test_a_loss_is_chosen_on_training_images(run):
    code, out, err = call(run, "--max-loss", 5)
    assert code == 0, err
    assert "tried, by accuracy on 40 training images" in err
    assert "no test image was looked at" in err
    assert float(cells(out)["pruned"][1].rstrip("%")) > 10


def test_without_a_threshold_the_zeros_that_are_there_count(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    state = load_file(copy / "model.safetensors")
    state["features.0.weight"][:2] = 0
    state["features.0.bias"][:2] = 0
    save_file(state, copy / "model.safetensors")
    code, out, err = call(copy, "--shrink")
    assert code == 0, err
    assert "the zeros that training left" in err
    assert "no model was written: give --output DIR" in err
    assert list(cells(out)) == ["as-trained", "shrunk"]


def test_checkpoints_are_taken_too(run):
    code, _, err = call(max(run.glob("checkpoint-*")), "--threshold", 0.01)
    assert code == 0
    assert "checkpoint-" in err


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"networks_{abs(hash(tmp_path))}"  # a fresh name: imported modules stay
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    return name


def test_a_users_model_has_no_accuracy_but_all_else(beside):
    arguments = ("w.safetensors", "--ratio", 0.5, "--groups", "out", "--shrink")
    code, out, err = call(*arguments, "--model", f"{beside}:with_example")
    assert code == 0, err
    assert cells(out)["shrunk"][-1] == "-"
    code, again, err = call(*arguments, "--model", f"{beside}:plain", "--input", "1x8x8", "--option", "width=4")
    assert code == 0, err
    assert cells(again)["shrunk"][1:6] == cells(out)["shrunk"][1:6]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere does not exist; give a run's folder"),
        (["."], "holds neither model.safetensors nor a checkpoint"),
        (["w.safetensors"], "so the model of w.safetensors is not known; name it as module:factory with --model"),
        (
            ["w.safetensors", "--model", "{m}:plain"],
            "returned a model but no example input; give its size with --input",
        ),
        (["w.safetensors", "--model", "{m}:plain", "--input", "cat"], "--input is 'cat'; give whole numbers"),
        (["w.safetensors", "--model", "{m}:with_example", "--option", "width=5"], "does not fit Sequential"),
        (["w.safetensors", "--model", "{m}:plain", "--set", "train.epochs=1"], "--set changes a recipe"),
        (["w.safetensors", "--model", "{m}:plain", "--max-loss", "1"], "--max-loss needs the data of a run's recipe"),
        (["w.safetensors", "--model", "{m}:plain", "--fine-tune", "1"], "--fine-tune needs the data of a run's recipe"),
        (["{m}.py", "--model", "{m}:with_example"], "pickled files are never opened"),
        (["{r}", "--input", "1x8x8"], "--input goes with --model module:factory"),
        (["{r}", "--ratio", "0.5", "--threshold", "0.1"], "--threshold and --ratio were given; give one of them"),
        (["{r}", "--ratio", "1.5"], "got --ratio 1.5"),
        (["{r}", "--threshold", "9"], "would set all 54 weights of features.0.weight to zero"),
        (["{r}", "--threshold", "9"], "or give --force"),
        (["{r}", "--groups", "out"], "--groups says what is pruned; give --threshold, --ratio or --max-loss as well"),
        (["{r}", "--groups", "rows", "--ratio", "0.5"], "--groups is 'rows'; choose out, kernel or in"),
        (["{r}", "--scope", "all", "--ratio", "0.5"], "--scope is 'all'; choose global or layer"),
        (["{r}", "--max-loss", "-1"], "--max-loss is -1; give points of accuracy"),
        (["{r}", "--bits", "4"], "--bits is 4; 8 is what there is"),
        (["{r}", "--ratio", "0.5", "--output", "w.safetensors"], "w.safetensors is a file"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(beside, run, arguments, sentence):
    code, out, err = call(*[argument.format(m=beside, r=run) for argument in arguments])
    assert code == 2, err
    assert not out
    assert "error: " in err
    assert sentence in err


def test_force_empties_a_layer(run):
    code, out, err = call(run, "--threshold", 9, "--force")
    assert code == 0, err
    assert float(cells(out)["pruned"][-1].rstrip("%")) < 30  # chance


def test_a_file_that_reads_back_differently_is_an_error(run, tmp_path, monkeypatch):
    from weightspace import compress

    real = compress.load_sparse
    monkeypatch.setattr(compress, "load_sparse", lambda path: {k: v * 1.01 for k, v in real(path).items()})
    code, _, err = call(run, "--ratio", 0.5, "--output", tmp_path / "x")
    assert code == 2
    assert "model.sparse.safetensors, read back, gives other outputs" in err
    assert not (tmp_path / "x" / "compress.json").exists()


def test_the_table_fits_in_80_columns(run):
    _, out, _ = call(run, "--ratio", 0.5)
    assert max(map(len, out.splitlines())) <= 80
    assert as_table([]).row_count == 0
    assert (in_bytes(2.5e9), in_millions(3_000_000_000)) == ("2.5 GB", "3.00 G")
