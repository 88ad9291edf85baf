"""What `attach` refuses, each with one sentence that says what to do instead."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from weightspace.errors import AttachError, RuleError
from weightspace.kernels import Rule
from weightspace.kernels.parameters import ParameterInfo, gradient_dtype, has_same_layout
from weightspace.kernels.selection import Selection
from weightspace.kernels.stacking import Batching
from weightspace.manifolds import Manifold
from weightspace.metrics import Metric
from weightspace.penalties import Penalty, WeightPenalty

ShareWork = bool | Literal["auto"]
HOOK_MARK = "_weightspace_rules"
_HOOKS = "_optimizer_step_pre_hooks"


@dataclass(frozen=True)
class Options:
    """The keyword arguments of `attach`, checked."""

    measure_every: int | None
    check_finite: bool
    inplace: bool
    batching: Batching
    share_work: ShareWork

    def __post_init__(self) -> None:
        k = self.measure_every
        if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
            raise RuleError(f"attach() got measure_every={k!r}; it counts steps and must be at least 1, or None.")
        for name in ("check_finite", "inplace"):
            if not isinstance(getattr(self, name), bool):
                raise RuleError(f"attach() got {name}={getattr(self, name)!r}; it is a switch: pass True or False.")
        if self.batching not in ("auto", "single", "stacked"):
            raise RuleError(f"attach() got batching={self.batching!r}; choose 'auto', 'single' or 'stacked'.")
        if not isinstance(self.share_work, bool) and self.share_work != "auto":
            raise RuleError(f"attach() got share_work={self.share_work!r}; choose 'auto', True or False.")


def check_rules(rules: tuple[Rule, ...]) -> None:
    """Raises RuleError unless these are rules, at least one, none of them twice."""
    if not rules:
        raise RuleError("attach() got no rule; pass at least one, such as ws.metrics.ChannelL2().")
    for rule in rules:
        if not isinstance(rule, Metric | Penalty | Manifold):
            raise RuleError(f"attach() got {rule!r}, which is no rule; pass instances such as ChannelL2().")
        if rule.on is not None and not isinstance(rule.on, Selection):
            raise RuleError(f"{type(rule).__name__} got on={rule.on!r}; pass a selection such as ws.on.convs.")
    if len(set(rules)) < len(rules):
        raise RuleError(f"attach() got the same rule twice: {', '.join(map(str, rules))}; give each rule once.")


def unwrap_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer whose step does the work, inside wrappers that share its parameter groups.

    Lightning Fabric, Accelerate and the like step the optimizer that they keep as `optimizer` or `optim`: that one
    fires the hooks.
    """
    while True:
        for name in ("optimizer", "optim"):
            inner = getattr(optimizer, name, None)
            if isinstance(inner, Optimizer) and inner.param_groups is optimizer.param_groups:
                optimizer = inner
                break
        else:
            return optimizer


def check_optimizer(optimizer: Optimizer, model: nn.Module) -> None:
    """Raises AttachError unless rules can act on this (unwrapped) optimizer."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise AttachError(
            "LBFGS estimates curvature and searches along lines from the loss's own gradient; a metric makes both "
            "inconsistent. Use a first-order optimizer such as SGD or AdamW."
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise AttachError("SparseAdam takes sparse gradients, metrics dense ones only; use Adam and sparse=False.")
    if getattr(optimizer, _HOOKS, None) is None or not getattr(type(optimizer).step, "hooked", False):
        raise AttachError(
            f"{type(optimizer).__name__} has no step hooks, so rules would never run; pass the torch optimizer that it "
            "wraps, or call super().__init__() in its constructor."
        )
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise AttachError("The optimizer has differentiable=True; a rule would cut its graph: set it to False.")
    if getattr(optimizer, "_overlap_with_ddp", False):
        raise AttachError("overlap_with_ddp=True steps within backward(), before rules can act: set it to False.")
    if not isinstance(model, nn.Module):
        raise AttachError(f"attach() needs the model, a torch.nn.Module, second; got {type(model)}.")
    current = rules_on(optimizer)
    if current is not None:
        raise AttachError(
            f"This optimizer already carries {current!r}; call its remove() first, or give all rules to one attach()."
        )


def check_direction(optimizer: Optimizer, rules: tuple[Rule, ...]) -> None:
    """Raises AttachError for penalties in the gradient of an optimizer that ascends: it would make them grow."""
    added = [r for r in rules if isinstance(r, Penalty) and not (isinstance(r, WeightPenalty) and r.is_proximal)]
    if added and any(group.get("maximize") for group in optimizer.param_groups):
        raise AttachError(
            f"The optimizer has maximize=True and would make {added[0]} as large as it can; minimize the negative of "
            "what you maximize instead."
        )


def rules_on(optimizer: Optimizer) -> object | None:
    """The `Rules` whose hook this optimizer carries. The hook is the mark: wrappers share hooks, not attributes."""
    for hook in getattr(optimizer, _HOOKS).values():
        if hasattr(hook, HOOK_MARK):
            return getattr(hook, HOOK_MARK)
    return None


def refuse_flat_shards(infos: Iterable[ParameterInfo], held: set[int]) -> None:
    """Raises AttachError for parameters that `FullyShardedDataParallel` flattened, before rules look for kernels."""
    for info in infos:
        flat = getattr(info.parameter, "_is_flat_param", False) or getattr(info.parameter, "_fsdp_flattened", False)
        if flat and id(info.parameter) in held:
            raise AttachError(
                f"{info.name} is a flat shard of FullyShardedDataParallel; rules act on whole weights: "
                "train it with DistributedDataParallel or with fully_shard."
            )


def check_gradients(infos: Iterable[ParameterInfo], *, inplace: bool) -> None:
    """Raises AttachError for the first gradient that cannot be transformed: before any of them is."""
    for info in infos:
        grad = info.parameter.grad
        if grad is None:
            continue
        if grad.layout != torch.strided:
            raise AttachError(f"The gradient of {info.name} is sparse ({grad.layout}); metrics need a dense gradient.")
        if inplace and not has_same_layout(grad, info.parameter):
            raise AttachError(
                f"The gradient of {info.name} has strides {grad.stride()}, the weight {info.parameter.stride()}; "
                "inplace=True cannot transform it: attach without inplace."
            )
        expected = gradient_dtype(info.parameter)
        if not inplace and grad.dtype != expected:
            raise AttachError(
                f"The gradient of {info.name} is {grad.dtype}, its stand-in {expected}; "
                f"set the weight's grad_dtype to {grad.dtype}, or attach with inplace=True."
            )


def check_closure(closure: Any) -> None:
    """Raises AttachError unless what came as `optimizer.step(closure)` can be called."""
    if not callable(closure):
        raise AttachError(
            f"optimizer.step() got {closure!r}, which cannot be called; pass a closure that computes the loss and its "
            "gradients and returns the loss, or nothing."
        )
