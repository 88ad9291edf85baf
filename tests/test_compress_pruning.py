"""Pruning: exactly the smallest, whole channels, tied weights once, nothing emptied, the largest ratio within a bound."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from itertools import chain
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import weightspace as ws
from weightspace.compress import Masks, prune, prune_to, pruning
from weightspace.errors import CompressError, SelectionError


def network():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 3, groups=2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


WEIGHTS = ("0.weight", "3.weight", "5.weight")


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model, before):
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def linear(*rows):
    weight = torch.tensor(rows)
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.weight.data.copy_(weight)
    return layer


# ---------------------------------------------------------------- single numbers


def test_a_threshold_takes_what_is_at_most_as_large():
    layer = linear([0.5, -0.5, 0.25, -1.0, 0.5000001])
    bias = layer.bias.clone()
    masks = prune(layer, threshold=0.5)
    assert layer.weight.tolist() == [[0.0, 0.0, 0.0, -1.0, pytest.approx(0.5000001)]]
    assert not layer.weight.signbit()[layer.weight == 0].any()
    assert torch.equal(layer.bias, bias)
    assert isinstance(masks, Masks)
    assert masks.zeros == 0.6
    assert masks["weight"].tolist() == [[False, False, False, True, True]]


@given(
    st.lists(st.integers(-4, 4), min_size=2, max_size=40),
    st.decimals(0, 1, places=2),
    st.sampled_from(["global", "layer"]),
)
@settings(max_examples=150, deadline=None)
def test_a_ratio_takes_exactly_the_smallest_and_the_first_of_equals(numbers, ratio, scope):
    cut = len(numbers) // 3 + 1
    halves = [numbers[:cut], numbers[cut:] or [9]]
    model = nn.Sequential(*(linear([float(x) for x in half]) for half in halves))
    prune(model, ratio=float(ratio), scope=scope, force=True)
    groups = [list(chain(*halves))] if scope == "global" else halves
    got = [layer.weight.flatten().tolist() for layer in model]
    for group, pruned in zip(groups, [list(chain(*got))] if scope == "global" else got, strict=True):
        # Slow and obvious: sort by (magnitude, place), take floor(ratio * n).
        order = sorted(range(len(group)), key=lambda i, g=group: (abs(g[i]), i))
        gone = set(order[: math.floor(Fraction(str(ratio)) * len(group))])
        assert pruned == [0.0 if i in gone else float(x) for i, x in enumerate(group)]


def test_the_ratio_counts_as_it_is_written():
    assert math.floor(0.29 * 100) == 28  # binary numbers
    layer = linear([float(k) for k in range(1, 101)])
    assert prune(layer, ratio=0.29).zeros == 0.29


def test_zeros_that_are_there_count():
    layer = linear([0.0, -0.0, 0.0, 4.0, 1.0, 2.0, 3.0, 5.0])
    assert prune(layer, ratio=0.5).zeros == 0.5
    assert layer.weight.tolist() == [[0.0, 0.0, 0.0, 4.0, 0.0, 2.0, 3.0, 5.0]]
    before = layer.weight.clone()
    assert prune(layer, ratio=0.25).zeros == 0.5
    assert torch.equal(layer.weight, before)


def test_global_compares_layers_and_layer_does_not():
    model = nn.Sequential(linear([1.0, 2.0, 3.0, 30.0]), linear([10.0, 20.0, 40.0, 50.0]))
    twin = copy.deepcopy(model)
    prune(model, ratio=0.5)
    assert [layer.weight.tolist() for layer in model] == [[[0, 0, 0, 30]], [[0, 20, 40, 50]]]
    prune(twin, ratio=0.5, scope="layer")
    assert [layer.weight.tolist() for layer in twin] == [[[0, 0, 3, 30]], [[0, 0, 40, 50]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_and_layouts(dtype):
    model = network()
    model[0].to(dtype=dtype, memory_format=torch.channels_last)
    masks = prune(model, ratio=0.7)
    total = sum(p.numel() for n, p in model.named_parameters() if n in WEIGHTS)
    assert sum(int((p == 0).sum()) for n, p in model.named_parameters() if n in WEIGHTS) == 7 * total // 10
    assert all(torch.equal(masks[name], model.get_parameter(name) != 0) for name in WEIGHTS)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    kept = torch.cat([model.get_parameter(n)[masks[n]].abs().double() for n in WEIGHTS])
    assert kept.min() > 0


def test_default_selection_and_on():
    model = network()
    before = state_of(model)
    assert list(prune(model, ratio=0.5)) == list(WEIGHTS)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items() if n not in WEIGHTS)
    assert list(prune(network(), ratio=0.5, on=ws.on.linears)) == ["5.weight"]
    assert list(prune(network(), threshold=0.1, on=ws.on.biases)) == ["0.bias", "1.bias", "3.bias", "5.bias"]


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    model[1].weight = model[0].weight
    masks = prune(model, ratio=0.35)
    assert list(masks) == ["0.weight"]
    assert int((model[1].weight == 0).sum()) == 35


def test_wrapped_models_and_frozen_weights():
    model = network()
    model[0].weight.requires_grad_(False)
    twin = copy.deepcopy(model)
    prune(nn.DataParallel(model), ratio=0.5)
    prune(twin, ratio=0.5)
    assert_unchanged(model, twin.state_dict())


def test_infinity_is_large():
    layer = linear([1.0, math.inf, 2.0])
    prune(layer, ratio=0.7)
    assert layer.weight.tolist() == [[0.0, math.inf, 0.0]]


# ---------------------------------------------------------------- groups


def slow_groups(model, name, groups):
    """Which entries belong to which group, channel by channel, by what the layer computes: (mask, rms) of each."""
    layer = model.get_submodule(name.removesuffix(".weight"))
    weight = layer.weight.detach().double()
    convolution = not isinstance(layer, nn.Linear)
    transposed = isinstance(layer, nn.ConvTranspose2d)
    g = layer.groups if convolution else 1
    outs, ins = (layer.out_channels, layer.in_channels) if convolution else (layer.out_features, layer.in_features)
    found = {}
    for o in range(outs):
        for i in range(ins):
            if o * g // outs != i * g // ins:  # another group: not connected
                continue
            place = (i, o % (outs // g)) if transposed else (o, i % (ins // g))
            key = {"out": o, "in": i, "kernel": (o, i)}[groups]
            found.setdefault(key, torch.zeros_like(weight, dtype=torch.bool))[place] = True
    return [(mask, weight[mask].square().mean().sqrt().item()) for mask in found.values()]


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("groups", ["out", "in", "kernel"])
def test_groups_of_smallest_root_mean_square_go(groups, scope):
    model = network()
    with torch.no_grad():  # sizes that differ from layer to layer, and from group to group
        for layer in (model[0], model[3], model[5]):
            layer.weight.mul_(torch.rand(layer.weight.shape[0]).view(-1, *[1] * (layer.weight.ndim - 1)) + 0.3)
            layer.weight.mul_(torch.rand(layer.weight.shape[1]).view(1, -1, *[1] * (layer.weight.ndim - 2)) + 0.3)
    names = [n for n in WEIGHTS if groups != "kernel" or n != "5.weight"]
    expected = {name: torch.zeros_like(model.get_parameter(name), dtype=torch.bool) for name in names}
    listed = [(rms, name, mask) for name in names for mask, rms in slow_groups(model, name, groups)]
    for chosen in [listed] if scope == "global" else [[e for e in listed if e[1] == n] for n in names]:
        for _, name, mask in sorted(chosen, key=lambda e: e[0])[: math.floor(0.4 * len(chosen))]:
            expected[name] |= mask
    masks = prune(model, ratio=0.4, scope=scope, groups=groups)
    for name, mask in expected.items():
        assert torch.equal(masks[name], ~mask), name
        assert torch.equal(model.get_parameter(name) == 0, mask)


def test_a_threshold_of_groups_is_their_root_mean_square():
    layer = linear([3.0, 4.0], [0.0, 1.0])
    rms = math.sqrt(12.5)
    twin = copy.deepcopy(layer)
    prune(layer, threshold=rms * 0.999, groups="out")
    assert layer.weight.tolist() == [[3.0, 4.0], [0.0, 0.0]]
    with pytest.raises(CompressError, match="nothing would pass"):
        prune(twin, threshold=rms * 1.001, groups="out")


def test_an_emptied_output_channel_is_zero_whatever_comes_in():
    model = network()
    masks = prune(model, ratio=0.5, groups="out", scope="layer")
    assert list(masks) == [*WEIGHTS, "0.bias", "3.bias", "5.bias"]
    x = torch.randn(2, 3, 8, 8)
    out = model[0](x)
    gone = (model[0].weight == 0).flatten(1).all(1)
    assert gone.sum() == 4
    assert not out[:, gone].any()
    assert out[:, ~gone].any()
    up = model[3](torch.randn(2, 8, 6, 6))
    assert [bool(c.any()) for c in up.transpose(0, 1)].count(False) == 2
    assert torch.equal(masks["0.bias"], ~gone)


@pytest.mark.parametrize("groups", ["in", "kernel", None])
def test_other_groups_leave_biases_alone(groups):
    model = network()
    biases = [model[k].bias.clone() for k in (0, 3, 5)]
    masks = prune(model, ratio=0.2, groups=groups, force=True)
    assert all(torch.equal(model[k].bias, b) for k, b in zip((0, 3, 5), biases, strict=True))
    assert not any(name.endswith("bias") for name in masks)


def test_an_input_channel_that_went_is_not_read():
    model = network()
    prune(model, ratio=0.5, groups="in", on=ws.on.name("3"))
    x = torch.randn(1, 8, 4, 4)
    unread = [k for k in range(8) if not model[3].weight[k].any()]
    assert len(unread) == 4
    out = model[3](x)
    x[:, unread] += 5.0
    assert torch.equal(model[3](x), out)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "neither of threshold= and ratio="),
        ({"ratio": 0.5, "threshold": 0.1}, "both of threshold= and ratio="),
        ({"ratio": 1.5}, "ratio=1.5; pass the share of zeros, from 0 to 1"),
        ({"ratio": -0.1}, "ratio=-0.1"),
        ({"ratio": math.nan}, "ratio=nan"),
        ({"ratio": "0.5"}, "ratio='0.5'"),
        ({"ratio": True}, "ratio=True"),
        ({"threshold": -1}, "threshold=-1; pass a finite number from 0"),
        ({"threshold": math.inf}, "threshold=inf"),
        ({"threshold": math.nan}, "threshold=nan"),
        ({"ratio": 0.5, "scope": "all"}, "scope='all'; choose 'global' or 'layer'"),
        ({"ratio": 0.5, "groups": "filter"}, "groups='filter'; choose 'out', 'kernel', 'in' or None"),
    ],
)
def test_options_out_of_range(options, words):
    model = network()
    before = state_of(model)
    with pytest.raises(CompressError, match=words):
        prune(model, **options)
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": 0.5, "on": "convs"}, r"on='convs'; pass a selection such as ws.on.convs"),
        ({"ratio": 0.5, "on": ws.on.embeddings}, "Pruning selects nothing: on=embeddings matches none of the 8"),
        ({"ratio": 0.5, "on": ws.on.biases, "groups": "out"}, r"groups='out': 0.bias \(conv bias\), "),
        (
            {"ratio": 0.5, "on": ws.on.linears, "groups": "kernel"},
            r"groups='kernel': 5.weight \(linear weight\); select",
        ),
    ],
)
def test_selections_that_cannot_be_pruned(options, words):
    model = network()
    before = state_of(model)
    with pytest.raises(SelectionError, match=words):
        prune(model, **options)
    assert_unchanged(model, before)


def test_nan_is_refused_by_name():
    for groups in (None, "out", "kernel"):
        model = network()
        model[3].weight.data[1, 1] = math.nan
        before = model[0].weight.clone()
        with pytest.raises(CompressError, match="3.weight holds 9 NaN, so it has no smallest weights"):
            prune(model, ratio=0.5, groups=groups)
        assert torch.equal(model[0].weight, before)


def test_weights_that_are_no_weights():
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    with pytest.raises(SelectionError, match="parametrization"):
        prune(model, ratio=0.5)
    with pytest.raises(SelectionError, match=r"weight is torch.complex64; only floating-point"):
        prune(nn.Linear(2, 2, dtype=torch.complex64), ratio=0.5)
    with pytest.raises(SelectionError, match="meta device"):
        prune(nn.Linear(2, 2, device="meta"), ratio=0.5)
    with pytest.raises(CompressError, match="A model is needed to prune; got a dict"):
        prune({}, ratio=0.5)


def test_a_layer_is_not_emptied_unless_forced():
    model = nn.Sequential(linear([1.0, 2.0]), linear([10.0, 20.0, 30.0]))
    before = state_of(model)
    with pytest.raises(CompressError) as caught:
        prune(model, ratio=0.4)
    assert str(caught.value) == (
        "ratio=0.4 would set all 2 weights of 0.weight to zero, so nothing would pass through it; take a smaller one, "
        "pass scope='layer', leave it out with on=, or pass force=True."
    )
    with pytest.raises(CompressError, match=r"threshold=5 would .*; take a smaller one, leave it out"):
        prune(model, threshold=5)
    assert_unchanged(model, before)
    prune(model, ratio=0.4, scope="layer")
    model.load_state_dict(before)
    assert prune(model, ratio=0.4, force=True).table().rows[0].zeros == 1.0
    with pytest.raises(CompressError, match=r"All 2 weights of 0.weight are zero already"):
        prune(model, ratio=0.4)
    assert prune(model, ratio=1.0, force=True).zeros == 1.0


def test_empty_layers_and_ratio_zero_are_fine():
    model = nn.Sequential(nn.Linear(0, 3), linear([1.0, 2.0]))
    assert prune(model, ratio=0.0).zeros == 0.0
    assert list(prune(model, ratio=0.5)) == ["1.weight"]


# ---------------------------------------------------------------- prune_to


def ramp(n=1000):
    layer = nn.Linear(n, 1, bias=False)
    layer.weight.data.copy_(torch.arange(1.0, n + 1.0))
    return layer


def test_the_largest_ratio_within_the_bound_is_found():
    layer = ramp()
    # Each of the smallest costs nothing up to 700, then a thousandth each: the bound of 0.05 is met up to 750.
    masks = prune_to(layer, lambda m: 1 - max(0, int((m.weight == 0).sum()) - 700) / 1000, loss=0.05, resolution=0.01)
    search = masks.search
    left = 1 - search.ratio
    assert 0.249 < left <= 0.25 * 1.011
    assert masks.zeros == float((layer.weight == 0).double().mean()) == math.floor(search.ratio * 1000) / 1000
    assert search.baseline == 1.0
    assert search.accuracy >= 0.95
    chosen = [t for t in search.trials if t.ratio == search.ratio]
    assert len(chosen) == 1
    assert chosen[0].is_within
    assert all(not t.is_within for t in search.trials if t.ratio > search.ratio)
    assert len(search.trials) == math.ceil(math.log2(math.log(1000) / math.log(1.01)))
    assert "yes, chosen" in str(search)


def test_every_trial_starts_from_the_model_as_it_came():
    model = network().train()
    seen = []

    def evaluate(m):
        zeros = sum(int((p == 0).sum()) for p in m.parameters())
        seen.append((zeros, m[1].running_mean.clone(), m.training, m[0].bias.clone()))
        with torch.no_grad():
            m.eval()
            m[1].running_mean += 1.0
            for p in m.parameters():  # as a short fine-tuning would
                p.add_(1.0)
        return 1.0 if zeros < 800 else 0.0

    before = state_of(model)
    masks = prune_to(model, evaluate, loss=0.0)
    assert model.training
    for (zeros, mean, training, bias), trial in zip(seen[1:], masks.search.trials, strict=True):
        assert trial.zeros == zeros / 2920
        assert torch.equal(mean, before["1.running_mean"])
        assert training
        assert torch.equal(bias, before["0.bias"])
    for name, tensor in model.state_dict().items():
        if name in WEIGHTS:
            assert torch.equal(tensor, before[name] * masks[name]), name
        else:
            assert torch.equal(tensor, before[name]), name
    assert sum(int((p == 0).sum()) for p in model.parameters()) < 800


def test_ratios_that_empty_a_layer_are_trials_that_failed():
    model = nn.Sequential(linear([1.0, 2.0]), linear([10.0, 20.0, 30.0, 40.0]))
    masks = prune_to(model, lambda _: 1.0)
    assert masks.zeros == 1 / 6
    notes = [t.note for t in masks.search.trials if t.accuracy is None]
    assert notes
    assert all("0.weight" in note for note in notes)


def test_where_nothing_may_go_nothing_goes():
    layer = ramp()
    before = layer.weight.clone()
    masks = prune_to(layer, lambda m: float(torch.equal(m.weight, before)))
    assert torch.equal(layer.weight, before)
    assert (masks.zeros, masks.search.ratio, masks.search.accuracy) == (0.0, 0.0, 1.0)


def test_an_error_leaves_the_model_as_it_came():
    model = network()
    before = state_of(model)
    calls = []

    def fails_later(m):
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("the data are gone")
        return 1.0

    with pytest.raises(KeyError):
        prune_to(model, fails_later)
    assert_unchanged(model, before)


def test_groups_are_searched_too():
    model = network()
    masks = prune_to(model, lambda m: float((m[0].weight != 0).sum() > 100), groups="out", loss=0.0)
    assert model[0].weight.flatten(1).any(1).sum() == 4
    assert "0.bias" in masks
    masks = prune_to(network(), lambda _: torch.tensor(1.0), groups="kernel", highest=0.5)
    assert list(masks) == ["0.weight", "3.weight"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": -0.1}, "loss=-0.1; pass how much"),
        ({"loss": math.nan}, "loss=nan"),
        ({"loss": "1 %"}, "loss='1 %'"),
        ({"highest": 1.0}, "highest=1.0; pass a share"),
        ({"resolution": 0.0}, "resolution=0.0; pass a number from 0.001"),
        ({"scope": "each"}, "scope='each'"),
        ({"groups": "all"}, "groups='all'"),
    ],
)
def test_prune_to_refuses_options_before_it_evaluates(options, words):
    calls = []
    with pytest.raises(CompressError, match=words):
        prune_to(network(), lambda _: calls.append(1) or 1.0, **options)
    assert not calls


@pytest.mark.parametrize(
    ("value", "words"), [(math.nan, "no finite number"), (None, "gave None"), ("0.9", "gave '0.9'")]
)
def test_evaluate_must_give_a_number(value, words):
    with pytest.raises(CompressError, match=words):
        prune_to(ramp(), lambda _: value)


def test_a_pruned_model_without_a_score_is_not_within():
    masks = prune_to(ramp(100), lambda m: 1.0 if (m.weight == 0).sum() < 30 else math.nan)
    assert masks.zeros < 0.3
    assert any("no finite number" in t.note for t in masks.search.trials)


# --------------------------------------------------------------------------- the search for the threshold


@given(
    kind=st.sampled_from(["any", "sorted", "equal", "few values", "half zeros", "misleading"]),
    length=st.integers(2_000, 6_000),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_searched_value_is_that_of_a_whole_search(kind, length, share, seed):
    values = torch.rand(length, generator=torch.Generator().manual_seed(seed))
    if kind == "sorted":
        values = values.sort().values
    elif kind == "equal":
        values = torch.full_like(values, 0.5)
    elif kind == "few values":
        values = (values * 3).floor()
    elif kind == "half zeros":
        values[length // 2 :] = 0
    elif kind == "misleading":
        values[:: pruning._SAMPLE] = 9.0  # the sample sees nothing else
    count = max(1, round(share * length))
    with mock.patch.object(pruning, "_MANY", 1_000):
        assert pruning._kth(values, count) == values.sort().values[count - 1]


def test_a_long_list_is_not_searched_as_a_whole(monkeypatch):
    searched = []
    search = torch.Tensor.kthvalue
    monkeypatch.setattr(torch.Tensor, "kthvalue", lambda self, k: searched.append(len(self)) or search(self, k))
    values = torch.rand(pruning._MANY, generator=torch.Generator().manual_seed(0))
    pruning._kth(values, len(values) // 2)
    assert searched[0] < len(values) / 5
    assert len(searched) == 1
