"""Gates alone: decisions on hand-made products and on hand-made gradients of one step, options, registry."""

from __future__ import annotations

import copy
import math
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import weightspace as ws
from weightspace.errors import RecipeError, RuleError
from weightspace.gates import Always, Coherent, Delayed, Products, RandomGate
from weightspace.optim._gates import dot, flat
from weightspace.penalties import L1, L2
from weightspace.registry import GATES, make_gate, make_rule

DOCS = Path(__file__).parents[1] / "docs"
VARIANTS = [
    pytest.param(name, dict(options), id=f"{name}[{label}]")
    for name, entry in GATES.items()
    for label, options in entry.variants.items()
]
AGAINST = ("total", "history", "previous", "lookahead")


def products(*columns):
    """One `(gg, go, oo)` for each weight, in float64."""
    return Products(*torch.tensor(columns, dtype=torch.float64).T)


# --------------------------------------------------------------------------------------------- products and thresholds


@given(st.integers(0, 10_000), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_products_of_a_sum_are_those_of_the_summed_vectors(seed, size):
    g, r = torch.randn(2, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = Products(*(x.reshape(1) for x in (g @ g, g @ r, r @ r))).of_sum()
    expected = (g @ g, g @ (g + r), (g + r) @ (g + r))
    for a, b in zip((found.gg, found.go, found.oo), expected, strict=True):
        torch.testing.assert_close(a[0], b, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.cosine[0], torch.cosine_similarity(g, g + r, dim=0), rtol=1e-8, atol=1e-8)


def test_the_cosine_of_all_weights_is_that_of_the_long_vector():
    g = [torch.tensor([3.0, 4.0]), torch.tensor([1.0])]
    o = [torch.tensor([4.0, 3.0]), torch.tensor([-7.0])]
    each = Products(*(torch.stack([a @ b for a, b in zip(x, y, strict=True)]) for x, y in ((g, g), (g, o), (o, o))))
    torch.testing.assert_close(each.cosine, torch.tensor([0.96, -1.0]))
    long = torch.cosine_similarity(torch.cat(g), torch.cat(o), dim=0)
    torch.testing.assert_close(each.over_all().cosine, long.reshape(1))
    assert each.over_all().cosine.shape == (1,)


@pytest.mark.parametrize("against", AGAINST)
def test_the_gate_is_open_at_the_threshold_and_closed_below(against):
    # 15 / (5 * 5) is the number 0.6, exactly.
    at = products((25.0, 15.0, 25.0))
    assert at.cosine.tolist() == [0.6]
    assert Coherent(against, threshold=0.6).judge(at).tolist() == [True]
    assert Coherent(against, threshold=math.nextafter(0.6, 1)).judge(at).tolist() == [False]
    assert Coherent(against, threshold=math.nextafter(0.6, 0)).judge(at).tolist() == [True]


@pytest.mark.parametrize(
    ("against", "default"), [("total", 0.5), ("history", 0.2), ("previous", 0.0), ("lookahead", 0.5)]
)
def test_thresholds_left_out(against, default):
    gate = Coherent(against)
    assert gate.least_cosine == default
    assert gate.looks_at == against
    assert gate.memory_decay == (0.9 if against == "history" else 0.0)
    low, high = products((1.0, default - 1e-6, 1.0)), products((1.0, default, 1.0))
    assert (gate.judge(low).tolist(), gate.judge(high).tolist()) == ([False], [True])


@pytest.mark.parametrize("threshold", [-1.0, 0.0, None])
def test_zero_and_non_finite_products_close_even_the_most_generous_gate(threshold):
    nan, inf = math.nan, math.inf
    bad = products(
        (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (nan, 1.0, 1.0), (1.0, nan, 1.0), (inf, inf, 1.0),
        (1.0, inf, inf), (inf, -inf, inf), (inf, nan, 1.0),
    )  # fmt: skip
    assert not Coherent("previous", threshold=threshold).judge(bad).any()
    assert not Coherent("previous", threshold=threshold).judge(bad.over_all()).any()


def test_rounding_never_leaves_the_interval_of_cosines():
    assert products((1.0, 1.0 + 1e-9, 1.0), (1.0, -1.1, 1.0)).cosine.tolist() == [1.0, -1.0]
    # g + R = 0 up to rounding: no direction.
    assert not Coherent().judge(products((1.0, -1.0 - 1e-17, 1.0)).of_sum()).any()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "expanded"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_inner_products_of_any_layout(layout, dtype):
    a, b = torch.randn(2, 6, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    expected = (a.double() * b.double()).sum()
    other = {
        "contiguous": lambda x: x,
        "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
        "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        "expanded": lambda x: x,
    }[layout]
    for x, y in ((other(a), b), (a, other(b)), (other(a), other(b))):
        found = dot(x, y)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert flat(other(a))[0].data_ptr() == other(a).data_ptr() or layout != "contiguous"
    row = a[:1].expand(6, 4, 3, 3)
    torch.testing.assert_close(dot(row, b).double(), (row.double() * b.double()).sum(), rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------------- schedules


def test_delayed_opens_after_exactly_its_steps():
    assert [Delayed(3).opens(step, 0) for step in range(5)] == [False, False, False, True, True]
    assert Delayed(0).opens(0, 0)
    assert all(Always().opens(step, 0) for step in range(3))


@pytest.mark.parametrize("duty", [0.0, 0.05, 0.3, 0.5, 0.9, 1.0])
def test_the_duty_of_a_random_gate_passes_a_binomial_test(duty):
    gate, n = RandomGate(duty, seed=3), 4000
    opened = sum(gate.opens(step, seed=77) for step in range(n))
    assert abs(opened - n * duty) <= 4 * math.sqrt(n * duty * (1 - duty))  # four standard deviations


def test_random_gates_of_two_layers_two_seeds_and_two_steps_are_independent():
    n = 4000
    one, other_layer, other_seed = (
        np.array([gate.opens(step, seed) for step in range(n)])
        for gate, seed in ((RandomGate(0.5), 1), (RandomGate(0.5), 2), (RandomGate(0.5, seed=1), 1))
    )
    for a, b in ((one, other_layer), (one, other_seed), (other_layer, other_seed), (one[1:], one[:-1])):
        assert abs(np.mean(a == b) - 0.5) < 4 * 0.5 / math.sqrt(n)


def test_a_random_gate_is_a_function_of_its_arguments_and_leaves_generators_alone():
    state = torch.get_rng_state()
    gate = RandomGate(0.5)
    first = [gate.opens(step, 9) for step in range(50)]
    torch.manual_seed(1)
    random.seed(1)
    assert [gate.opens(step, 9) for step in reversed(range(50))] == first[::-1]
    torch.set_rng_state(state)
    [gate.opens(step, 9) for step in range(5)]
    assert torch.equal(torch.get_rng_state(), state)


# --------------------------------------------------------------------------------------------- one step, by hand


def one_weight(penalty, gradients, start=(3.0, 4.0), **options):
    """A linear weight under given gradients and SGD with rate 1: whether the gate was open at each step."""
    layer = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    rules = ws.attach(optimizer, layer, penalty, **options)
    opened = []
    for gradient in gradients:
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([start]))
        layer.weight.grad = torch.tensor([gradient])
        before = round(duty_of(rules) * rules.steps)
        optimizer.step()
        opened.append(round(duty_of(rules) * rules.steps) > before)
    return opened


def duty_of(rules, name="weight"):
    return next(iter(rules.duty_cycles.get(name, {"": 0.0}).values()))


def test_total_compares_with_the_sum():
    # The penalty's gradient is (3, 4) times the strength.
    total = Coherent("total", threshold=0.5)
    gradients = [(3.0, 4.0), (-6.0, -8.0), (-2.5, -3.3), (4.0, -3.0), (0.0, 0.0)]
    assert one_weight(L2(1.0, gate=total), gradients) == [True, True, False, True, False]
    # Orthogonal of twice the length: cosine 1 / sqrt(5) = 0.447.
    assert one_weight(L2(2.0, gate=total), [(4.0, -3.0)]) == [False]
    assert one_weight(L2(2.0, gate=Coherent("total", threshold=0.44)), [(4.0, -3.0)]) == [True]
    assert one_weight(L2(1.0, every=2, gate=total), [(4.0, -3.0)]) == [False]  # `every` doubles it


def test_previous_and_history_are_closed_at_first_and_then_remember():
    turns = [(1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, 1.0), (0.0, -1.0)]
    previous = Coherent("previous", threshold=0.5)
    assert one_weight(L1(0.1, gate=previous), turns) == [False, True, False, True, False]
    history = Coherent("history", threshold=0.2, decay=0.9)
    # (0, 1) after two (1, 0): orthogonal to the average 0.19 (1, 0); then the average is (0.171, 0.1): cosine 0.50.
    assert one_weight(L1(0.1, gate=history), turns) == [False, True, False, True, False]
    slow = Coherent("history", threshold=0.6, decay=0.9)
    assert one_weight(L1(0.1, gate=slow), turns) == [False, True, False, False, False]
    generous = Coherent("previous", threshold=-1.0)
    assert one_weight(L1(0.1, gate=generous), turns) == [False, True, True, True, True]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("against", ["previous", "history"])
def test_a_gradient_that_is_not_finite_closes_and_is_not_remembered(against, bad):
    gate = Coherent(against, threshold=0.5)
    gradients = [(1.0, 1.0), (bad, 1.0), (1.0, 1.0), (1.0, 0.9)]
    opened = one_weight(L1(0.1, gate=gate), gradients, check_finite=False)
    assert opened == [False, False, True, True]
    assert one_weight(L2(0.1, gate=Coherent("total")), gradients, check_finite=False) == [True, False, True, True]


def test_a_zero_gradient_closes_and_is_remembered():
    gate = Coherent("previous", threshold=-1.0)
    assert one_weight(L1(0.1, gate=gate), [(1.0, 1.0), (0.0, 0.0), (1.0, 1.0), (1.0, 1.0)]) == [
        False,
        False,
        False,
        True,
    ]
    gate = Coherent("history", threshold=-1.0)
    assert one_weight(L1(0.1, gate=gate), [(1.0, 1.0), (0.0, 0.0), (1.0, 1.0)]) == [False, False, True]


# --------------------------------------------------------------------------------------------- values, options, registry


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_gates_are_frozen_values_with_a_name(name, options):
    gate = make_gate(name, **options)
    assert gate == make_gate(name, **options)
    assert hash(gate) == hash(make_gate(name, **options))
    assert pickle.loads(pickle.dumps(gate)) == gate == copy.deepcopy(gate)
    assert eval(repr(gate), vars(ws.gates)) == gate
    with pytest.raises(AttributeError):
        gate.scope = "global"
    rule = make_rule("L1", weight=1e-3, gate={"gate": name, **options})
    assert rule.gate == gate
    assert rule == L1(1e-3, gate=gate)
    assert (repr(gate) in str(rule)) == (name != "Always")


def test_every_gate_has_its_facts_and_its_page():
    for entry in GATES.values():
        assert (DOCS / entry.page).is_file(), entry.page
        assert all((entry.summary, entry.source, entry.choose, entry.variants))
        assert f"`{entry.name}`" in (DOCS / "how-to-choose.md").read_text(encoding="utf-8")
    assert set(GATES) == {"Always", "Delayed", "Coherent", "RandomGate"}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Coherent("totl"), "Coherent got against='totl'"),
        (lambda: Coherent(threshold=1.5), "Coherent got threshold=1.5; pass a number from -1 to 1"),
        (lambda: Coherent(threshold=math.nan), "Coherent got threshold=nan"),
        (lambda: Coherent(threshold=True), "Coherent got threshold=True"),
        (lambda: Coherent(threshold="0.5"), "Coherent got threshold='0.5'"),
        (lambda: Coherent("history", decay=1.0), "decay=1.0; the average would never learn a gradient"),
        (lambda: Coherent("history", decay=-0.1), "decay=-0.1; pass a number from 0 to 1"),
        (lambda: Coherent(scope="model"), "Coherent got scope='model'"),
        (lambda: Delayed(-1), "Delayed got steps=-1; it must be a whole number of at least 0"),
        (lambda: Delayed(2.5), "Delayed got steps=2.5"),
        (lambda: RandomGate(1.01), "RandomGate got duty=1.01; it is a probability"),
        (lambda: RandomGate(-0.1), "RandomGate got duty=-0.1"),
        (lambda: RandomGate(0.5, seed=None), "RandomGate got seed=None; pass an integer"),
        (lambda: L1(0.1, gate="Coherent"), "L1 got gate='Coherent'; pass a gate such as"),
        (lambda: L1(0.1, gate=Coherent), "L1 got gate=.*; pass a gate such as"),
        (lambda: make_gate("Coherrent"), "no gate 'Coherrent'; did you mean 'Coherent'"),
        (lambda: make_gate("zzz"), "no gate 'zzz'; known are Always, Delayed"),
        (lambda: make_gate(3), "no gate 3; known are"),
        (lambda: make_gate("Coherent", treshold=0.3), "Coherent has no option 'treshold'; did you mean 'threshold'"),
        (lambda: make_gate("RandomGate"), "RandomGate needs duty; give it as duty="),
        (lambda: make_rule("L1", gate={"against": "history"}), "L1 got gate=.*; name it, as in {gate: Coherent"),
        (lambda: make_rule("L1", gate={"gate": 5}), "L1 got gate=.*; name it"),
    ],
)  # fmt: skip
def test_bad_options_are_one_sentence(make, sentence):
    with pytest.raises(RuleError, match=sentence):
        make()


def test_numbers_of_numpy_are_taken():
    assert Coherent(threshold=np.float32(0.5)) == Coherent(threshold=0.5)
    assert Delayed(np.int64(3)) == Delayed(3)
    assert RandomGate(np.float64(0.5)) == RandomGate(0.5)


def test_paths_of_recipes_reach_into_a_gate():
    from weightspace.training.recipe import load_recipe

    rules = "rules=[{rule: L1, weight: 0.001, gate: {gate: Coherent, against: history}}]"
    recipe = load_recipe("quickstart", [rules, "rules.0.gate.threshold=0.3"])
    assert recipe.make_rules() == [L1(1e-3, gate=Coherent("history", threshold=0.3))]
    assert recipe.with_overrides({"rules.0.gate.decay": 0.5}).make_rules()[0].gate.decay == 0.5
    with pytest.raises(RecipeError, match=r"no option 'treshold'; did you mean 'threshold'"):
        load_recipe("quickstart", [rules, "rules.0.gate.treshold=0.3"])
