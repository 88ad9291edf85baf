"""What is measured: zeros, bytes of real files, multiply-adds, times."""

from __future__ import annotations

import time
import zipfile

import pytest
import torch
from torch import nn

from weightspace.compress import count_macs, file_sizes, latency, load_sparse, save_sparse, zeros
from weightspace.errors import CompressError
from weightspace.training.models import build_model


def sparse_layer(share=0.05):
    torch.manual_seed(0)
    layer = nn.Linear(200, 100)
    with torch.no_grad():
        layer.weight *= torch.rand(100, 200) < share
    return layer


def test_zeros_are_those_of_all_parameters():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, -0.0, 1.0], [2.0, 3.0, 0.0]]))
        layer.bias.copy_(torch.tensor([0.0, 1.0]))
    assert zeros(layer) == (4, 8)


@pytest.mark.parametrize(
    ("model", "shape", "macs"),
    [
        (nn.Linear(10, 4), (3, 10), 3 * 40),
        (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 5, 6), 2 * 5 * 6 * 8 * 27),
        (nn.Conv2d(4, 8, 3, stride=2, groups=2), (1, 4, 9, 9), 16 * 8 * 18),
        (nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)), (1, 2, 4), 3 * 3 * 4 + 18),
    ],
)
def test_multiply_adds_are_those_of_the_formulas(model, shape, macs):
    assert count_macs(model, torch.zeros(shape)) == macs


def test_counting_leaves_the_mode_and_the_statistics_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5)).train()
    model[2].eval()
    before = model[1].running_mean.clone()
    count_macs(model, torch.randn(2, 1, 5, 5))
    latency([model], torch.randn(2, 1, 5, 5), seconds=0.0)
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert torch.equal(model[1].running_mean, before)


def test_sizes_are_those_of_real_files(tmp_path):
    from safetensors.torch import save_file

    layer = sparse_layer()
    sizes = file_sizes(layer)
    save_file(layer.state_dict(), tmp_path / "plain")
    save_sparse(layer, tmp_path / "sparse")
    with zipfile.ZipFile(tmp_path / "zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.write(tmp_path / "plain", "model.safetensors")
    assert sizes.plain == (tmp_path / "plain").stat().st_size
    assert sizes.sparse == (tmp_path / "sparse").stat().st_size
    assert sizes.zipped == (tmp_path / "zip").stat().st_size
    assert sizes.plain > 80_000 > 5 * sizes.sparse  # a thousand of 20,000 numbers are left
    assert file_sizes(layer, bits=8).sparse < sizes.sparse
    assert file_sizes(layer.state_dict()) == sizes
    assert torch.equal(load_sparse(tmp_path / "sparse")["weight"], layer.weight)


def test_sizes_of_a_dense_model_with_tied_weights():
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    model[1].weight = model[0].weight
    assert file_sizes(model).plain > 2 * 20 * 20 * 4


class Slow(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return x


def test_latency_is_a_ratio_to_the_first():
    first, second = latency([Slow(0.006), Slow(0.002)], torch.zeros(1), seconds=0.3)
    assert (first.ratio, first.low, first.high) == (1.0, 1.0, 1.0)
    assert first.seconds >= 0.006
    assert second.low <= second.ratio <= second.high
    assert second.ratio > 1.5
    assert first.threads == 1


def test_threads_are_given_back():
    before = torch.get_num_threads()
    assert latency([nn.Identity()], torch.zeros(1), seconds=0, threads=None)[0].threads == before
    latency([nn.Identity()], torch.zeros(1), seconds=0, threads=1)
    assert torch.get_num_threads() == before
    with pytest.raises(RuntimeError, match="broken"):
        latency([Broken()], torch.zeros(1))
    assert torch.get_num_threads() == before


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken")


def test_bad_input_is_one_sentence():
    with pytest.raises(CompressError, match="at least one model and three turns, not 0 and 30"):
        latency([], torch.zeros(1))
    with pytest.raises(CompressError, match="not 1 and 2"):
        latency([nn.Identity()], torch.zeros(1), repeats=2)
    with pytest.raises(CompressError, match="give a tensor, or a tuple"):
        count_macs(nn.Identity(), 3)


def test_macs_of_a_network_of_the_library():
    model = build_model("vgg", in_channels=1, image_size=8, num_classes=3, widths=[4, 6], convs_per_stage=1, hidden=[])
    assert count_macs(model, torch.zeros(5, 1, 8, 8)) == 5 * (64 * 4 * 9 + 16 * 6 * 36 + 6 * 3)
