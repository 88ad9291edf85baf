"""Shrinking: the smaller model computes the same, what holds nothing goes, and what stays has its reason."""

from __future__ import annotations

import copy
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from shrink_cases import NETWORKS, emptied, images

pytest.importorskip("torch_pruning")

from weightspace.compress import load_shrunk, save_shrunk, save_sparse, shrink
from weightspace.errors import CompressError


def outputs(model, x, dtype=torch.float64):
    with torch.no_grad():
        found = copy.deepcopy(model).to(dtype).eval()(x.to(dtype))
    return torch.cat([entry.flatten() for entry in (found if isinstance(found, tuple) else (found,))])


def zero_(tensor, index):
    with torch.no_grad():
        tensor[index] = 0


# ---------------------------------------------------------------- equal outputs


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(NETWORKS)),
    seed=st.integers(0, 10_000),
    share=st.floats(0, 1),
    biases=st.floats(0, 1),
)
def test_outputs_are_equal_and_the_model_is_left_alone(name, seed, share, biases):
    model = emptied(name, seed, share, biases=biases)
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shrunk = shrink(model, images())
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    fresh = 3 * torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(seed + 1))
    wanted, found = outputs(model, fresh), outputs(shrunk.model, fresh)
    # A folded bias is rounded once to float32; without one only the order of sums differs.
    tolerance = 1e-5 if shrunk.folded else 1e-9
    assert (wanted - found).abs().max() <= tolerance * max(1.0, float(wanted.abs().max()))
    assert shrunk.parameters[1] <= shrunk.parameters[0]
    assert all(min(layer.outputs) >= 1 for layer in shrunk.layers)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_it_trains_on(name):
    shrunk = shrink(emptied(name, 3), images()).model.train()
    found = shrunk(images())
    (found[0] if isinstance(found, tuple) else found).square().sum().backward()
    for parameter in shrunk.parameters():
        assert parameter.grad is not None or name in ("squeezed", "depthwise")


# ---------------------------------------------------------------- known answers


def chain(*, padding=0, activation=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        activation(),
        nn.Conv2d(4, 5, 3, padding=padding),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def ready(model):
    model(torch.zeros(2, 2, 8, 8))
    return model.eval()


def test_a_plain_chain_loses_what_is_empty():
    model = ready(chain())
    for layer in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
        zero_(layer, [0, 2])
    zero_(model[3].weight, 4)
    zero_(model[3].bias, 4)
    shrunk = shrink(model, images())
    assert shrunk.removed == {"0": 2, "1": 2, "3": 1}
    assert shrunk.kept == ()
    assert shrunk.folded == 0
    small = shrunk.model
    assert small[0].weight.shape == (2, 2, 3, 3)
    assert (small[0].out_channels, small[1].num_features, small[3].in_channels) == (2, 2, 2)
    assert torch.equal(small[0].weight, model[0].weight[[1, 3]])
    assert torch.equal(small[1].running_var, model[1].running_var[[1, 3]])
    assert torch.equal(small[3].weight, model[3].weight[:4, [1, 3]])
    assert small[5].in_features == 4 * 16
    assert torch.equal(small[5].weight, model[5].weight[:, :64])
    assert shrunk.parameters == (
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in small.parameters()),
    )


def test_channels_that_nobody_reads_go_and_take_others_with_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    zero_(model[4].weight, (slice(None), [1, 3]))  # two of the second layer are not read
    with torch.no_grad():
        model[2].weight[:, 0] = 0
        model[2].weight[1, 0] = 1.0  # the first layer's channel 0 is read by one that goes
    shrunk = shrink(model, torch.randn(3, 4))
    assert shrunk.removed == {"0": 1, "2": 2}
    assert shrunk.difference < 1e-12


def test_a_constant_goes_into_the_bias_where_that_is_exact():
    for model in (ready(chain(activation=nn.Sigmoid)), ready(chain(activation=nn.GELU))):
        zero_(model[0].weight, 1)  # its bias and the batch norm make it a constant
        model[1].bias.data.normal_()
        model[3].bias = None  # a bias is made
        shrunk = shrink(model, images())
        assert shrunk.removed == {"0": 1, "1": 1}
        assert shrunk.folded == 1
        assert shrunk.model[3].bias is not None
        assert (outputs(model, images()) - outputs(shrunk.model, images())).abs().max() < 1e-6


def test_zero_padding_keeps_one_constant_for_all():
    model = ready(chain(padding=1))
    zero_(model[0].weight, [0, 1, 3])
    model[1].bias.data.copy_(torch.tensor([0.5, 2.0, 0.1, 1.0]))
    shrunk = shrink(model, images())
    assert shrunk.removed == {"0": 2, "1": 2}
    assert [(entry.layer, entry.channels) for entry in shrunk.kept] == [("0", (0,))]  # numbered as they are now
    assert "pads its input with zeros, so that its border would differ" in shrunk.kept[0].reason
    assert (outputs(model, images()) - outputs(shrunk.model, images())).abs().max() < 1e-5
    zero_(model[1].weight, [0, 1, 3])
    zero_(model[1].bias, slice(None))
    assert shrink(model, images()).removed == {"0": 3, "1": 3}  # ReLU of zero is zero, and padding adds zeros


def test_a_residual_sum_needs_all_branches_empty():
    model = emptied("resnet8 projection", 0, 0.0)
    block = model.layer2[0]
    for part in (block.conv2.weight, block.bn2.weight, block.bn2.bias):
        zero_(part, [0, 1])
    first = shrink(model, images())
    assert "layer2.0.conv2" not in first.removed
    assert any("another branch of a sum or product writes to them" in entry.reason for entry in first.kept)
    for part in (block.downsample[0].weight, block.downsample[1].weight, block.downsample[1].bias):
        zero_(part, 1)
    both = shrink(model, images())
    assert both.removed == dict.fromkeys(
        ["layer2.0.conv2", "layer2.0.bn2", "layer2.0.downsample.0", "layer2.0.downsample.1"], 1
    )


def test_the_parameter_free_shortcut_follows():
    model = emptied("resnet8", 0, 0.0)
    for layer in (model.conv1, model.layer1[0].conv2, model.layer2[0].conv2):  # channel 0 lives in all three
        zero_(layer.weight, 0)
    for norm in (model.bn1, model.layer1[0].bn2, model.layer2[0].bn2, model.layer3[0].bn2):
        zero_(norm.weight, 0)
        zero_(norm.bias, 0)
    for norm in (model.layer2[0].bn2, model.layer3[0].bn2):  # a channel that the shortcut appends
        zero_(norm.weight, 4)
        zero_(norm.bias, 4)
    shrunk = shrink(model, images())
    small = shrunk.model
    assert small.conv1.out_channels == 2
    assert small.layer2[0].conv2.out_channels == 4
    assert small.layer2[0].downsample.new_channels == 2
    assert small.fc.in_features == 10
    assert shrunk.difference < 1e-9


def test_a_layer_keeps_its_last_channel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    zero_(model[0].weight, slice(None))
    zero_(model[0].bias, slice(None))
    shrunk = shrink(model, torch.randn(2, 4))
    assert shrunk.removed == {"0": 2}
    assert "would be left without any channel" in shrunk.kept[0].reason
    assert str(shrunk.kept[0]).startswith("0: 1 empty channel stays: ")


def test_outputs_are_never_removed():
    model = nn.Sequential(nn.Linear(4, 3))
    zero_(model[0].weight, [0, 1])
    zero_(model[0].bias, [0, 1])
    shrunk = shrink(model, torch.randn(2, 4))
    assert shrunk.removed == {}
    assert shrunk.kept[0].reason == "they are outputs of the model"


def test_grouped_convolutions_lose_partners_only():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.Flatten(), nn.LazyLinear(3))
    ready(model)
    for part in (model[0].weight, model[0].bias):
        zero_(part, [0, 1, 4])  # 1 and 4 are partners, 0 and 3 are not both empty
    shrunk = shrink(model, images())
    assert shrunk.removed == {"0": 2}
    assert shrunk.model[2].weight.shape == (4, 2, 3, 3)
    assert "has groups, and their partners in the other groups stay" in shrunk.kept[0].reason


def test_depthwise_convolutions_follow():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6, bias=False),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1),
        nn.Flatten(),
    )
    zero_(model[0].weight, 2)
    zero_(model[0].bias, 2)
    zero_(model[2].weight, 5)
    shrunk = shrink(model, images())
    assert shrunk.removed == {"0": 2, "2": 2}
    assert shrunk.model[2].groups == 4


def test_what_cannot_be_followed_stays():
    model = emptied("chunked", 1, 0.6, biases=0.0)
    shrunk = shrink(model, images())
    assert "a" not in shrunk.removed
    assert any("Torch-Pruning cannot follow" in entry.reason for entry in shrunk.kept if entry.layer == "a")


def test_keep_protects_a_layer():
    model = ready(chain())
    for layer in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
        zero_(layer, 0)
    shrunk = shrink(model, images(), keep=["0"])
    assert shrunk.removed == {}
    assert "0 is named in keep" in shrunk.kept[0].reason


def test_modes_flags_formats_and_dtypes_are_the_models():
    model = ready(chain()).to(memory_format=torch.channels_last).train()
    model[1].eval()
    model[3].weight.requires_grad_(False)
    for layer in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
        zero_(layer, 0)
    small = shrink(model, images()).model
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert not small[3].weight.requires_grad
    assert small[0].weight.requires_grad
    assert small[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert shrink(copy.deepcopy(model).double(), images().double()).model[0].weight.dtype == torch.float64
    assert shrink(copy.deepcopy(model).bfloat16(), images().bfloat16()).model[0].weight.dtype == torch.bfloat16


def test_a_model_of_one_dtype_only_is_compared_in_it():
    class Single(nn.Sequential):
        def forward(self, x):
            return super().forward(x.float())

    model = Single(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    zero_(model[0].weight, 0)
    zero_(model[0].bias, 0)
    shrunk = shrink(model, torch.randn(2, 4))
    assert shrunk.removed == {"0": 1}


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_files_of_small_models_read_back(name, tmp_path):
    model = emptied(name, 5)
    shrunk = shrink(model, images())
    path = save_shrunk(shrunk.model, model, tmp_path / "small.safetensors")
    torch.manual_seed(99)
    read = load_shrunk(NETWORKS[name](), path).eval()
    assert torch.equal(outputs(read, images(), torch.float32), outputs(shrunk.model, images(), torch.float32))
    assert [repr(m) for m in read.modules() if not list(m.children())] == [
        repr(m) for m in shrunk.model.modules() if not list(m.children())
    ] or shrunk.folded
    again = shrink(read, images())
    assert again.removed == {}


def change_metadata(path, target, changes):
    with safe_open(path, framework="pt") as file:
        metadata, state = file.metadata(), list(file.keys())
        save_file({name: file.get_tensor(name) for name in state}, target, metadata={**metadata, **changes})


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_files_of_small_models_in_8_bits_are_smaller_and_close(name, tmp_path):
    model = emptied(name, 5)
    small = shrink(model, images()).model
    exact, rounded = (save_shrunk(small, model, tmp_path / f"{bits}", bits=bits) for bits in (None, 8))
    sizes = rounded.stat().st_size, exact.stat().st_size
    assert sizes[0] <= sizes[1]  # of tiny nets hardly more than a header, and nothing where all numbers are vectors
    assert name != "resnet8" or sizes[0] < 0.9 * sizes[1]
    read = load_shrunk(NETWORKS[name](), rounded).state_dict()
    for key, value in small.state_dict().items():
        torch.testing.assert_close(read[key], value, rtol=0, atol=float(value.abs().max()) / 253 if value.ndim else 0)


def test_foreign_and_damaged_files_are_refused(tmp_path):
    model = emptied("mlp", 5)
    path = save_shrunk(shrink(model, images()).model, model, tmp_path / "small.safetensors")
    with pytest.raises(CompressError, match="belongs to another model"):
        load_shrunk(emptied("vgg", 0), path)
    with pytest.raises(CompressError, match="the shrunk model and the model have different modules"):
        save_shrunk(model, emptied("vgg", 0), tmp_path / "x")
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    with pytest.raises(CompressError, match=r"no weightspace-sparse file; read it with safetensors.torch.load_file"):
        load_shrunk(model, tmp_path / "plain.safetensors")
    save_sparse(model, tmp_path / "whole.safetensors")
    with pytest.raises(CompressError, match=r"holds no shrunk model but a whole one; read it with load_sparse"):
        load_shrunk(model, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-20])
    for name, words in (("cut.safetensors", "truncated or damaged"), ("nowhere.safetensors", "cannot read")):
        with pytest.raises(CompressError, match=words):
            load_shrunk(model, tmp_path / name)
    for metadata, words in (
        ({"version": "2", "changes": "{}"}, "update weightspace"),
        ({"version": "1", "changes": "[1]"}, "its list of changes cannot be read"),
        ({"version": "1", "changes": '{"fc": {"forward": 3}}'}, "has no number forward"),
        ({"version": "1", "changes": '{"gone": {"in_features": 3}}'}, "this one has no gone"),
    ):
        change_metadata(path, tmp_path / "bad", metadata)
        with pytest.raises(CompressError, match=words):
            load_shrunk(model, tmp_path / "bad")


# ---------------------------------------------------------------- bad input and habits of the library beneath


def test_bad_input_is_one_sentence():
    model = emptied("mlp", 0)
    with pytest.raises(CompressError, match="give a tensor, or a tuple"):
        shrink(model, "cat")
    with pytest.raises(CompressError, match="does not run on the example input"):
        shrink(model, torch.zeros(2, 5))
    with pytest.raises(CompressError, match="keep names 'gone'"):
        shrink(model, images(), keep=["gone"])

    class Blind(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                return super().forward(x)

    with pytest.raises(CompressError, match=r"Torch-Pruning cannot follow Blind .* forward pass under torch.no_grad"):
        shrink(Blind(3, 2), torch.zeros(2, 3))


def test_a_missing_package_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(CompressError, match=r'torch_pruning; pip install "weightspace\[compress\]"'):
        shrink(emptied("mlp", 0), images())


def test_nothing_is_printed(capfd):
    shrink(emptied("squeezed", 0), images())
    assert capfd.readouterr() == ("", "")


def test_tables_show_what_changed():
    shrunk = shrink(emptied("mlp", 0), images())
    assert "parameters, outputs differ by" in repr(shrunk)
    assert shrunk.table().row_count == 3


def test_wrong_removals_are_not_accepted(monkeypatch):
    """The mutant: constants that are no zeros are dropped as if they were."""
    from weightspace.compress import _plan, shrinking

    monkeypatch.setattr(_plan, "fold", lambda *_: None)
    model = ready(chain(activation=nn.Sigmoid))
    zero_(model[0].weight, 1)
    assert shrink(model, images()).removed == {}
    monkeypatch.setattr(shrinking._Judge, "allowed", lambda *_: float("inf"))
    assert shrink(model, images()).removed == {"0": 1, "1": 1}
