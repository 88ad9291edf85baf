"""The passes in blocks against the plain way: a penalty's `gradient`, `dot`, `Swap.add`, `shrink_`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import weightspace as ws
from weightspace.errors import NonFiniteGradientError
from weightspace.gates import Coherent, Products, RandomGate
from weightspace.kernels.points import Channels
from weightspace.kernels.stacking import Workspace
from weightspace.optim import _blocks, _foreach, _gates
from weightspace.penalties import L1, L2, CautiousWeightDecay, ElasticNet, GroupL1

OPEN, CLOSED = Coherent(threshold=-1.0), Coherent(threshold=1.0)
RULES = {
    "L1": L1(0.03),
    "L1 every 2": L1(0.03, every=2),
    "L1 total": L1(0.05, gate=Coherent(threshold=0.7)),
    "L1 total global": L1(0.05, gate=Coherent(threshold=0.7, scope="global")),
    "L1 history": L1(0.05, gate=Coherent("history", threshold=0.1)),
    "L1 previous": L1(0.05, gate=Coherent("previous")),
    "L1 random": L1(0.05, gate=RandomGate(0.4)),
    "L1 proximal": L1(0.03, application="proximal"),
    "L1 proximal total": L1(0.05, application="proximal", gate=Coherent(threshold=0.7)),
    "L2 total": L2(0.2, gate=Coherent(threshold=0.7)),
    "L2 proximal": L2(0.2, application="proximal"),
    "ElasticNet total": ElasticNet(0.1, gate=Coherent(threshold=0.7)),
    "ElasticNet proximal": ElasticNet(0.1, application="proximal"),
    "GroupL1 total": GroupL1(0.1, gate=Coherent(threshold=0.7)),
    "cautious": CautiousWeightDecay(0.1),
    "cautious previous": CautiousWeightDecay(0.1, gate=Coherent("previous")),
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 7 numbers, so that small weights have many and the last one is not full."""
    monkeypatch.setattr(_blocks, "BLOCK", 7)


@pytest.fixture
def plain(monkeypatch):
    """Turns the passes in blocks off and on."""
    original = _blocks.in_blocks

    def switch(is_plain: bool) -> None:
        for module in (_blocks, _gates):
            monkeypatch.setattr(module, "in_blocks", (lambda *_: False) if is_plain else original)

    return switch


def train(rules, *, steps=12, dtype=torch.float32, channels_last=False, **options):
    """Weights after some steps whose gradients vary, with zeros in weights and gradients; and the duty cycles."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.Linear(5, 3)).to(dtype)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    with torch.no_grad():
        model[0].weight[0] = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    attached = ws.attach(optimizer, model, *rules, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype)
            p.grad = torch.empty_like(p).copy_(0.3 * noise + 0.2 * p.detach())
        before = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        if not options.get("inplace"):
            assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    return [p.detach().clone() for p in model.parameters()], attached.duty_cycles, attached.measurements


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("variant", ["plain", "channels_last", "float64", "inplace", "with a metric"])
def test_blocks_train_bit_for_bit_as_the_plain_way(name, variant, small_blocks, plain):
    options = {"channels_last": variant == "channels_last", "inplace": variant == "inplace"}
    dtype = torch.float64 if variant == "float64" else torch.float32
    rules = (RULES[name], *((ws.metrics.ChannelL2(2.0),) if variant == "with a metric" else ()))
    plain(True)
    expected, duties, figures = train(rules, dtype=dtype, **options)
    plain(False)
    weights, fast_duties, fast_figures = train(rules, dtype=dtype, **options)
    assert all(map(torch.equal, weights, expected))
    assert fast_duties == duties
    for weight, values in figures.items():
        for key, value in values.items():
            assert fast_figures[weight][key] == pytest.approx(value, rel=1e-5, abs=1e-5, nan_ok=True)


def test_several_penalties_on_one_weight_go_the_plain_way_in_blocks(small_blocks, plain):
    rules = (L1(0.05, gate=Coherent(threshold=0.7)), L2(0.1), L1(0.01, application="proximal"))
    plain(True)
    expected, duties, _ = train(rules)
    plain(False)
    weights, fast_duties, _ = train(rules)
    assert all(map(torch.equal, weights, expected))
    assert fast_duties == duties


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.sampled_from([L1(1.0), L2(1.0), ElasticNet(1.0)]), st.integers(0, 99), st.booleans())
def test_one_pass_gives_the_inner_products_and_the_sum(size, rule, seed, is_double):
    dtype = torch.float64 if is_double else torch.float32
    generator = torch.Generator().manual_seed(seed)
    weight, gradient = (torch.randn(size, generator=generator, dtype=dtype) for _ in range(2))
    weight[::3] = 0.0
    own, block = rule.gradient(weight, Channels()), _blocks.BLOCK
    try:
        _blocks.BLOCK = 8
        out = torch.empty_like(weight)
        found = _blocks.compare(rule, weight, gradient, 0.3, work=Workspace(), out=out)
        total = _blocks.add(rule, weight, gradient, 0.3, work=Workspace(), out=(added := torch.empty_like(weight)))
        either = _blocks.products(gradient, weight)
    finally:
        _blocks.BLOCK = block
    wide, other = gradient.double(), 0.3 * own.double()
    assert found == pytest.approx([float(wide @ wide), float(wide @ other), float(other @ other)], rel=1e-4, abs=1e-5)
    far = weight.double()
    assert either == pytest.approx([float(wide @ wide), float(wide @ far), float(far @ far)], rel=1e-4, abs=1e-5)
    assert torch.equal(out, torch.add(gradient, own, alpha=0.3))
    assert torch.equal(added, out)
    assert total == pytest.approx(float(wide.sum()), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("rule", [L1(1.0), L2(1.0), ElasticNet(1.0, l1_ratio=0.3)])
def test_gradient_into_is_gradient(rule):
    weight = torch.tensor([2.0, 0.0, -3.0, -0.0])
    assert torch.equal(rule.gradient_into(weight, torch.full((4,), 9.0)), rule.gradient(weight, Channels()))


@pytest.mark.parametrize(
    "tensors",
    [
        (torch.zeros(4, 4)[:, ::2],),
        (torch.zeros(1).expand(4),),
        (torch.zeros(4, dtype=torch.float16),),
        (torch.zeros(0),),
        (torch.zeros(2, 3), torch.zeros(3, 2).t()),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
    ],
)
def test_what_has_gaps_or_another_order_is_no_block(tensors):
    assert not _blocks.in_blocks(*tensors)


def one_layer(rule, gradient):
    layer = nn.Linear(2, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    rules = ws.attach(optimizer, layer, rule)
    layer.weight.grad = torch.tensor([gradient])
    return layer, optimizer, rules


def test_a_wrong_guess_leaves_the_loss_gradient():
    layer, optimizer, _ = one_layer(L1(0.5, gate=CLOSED), [0.25, -0.5])
    optimizer.step()  # at the first step the gate is taken for open
    assert layer.weight.tolist() == [[0.75, 1.5]]


def test_a_square_that_overflows_is_no_error_and_closes_the_gate():
    layer, optimizer, rules = one_layer(L1(0.5, gate=OPEN), [1e25, 0.0])
    optimizer.step()
    assert layer.weight[0].tolist() == pytest.approx([-1e25, 1.0])
    assert list(rules.duty_cycles["weight"].values()) == [0.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "rule",
    [
        L1(0.5),
        L1(0.5, gate=OPEN),
        L1(0.5, gate=Coherent("history")),
        L1(0.5, application="proximal", gate=OPEN),
        L1(0.5, application="proximal"),
        L2(0.5),
        GroupL1(0.5, gate=OPEN),
    ],
)
def test_a_gradient_that_is_not_finite_is_refused_before_a_gate_is_asked(rule, bad):
    layer, optimizer, rules = one_layer(rule, [bad, 1.0])
    with pytest.raises(NonFiniteGradientError, match="gradient of weight holds"):
        optimizer.step()
    assert layer.weight.tolist() == [[1.0, 1.0]]
    assert rules.duty_cycles == {}


class Reads(TorchDispatchMode):
    """Counts what would wait for an accelerator: a tensor's number becoming a number of Python's.

    The count of steps, the one int64 that is read, lives on the CPU wherever the weights are.
    """

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default and args[0].dtype != torch.int64
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("application", ["gradient", "proximal"])
@pytest.mark.parametrize("gate", [ws.gates.Always(), Coherent(), Coherent("history"), RandomGate(0.5)])
def test_the_way_of_accelerators_waits_once_a_step_and_decides_alike(gate, application, monkeypatch):
    rule = L1(0.05, gate=gate, application=application)
    expected, duties, _ = train((rule,), steps=4)
    monkeypatch.setattr(_gates, "is_read_at_once", lambda _: False)
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(6)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ws.attach(optimizer, model, rule)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    with Reads() as reads:
        optimizer.step()
    assert reads.count == 1  # whether gradients are finite
    weights, slow_duties, _ = train((rule,), steps=4)
    assert slow_duties == duties
    for weight, reference in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight, reference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rule", [L1(1.0), L2(1.0), ElasticNet(1.0, l1_ratio=0.3)], ids=str)
@pytest.mark.parametrize("ratio", [1e-3, 1.0, 1e3])
def test_what_accelerators_see_of_all_layers_equals_inner_products(rule, ratio):
    torch.manual_seed(0)
    weights = [torch.randn(*shape) for shape in ((8, 3, 3, 3), (5, 7), (40, 16, 3, 3))]
    weights[0] = weights[0].to(memory_format=torch.channels_last)
    gradients = [torch.randn_like(weight) for weight in weights]
    found = _foreach.see(rule, weights, gradients, ratio)
    for weight, gradient, seen in zip(weights, gradients, found, strict=True):
        own = ratio * rule.gradient(weight, Channels()).double()
        expected = [(a * b).sum() for a, b in ((gradient, gradient), (gradient, own), (own, own))]
        scale = max(float(expected[0]), float(expected[2]))
        for number, reference in zip(seen.products, expected, strict=True):
            assert abs(float(number) - float(reference)) < 1e-6 * scale
        cosine = Products(*(p.reshape(1) for p in seen.products)).of_sum().cosine
        true = torch.cosine_similarity(gradient.double().flatten(), (gradient + own).flatten(), dim=0)
        assert abs(float(cosine) - float(true)) < 1e-6 * max(ratio, 1 / ratio)
        assert torch.equal(seen.sum, torch.add(gradient, rule.gradient(weight, Channels()), alpha=ratio))


def test_accelerators_need_one_launch_a_layer(monkeypatch):
    class Launches(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func.overloadpacket.__name__ not in ("detach", "view", "alias", "unbind", "select", "expand")
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(_gates, "is_read_at_once", lambda _: False)
    counts = []
    for depth in (4, 24):
        model = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(depth)])
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=True)
        rules = ws.attach(optimizer, model, L1(0.05, gate=Coherent()))
        optimizer.step()
        rules.remove()
        with Launches() as plain:
            optimizer.step()
        ws.attach(optimizer, model, L1(0.05, gate=Coherent()))
        with Launches() as gated:
            optimizer.step()
        counts.append(gated.count - plain.count)
    assert (counts[1] - counts[0]) / 20 <= 3  # what chooses the sum, what counts the decision, what adds them up
