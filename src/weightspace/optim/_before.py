"""What rules do between the gradient and the optimizer's step: metrics, penalties with their gates, projections.

Everything is looked at before anything is changed: what raises leaves gradients, weights and memories as they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from weightspace.optim._checks import Options, check_gradients
from weightspace.optim._finite import all_finite, raise_non_finite, raise_overflow, sum_of, sums
from weightspace.optim._gates import Number
from weightspace.optim._lookahead import Again
from weightspace.optim._plan import Plan
from weightspace.optim._stand_ins import StandIns
from weightspace.optim._transform import Measured, Swap
from weightspace.precision import full_precision
from weightspace.sharding import Together, local_part


class BeforeStep:
    """Puts stand-ins in the place of gradients.

    Attributes:
        measured: What metrics did at the latest measured step, by parameter name.
    """

    def __init__(self, plan: Plan, stand_ins: StandIns, options: Options) -> None:
        self.measured: Measured = {}
        self._plan = plan
        self._stand_ins = stand_ins
        self._options = options

    def swap(self, optimizer: Optimizer, again: Again | None = None) -> None:
        """Makes the stand-ins of a step and puts them into `p.grad`.

        Args:
            optimizer: It is about to step.
            again: Computes the gradients a second time, for gates that look ahead.
        """
        self._pull()
        must_check = self._must_check(optimizer)
        together = self._plan.parts.together
        with together.agreeing(when=must_check), full_precision():
            check_gradients(self._plan.acting, inplace=self._options.inplace)
            if must_check and self._options.inplace and not all_finite(sums(self._plan.acting)):
                raise_non_finite(self._plan.acting)  # before touching anything: there is no second copy
            # They depend on weights only, and what they refuse must be known before a gradient is touched.
            penalties, step = self._plan.penalties, int(self._plan.steps)
            additions = [] if penalties is None else penalties.evaluate(step, must_check=must_check)
        # Not in full precision: the second pass must compute as the first did.
        second = {} if penalties is None else penalties.look_ahead(additions, again, self._plan.model, optimizer)
        with together.agreeing(when=must_check), full_precision():
            witnesses: list[torch.Tensor] = []
            swaps = self._transformed(witnesses if must_check else None)
            grad_scale = getattr(optimizer, "grad_scale", None)
            seen = {} if penalties is None else penalties.look(additions, swaps, grad_scale)
            if must_check:
                self._check(witnesses, swaps, seen)
        with full_precision():
            if penalties is not None:
                penalties.act(additions, swaps, second, step, grad_scale)
            if self._plan.manifolds is not None:
                self._plan.manifolds.before(swaps, step, must_measure=self._is_measured)
            self._stand_ins.put(s for s in self._plan.parts.stand_ins(swaps, self._plan.lent) if s.is_filled)

    def _pull(self) -> None:
        """Brings together what this process computes on of sharded weights."""
        is_written = self._plan.parts.pull(int(self._plan.steps))
        if is_written and self._plan.manifolds is not None:
            with self._plan.parts.together.agreeing():
                self._plan.manifolds.enforce(int(self._plan.steps), is_written=True)
            self._plan.parts.push_weights()
            self._plan.manifolds.tell_moved(self._plan.parts.together)

    @property
    def _is_measured(self) -> bool:
        every = self._options.measure_every
        return every is not None and int(self._plan.steps) % every == 0

    def _transformed(self, witnesses: list[torch.Tensor] | None) -> list[Swap]:
        """The stand-ins of this step, with what the metrics make of the gradients."""
        swaps: list[Swap] = []
        for transform in self._plan.transforms:
            swaps += transform.run(witnesses, self.measured if self._is_measured else None)
        return swaps

    def _check(self, witnesses: list[torch.Tensor], swaps: list[Swap], seen: Mapping[int, Number]) -> None:
        """Raises for gradients that are not finite; `seen` is known of some, and only the others are read for it."""
        inplace = self._options.inplace
        if not inplace:
            witnesses += [sum_of(s.gradient) for s in swaps if not s.is_filled and id(s.parameter) not in seen]
            witnesses += sums(i for i in self._plan.unlent if id(i.parameter) not in seen)
            witnesses += [number.reshape(1) for number in seen.values() if isinstance(number, torch.Tensor)]
            if not all(math.isfinite(number) for number in seen.values() if not isinstance(number, torch.Tensor)):
                raise_non_finite(self._plan.acting)  # a square may overflow where the gradient is finite
        if witnesses and not all_finite(witnesses):
            if not inplace:
                raise_non_finite(self._plan.acting)
            if not all(bool(swap.data.isfinite().all()) for swap in swaps):  # a mere sum may overflow
                raise_overflow(inplace=inplace)

    def _must_check(self, optimizer: Optimizer) -> bool:
        # A fused optimizer under GradScaler gets `found_inf` and skips the step by itself; CUDA graphs cannot wait.
        if not self._options.check_finite or getattr(optimizer, "found_inf", None) is not None:
            return False
        return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def is_rehearsal(optimizer: Optimizer, kwargs: Mapping[str, Any], together: Together) -> bool:
    """Whether a step is none: the first one, `step(closure=None)`, from gradients of zero at a rate of zero.

    So torch.distributed.checkpoint has an optimizer make its state before it saves or loads it. Gates that were asked,
    or memories that learned a gradient of zero, would not be where the training left them.
    """
    if optimizer.state or kwargs.get("closure", 0) is not None:
        return False
    if any(
        not isinstance(rate := group.get("lr"), float | int | torch.Tensor) or rate for group in optimizer.param_groups
    ):
        return False
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return bool(grads) and not together.any(any(bool(local_part(g).any()) for g in grads))
