"""Rules in a Lightning `Trainer`: a callback that attaches them, saves them in the checkpoint and logs what they do.

Lightning makes optimizers in `configure_optimizers` and hides their steps behind closures, precision plugins and
wrappers; the rules sit on the step hooks of the torch optimizer below all of these. So they see gradients that are
unscaled, reduced over all processes, accumulated and clipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from weightspace.errors import AttachError
from weightspace.integrations._shared import Batching, Waiting
from weightspace.kernels import Rule
from weightspace.optim import Rules
from weightspace.optim._checks import rules_on

__all__ = ["RulesCallback"]


class RulesCallback(Callback):
    """Puts rules in force on an optimizer of a `LightningModule`; the module stays as it is.

    They are attached when `fit` begins, after `configure_optimizers`. Their state is in every checkpoint of Lightning,
    as tensors and numbers (`weights_only=True` reads it), and `fit(..., ckpt_path=...)` goes on bit for bit. Calling
    `fit` again makes new optimizers, and the rules begin anew with them.

    Args:
        rules: As for `weightspace.attach`.
        optimizer: Which of the module's optimizers, in the order of `configure_optimizers`. Needed where there are
            several; give one callback for each of them that rules are to act on.
        measure_every: Log the rules' figures on each k-th optimizer step to all loggers of the trainer, as
            `weightspace/PARAMETER/FIGURE`.
        check_finite: Raise on NaN or infinite gradients before any weight changes; one synchronization a step.
        inplace: Overwrite `p.grad`: saves the memory of the buffers.
        batching: `"single"` runs weight by weight, `"stacked"` equal weights in one call, `"auto"` as measured.

    Raises:
        AttachError: At the beginning of `fit`: the module has several optimizers and none was named, or not that many;
            a gate needs closures, but the module optimizes manually; everything that `weightspace.attach` refuses.

    Example:
        >>> from weightspace.metrics import ChannelL2
        >>> RulesCallback(ChannelL2(smoothing=2.0), measure_every=50)
        RulesCallback(ChannelL2(smoothing=2.0))
    """

    def __init__(
        self,
        *rules: Rule,
        optimizer: int | None = None,
        measure_every: int | None = None,
        check_finite: bool = True,
        inplace: bool = False,
        batching: Batching = "auto",
    ) -> None:
        self._waiting = Waiting(
            *rules, measure_every=measure_every, check_finite=check_finite, inplace=inplace, batching=batching
        )
        self._number = optimizer
        self._loaded: dict[str, Any] | None = None  # from a checkpoint, which is read before there is an optimizer

    @property
    def rules(self) -> Rules:
        """The rules in force: `table()`, `verify()`, `measurements`, `duty_cycles`.

        Raises:
            AttachError: `fit` has not begun.
        """
        return self._waiting.the_rules("Trainer.fit()")

    @property
    def state_key(self) -> str:
        """Where Lightning keeps the state: each optimizer has its own, so that there may be several callbacks."""
        return f"weightspace.RulesCallback(optimizer={self._number or 0})"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the rules; the optimizers are there, and a checkpoint's weights have been loaded."""
        optimizer = self._choose(trainer.optimizers)
        # A module may keep its optimizer over several calls of fit: it carries these rules already.
        if self._waiting.in_force is None or rules_on(optimizer) is not self._waiting.in_force:
            self._waiting.in_force = self._waiting.attach_to(optimizer, pl_module, *self._waiting.given)
        if self.rules.needs_closure and not pl_module.automatic_optimization:
            raise AttachError(
                "A gate with against='lookahead' computes every batch twice, but with manual optimization Lightning "
                "steps without a closure that could; use automatic optimization or another gate."
            )
        if self._loaded is not None:
            self.rules.load_state_dict(self._loaded)
            self._waiting.in_force = self.rules  # counts figures from the loaded step on
            self._loaded = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the figures of a measured step."""
        figures = self._waiting.new_figures()
        for logger in trainer.loggers if figures else ():
            logger.log_metrics(figures, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """What goes into Lightning's checkpoint; empty as long as there is no state."""
        if self._loaded is not None:
            return self._loaded
        rules = self._waiting.in_force
        return {} if rules is None else rules.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep a checkpoint's state until the optimizer is there."""
        self._loaded = dict(state_dict)

    def _choose(self, optimizers: Sequence[Optimizer]) -> Optimizer:
        if self._number is None and len(optimizers) == 1:
            return optimizers[0]
        names = ", ".join(f"{place}: {type(each).__name__}" for place, each in enumerate(optimizers))
        if self._number is None:
            raise AttachError(
                f"The module has {len(optimizers)} optimizers ({names or 'none'}); say which one the rules are for, "
                "such as RulesCallback(..., optimizer=0), and give one callback for each."
            )
        if not 0 <= self._number < len(optimizers):
            raise AttachError(
                f"RulesCallback got optimizer={self._number}, but the module has {len(optimizers)} ({names or 'none'})"
                "; give the place of one of them, counted from 0."
            )
        return optimizers[self._number]

    def __repr__(self) -> str:
        rules = ", ".join(map(str, self._waiting.given))
        return f"RulesCallback({rules}{'' if self._number is None else f', optimizer={self._number}'})"
