"""Penalties on the numbers of a weight: values and gradients by slow loops, proximal steps by a numerical minimizer."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import weightspace as ws
from weightspace.errors import RuleError, SelectionError, VerificationError
from weightspace.kernels.parameters import describe
from weightspace.kernels.points import Channels
from weightspace.penalties import L1, L2, CautiousWeightDecay, ElasticNet, GroupL1
from weightspace.penalties.weights import soft_threshold_

LAYERS = {
    "linear": lambda: nn.Linear(5, 4),
    "1-D": lambda: nn.Conv1d(3, 4, 3),
    "2-D": lambda: nn.Conv2d(3, 4, (3, 2)),
    "3-D": lambda: nn.Conv3d(2, 3, (2, 1, 3)),
    "1x1": lambda: nn.Conv2d(3, 4, 1),
    "grouped": lambda: nn.Conv2d(6, 4, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 3),
    "transposed 1-D": lambda: nn.ConvTranspose1d(3, 4, 3),
    "transposed, grouped": lambda: nn.ConvTranspose2d(6, 4, 3, groups=2),
    "channels_last": lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
}
TERMS = [
    L1(),
    L2(),
    ElasticNet(l1_ratio=0.3),
    GroupL1(),
    GroupL1(groups="in"),
    GroupL1(groups="kernel"),
]
each_layer = pytest.mark.parametrize("kind", LAYERS)
each_term = pytest.mark.parametrize("term", TERMS, ids=str)


def a_layer(kind, dtype=torch.float64, seed=0):
    """A layer of a kind with normal weights, some of them zero, and where it keeps its channels."""
    torch.manual_seed(seed)
    layer = LAYERS[kind]().to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, dtype=torch.float64))
        layer.weight[(0,) * layer.weight.ndim] = 0.0
    info = next(i for i in describe(layer) if i.name == "weight")
    return layer, Channels(info.out_axis, info.groups), info


def entries(layer, which):
    """Groups of indices of a weight, by loops over what each entry connects: (output channel, input channel)."""
    weight = layer.weight
    groups = getattr(layer, "groups", 1)
    is_transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d)
    found = {}
    for index in itertools.product(*map(range, weight.shape)):
        if is_transposed:
            channel_in, within = index[0], index[1]
            group = channel_in // (weight.shape[0] // groups)
            channel_out = group * weight.shape[1] + within
        else:
            channel_out, within = index[0], index[1]
            group = channel_out // (weight.shape[0] // groups)
            channel_in = group * weight.shape[1] + within
        key = {"out": channel_out, "in": channel_in, "kernel": (channel_out, channel_in)}[which]
        found.setdefault(key, []).append(index)
    return list(found.values())


def slow_value(term, layer):
    """R by loops over single numbers."""
    weight = layer.weight.detach().double()
    match term:
        case GroupL1():
            return sum(
                math.sqrt(len(group)) * math.sqrt(sum(float(weight[i]) ** 2 for i in group))
                for group in entries(layer, term.groups)
            )
        case L1():
            return sum(abs(w) for w in weight.flatten().tolist())
        case L2():
            return sum(w * w for w in weight.flatten().tolist()) / 2
    return sum(term.l1_ratio * abs(w) + (1 - term.l1_ratio) * w * w / 2 for w in weight.flatten().tolist())


def minimized(term, layer, amount):
    """argmin_u  amount R(u) + |u - w|^2 / 2  by search: neither a proximal formula nor the code under test is used.

    By symmetry the minimizer of a group (a single number, where the penalty sees it alone) is t times the group with
    t in [0, 1]; its cost is convex in t, so thirds find it. Zero is compared on its own.
    """
    weight = layer.weight.detach().double()
    member = torch.arange(weight.numel()).reshape(weight.shape)
    if isinstance(term, GroupL1):
        for k, group in enumerate(entries(layer, term.groups)):
            for index in group:
                member[index] = k
    flat, member = weight.flatten(), member.flatten()
    total = torch.zeros(int(member.max()) + 1, dtype=torch.float64)

    def cost(t):
        u = t[member] * flat
        sizes, squares, sums, misses = (
            total.index_add(0, member, x) for x in (torch.ones_like(u), u.square(), u.abs(), (u - flat).square())
        )
        if isinstance(term, GroupL1):
            penalty = sizes.sqrt() * squares.sqrt()
        else:
            share = 1.0 if isinstance(term, L1) else 0.0 if isinstance(term, L2) else term.l1_ratio
            penalty = share * sums + (1 - share) * squares / 2
        return amount * penalty + misses / 2

    low, high = torch.zeros_like(total), torch.ones_like(total)
    for _ in range(90):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        is_left = cost(a) <= cost(b)
        low, high = torch.where(is_left, low, a), torch.where(is_left, b, high)
    t = (low + high) / 2
    t = torch.where(cost(torch.zeros_like(t)) <= cost(t), 0.0, t)
    return (t[member] * flat).reshape(weight.shape)


def applicable(term, info):
    return term.refusal(info) is None


# --------------------------------------------------------------------------------------------- values and gradients


@each_layer
@each_term
def test_values_equal_slow_loops(term, kind):
    layer, channels, info = a_layer(kind)
    if not applicable(term, info):
        assert kind == "linear"
        return
    value = term.value(layer.weight.detach(), channels)
    assert value.shape == ()
    assert float(value) == pytest.approx(slow_value(term, layer), rel=1e-12)


@each_layer
@each_term
def test_gradients_equal_automatic_ones(term, kind):
    layer, channels, info = a_layer(kind)
    if not applicable(term, info):
        return
    (expected,) = torch.autograd.grad(term.value(layer.weight, channels), layer.weight)
    found = term.gradient(layer.weight.detach(), channels)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.stride() == layer.weight.stride()
    assert found.data_ptr() != layer.weight.data_ptr()


@each_term
def test_the_gradient_of_zero_is_zero(term):
    assert torch.equal(term.gradient(torch.zeros(4, 3, 2), Channels()), torch.zeros(4, 3, 2))
    assert float(term.value(torch.zeros(4, 3, 2), Channels())) == 0.0


@each_term
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_of_16_bit_weights_are_float32(term, dtype):
    weight = torch.full((40, 40, 3), 30.0, dtype=dtype)  # the sum of squares is beyond float16
    value = term.value(weight, Channels())
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(term.value(weight.double(), Channels())), rel=1e-5)


def test_equal_numbers_cost_the_same_in_groups_and_alone():
    weight = torch.full((4, 3, 2, 2), -0.5)
    for groups in ("out", "in", "kernel"):
        assert float(GroupL1(groups=groups).value(weight, Channels())) == pytest.approx(
            float(L1().value(weight, Channels()))
        )


# --------------------------------------------------------------------------------------------- proximal steps


@each_layer
@each_term
@pytest.mark.parametrize("amount", [0.05, 0.7])
def test_proximal_steps_equal_a_numerical_minimizer(term, kind, amount):
    layer, channels, info = a_layer(kind, seed=1)
    if not applicable(term, info):
        return
    expected = minimized(term, layer, amount)
    weight = layer.weight.detach()
    place = weight.data_ptr(), weight.stride()
    term.shrink_(weight, amount, channels)
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-7)
    assert (((weight == 0) == (expected == 0)) | (expected.abs() < 1e-6)).all()  # near zero the search is blunt
    assert (weight.data_ptr(), weight.stride()) == place


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    amount=st.floats(0.0, 2.0, width=16),
    as_tensor=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=120, deadline=None)
def test_the_soft_threshold_is_its_formula(shape, dtype, amount, as_tensor, seed):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    amount = float(torch.tensor(amount).to(dtype))  # its own rounding is not what is tested
    weight.view(-1)[0] = -amount
    expected = [math.copysign(max(0.0, abs(w) - amount), w) for w in weight.double().flatten().tolist()]
    soft_threshold_(weight, torch.tensor(amount) if as_tensor else amount)
    rounded = torch.tensor(expected, dtype=torch.float64).to(dtype).reshape(shape)
    torch.testing.assert_close(weight, rounded)  # to the dtype's own resolution
    assert torch.equal(weight == 0, rounded == 0)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("term", [L1(), ElasticNet(l1_ratio=0.5), *TERMS[3:]], ids=str)
def test_zeros_are_positive_zeros_and_nan_stays(term, dtype, as_tensor):
    weight = torch.tensor([[-0.1, 0.1, -0.0], [0.0, -0.2, 0.05]]).to(dtype)[..., None]
    amount = torch.tensor(1.0) if as_tensor else 1.0
    term.shrink_(weight, amount, Channels())
    assert torch.equal(weight, torch.zeros_like(weight))
    assert not torch.signbit(weight).any()
    broken = torch.tensor([[math.nan, 1.0]], dtype=dtype)[..., None]
    term.shrink_(broken, amount, Channels())
    assert broken[0, 0, 0].isnan()


@each_term
@pytest.mark.parametrize("zero", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
def test_nothing_is_shrunk_by_nothing(term, zero):
    weight = torch.randn(4, 3, 2)
    weight[0] = 0.0
    before = weight.clone()
    term.shrink_(weight, zero, Channels())
    assert torch.equal(weight, before)


@each_term
def test_a_number_and_a_tensor_shrink_alike(term):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        one = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
        other, amount = one.clone(), 0.3
        term.shrink_(one, amount, Channels())
        term.shrink_(other, torch.tensor(amount, dtype=torch.promote_types(dtype, torch.float32)), Channels())
        if isinstance(term, L1) and dtype != torch.bfloat16:  # of which an amount has fewer digits as a number
            assert torch.equal(one, other)
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0.01 if dtype == torch.bfloat16 else 1e-7)


def test_l2_divides_and_l1_takes_off():
    weight = torch.tensor([[3.0, -4.0, 0.25]])
    for term, amount, expected in (
        (L2(), 1.0, [1.5, -2.0, 0.125]),
        (L1(), 0.5, [2.5, -3.5, 0.0]),
        (ElasticNet(l1_ratio=0.5), 1.0, [(3 - 0.5) / 1.5, (-4 + 0.5) / 1.5, 0.0]),
        (GroupL1(), 1.0 / math.sqrt(3), [w * (1 - 1 / math.sqrt(9 + 16 + 1 / 16)) for w in (3.0, -4.0, 0.25)]),
    ):
        copy = weight.clone()
        term.shrink_(copy, amount, Channels())
        assert copy.flatten().tolist() == pytest.approx(expected)


@each_layer
def test_the_ends_of_the_elastic_net_are_l1_and_l2(kind):
    for ratio, pure in ((1.0, L1()), (0.0, L2())):
        net = ElasticNet(l1_ratio=ratio)
        layer, channels, _ = a_layer(kind, torch.float32)
        weight = layer.weight.detach()
        assert torch.equal(net.value(weight, channels), pure.value(weight, channels))
        assert torch.equal(net.gradient(weight, channels), pure.gradient(weight, channels))
        copy = weight.clone()
        net.shrink_(weight, 0.3, channels)
        pure.shrink_(copy, 0.3, channels)
        assert torch.equal(weight, copy)


def test_the_length_of_chatter():
    assert L1(0.01).chatter(lr=0.1, momentum=0.9) == pytest.approx(0.01)
    assert L1(0.01, every=3).chatter(lr=0.1, momentum=0.0) == pytest.approx(0.003)
    assert ElasticNet(0.01, l1_ratio=0.25).chatter(lr=0.1, momentum=0.9) == pytest.approx(0.0025)
    assert L2(0.01).chatter(lr=0.1, momentum=0.9) == GroupL1(0.01).chatter(0.1, 0.9) == 0.0


# --------------------------------------------------------------------------------------------- cautious decay


def test_cautious_decay_is_its_definition_entry_by_entry():
    g = torch.Generator().manual_seed(0)
    start, weight = torch.randn(2, 50, 4, generator=g, dtype=torch.float64)
    start[0, 0], weight[1, 1] = 0.0, start[1, 1]
    expected = weight.clone()
    for i in itertools.product(range(50), range(4)):
        step = float(weight[i] - start[i])
        if step * float(start[i]) <= 0:
            expected[i] -= 0.2 * start[i]
    CautiousWeightDecay(0.1).shrink_(weight, 0.2, Channels(), start)
    torch.testing.assert_close(weight, expected)
    assert float(expected[1, 1]) == pytest.approx(0.8 * float(start[1, 1]))  # a weight at rest decays


def test_cautious_decay_has_one_form():
    with pytest.raises(RuleError, match="CautiousWeightDecay acts after the step.*leave application= out"):
        CautiousWeightDecay(0.1, application="gradient")
    with pytest.raises(RuleError, match="needs the weight before the step"):
        CautiousWeightDecay(0.1).shrink_(torch.ones(2, 2), 0.1, Channels())
    assert CautiousWeightDecay(0.1).is_proximal


# --------------------------------------------------------------------------------------------- options, routing, verify


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: L1(-1.0), "L1 got weight=-1.0; it must be a finite number from 0"),
        (lambda: L1(math.nan), "L1 got weight=nan"),
        (lambda: L2(0.1, application="prox"), "L2 got application='prox'"),
        (lambda: L1(0.1, every=0), "L1 got every=0"),
        (lambda: ElasticNet(0.1, l1_ratio=1.5), "ElasticNet got l1_ratio=1.5; it is a share"),
        (lambda: ElasticNet(0.1, l1_ratio=-0.5), "ElasticNet got l1_ratio=-0.5"),
        (lambda: GroupL1(0.1, groups="filter"), "GroupL1 got groups='filter'"),
    ],
)
def test_bad_options_are_one_sentence(make, sentence):
    with pytest.raises(RuleError, match=sentence):
        make()


def attached(layer, *penalties):
    return ws.attach(torch.optim.SGD(layer.parameters(), lr=0.1), layer, *penalties)


def test_what_they_act_on():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 2)
    )
    weights = {"0.weight", "2.weight", "4.weight"}
    for penalty, expected in (
        (L1(0.1), weights),
        (L2(0.1, on=ws.on.everything), {name for name, _ in model.named_parameters()}),
        (GroupL1(0.1), weights),
        (GroupL1(0.1, on=ws.on.everything), weights),
        (GroupL1(0.1, groups="kernel"), {"0.weight", "2.weight"}),
    ):
        rules = attached(model, penalty)
        assert {r.info.name for r in rules.table().routed} == expected, penalty
        reasons = {r.info.name: r.reasons.get(0) for r in rules.table().routes}
        rules.remove()
    assert "no spatial kernels; use L1, or groups='out' or 'in'" in reasons["4.weight"]
    with pytest.raises(SelectionError, match="a linear layer has no spatial kernels"):
        attached(nn.Linear(3, 2), GroupL1(0.1, groups="kernel"))


def test_single_numbers_have_no_sparsity():
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.scale = nn.Parameter(torch.tensor(1.0))

    with pytest.raises(SelectionError, match="single number"):
        attached(Scaled(), L1(0.1, on=ws.on.name("scale")))


@each_layer
@each_term
def test_verify_measures_slope_and_proximal_step_on_every_layout(term, kind):
    layer, _, info = a_layer(kind, torch.float32)
    if not applicable(term, info):
        return
    options = {"groups": term.groups} if isinstance(term, GroupL1) else {}
    checks = attached(layer, type(term)(0.1, application="proximal", **options)).verify()
    assert len(checks) == 2
    assert all(check.holds for check in checks)
    assert "minimizes" in checks[1].what


def test_verify_catches_wrong_gradients_and_wrong_steps(monkeypatch):
    layer = nn.Linear(5, 4)
    rules = attached(layer, L1(0.1, application="proximal"), GroupL1(0.2))
    monkeypatch.setattr(GroupL1, "gradient", lambda _, w, *__: w)
    with pytest.raises(VerificationError, match=r"GroupL1.*derivative of its value"):
        rules.verify()
    monkeypatch.undo()
    monkeypatch.setattr(L1, "shrink_", lambda _, w, a, *__: soft_threshold_(w, 1.01 * a))
    with pytest.raises(VerificationError, match=r"L1.*minimizes"):
        rules.verify()
