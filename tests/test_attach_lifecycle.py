"""Rules through failed steps, copies, pickles and removal, and when their memory is freed."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch

import weightspace as ws
from small_training import backward, make_model, manual_steps, weights
from weightspace.errors import AttachError
from weightspace.metrics import ChannelL2, GradientCentralization, transform_gradient


def attached(**options):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, ws.attach(optimizer, model, ChannelL2(smoothing=3.0), **options)


def fail_a_step(optimizer):
    optimizer.param_groups[0]["lr"] = "broken"
    with pytest.raises(TypeError):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1


# --------------------------------------------------------------------------- a step that raised


def test_accumulating_into_a_stand_in_is_noticed():
    model, optimizer, rules = attached()
    backward(model)
    loss_gradient = model[2].weight.grad
    value = loss_gradient.clone()
    fail_a_step(optimizer)
    backward(model, 1)  # adds to the stand-in
    start = weights(model)
    for act in (optimizer.step, optimizer.step, rules.remove):
        with pytest.raises(AttachError, match=r"left stand-ins such as that of .* call rules\.restore_gradients\(\)"):
            act()
    assert all(torch.equal(a, b) for a, b in zip(weights(model), start, strict=True))
    rules.restore_gradients()
    assert model[2].weight.grad is loss_gradient
    assert torch.equal(loss_gradient, value)
    optimizer.step()
    torch.testing.assert_close(model[2].weight, start[2] - 0.1 * transform_gradient(ChannelL2(smoothing=3.0), value))


@pytest.mark.parametrize("how", ["restore", "zero_grad", "nothing"])
def test_after_a_failed_step_training_goes_on(how):
    model, optimizer, rules = attached()
    backward(model)
    first = model[2].weight.grad.clone()
    fail_a_step(optimizer)
    expected = first
    if how == "restore":
        rules.restore_gradients()
        backward(model, 1)  # accumulates on the loss gradient
        expected = model[2].weight.grad.clone()
        assert not torch.equal(expected, first)
    if how == "zero_grad":
        optimizer.zero_grad()
        backward(model, 1)
        expected = model[2].weight.grad.clone()
    start = weights(model)
    optimizer.step()
    torch.testing.assert_close(model[2].weight, start[2] - 0.1 * transform_gradient(ChannelL2(smoothing=3.0), expected))
    assert torch.equal(model[2].weight.grad, expected)


# --------------------------------------------------------------------------- copies


def train(model, optimizer, steps=3):
    for k in range(steps):
        optimizer.zero_grad()
        backward(model, k)
        optimizer.step()


@pytest.mark.parametrize("inplace", [False, True])
def test_a_copy_of_all_three_trains_like_the_original(inplace):
    model, optimizer, rules = attached(inplace=inplace, measure_every=1)
    backward(model)
    optimizer.step()
    twin, twin_optimizer, twin_rules = copy.deepcopy((model, optimizer, rules))
    assert twin_rules.optimizer is twin_optimizer
    assert (twin_rules.rules, twin_rules.steps, twin_rules.measurements) == (rules.rules, 1, rules.measurements)
    assert all(a is not b for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    before = weights(model)
    train(twin, twin_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))
    assert (rules.steps, twin_rules.steps) == (1, 4)
    train(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    rules.remove()
    with pytest.raises(AttachError, match="already carries"):  # the copy still has its own
        ws.attach(twin_optimizer, twin, ChannelL2())


def test_a_copy_of_model_or_optimizer_alone_is_plain():
    model, optimizer, rules = attached()
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    assert not twin_optimizer._optimizer_step_pre_hooks
    ws.attach(twin_optimizer, twin, *rules.rules)
    alone = copy.deepcopy(optimizer)  # over copies of the parameters that belong to no model
    assert not alone._optimizer_step_pre_hooks
    assert alone.param_groups[0]["params"][0] is not model[0].weight
    plain = copy.deepcopy(model)
    assert plain.state_dict().keys() == model.state_dict().keys()
    ws.attach(torch.optim.SGD(plain.parameters(), lr=0.1), plain, ChannelL2())
    assert rules.steps == 0


def test_rules_are_not_copied_alone_nor_pickled():
    model, optimizer, rules = attached()
    for things in (rules, (rules, optimizer), (model, rules)):
        with pytest.raises(AttachError, match=r"copy\.deepcopy\(\(model, optimizer, rules\)\)"):
            copy.deepcopy(things)
    for act in (copy.copy, pickle.dumps):
        with pytest.raises(AttachError, match=r"save rules\.state_dict\(\)"):
            act(rules)
    assert not pickle.loads(pickle.dumps(optimizer))._optimizer_step_pre_hooks
    rules.remove()
    with pytest.raises(AttachError, match="removed"):
        copy.deepcopy((model, optimizer, rules))


# --------------------------------------------------------------------------- memory


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("batching", ["single", "stacked"])
@pytest.mark.usefixtures("no_collector")
def test_memory_is_freed_without_the_garbage_collector(batching):
    model, optimizer, rules = attached(batching=batching, measure_every=1)
    train(model, optimizer)
    buffers = [weakref.ref(b) for batch in rules._plan.batches for b in (batch.block, *batch.buffers)]
    buffers += [weakref.ref(b) for b in rules._plan._blocks.values()]
    kept, gone = weakref.ref(optimizer), weakref.ref(rules)
    rules.remove()
    assert not any(b() is not None for b in buffers)
    del rules
    assert gone() is None
    assert kept() is not None
    train(model, optimizer, 1)


@pytest.mark.usefixtures("no_collector")
def test_dropping_model_optimizer_and_rules_frees_them_without_the_garbage_collector():
    model, optimizer, rules = attached()
    train(model, optimizer)
    refs = [weakref.ref(x) for x in (model, optimizer, rules, model[2].weight, rules._plan.batches[0].block)]
    del model, optimizer, rules
    assert [r() for r in refs] == [None] * len(refs)


def test_rules_stay_in_force_without_a_name():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ws.attach(optimizer, model, ChannelL2(smoothing=3.0))
    gc.collect()
    train(model, optimizer)
    expected = manual_steps(ChannelL2(smoothing=3.0), lambda p: torch.optim.SGD(p, lr=0.1))
    for got, want in zip(weights(model), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def test_rules_outlive_their_optimizer_as_a_record():
    _model, optimizer, rules = attached()
    text = str(rules.table())
    del optimizer
    assert str(rules.table()) == text
    assert rules.verify()
    with pytest.raises(AttachError, match="optimizer of these rules is gone"):
        _ = rules.optimizer
    rules.remove()


# --------------------------------------------------------------------------- rules as values


@pytest.mark.parametrize(
    "rule",
    [
        ChannelL2(),
        ChannelL2(on=ws.on.convs & ~(ws.on.head | ws.on.name("stem.*"))),
        GradientCentralization(on=~ws.on.biases),
    ],
    ids=str,
)
def test_rules_with_a_selection_survive_pickling(rule):
    again = pickle.loads(pickle.dumps(rule))
    assert again == rule == copy.deepcopy(rule)
    infos = ws.kernels.describe(make_model())
    assert [again.selection(i) for i in infos] == [rule.selection(i) for i in infos]


def test_resuming_under_another_predicate_is_refused():
    def at_least(n):
        return ws.on.where(lambda info: info.is_kernel and info.shape[1] >= n)

    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, ChannelL2(on=at_least(2)))
    state = rules.state_dict()
    rules.load_state_dict(state)
    rules.remove()
    again = ws.attach(optimizer, model, ChannelL2(on=at_least(2)))
    again.load_state_dict(state)  # another function, the same code and values
    again.remove()
    other = ws.attach(optimizer, model, ChannelL2(on=at_least(1)))
    with pytest.raises(AttachError, match="other rules"):
        other.load_state_dict(state)


# --------------------------------------------------------------------------- optimizers that are none


class Hookless(torch.optim.Optimizer):
    def __init__(self, params):
        self.param_groups = [{"params": list(params)}]

    def step(self, closure=None):
        return None


class Wrapper(torch.optim.Optimizer):
    """As in Accelerate: an optimizer by type, whose step and groups are another one's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


def test_optimizers_without_step_hooks_are_refused():
    model = make_model()
    with pytest.raises(AttachError, match="Hookless has no step hooks"):
        ws.attach(Hookless(model.parameters()), model, ChannelL2())
    with pytest.raises(AttachError, match="SparseAdam takes sparse gradients"):
        ws.attach(torch.optim.SparseAdam(model.parameters()), model, ChannelL2())


def test_wrapped_optimizers_are_seen_through_and_carry_rules_once():
    model = make_model()
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    outer = Wrapper(Wrapper(inner))
    rules = ws.attach(outer, model, ChannelL2(smoothing=3.0))
    assert rules.optimizer is inner
    for optimizer in (inner, outer):
        with pytest.raises(AttachError, match="already carries"):
            ws.attach(optimizer, model, GradientCentralization())
    train(model, outer)
    expected = manual_steps(ChannelL2(smoothing=3.0), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    for got, want in zip(weights(model), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def test_assigning_a_stand_in_that_does_not_fit_takes_all_back():
    model, optimizer, rules = attached()
    backward(model)
    grads = [p.grad for p in model.parameters()]
    rules._plan.batches[-1].buffers[-1] = torch.zeros(1)
    with pytest.raises(RuntimeError):
        optimizer.step()
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))


def test_a_copy_goes_on_from_the_step_on_a_manifold_that_changes():
    parts = (ws.manifolds.Sphere("slice"), ws.manifolds.Orthogonal("slice"))
    product = ws.manifolds.Product(parts, over="slice", assignment="random", every=2, on=ws.on.convs)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3), torch.nn.Flatten())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, product)
    for _ in range(2):  # the next step is on another draw than the first
        optimizer.zero_grad()
        model(torch.ones(1, 4, 4, 4)).square().sum().backward()
        optimizer.step()
    twin, _, copied = copy.deepcopy((model, optimizer, rules))
    assert copied.steps == 2
    assert torch.equal(twin[0].weight, model[0].weight)
