"""Rules in Hugging Face's `Trainer`: a callback that attaches them and keeps their state beside each checkpoint.

The Trainer wraps its optimizer with Accelerate; the rules sit on the step hooks of the torch optimizer inside. So they
see gradients that are unscaled, reduced over all processes, accumulated and clipped (`max_grad_norm` is 1 by default).
"""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from weightspace.errors import AttachError
from weightspace.integrations._shared import Batching, Waiting
from weightspace.kernels import Rule
from weightspace.optim import Rules
from weightspace.optim._checks import rules_on, unwrap_optimizer
from weightspace.training.checkpoint import newest_checkpoint, read_checkpoint, save_checkpoint

__all__ = ["RulesCallback"]

FOLDER = "weightspace"  # within a checkpoint's folder
_MARK = "weightspace"  # within `trainer_state.json`: says which run the file with the state must come from
_SHARDED = "ACCELERATE_USE_FSDP"  # what the Trainer sets when FSDP is asked for


class RulesCallback(TrainerCallback):
    """Puts rules in force on the optimizer of a `transformers.Trainer`.

    They are attached when training begins, when the Trainer has made its optimizer, or on the one that it was given as
    `optimizers=(optimizer, None)`. Every checkpoint folder gets their state as `weightspace/checkpoint-*.safetensors`,
    and `trainer.train(resume_from_checkpoint=...)` goes on bit for bit. Calling `train()` again begins anew.

    Args:
        rules: As for `weightspace.attach`.
        measure_every: Record the rules' figures on each k-th optimizer step in `trainer.state.log_history`, as
            `weightspace/PARAMETER/FIGURE`; `callback.log = trainer.log` sends them to TensorBoard and its like too.
        resume_from: The checkpoint folder that `trainer.train(resume_from_checkpoint=...)` gets. Needed only where it
            lies outside of `output_dir`, as the Trainer does not tell its callbacks.
        check_finite: Raise on NaN or infinite gradients before any weight changes; one synchronization a step.
        inplace: Overwrite `p.grad`: saves the memory of the buffers.
        batching: `"single"` runs weight by weight, `"stacked"` equal weights in one call, `"auto"` as measured.

    Raises:
        AttachError: When training begins: a gate needs closures, which the Trainer does not have; the checkpoint holds
            no state of these rules, or one of another run; everything that `weightspace.attach` refuses.
        RunError: The file of their state is damaged, or cannot be written.

    Example:
        >>> from weightspace.metrics import ChannelL2
        >>> RulesCallback(ChannelL2(smoothing=2.0), measure_every=50)
        RulesCallback(ChannelL2(smoothing=2.0))
    """

    def __init__(
        self,
        *rules: Rule,
        measure_every: int | None = None,
        resume_from: str | Path | None = None,
        check_finite: bool = True,
        inplace: bool = False,
        batching: Batching = "auto",
    ) -> None:
        self._waiting = Waiting(
            *rules, measure_every=measure_every, check_finite=check_finite, inplace=inplace, batching=batching
        )
        self._resume_from = None if resume_from is None else Path(resume_from)
        self._token = ""
        self.log: Callable[[dict[str, float]], object] | None = None

    @property
    def rules(self) -> Rules:
        """The rules in force: `table()`, `verify()`, `measurements`, `duty_cycles`.

        Raises:
            AttachError: Training has not begun.
        """
        return self._waiting.the_rules("Trainer.train()")

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        **_: Any,
    ) -> None:
        """Attach the rules; weights and optimizer of a checkpoint have been loaded."""
        if model is None or optimizer is None:
            raise AttachError("The Trainer has no optimizer when training begins; rules cannot act on its steps.")
        before = self._waiting.in_force
        if before is not None and rules_on(unwrap_optimizer(optimizer)) is before:
            before.remove()  # train() again with the optimizer that the Trainer was given: all begins anew
        rules = self._waiting.attach_to(optimizer, model, *self._waiting.given)
        if rules.needs_closure:
            raise AttachError(
                "A gate with against='lookahead' computes every batch twice, but the Trainer steps without a closure "
                "that could; use another gate, or a loop of your own."
            )
        _warn_if_whole(model)
        marks = cast("dict[str, Any]", state.stateful_callbacks)  # goes into trainer_state.json
        if state.global_step and _MARK in marks:
            self._token = str(marks[_MARK])
            rules.load_state_dict(self._saved_state(args, state.global_step))
        else:
            if state.global_step:
                _warn(f"the checkpoint of step {state.global_step} was written without rules; they begin now")
            self._token = secrets.token_hex(8)
            marks[_MARK] = self._token
        self._waiting.in_force = rules

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Record the figures of a measured step."""
        if not (figures := self._waiting.new_figures()):
            return
        if self.log is not None:
            self.log(figures)
        else:
            state.log_history.append({**figures, "step": state.global_step})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save the rules' state beside the checkpoint that the Trainer has just written."""
        if args.save_only_model or not state.is_world_process_zero:
            return
        folder = _folder_of(args, state.global_step)
        if not folder.is_dir():  # a search of hyperparameters writes elsewhere, and is not resumed
            _warn(f"{folder} is not there, so the state of the rules is not saved")
            return
        target = folder / FOLDER
        target.mkdir(exist_ok=True)
        saved = {"token": self._token, "rules": self.rules.state_dict()}
        save_checkpoint(target, state.global_step, saved, fingerprint=self._token)

    def _saved_state(self, args: TrainingArguments, step: int) -> dict[str, Any]:
        """The state of the rules in the checkpoint of a step."""
        folder = Path(self._resume_from or args.resume_from_checkpoint or _folder_of(args, step))
        path = newest_checkpoint(folder / FOLDER)
        saved = {} if path is None else read_checkpoint(path)
        if saved.get("token") != self._token:
            what = "no state of them" if path is None else "that of another run"
            raise AttachError(
                f"The checkpoint of step {step} was written with rules, but {folder} holds {what}; name the folder "
                "that training resumes from, RulesCallback(..., resume_from=folder), or resume from an earlier one."
            )
        return cast("dict[str, Any]", saved["rules"])

    def __repr__(self) -> str:
        return f"RulesCallback({', '.join(map(str, self._waiting.given))})"


def _folder_of(args: TrainingArguments, step: int) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{step}"


def _warn_if_whole(model: nn.Module) -> None:
    """Say so when sharding was asked for and did not happen: Accelerate is silent about it on a CPU."""
    asked = os.environ.get(_SHARDED, "").lower() == "true"
    if asked and not any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        _warn(
            "FSDP was asked for, but no weight is sharded: Accelerate shards on accelerators only and trains with "
            "DistributedDataParallel elsewhere, without a word; the rules act on whole weights"
        )


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=3)
