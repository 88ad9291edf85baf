"""Rules on torch optimizers, through their step hooks.

Before the optimizer's step every routed `p.grad` is replaced by a buffer that holds the transformed gradient; after
the step `p.grad` is again the tensor that `backward()` left. Nothing else of optimizer, model or script changes.
"""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from weightspace.errors import AttachError
from weightspace.kernels import Rule
from weightspace.kernels.stacking import Batching
from weightspace.optim._checks import (
    Options,
    ShareWork,
    check_direction,
    check_optimizer,
    check_rules,
    unwrap_optimizer,
)
from weightspace.optim.rules import Rules

__all__ = ["Rules", "attach"]


def attach(
    optimizer: Optimizer,
    model: nn.Module,
    *rules: Rule,
    measure_every: int | None = None,
    check_finite: bool = True,
    inplace: bool = False,
    batching: Batching = "auto",
    share_work: ShareWork = "auto",
) -> Rules:
    """Puts rules in force on a torch optimizer; the rest of the training script stays as it is.

    The order within a step is canonical, whatever order the rules come in: metrics first, which see the loss gradient
    only; then penalties, whose gradients are added. Several metrics on one weight act one after the other, in the order
    given.

    Args:
        optimizer: A `torch.optim.Optimizer` that steps along a dense `p.grad`, closures included, wrapped by Lightning
            Fabric or not. LBFGS and SparseAdam are refused.
        model: The model whose parameters it optimizes, inside `DistributedDataParallel`, `torch.compile` or Lightning
            Fabric's wrapper or not; sharded by `fully_shard` or not.
        rules: `weightspace.metrics.ChannelL2()`, `weightspace.penalties.SingularValueBand()` and their like. Each must
            select at least one parameter.
        measure_every: Measure `rho` and `shrinkage` of every routed weight on each k-th step, from the first on.
        check_finite: Raise on NaN or infinite gradients before any weight changes; one synchronization a step.
        inplace: Overwrite `p.grad` instead of lending buffers: saves their memory, `p.grad` ends transformed.
        batching: `"single"` runs weight by weight, `"stacked"` equal weights in one call, `"auto"` as measured.
        share_work: Inside `DistributedDataParallel` let each process evaluate some of the penalties on singular values
            and their like, and send the others what it found, the same bits: `"auto"` where that is estimated to be
            faster, True always, False never. The model must be given wrapped.

    Returns:
        `Rules`, with `table()`, `verify()`, `state_dict()`, `remove()`. The optimizer keeps them; you need not.

    Raises:
        SelectionError: A rule selects nothing it can act on.
        AttachError: The optimizer already carries rules or cannot carry any, or weights are sharded in a way that rules
            cannot follow (`fully_shard` alone is fine).
        RuleError: No rule was given, something that is no rule, or an option out of range.

    Example:
        >>> import torch, weightspace as ws
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(2, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        >>> rules = ws.attach(optimizer, model, ws.metrics.ChannelL2(smoothing=2.0))
        >>> _ = nn.init.zeros_(model[0].weight)
        >>> model[0].weight.grad = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
        >>> optimizer.step()
        >>> model[0].weight.flatten().tolist(), model[0].weight.grad.flatten().tolist()
        ([-1.5, -2.5], [1.0, 3.0])
    """
    check_rules(rules)
    options = Options(measure_every, check_finite, inplace, batching, share_work)
    if not isinstance(optimizer, Optimizer):
        raise AttachError(f"attach() needs a torch.optim.Optimizer first and the model second; got {type(optimizer)}.")
    inner = unwrap_optimizer(optimizer)
    check_optimizer(inner, model)
    check_direction(inner, rules)
    return Rules(inner, model, tuple(sorted(rules, key=lambda r: r.stage)), options)
