"""The contract that torch's own optimizers pass, as one table: rows are our optimizers and rules on torch's, columns clauses.

Clauses follow torch's `test/test_optim.py`. What a row refuses it must refuse with a sentence, before anything changes.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from reliability.cases import Opened, batch, cases, make_model, train
from torch import nn
from torch.optim import lr_scheduler as schedulers
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.optim.swa_utils import SWALR, AveragedModel

import weightspace as ws
from weightspace.errors import AttachError, NonFiniteGradientError, RuleError, VerificationError

LANGEVIN = {"temperature": 1.0, "num_data": 1000, "seed": 7, "lr": 1e-3}
OURS: dict[str, dict[str, Any]] = {
    "SubmanifoldSGD": {"lr": 0.05, "momentum": 0.9},
    "SubmanifoldAdam": {"lr": 0.01},
    "ConstrainedLangevin": LANGEVIN,
}
RULES: dict[str, tuple[str, Callable[[], list[Any]]]] = {
    "metric on SGD": ("SGD", lambda: [ws.metrics.ChannelL2(smoothing=4.0)]),
    "metric on Adam": ("Adam", lambda: [ws.metrics.ChannelSobolev(smoothing=2.0)]),
    "band on SGD": ("SGD", lambda: [ws.penalties.SingularValueBand(0.5, 1.5, weight=1e-2, frequencies=2)]),
    "gated L1 on SGD": (
        "SGD",
        lambda: [ws.penalties.L1(1e-3, application="proximal", gate=ws.gates.Coherent(against="history"))],
    ),
    "Stiefel on SGD": ("SGD", lambda: [ws.manifolds.Stiefel()]),
    "Sphere on AdamW": ("AdamW", lambda: [ws.manifolds.Sphere()]),
}


@dataclass(frozen=True)
class Row:
    """An optimizer with its rules; `where` says which weights of ours are constrained, None for rules on torch's."""

    name: str
    kind: str
    where: str | None

    def open(self, model: nn.Module, **options: Any) -> Opened:
        if self.where is None:
            own = {"lr": 0.05, "momentum": 0.9} if self.kind == "SGD" else {"lr": 0.01}
            optimizer = getattr(torch.optim, self.kind)(model.named_parameters(), **{**own, **options})
            return optimizer, ws.attach(optimizer, model, *RULES[self.name][1]())
        return getattr(ws.optim, self.kind)(self.groups(model), **{**OURS[self.kind], **options}), None

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        if self.where == "free":
            return [{"params": list(model.named_parameters())}]
        groups = ws.param_groups(model, {ws.on.convs: ws.manifolds.Stiefel()})
        return [g for g in groups if self.where == "both" or not g["manifold"].startswith("euclidean")]

    @property
    def is_ours(self) -> bool:
        return self.where is not None

    @property
    def is_sampler(self) -> bool:
        return self.kind == "ConstrainedLangevin"

    @property
    def is_constrained(self) -> bool:
        return self.where in ("constrained", "both") or "Stiefel" in self.name or "Sphere" in self.name


ROWS = [Row(f"{kind} {where}", kind, where) for kind in OURS for where in ("constrained", "free", "both")]
ROWS += [Row(name, kind, None) for name, (kind, _) in RULES.items()]


def _marked(row: Row) -> Any:
    """The rows of clauses that train; half of them are kept for the slow suite."""
    is_fast = row.where == "both" or row.name in ("metric on SGD", "band on SGD", "Stiefel on SGD")
    return pytest.param(row, id=row.name, marks=() if is_fast else pytest.mark.slow)


rows = pytest.mark.parametrize("row", [_marked(row) for row in ROWS])
ours = pytest.mark.parametrize("row", [row for row in ROWS if row.is_ours], ids=lambda row: row.name)


def start(row: Row, **options: Any) -> tuple[nn.Module, Opened]:
    model = make_model()
    return model, row.open(model, **options)


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def close(a: nn.Module, b: nn.Module, rtol: float = 1e-10) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=rtol, atol=rtol)


def gradients(model: nn.Module, step: int) -> float:
    model.zero_grad()
    x, y = batch(step)
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return float(loss.detach())


def verify(opened: Opened) -> None:
    optimizer, rules = opened
    if rules is not None:
        assert all(check.holds for check in rules.verify())
    else:
        assert all(check.holds for check in optimizer.verify())


def state_of(model: nn.Module, opened: Opened) -> tuple[Any, Any, Any]:
    optimizer, rules = opened
    return model.state_dict(), optimizer.state_dict(), None if rules is None else rules.state_dict()


def resumed(row: Row, state: tuple[Any, Any, Any]) -> tuple[nn.Module, Opened]:
    model = make_model(seed=1)
    optimizer, rules = row.open(model)
    model.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    if rules is not None:
        rules.load_state_dict(state[2])
    return model, (optimizer, rules)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# ---------------------------------------------------------------- it goes where it should


@rows
def test_the_loss_falls_and_what_is_declared_holds(row: Row):
    model, opened = start(row, **({"temperature": 0.0, "lr": 0.02} if row.is_sampler else {}))
    first = gradients(model, 0)
    for _ in range(15):
        gradients(model, 0)
        opened[0].step()
    assert gradients(model, 0) < first
    verify(opened)
    assert row.kind in repr(opened[0])


@rows
def test_maximize_is_descent_on_the_negative_or_refused(row: Row):
    if row.name == "band on SGD":
        with pytest.raises(AttachError, match=r"maximize=True and would make SingularValueBand.*minimize the negative"):
            start(row, maximize=True)
        return
    up, opened = start(row, maximize=True)
    down, other = start(row)
    for k in range(4):
        gradients(up, k)
        opened[0].step()
        gradients(down, k)
        for p in down.parameters():
            p.grad.neg_()
        other[0].step()
    close(up, down)
    verify(opened)


# ---------------------------------------------------------------- state


@rows
def test_a_state_goes_on_as_the_original_and_is_left_alone(row: Row):
    model, opened = start(row)
    train(model, opened, 3)
    state = copy.deepcopy(state_of(model, opened))
    kept = copy.deepcopy(state)
    twin, other = resumed(row, state)
    assert same(state, kept)
    train(model, opened, 3, first=3)
    train(twin, other, 3, first=3)
    assert equal(model, twin)
    assert same(state_of(model, opened), state_of(twin, other))  # and states are deterministic


@rows
def test_a_state_survives_a_file_without_pickle(row: Row):
    model, opened = start(row)
    train(model, opened, 2)
    file = io.BytesIO()
    torch.save(state_of(model, opened), file)
    train(model, opened, 2, first=2)
    file.seek(0)
    twin, other = resumed(row, torch.load(file, weights_only=True))
    train(twin, other, 2, first=2)
    assert equal(model, twin)


@rows
def test_a_state_is_tensors_and_json(row: Row):
    model, opened = start(row)
    train(model, opened, 2)
    tensors: dict[str, torch.Tensor] = {}

    def pack(value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[path] = value.clone()
            return {"tensor": path}
        if isinstance(value, dict):
            return {"items": [[k, pack(v, f"{path}/{k}")] for k, v in value.items()]}
        if isinstance(value, list | tuple):
            return [pack(v, f"{path}/{k}") for k, v in enumerate(value)]
        return value

    def unpack(value: Any) -> Any:
        if isinstance(value, list):
            return [unpack(v) for v in value]
        if isinstance(value, dict):
            return tensors[value["tensor"]] if "tensor" in value else {k: unpack(v) for k, v in value["items"]}
        return value

    text = json.dumps(pack(state_of(model, opened), ""))
    train(model, opened, 2, first=2)
    twin, other = resumed(row, tuple(unpack(json.loads(text))))
    train(twin, other, 2, first=2)
    assert equal(model, twin)


@rows
def test_states_of_older_versions_and_steps_that_are_numbers(row: Row):
    model, opened = start(row)
    train(model, opened, 2)
    state = copy.deepcopy(state_of(model, opened))
    for group in state[1]["param_groups"]:
        for key in ("maximize", "foreach", "differentiable"):
            group.pop(key, None)
    for own in state[1]["state"].values():
        if isinstance(own.get("step"), torch.Tensor):
            own["step"] = own["step"].item()
    twin, other = resumed(row, state)
    assert all(isinstance(own.get("step", torch.zeros(())), torch.Tensor) for own in other[0].state.values())
    train(model, opened, 2, first=2)
    train(twin, other, 2, first=2)
    assert equal(model, twin)
    verify(other)


@rows
def test_names_are_kept_and_states_with_and_without_them_load(row: Row):
    model, opened = start(row)
    train(model, opened, 1)
    state = copy.deepcopy(state_of(model, opened))
    names = [name for group in state[1]["param_groups"] for name in group["param_names"]]
    assert set(names) <= {name for name, _ in model.named_parameters()}
    for group in state[1]["param_groups"]:
        del group["param_names"]
    twin, other = resumed(row, state)
    assert [name for group in other[0].param_groups for name in group["param_names"]] == names
    train(model, opened, 1, first=1)
    train(twin, other, 1, first=1)
    assert equal(model, twin)


@rows
def test_copies_and_pickles_go_on_alike(row: Row):
    model, (optimizer, rules) = start(row)
    train(model, (optimizer, rules), 2)
    copies: list[tuple[nn.Module, Any, Any]] = [copy.deepcopy((model, optimizer, rules))]
    if rules is None:  # rules are hooks, which pickle leaves behind: attach anew
        copies.append((*pickle.loads(pickle.dumps((model, optimizer))), None))
    train(model, (optimizer, rules), 2, first=2)
    for twin, other, copied in copies:
        assert {k for k in vars(optimizer) if k[0] != "_"} == {k for k in vars(other) if k[0] != "_"}
        train(twin, (other, copied), 2, first=2)
        assert equal(model, twin)


@ours
@pytest.mark.parametrize("check_finite", [True, False])
def test_copies_keep_what_is_no_option_of_a_group(row: Row, check_finite: bool):
    _, (optimizer, _) = start(row, check_finite=check_finite)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        for parameter in other.state:
            parameter.grad = torch.full_like(parameter, float("nan"))
        if check_finite:
            with pytest.raises(NonFiniteGradientError):
                other.step()
        elif row.where == "free":
            other.step()  # as asked for, it does not look
            assert all(p.isnan().all() for p in other.state)


@pytest.mark.parametrize("row", [row for row in ROWS if row.is_ours and not row.is_sampler], ids=lambda row: row.name)
def test_a_state_of_torchs_own_optimizer_never_takes_a_constraint_away(row: Row):
    model, (optimizer, _) = start(row)
    plain = make_model()
    named = dict(plain.named_parameters())
    groups = [{"params": [named[name] for name in group["param_names"]]} for group in optimizer.param_groups]
    theirs = getattr(torch.optim, row.kind.removeprefix("Submanifold"))(groups, lr=0.01)
    gradients(plain, 0)
    theirs.step()
    before = copy.deepcopy(optimizer.state_dict())
    if row.kind == "SubmanifoldAdam" and row.is_constrained:  # one second moment a point, not one a number
        with pytest.raises(AttachError, match=r"exp_avg_sq of 0\.weight has shape \(6, 2, 3, 3\).*another optimizer"):
            optimizer.load_state_dict(theirs.state_dict())
        assert same(optimizer.state_dict(), before)
        return
    optimizer.load_state_dict(theirs.state_dict())
    assert [g["manifold"] for g in optimizer.param_groups] == [g["manifold"] for g in before["param_groups"]]
    train(model, (optimizer, None), 2)
    verify((optimizer, None))


# ---------------------------------------------------------------- hooks


@rows
def test_step_hooks_of_the_instance_and_of_all(row: Row):
    model, (optimizer, rules) = start(row)
    seen: list[str] = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: seen.append("pre")),
        optimizer.register_step_post_hook(lambda *_: seen.append("post")),
        register_optimizer_step_pre_hook(lambda *_: seen.append("all pre")),
        register_optimizer_step_post_hook(lambda *_: seen.append("all post")),
    ]
    try:
        train(model, (optimizer, rules), 2)
    finally:
        for handle in handles:
            handle.remove()
    train(model, (optimizer, rules), 1)
    assert seen == ["all pre", "pre", "post", "all post"] * 2


@rows
def test_state_dict_hooks(row: Row):
    model, (optimizer, rules) = start(row)
    train(model, (optimizer, rules), 1)
    seen: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("pre"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "mark": 1})
    assert optimizer.state_dict()["mark"] == 1
    assert seen == ["pre"]


@rows
def test_load_hooks_decide_what_is_loaded_and_see_it_loaded(row: Row):
    model, (optimizer, rules) = start(row)
    train(model, (optimizer, rules), 2)
    saved = copy.deepcopy(optimizer.state_dict())
    twin, (other, _) = start(row)
    found: list[bool] = []

    def unwrapped(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        return state["inside"]

    def look(loaded: torch.optim.Optimizer) -> None:
        found.append(same(loaded.state_dict()["state"], saved["state"]))

    other.register_load_state_dict_pre_hook(unwrapped)
    other.register_load_state_dict_post_hook(look)
    other.load_state_dict({"inside": saved})
    assert found == [True]
    del twin


# ---------------------------------------------------------------- gradients, closures


@rows
def test_a_step_without_gradients_changes_nothing(row: Row):
    model, opened = start(row)
    train(model, opened, 1)
    weights, before = copy.deepcopy(model.state_dict()), copy.deepcopy(opened[0].state_dict()["state"])
    opened[0].zero_grad()
    opened[0].step()
    assert same(model.state_dict(), weights)
    assert same(opened[0].state_dict()["state"], before)


@rows
def test_zeroed_gradients_as_none_or_as_zeros(row: Row):
    ends = []
    for set_to_none in (True, False):
        model, (optimizer, rules) = start(row)
        for k in range(4):
            optimizer.zero_grad(set_to_none=set_to_none)
            x, y = batch(k)
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        del rules
        ends.append(model)
    assert equal(*ends)


@rows
def test_weights_without_gradients_rest(row: Row):
    model, opened = start(row)
    train(model, opened, 1)
    before = copy.deepcopy(model.state_dict())
    gradients(model, 1)
    model[0].weight.grad = None
    opened[0].step()
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[2].weight, before["2.weight"])
    verify(opened)


@rows
def test_a_closure_gives_the_same_step_and_its_loss_comes_back(row: Row):
    model, opened = start(row)
    twin, (optimizer, rules) = start(row)
    train(model, opened, 3)
    for k in range(3):
        losses: list[float] = []

        def closure(k: int = k, losses: list[float] = losses) -> torch.Tensor:
            assert torch.is_grad_enabled()
            losses.append(gradients(twin, k))
            return torch.tensor(losses[-1])

        loss = optimizer.step(closure) if k else optimizer.step(closure=closure)
        assert [float(loss)] == pytest.approx(losses)
    assert equal(model, twin)
    del rules
    gradients(twin, 0)
    assert optimizer.step(None) is None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_sparse_gradients_are_refused_before_anything_changes(row: Row):
    model, (optimizer, rules) = start(row)
    gradients(model, 0)
    weight = model[4].weight
    weight.grad = weight.grad.to_sparse()
    before = copy.deepcopy(model.state_dict())
    if row.name == "SubmanifoldSGD free":  # torch's own SGD takes them
        optimizer.step()
        plain = make_model()
        theirs = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
        gradients(plain, 0)
        theirs.step()
        close(model, plain)
        return
    with pytest.raises(AttachError, match=r"[Tt]he gradient of 4\.weight is sparse.*dense"):
        optimizer.step()
    assert same(model.state_dict(), before)
    del rules


@rows
def test_gradients_of_other_strides(row: Row):
    model, opened = start(row)
    twin, other = start(row)
    for k in range(3):
        for m, o in ((model, opened), (twin, other)):
            gradients(m, k)
            if m is twin:
                for p in m.parameters():
                    if p.ndim == 4:
                        p.grad = p.grad.to(memory_format=torch.channels_last)
            o[0].step()
    close(model, twin)


# ---------------------------------------------------------------- learning rates and options


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "StepLR": lambda o: schedulers.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [1, 3], 0.1),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.1, 2),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.1, total_iters=3),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 4, 2.0),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 1e-4, 1e-2, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 1e-2, total_steps=8, cycle_momentum=False),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda k: 1 / (1 + k)),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda _: 0.9),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=2), schedulers.ExponentialLR(o, 0.5)], [2]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.5, 2), schedulers.ExponentialLR(o, 0.9)], o
    ),
    "SWALR": lambda o: SWALR(o, swa_lr=1e-3, anneal_epochs=3),
}


@rows
def test_every_scheduler_of_torch_sets_the_rates_that_are_used(row: Row):
    source = make_model()
    gradients(source, 0)
    for name, make in SCHEDULES.items():
        model, (optimizer, rules) = start(row)
        twin, (other, theirs) = start(row)
        plain = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=optimizer.param_groups[0]["lr"])
        schedule, expected = make(optimizer), make(plain)
        for m in (model, twin):
            m(batch(0)[0])
            for p, q in zip(m.parameters(), source.parameters(), strict=True):
                p.grad = q.grad.clone()
        for _ in range(4):
            for group in other.param_groups:
                group["lr"] = plain.param_groups[0]["lr"]
            for o in (optimizer, other, plain):
                o.step()
            for s in (schedule, expected):
                s.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(plain.param_groups[0]["lr"]), name
        assert equal(model, twin), name
        del rules, theirs


@rows
def test_one_cycle_moves_the_momentum_too_or_is_refused(row: Row):
    model, (optimizer, rules) = start(row)
    schedule = schedulers.OneCycleLR(optimizer, 1e-2, total_steps=40)
    gradients(model, 0)
    if row.is_sampler:
        with pytest.raises(RuleError, match=r"friction=1 and momentum=0\.95 at this step.*cycle_momentum=False"):
            optimizer.step()
        return
    seen: list[float] = []
    for k in range(3):
        gradients(model, k)
        optimizer.step()
        schedule.step()
        group = optimizer.param_groups[0]
        seen.append(group["momentum"] if "momentum" in group else group["betas"][0])
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == 3
    verify((optimizer, rules))


@rows
def test_a_rate_that_is_a_tensor(row: Row):
    model, opened = start(row)
    lr = opened[0].param_groups[0]["lr"]
    twin, other = start(row, lr=torch.tensor(lr, dtype=torch.float64))
    schedule = schedulers.ExponentialLR(opened[0], 0.9)
    follow = schedulers.ExponentialLR(other[0], 0.9)
    for k in range(4):
        train(model, opened, 1, first=k)
        train(twin, other, 1, first=k)
        schedule.step()
        follow.step()
    assert isinstance(other[0].param_groups[0]["lr"], torch.Tensor)
    close(model, twin, 1e-6)
    verify(other)
    again, third = resumed(row, copy.deepcopy(state_of(twin, other)))
    train(twin, other, 1, first=4)
    train(again, third, 1, first=4)
    assert equal(twin, again)


@ours
@pytest.mark.parametrize(
    "lr", [-0.1, float("nan"), float("inf"), "fast", None, torch.tensor([0.1, 0.2]), torch.tensor(-1.0)]
)
def test_rates_out_of_range_are_refused(row: Row, lr: Any):
    with pytest.raises(RuleError, match=rf"{row.kind} got lr="):
        start(row, lr=lr)
    model, (optimizer, _) = start(row)
    with pytest.raises(RuleError, match=rf"{row.kind} got lr="):
        optimizer.add_param_group({"params": [("extra", nn.Parameter(torch.zeros(2, 2)))], "lr": lr})
    del model


@rows
def test_foreach_on_and_off_are_equal(row: Row):
    if row.is_sampler:
        with pytest.raises(TypeError, match="foreach"):
            start(row, foreach=True)
        return
    model, opened = start(row, foreach=True)
    twin, other = start(row, foreach=False)
    train(model, opened, 4)
    train(twin, other, 4)
    assert equal(model, twin)


@ours
@pytest.mark.parametrize("option", ["differentiable", "capturable", "fused"])
def test_what_ours_do_not_offer_is_refused(row: Row, option: str):
    with pytest.raises(TypeError, match=option):
        start(row, **{option: True})
    model, (optimizer, _) = start(row)
    with pytest.raises(RuleError, match=rf"{row.kind} got {option}=True"):
        optimizer.add_param_group({"params": [("extra", nn.Parameter(torch.zeros(2, 2)))], option: True})
    assert len(optimizer.param_groups) == len(row.groups(model))


@pytest.mark.parametrize("row", [r for r in ROWS if not r.is_ours], ids=lambda row: row.name)
def test_differentiable_is_refused_and_fused_is_the_same(row: Row):
    with pytest.raises(AttachError, match="differentiable=True; a rule would cut its graph"):
        start(row, differentiable=True)
    model, opened = start(row)
    twin, other = start(row, fused=True)
    train(model, opened, 4)
    train(twin, other, 4)
    close(model, twin)


@rows
def test_groups_override_defaults(row: Row):
    """Half the weights at a rate of zero stay where they are."""
    model = make_model()
    if row.is_ours:
        groups = row.groups(model)
        for group in groups:
            group["lr"] = 0.0
        optimizer = getattr(ws.optim, row.kind)(groups, **OURS[row.kind])
        rules = None
    else:
        frozen = [(n, p) for n, p in model.named_parameters() if n.startswith("0")]
        others = [(n, p) for n, p in model.named_parameters() if not n.startswith("0")]
        optimizer = getattr(torch.optim, row.kind)([{"params": frozen, "lr": 0.0}, {"params": others}], lr=0.01)
        rules = ws.attach(optimizer, model, *RULES[row.name][1]())
    before = model[0].weight.detach().clone()
    train(model, (optimizer, rules), 2)
    torch.testing.assert_close(model[0].weight.detach(), before, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- groups and parameters


@rows
def test_groups_added_later_train_as_if_they_had_been_there(row: Row):
    model = make_model()
    extra = nn.Conv2d(2, 3, 3, dtype=torch.float64)
    whole = nn.Sequential(*model, extra)
    if row.is_ours:
        optimizer, rules = row.open(model)
        new: dict[str, Any] = {"params": [("extra", extra.weight)]}
        if row.is_constrained:
            new["manifold"] = "sphere(filter)"
    else:
        optimizer = getattr(torch.optim, row.kind)(model.named_parameters(), lr=0.05)
        rules = ws.attach(optimizer, whole, *RULES[row.name][1]())
        new = {"params": [("extra", extra.weight)]}
    optimizer.add_param_group(new)
    assert optimizer.param_groups[-1]["param_names"] == ["extra"]
    before = extra.weight.detach().clone()
    for k in range(2):
        whole.zero_grad()
        images, labels = batch(k)
        (nn.functional.cross_entropy(model(images), labels) + extra(images).square().mean()).backward()
        optimizer.step()
    assert not torch.equal(extra.weight, before)
    verify((optimizer, rules))
    if row.is_ours:
        assert float(optimizer.state[extra.weight]["step"]) == 2
        assert "manifold" not in new or new["manifold"] == "sphere(filter)"


@ours
def test_a_group_that_is_refused_leaves_no_trace(row: Row):
    model, (optimizer, _) = start(row)
    before = copy.deepcopy(optimizer.state_dict())
    bad: list[dict[str, Any]] = [
        {"params": [("a", nn.Parameter(torch.zeros(3)))], "manifold": "stiefel(matrix)"},
        {"params": [("a", nn.Parameter(torch.zeros(3, 3, dtype=torch.complex64)))], "manifold": "sphere(kernel)"},
        {"params": [("a", nn.Parameter(torch.full((3, 3), float("nan"))))], "manifold": "sphere(kernel)"},
        {"params": [("a", nn.Parameter(torch.zeros(2))), nn.Parameter(torch.zeros(2))]},
        {"params": [("a", next(model.parameters()))]},
    ]
    for group in bad:
        with pytest.raises((ValueError, TypeError, AttachError)):
            optimizer.add_param_group(group)
        assert same(optimizer.state_dict(), before), group
    train(model, (optimizer, None), 1)


@ours
def test_an_empty_group_is_no_trouble(row: Row):
    model = make_model()
    groups = [*row.groups(model), {"params": []}, {"params": [], "manifold": "stiefel(matrix)"}]
    names = row.open(model)[0].param_groups[0].get("param_names")
    if names:  # torch asks for names in all groups or in none
        groups = [{**g, "params": [p if isinstance(p, nn.Parameter) else p[1] for p in g["params"]]} for g in groups]
    optimizer = getattr(ws.optim, row.kind)(groups, **OURS[row.kind])
    twin, other = start(row)
    model.load_state_dict(twin.state_dict())
    train(model, (optimizer, None), 3)
    train(twin, other, 3)
    assert equal(model, twin)
    verify((optimizer, None))
    assert len(optimizer.state_dict()["param_groups"]) == len(groups)


@ours
def test_what_is_no_parameter_is_refused_as_torch_does(row: Row):
    make = getattr(ws.optim, row.kind)
    weight = nn.Parameter(torch.eye(3))
    with pytest.raises(TypeError, match="should be an iterable of Tensors or dicts"):
        make(weight, **OURS[row.kind])
    with pytest.raises(ValueError, match="empty parameter list"):
        make([], **OURS[row.kind])
    with pytest.raises(TypeError, match="ordered collections"):
        make([{"params": {weight}}], **OURS[row.kind])
    with pytest.raises(ValueError, match="non-leaf"):
        make([weight * 2], **OURS[row.kind])
    with pytest.raises(ValueError, match="more than one parameter group"):
        make([{"params": [weight]}, {"params": [weight]}], **OURS[row.kind])
    with pytest.raises(RuleError, match="lists 'a' twice"):
        make([{"params": [("a", weight), ("a", weight)]}], **OURS[row.kind])
    with pytest.raises(ValueError, match="with/without names"):
        make([("a", weight), nn.Parameter(torch.eye(2))], **OURS[row.kind])


@ours
def test_numbers_and_empty_weights(row: Row):
    scalar, empty = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.zeros(0, 3))
    make = getattr(ws.optim, row.kind)
    if row.where == "constrained":
        for bad in (scalar, empty):
            with pytest.raises(ValueError, match=r"matrix|empty|holds no|single"):
                make([{"params": [bad], "manifold": "stiefel(matrix)"}], **OURS[row.kind])
        return
    optimizer = make([scalar, empty], **{**OURS[row.kind], **({"temperature": 0.0} if row.is_sampler else {})})
    for _ in range(3):
        optimizer.zero_grad()
        (scalar.square() + empty.sum()).backward()
        optimizer.step()
    assert 0 < float(scalar.detach()) < 2
    assert empty.shape == (0, 3)
    assert optimizer.verify() == []


@ours
def test_complex_weights(row: Row):
    weight = nn.Parameter(torch.ones(3, 3, dtype=torch.complex64))
    make = getattr(ws.optim, row.kind)
    group = {"params": [("w", weight)], **({} if row.where == "free" else {"manifold": "sphere(kernel)"})}
    if row.where == "free" and not row.is_sampler:  # torch's own arithmetic, which takes them
        optimizer = make([group], **OURS[row.kind])
        twin = nn.Parameter(torch.ones(3, 3, dtype=torch.complex64))
        plain = getattr(torch.optim, row.kind.removeprefix("Submanifold"))([twin], **OURS[row.kind])
        for w, o in ((weight, optimizer), (twin, plain)):
            for _ in range(3):
                w.grad = torch.full((3, 3), 1 + 2j)
                o.step()
        assert torch.equal(weight, twin)
        return
    with pytest.raises(AttachError, match=r"w is complex.*view_as_real"):
        make([group], **OURS[row.kind])


def test_rules_leave_complex_weights_alone_and_say_so():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, dtype=torch.complex64), nn.Conv2d(3, 3, 3), nn.Linear(2, 2))
    for rule in (
        ws.metrics.ChannelL2(),
        ws.manifolds.Sphere(),
        ws.penalties.L1(1e-3),
        ws.penalties.SoftOrthogonality(),
    ):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rules = ws.attach(optimizer, model, rule)
        routes = {route.info.name: route for route in rules.table().routes}
        assert not routes["0.weight"].rules
        assert "complex" in str(rules.table())
        rules.remove()
    with pytest.raises(ValueError, match="complex"):
        ws.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, ws.manifolds.Sphere(on=ws.on.name("0.weight")))


# ---------------------------------------------------------------- averages of weights


@pytest.mark.parametrize("row", [r for r in ROWS if r.is_constrained], ids=lambda row: row.name)
def test_averaged_weights_leave_the_manifold_and_can_be_put_back(row: Row):
    """Documented: the average of points is none; an optimizer built for the average moves it there."""
    model, opened = start(row)
    averaged = AveragedModel(model)
    for k in range(3):
        train(model, opened, 4, first=4 * k)
        averaged.update_parameters(model)
    verify(opened)  # the weights that train are not disturbed
    manifold = ws.manifolds.Sphere() if "Sphere" in row.name else ws.manifolds.Stiefel()
    groups = ws.param_groups(averaged.module, {ws.on.convs: manifold})
    kept = copy.deepcopy(averaged.module.state_dict())
    back = ws.optim.SubmanifoldSGD(groups, lr=0.0)
    assert back.moved, "the average was on the manifold"
    assert all(check.holds for check in back.verify())
    averaged.module.load_state_dict(kept)
    with pytest.raises(VerificationError):
        back.verify()


# ---------------------------------------------------------------- all cases


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_every_case_resumes_closes_and_copies(case: Any):
    """The clauses that take no options, over every row of the registry and every optimizer of ours."""
    model = make_model()
    opened = case.open(model)
    train(model, opened, 2)
    file = io.BytesIO()
    torch.save(state_of(model, opened), file)
    twin, other, copied = copy.deepcopy((model, *opened))
    train(model, opened, 2, first=2)
    train(twin, (other, copied), 2, first=2)
    assert equal(model, twin)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = make_model(seed=1)
    optimizer, rules = case.open(again)
    again.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    if rules is not None:
        rules.load_state_dict(state[2])
        again(batch(0)[0])
    train(again, (optimizer, rules), 2, first=2)
    assert equal(model, again)
