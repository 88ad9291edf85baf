"""Every case in other precisions and layouts, with gradients accumulated and clipped: the ways in which scripts train.

Each check trains one case for a few steps in two ways that must agree, or in one whose constraints must hold, and gives
the error as a share of what is allowed. What torch itself refuses is no check: a gradient scaler takes no closure.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from reliability.cases import Case, Opened, batch, cases, make_model
from reliability.findings import METHODS, Finding

STEPS = 4
ROUNDING = 1e-9  # float64, a few steps; what steers by comparisons may amplify rounding
SCALE = 1024.0  # of the gradient scaler
CLIP = 0.05


@dataclass(frozen=True)
class Outcome:
    """One check of one case.

    Attributes:
        case: The case.
        check: One of `CHECKS`.
        share: The error as a share of what is allowed; infinite if something did not hold.
        said: What did not hold, or the error.
    """

    case: Case
    check: str
    share: float
    said: str = ""

    @property
    def holds(self) -> bool:
        """Whether the error is allowed (a NaN is not)."""
        return self.share <= 1.0


class CheckError(Exception):
    """Something that must hold did not."""


def _need(holds: bool, sentence: str) -> None:
    if not holds:
        raise CheckError(sentence)


# ---------------------------------------------------------------- one step


def gradients(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> torch.Tensor:
    """Zeroes, runs forward and backward in the model's own dtype and returns the loss."""
    optimizer.zero_grad()
    x, y = batch(step, next(model.parameters()).dtype)
    loss = nn.functional.cross_entropy(model(x).float() if x.dtype.itemsize < 4 else model(x), y)
    loss.backward()
    return loss


def take_step(opened: Opened, compute: Callable[[], torch.Tensor]) -> None:
    """A step of gradients that `compute` makes, in a closure where a gate needs one."""
    optimizer, rules = opened
    if rules is not None and rules.needs_closure:
        optimizer.step(compute)
        return
    compute()
    optimizer.step()


def _share_on_manifold(opened: Opened) -> float:
    """The worst violation as a share of its bound; raises VerificationError where one is exceeded."""
    optimizer, rules = opened
    checks = rules.verify() if rules is not None else getattr(optimizer, "verify", list)()
    shares = [check.error / check.bound for check in checks if check.what.startswith("that the weight lies")]
    return max(shares, default=0.0)


def _finite(model: nn.Module) -> None:
    _need(all(bool(p.isfinite().all()) for p in model.parameters()), "a weight is not finite")


def _difference(model: nn.Module, twin: nn.Module, allowed: float = ROUNDING) -> float:
    """The largest difference of weights as a share of what is allowed, relative to the largest weight."""
    pairs = [
        (p.detach().double(), q.detach().double()) for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    ]
    error = max(float((p - q).abs().max() / p.abs().max().clamp(min=1e-300)) for p, q in pairs)
    return error / allowed


def _counters(opened: Opened) -> dict[str, Any]:
    optimizer, rules = opened
    kept: dict[str, Any] = {"optimizer": copy.deepcopy(optimizer.state_dict())}
    if rules is not None:
        kept |= {"steps": rules.steps, "duty": rules.duty_cycles, "rules": copy.deepcopy(rules.state_dict())}
    return kept


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


# ---------------------------------------------------------------- the checks


def bf16_autocast(case: Case) -> float:
    """Float32 weights, the whole step within `torch.autocast("cpu", torch.bfloat16)`: rules compute in float32."""
    model, twin = make_model(torch.float32), make_model(torch.float32)
    opened, other = case.open(model), case.open(twin)
    for k in range(STEPS):
        # The forward pass of both is cast; only the first optimizer's step is.
        with torch.autocast("cpu", torch.bfloat16):
            take_step(opened, lambda k=k: gradients(model, opened[0], k))

        def compute(k: int = k) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return gradients(twin, other[0], k)

        take_step(other, compute)
    _finite(model)
    return max(_difference(model, twin, 1e-6), _share_on_manifold(opened))


def fp16_scaler(case: Case) -> float | None:
    """Float16 autocast with a `GradScaler`; the third of five steps overflows and must change nothing."""
    model, twin = make_model(torch.float32), make_model(torch.float32)
    opened, other = case.open(model), case.open(twin)
    if opened[1] is not None and opened[1].needs_closure:
        return None
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    for k in range(5):
        opened[0].zero_grad()
        x, y = batch(k, torch.float32)
        with torch.autocast("cpu", torch.float16):
            loss = nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        skips = k == 2
        if skips:
            next(model.parameters()).grad.view(-1)[0] = torch.inf
        else:  # the same gradients, unscaled by hand
            twin(x)  # penalties ask for the size of what layers read
            for p, q in zip(model.parameters(), twin.parameters(), strict=True):
                q.grad = None if p.grad is None else p.grad / scaler.get_scale()
            other[0].step()
        before = (copy.deepcopy(model.state_dict()), _counters(opened)) if skips else None
        scaler.step(opened[0])
        scaler.update()
        if before is not None:
            _need(_same(before, (model.state_dict(), _counters(opened))), "a skipped step changed something")
    _need(scaler.get_scale() == SCALE / 2, "the scaler saw no overflow")
    if opened[1] is not None and other[1] is not None:
        _need(opened[1].duty_cycles == other[1].duty_cycles, "gates decided otherwise")
        _need(opened[1].steps == 4, f"{opened[1].steps} steps were counted, 4 were taken")
    _finite(model)
    return max(_difference(model, twin, 1e-5), _share_on_manifold(opened))


def _16_bit(case: Case, dtype: torch.dtype) -> float:
    model = make_model(dtype)
    opened = case.open(model)
    for group in opened[0].param_groups:
        if "eps" in group and dtype == torch.float16:
            group["eps"] = 1e-4  # Adam's own 1e-8 is 0 in float16, and 0 / 0 follows: in plain torch too
    for k in range(STEPS):
        take_step(opened, lambda k=k: gradients(model, opened[0], k))
    _finite(model)
    _need(all(p.dtype == dtype for p in model.parameters()), "a weight changed its dtype")
    return _share_on_manifold(opened)


def bf16_weights(case: Case) -> float:
    """Weights in bfloat16, manifolds in float32: on the manifold to within what bfloat16 resolves."""
    return _16_bit(case, torch.bfloat16)


def fp16_weights(case: Case) -> float:
    """The same in float16."""
    return _16_bit(case, torch.float16)


def channels_last(case: Case) -> float:
    """Weights in `torch.channels_last`: the same weights, and strides that stay.

    Noise is drawn in the order of memory, another path of the same law, so samplers are compared at temperature 0.
    `LaplacianSmoothing` smooths along the order of memory: of it only the strides are looked at.
    """
    model = make_model().to(memory_format=torch.channels_last)
    twin = make_model()
    strides = [p.stride() for p in model.parameters()]
    opened, other = case.open(model), case.open(twin)
    for group in (*opened[0].param_groups, *other[0].param_groups):
        if "temperature" in group:
            group["temperature"] = 0.0
    for k in range(STEPS):
        take_step(opened, lambda k=k: gradients(model, opened[0], k))
        take_step(other, lambda k=k: gradients(twin, other[0], k))
    _need([p.stride() for p in model.parameters()] == strides, "strides changed")
    if case.name.startswith("LaplacianSmoothing"):
        return 0.0
    return max(_difference(model, twin), _share_on_manifold(opened))


def accumulation(case: Case) -> float:
    """Two half batches, each with half its loss, are the joined batch."""
    model, twin = make_model(), make_model()
    opened, other = case.open(model), case.open(twin)

    def halves(k: int) -> torch.Tensor:
        opened[0].zero_grad()
        x, y = batch(k)
        total = torch.zeros((), dtype=x.dtype)
        for part in (slice(None, 4), slice(4, None)):
            loss = nn.functional.cross_entropy(model(x[part]), y[part]) / 2
            loss.backward()
            total += loss.detach()
        return total

    for k in range(STEPS):
        take_step(opened, lambda k=k: halves(k))
        take_step(other, lambda k=k: gradients(twin, other[0], k))
    return max(_difference(model, twin), _share_on_manifold(opened))


def clipping_before(case: Case) -> float:
    """Clipped between `backward()` and `step()`: rules see the clipped loss gradient, and leave it in `p.grad`."""
    model, twin = make_model(), make_model()
    opened, other = case.open(model), case.open(twin)

    def clipped(m: nn.Module, o: torch.optim.Optimizer, k: int, by_hand: bool) -> torch.Tensor:
        loss = gradients(m, o, k)
        if by_hand:
            grads = [p.grad for p in m.parameters() if p.grad is not None]
            norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads]))
            for g in grads:
                g.mul_(torch.clamp(CLIP / (norm + 1e-6), max=1.0))
        else:
            clip_grad_norm_(m.parameters(), CLIP)
        return loss

    for k in range(STEPS):
        take_step(opened, lambda k=k: clipped(model, opened[0], k, False))
        take_step(other, lambda k=k: clipped(twin, other[0], k, True))
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    _need(float(norm) <= CLIP * (1 + 1e-12), "p.grad is not the clipped gradient after the step")
    return max(_difference(model, twin), _share_on_manifold(opened))


def clipping_after(case: Case) -> float | None:
    """Clipped by a step pre-hook that was registered after `attach`: what the optimizer sees is no longer than that."""
    model = make_model()
    opened = case.open(model)
    if opened[1] is None or opened[1].needs_closure:
        return None
    parameters = list(model.parameters())
    seen: list[float] = []

    def clip(*_: object) -> None:
        clip_grad_norm_(parameters, CLIP)

    def look(*_: object) -> None:
        grads = [p.grad.flatten() for p in parameters if p.grad is not None]
        seen.append(float(torch.linalg.vector_norm(torch.cat(grads))))

    opened[0].register_step_pre_hook(clip)
    opened[0].register_step_pre_hook(look)
    for k in range(STEPS):
        take_step(opened, lambda k=k: gradients(model, opened[0], k))
    return max(max(seen) / (CLIP * (1 + 1e-12)), _share_on_manifold(opened))


CHECKS: dict[str, Callable[[Case], float | None]] = {
    "bfloat16 autocast": bf16_autocast,
    "float16 autocast and GradScaler": fp16_scaler,
    "bfloat16 weights": bf16_weights,
    "float16 weights": fp16_weights,
    "channels_last": channels_last,
    "accumulation": accumulation,
    "clipping before rules": clipping_before,
    "clipping after rules": clipping_after,
}


def run(case: Case, check: str) -> Outcome | None:
    """One check of one case; None where it does not apply."""
    try:
        share = CHECKS[check](case)
    except Exception as error:  # noqa: BLE001  # whatever it is, the check did not hold, and the table says so
        return Outcome(case, check, float("inf"), f"{type(error).__name__}: {error}")
    return None if share is None else Outcome(case, check, share, f"{share:.2g} of what is allowed")


def representative(every: Iterable[Case], step: int = 7) -> list[Case]:
    """Some cases of each method: what a quick look looks at."""
    chosen: list[Case] = []
    for method in METHODS:
        chosen += [c for c in every if c.method == method][::step]
    return chosen


def measure(*, quick: bool = False) -> list[Finding]:
    """All checks of all cases (of some, with `quick`), a finding for each method."""
    every = cases()
    chosen = representative(every) if quick else every
    findings: list[Finding] = []
    for method in METHODS:
        here = [c for c in chosen if c.method == method]
        outcomes = [o for c in here for check in CHECKS if (o := run(c, check)) is not None]
        broken = [o for o in outcomes if not o.holds]
        worst = max((o.share for o in outcomes), default=0.0)
        text = f"{len(outcomes) - len(broken)} of {len(outcomes)} checks of {len(here)} cases"
        details = {
            "checks": {
                check: {
                    "cases": len(of := [o for o in outcomes if o.check == check]),
                    "worst share of the bound": max((o.share for o in of), default=0.0),
                }
                for check in CHECKS
            },
            "broken": {f"{o.case.name}: {o.check}": o.said for o in broken},
            "worst share of the bound": worst,
        }
        findings.append(Finding(method, text, not broken, details))
    return findings
