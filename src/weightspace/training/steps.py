"""The steps and epochs of one run, lean: a step is what a bare loop does, plus one counter and one comparison.

Law of the loop: between two checks (every step on a CPU, every 50 steps elsewhere) nothing reads a number back from
the device, so an accelerator never waits for Python. Time is taken at checks only, where the device has done all that
was asked of it; measurements, checkpoints and the progress display come after it and do not count.

With several processes a check is also where they join their losses and hear of a signal to stop: whatever is decided
afterwards, all decide alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.errors import DivergenceError, NonFiniteGradientError, RunError
from weightspace.sharding import local_part
from weightspace.training.checkpoint import save_checkpoint
from weightspace.training.interrupt import Interrupted, StopRequest
from weightspace.training.logs import RunLog
from weightspace.training.session import Session, flat
from weightspace.training.watch import Watch

ProgressCallback = Callable[[int, int], None]
_CHECK_EVERY = 50  # steps between looks at the loss on an accelerator
_PROGRESS_SECONDS = 0.1


class TrainingLoop:
    """Trains a session to its end: a session, where it writes, and who may stop it.

    Args:
        session: The parts of the run; its `progress` says where to begin.
        run_dir: Where checkpoints go.
        fingerprint: Goes into checkpoints.
        log: Where records go.
        stop: Asked after every check whether to save and stop.
        progress: Called with (steps done, steps in all), about ten times a second.
        watch: Looks after samples and thermometers.
    """

    def __init__(
        self,
        session: Session,
        run_dir: Path,
        fingerprint: str,
        log: RunLog,
        *,
        stop: StopRequest,
        progress: ProgressCallback | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.watch: Watch | None = watch if watch is not None and watch.is_needed else None
        self.session = session
        self.run_dir = run_dir
        self.fingerprint = fingerprint
        self.log = log
        self.stop = stop
        self.report = progress
        self.check_every = 1 if session.fabric.device.type == "cpu" else _CHECK_EVERY
        self._reported = 0.0
        self._joint_signal = 0

    def train(self, every_epochs: int | None, every_steps: int | None) -> str | None:
        """Train to the end; the reason when training diverged, None otherwise."""
        session, state = self.session, self.session.progress
        session.model.train()
        try:
            while state.epoch < session.recipe.train.epochs:
                self._train_epoch(every_steps)
                self._finish_epoch()
                if every_epochs is not None and (state.epoch % every_epochs == 0 or self._is_last):
                    self.save()
        except (DivergenceError, NonFiniteGradientError) as error:
            self._judge_diverged()
            return str(error)
        return None

    def save(self) -> None:
        """Write a checkpoint of the present state, after the records that it counts are on the disk. Collective."""
        processes = self.session.processes
        state = {**self.session.state_dict(), "records": self.log.records}
        with processes.agreed():
            if processes.is_first:
                self.log.sync()
                save_checkpoint(self.run_dir, self.session.progress.step, state, fingerprint=self.fingerprint)

    @property
    def _is_last(self) -> bool:
        return self.session.progress.epoch == self.session.recipe.train.epochs

    def _train_epoch(self, every_steps: int | None) -> None:
        session, state, settings = self.session, self.session.progress, self.session.recipe.train
        compute, step, set_rate = self._gradient_of_batch(), session.step, session.set_rate
        channels_last, needs_closure = settings.channels_last, session.needs_closure
        is_measuring = settings.measure_every is not None and session.has_measurements
        rules, watch = session.rules, self.watch
        measure_every, check_every = settings.measure_every or 1, self.check_every
        is_alone = session.processes.is_alone
        losses = state.loss_sum if is_alone else torch.zeros_like(state.loss_sum)
        in_epoch, checked, tick = len(session.train), state.step, time.perf_counter()
        for images, labels in session.train.epoch(state.epoch, state.batch):
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)  # noqa: PLW2901 - the same images
            if set_rate is not None:
                set_rate(state.step)
            if needs_closure:
                closure = _Closure(compute, images, labels)
                step(closure)
                loss = closure.loss
            else:
                loss = compute(images, labels)
                step()
            losses += loss.detach()
            state.batch += 1
            state.step += 1
            taken = state.step if rules is None else rules.steps
            is_measured = is_measuring and (taken - 1) % measure_every == 0  # rules measure their first step
            is_saved = every_steps is not None and state.step % every_steps == 0 and state.batch < in_epoch
            is_watched = watch is not None and watch.wants(state.step)
            if is_measured or is_saved or is_watched or state.step - checked == check_every or state.batch == in_epoch:
                # Reading the loss waits for the device, so this is the time of the steps and of nothing else.
                if not is_alone:
                    self._join(losses)
                self._check_loss(checked)
                now = time.perf_counter()
                state.step_seconds.append((now - tick) / (state.step - checked))
                state.seconds += now - tick
                self._between_steps(now, is_measured=is_measured, is_saved=is_saved)
                checked, tick = state.step, time.perf_counter()

    def _join(self, losses: Tensor) -> None:
        """Add the mean of what all processes have summed since the last check, and hear of signals that they got."""
        mean, self._joint_signal = self.session.processes.joined(losses, self.stop.signal_number)
        self.session.progress.loss_sum += mean
        losses.zero_()

    def _gradient_of_batch(self) -> Callable[[Tensor, Tensor], Tensor]:
        """What puts the gradient of a batch's loss into `p.grad`, clipped if asked for, and gives the loss."""
        session, settings = self.session, self.session.recipe.train
        forward, backward, zero_grad = session.forward, session.backward, session.inner.zero_grad
        smoothing, clip = settings.label_smoothing, settings.clip_norm

        def compute(images: Tensor, labels: Tensor) -> Tensor:
            zero_grad(set_to_none=True)
            loss = F.cross_entropy(*flat(forward(images), labels), label_smoothing=smoothing)
            backward(loss)
            if clip is not None:
                session.fabric.clip_gradients(session.model, session.optimizer, max_norm=clip, error_if_nonfinite=False)
            return loss

        return compute

    def _finish_epoch(self) -> None:
        session, state = self.session, self.session.progress
        state.train_loss = float(state.loss_sum) / len(session.train)
        state.epoch, state.batch = state.epoch + 1, 0
        state.loss_sum.zero_()
        if state.epoch % session.recipe.train.evaluate_every and not self._is_last:
            return
        state.test_loss, state.test_accuracy = evaluate(session)
        if not math.isfinite(state.test_loss):
            raise DivergenceError(
                f"the test loss became non-finite after epoch {state.epoch} (lr {session.recipe.train.optimizer.lr:g})"
            )
        record = {
            "epoch": state.epoch,
            "step": state.step,
            "train_loss": state.train_loss,
            "test_loss": state.test_loss,
            "test_accuracy": state.test_accuracy,
            **session.data.test_metrics(state.test_loss),
            "lr": self._last_lr(),
            "seconds": state.seconds,
        }
        with session.processes.agreed():
            self.log.epoch(record)
        if self.watch is not None:
            self.watch.judge(state.step)

    def _last_lr(self) -> float:
        """The learning rate of the step just done."""
        return float(self.session.inner.param_groups[0]["lr"])

    def _check_loss(self, checked: int) -> None:
        """Raise when a loss since step `checked` was not finite: a sum with NaN or infinity stays so."""
        state = self.session.progress
        if not math.isfinite(float(state.loss_sum)):
            first, epoch = checked + 1, state.epoch + 1
            where = f"at step {first}" if first == state.step else f"between steps {first} and {state.step}"
            lr = self.session.recipe.train.optimizer.lr
            raise DivergenceError(f"the training loss became non-finite {where} (epoch {epoch}, lr {lr:g})")

    def _between_steps(self, now: float, *, is_measured: bool, is_saved: bool) -> None:
        """Log, report progress, save, and stop if a signal asked for it. The state is consistent here."""
        state, processes = self.session.progress, self.session.processes
        if is_measured:
            measurements = self.session.measurements()
            with processes.agreed():
                self.log.layers(state.step, measurements)
        if self.watch is not None:
            if is_measured:
                with processes.agreed():
                    self.watch.log(state.step, self.log)
            self.watch.act(state.step)
        if self.report is not None and now - self._reported > _PROGRESS_SECONDS:
            self.report(state.step, self.session.steps)
            self._reported = now
        # A signal that only this process has heard of waits for the next check: all must stop at the same step.
        stop = self.stop.signal_number if processes.is_alone else self._joint_signal
        if is_saved or stop:
            self.save()
        if stop:
            raise Interrupted(
                f"stopped at step {state.step} of {self.session.steps}; the state is saved in {self.run_dir}",
                stop,
            )

    def _judge_diverged(self) -> None:
        """Evaluate the weights that were reached; chance level when they are of no use."""
        session, state = self.session, self.session.progress
        tensors = [*session.module.parameters(), *session.module.buffers()]
        state.test_loss, state.test_accuracy = float("nan"), 1.0 / session.num_classes
        has_harm = any(not bool(torch.isfinite(local_part(tensor)).all()) for tensor in tensors)
        if not session.processes.together.any(has_harm):
            loss, accuracy = evaluate(session)
            if math.isfinite(loss):
                state.test_loss, state.test_accuracy = loss, accuracy


class _Closure:
    """One batch as `optimizer.step` takes it. `loss` is that of the first call: later ones look at other weights."""

    def __init__(self, compute: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor) -> None:
        self._compute, self._images, self._labels = compute, images, labels
        self._loss: Tensor | None = None

    def __call__(self) -> Tensor:
        loss = self._compute(self._images, self._labels)
        if self._loss is None:
            self._loss = loss.detach()
        return loss

    @property
    def loss(self) -> Tensor:
        """The loss of the batch at the weights before the step, 0-dimensional.

        Raises:
            RunError: The optimizer never called the closure.
        """
        if self._loss is None:
            raise RunError("the optimizer took a step without calling its closure; use another optimizer or gate")
        return self._loss


def evaluate(session: Session) -> tuple[float, float]:
    """Mean loss and accuracy (fraction) over the labels of the test data, in evaluation mode, without gradients.

    The loss is the plain cross-entropy: label smoothing belongs to training. Collective.
    """
    processes = session.processes
    processes.share_buffers(session.module)
    loss = torch.zeros((), device=session.fabric.device)
    correct = torch.zeros((), device=session.fabric.device, dtype=torch.int64)
    count = 0
    channels_last = session.recipe.train.channels_last
    session.model.eval()
    # Weights that come together in inference mode are of no use to training afterwards.
    with torch.inference_mode(processes.is_alone), torch.no_grad():
        for images, labels in session.test.epoch(0):
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)  # noqa: PLW2901 - the same images
            if not len(labels):  # nothing of a small batch is left for this process, but others wait for its weights
                session.forward(images.new_zeros((1, *images.shape[1:])))
                continue
            logits, labels = flat(session.forward(images), labels)  # noqa: PLW2901 - the same labels
            loss += F.cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
            count += len(labels)
    session.model.train()
    if processes.is_alone:
        return float(loss) / count, int(correct) / count
    own = torch.stack([loss.double(), correct.double(), torch.full_like(loss, count, dtype=torch.float64)])
    total_loss, total_correct, total = processes.together.sum(own).tolist()
    return total_loss / total, total_correct / total
