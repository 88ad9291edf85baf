"""Exported files give the model's outputs, or are not written."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shrink_cases import emptied, images
from weightspace.compress import export_onnx, export_program, shrink
from weightspace.errors import CompressError, RunError

ONNX = ("onnx", "onnxscript", "onnxruntime")


@pytest.fixture(scope="module")
def small():
    pytest.importorskip("torch_pruning")
    return shrink(emptied("resnet8", 2), images(), random_inputs=1).model.train()


def test_a_program_gives_the_same_outputs_where_weightspace_is_not(small, tmp_path):
    exported = export_program(small, images(4), tmp_path / "deep" / "model.pt2")
    assert exported.path.stat().st_size == exported.bytes
    assert exported.difference <= 1e-6
    assert exported.batch_sizes == (4, 1, 3)
    assert small.training
    save_file({"x": images(6), "y": small.eval()(images(6)).detach()}, tmp_path / "data.safetensors")
    small.train()
    code = (
        "import sys, torch; from safetensors.torch import load_file; d = load_file('data.safetensors')\n"
        "found = torch.export.load('deep/model.pt2').module()(d['x'])\n"
        "torch.testing.assert_close(found, d['y'], rtol=1e-4, atol=1e-5); assert 'weightspace' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_onnx_gives_the_same_outputs_for_batches_of_any_size(small, tmp_path):
    for name in ONNX:
        pytest.importorskip(name)
    import onnxruntime

    exported = export_onnx(small, images(1), tmp_path / "model.onnx")
    assert exported.batch_sizes == (1, 3)
    assert exported.difference < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]  # one file, its weights in it
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images(9).numpy()})
    torch.testing.assert_close(torch.from_numpy(found), small.eval()(images(9)).detach(), rtol=1e-4, atol=1e-5)
    small.train()


def test_several_inputs_and_outputs(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x, y):
            return self.layer(x + y), {"sum": x.sum(1)}

    exported = export_program(Two(), (torch.randn(2, 3), torch.randn(2, 3)), tmp_path / "m.pt2")
    assert exported.difference == 0.0


class Branching(nn.Module):
    def forward(self, x):
        return x + 1 if float(x.sum()) > 0 else x - 1


def test_what_cannot_be_exported_or_differs_is_not_written(tmp_path, monkeypatch):
    (tmp_path / "m.pt2").write_text("earlier")
    with pytest.raises(CompressError, match=r"torch cannot export Branching to m.pt2 .* control flow that depends"):
        export_program(Branching(), torch.randn(2, 3), tmp_path / "m.pt2")
    monkeypatch.setattr(torch.export, "save", _save_changed)  # a mutant of the exporter
    with pytest.raises(
        CompressError, match=r"m.pt2 was not written: its outputs differ from the model's by .* allowed"
    ):
        export_program(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "m.pt2")
    assert (tmp_path / "m.pt2").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"]


_SAVE = torch.export.save


def _save_changed(program, stream):
    for tensor in program.state_dict.values():
        tensor.data.add_(0.1)
    _SAVE(program, stream)


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        export_program(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "file" / "m.pt2")


def test_a_missing_package_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(CompressError, match=r'ONNX needs onnx; pip install "weightspace\[export\]"'):
        export_onnx(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "m.onnx")
