"""Contracts that every rule of the registry keeps, whatever it does."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.errors import RuleError, nearest
from weightspace.metrics import ChannelL2
from weightspace.registry import REGISTRY, make_rule

EVERY = [
    pytest.param(name, dict(options), id=f"{name}[{label}]")
    for name, entry in REGISTRY.items()
    for label, options in entry.variants.items()
]
# Slack variables live in ConstrainedLangevin alone: tests/test_constrained_langevin.py holds its contract.
SLACK = [row for row in EVERY if getattr(make_rule(row.values[0], **row.values[1]), "slack_count", 0)]
VARIANTS = [row for row in EVERY if row not in SLACK]
DOCS = Path(__file__).parents[1] / "docs"


def make_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(128, 4))
    return model.to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    for k in range(start, stop):
        g = torch.Generator().manual_seed(k)
        x = torch.randn(8, 3, 8, 8, generator=g).to(next(model.parameters()).dtype)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def same(a: object, b: object) -> bool:
    """Equality of nested containers that may hold tensors."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def remembers(options: dict) -> bool:
    """Whether the rule has a gate that compares with earlier gradients."""
    return options.get("gate", {}).get("against") in ("history", "previous")


@pytest.mark.parametrize(("name", "options"), VARIANTS)
class TestContract:
    def test_single_and_stacked_paths_agree(self, name, options):
        results = []
        for batching in ("single", "stacked"):
            model = make_model(torch.float64)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
            ws.attach(optimizer, model, make_rule(name, **options), batching=batching)
            train(model, optimizer, 0, 4)
            results.append([p.detach() for p in model.parameters()])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)

    def test_declared_property_is_measured_in_every_dtype(self, name, options):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            model = make_model(dtype)
            rules = ws.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, make_rule(name, **options))
            assert rules.verify()

    def test_resume_is_bit_exact(self, name, options):
        rule = make_rule(name, **options)
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        rules = ws.attach(optimizer, model, rule, measure_every=4)
        train(model, optimizer, 0, 3)
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), rules.state_dict()))
        train(model, optimizer, 3, 6)
        measured = rules.measurements  # of step 4, the second of the resumed part: it depends on the steps resumed
        twin = make_model()
        other = torch.optim.AdamW(twin.parameters(), lr=1e-2)
        resumed = ws.attach(other, twin, rule, measure_every=4)
        twin.load_state_dict(saved[0])
        other.load_state_dict(saved[1])
        resumed.load_state_dict(saved[2])
        assert same(resumed.state_dict(), saved[2])
        train(twin, other, 3, 6)
        assert resumed.steps == rules.steps == 6
        assert resumed.measurements == measured
        assert measured
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))

    def test_training_descends(self, name, options):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ws.attach(optimizer, model, make_rule(name, **options))
        x = torch.randn(16, 3, 8, 8)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.5 * losses[0]

    def test_does_nothing_to_parameters_it_does_not_select(self, name, options):
        model, plain = make_model(), make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        reference = torch.optim.SGD(plain.parameters(), lr=0.1)
        ws.attach(optimizer, model, make_rule(name, **{**options, "on": "name('2.weight')"}))
        plain.load_state_dict(model.state_dict())  # a constraint has moved its weight already
        train(model, optimizer, 0, 1)
        train(plain, reference, 0, 1)
        for (key, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
            # The memory of a gate is empty at the first step, so it is closed.
            assert torch.equal(a, b) == (key != "2.weight" or remembers(options))
        train(model, optimizer, 1, 6)
        train(plain, reference, 1, 6)
        assert not torch.equal(model[2].weight, plain[2].weight)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_rule_is_hashable_frozen_and_prints(name, options):
    rule = make_rule(name, **options)
    assert rule == make_rule(name, **options)
    assert hash(rule) == hash(make_rule(name, **options))
    assert str(rule).startswith(name)
    with pytest.raises(AttributeError):
        rule.on = None


@pytest.mark.parametrize(("name", "options"), SLACK)
def test_what_keeps_slack_variables_is_for_the_sampler_alone(name, options):
    model, rule = make_model(), make_rule(name, **options)
    sentence = "keeps slack variables beside the weights; only ws.optim.ConstrainedLangevin has them"
    with pytest.raises(RuleError, match=f"attach\\(\\) got .*{sentence}"):
        ws.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, rule)
    groups = {ws.on.convs: rule}
    for optimizer in (ws.optim.SubmanifoldSGD, ws.optim.SubmanifoldAdam):
        with pytest.raises(RuleError, match=f"{optimizer.__name__} got .*{sentence}"):
            optimizer(ws.param_groups(model, groups), lr=0.1)
    sampler = ws.optim.ConstrainedLangevin(ws.param_groups(model, groups), lr=0.1, temperature=0.0)
    train(model, sampler, 0, 3)
    assert sampler.verify()


def test_every_row_has_its_page_and_its_facts():
    for entry in REGISTRY.values():
        assert (DOCS / entry.page).is_file(), entry.page
        assert entry.summary
        assert entry.source
        assert entry.choose
        assert entry.name in (DOCS / "how-to-choose.md").read_text()


def test_unknown_rules_and_options_name_the_nearest():
    with pytest.raises(RuleError, match="no rule 'ChanelL2'; did you mean 'ChannelL2'"):
        make_rule("ChanelL2")
    with pytest.raises(RuleError, match="no option 'smooting'; did you mean 'smoothing'"):
        make_rule("ChannelL2", smooting=2)
    with pytest.raises(RuleError, match="no rule 'zzz'; known are ChannelL2"):
        make_rule("zzz")
    with pytest.raises(RuleError, match="no rule 3; known are"):
        make_rule(3)


@pytest.mark.parametrize("on", [5, ["convs"], ChannelL2()])
def test_on_must_be_a_selection_or_its_text(on):
    with pytest.raises(RuleError, match=r"ChannelL2 got on=.*; pass a selection such as ws\.on\.convs, or text"):
        make_rule("ChannelL2", on=on)


def test_nearest_ignores_case_and_fits_any_sentence():
    assert nearest("channell2", REGISTRY) == "; the nearest is 'ChannelL2'"
    assert nearest("epoch", ["epochs"], ", did you mean '{}'?") == ", did you mean 'epochs'?"
    assert nearest("zebra", REGISTRY) == nearest(3, REGISTRY) == nearest("x", []) == ""
