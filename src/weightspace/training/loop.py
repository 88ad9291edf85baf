"""One training run on Lightning Fabric, which does devices, precision and gradient scaling; our part is thin.

Everything that decides a number is a function of the seed, the step and the checkpointed state: a resumed run repeats
an uninterrupted one bit for bit. `steps.py` holds the inner loop. Of several processes the first alone writes; what it
reads or finds wrong is told to the others.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from weightspace.errors import RunError
from weightspace.files import (
    JsonObject,
    delete_leftovers,
    ensure_writable_folder,
    read_json,
    reason_of,
    write_bytes_atomically,
    write_json_atomically,
)
from weightspace.training.checkpoint import delete_checkpoints, load_checkpoint
from weightspace.training.constraints import measure_constraints, slack_in
from weightspace.training.data import Data
from weightspace.training.distribution import Processes, one_process
from weightspace.training.interrupt import stop_requests
from weightspace.training.json_lines import keep_first_records
from weightspace.training.logs import METRICS_FILE, RUN_FILE, RunLog, delete_curves
from weightspace.training.optimizers import SUBMANIFOLD
from weightspace.training.recipe import Recipe, run_fingerprint
from weightspace.training.reproducible import reproducible
from weightspace.training.session import Session, open_session
from weightspace.training.sparsity import duties_of, vanished_of, zeros_of
from weightspace.training.steps import ProgressCallback, TrainingLoop
from weightspace.training.thermometers import thermometers_of
from weightspace.training.watch import SampleKeeper, Watch
from weightspace.training.whole_state import whole

RESULT_FILE = "result.json"
WEIGHTS_FILE = "model.safetensors"
_WRITTEN = (RESULT_FILE, METRICS_FILE, WEIGHTS_FILE, RUN_FILE, "checkpoint-*")


def train_run(
    recipe: Recipe,
    run_dir: Path,
    *,
    seed: int,
    data: Data,
    progress: ProgressCallback | None = None,
    started: Callable[[int], None] | None = None,
    resume: bool = False,
    checkpoint_every_epochs: int | None = None,
    checkpoint_every_steps: int | None = None,
    tensorboard: bool = False,
    accelerator: str = "auto",
    keeper: SampleKeeper | None = None,
    processes: Processes | None = None,
) -> JsonObject:
    """Train once. Writes `metrics.jsonl` as it goes and `result.json` at the end.

    Ctrl-C and SIGTERM save a checkpoint and raise `Interrupted`. A loss or gradient that is not finite ends the run
    with status "diverged" and the reason; it is not an error of the program. Nothing in the folder is touched before
    everything that the recipe asks for is built and, when resuming, fits the checkpoint. Two processes in one folder
    destroy each other's files; the command line holds a lock (`weightspace.training.lock`).

    Args:
        recipe: What to train; its `compare` part is ignored.
        run_dir: Folder of the run, made when missing.
        seed: Decides initial weights, dropout and the order of the batches.
        data: The images or the text, already cut to size (`take`, `hold_out`).
        progress: Called with (steps done, steps in all), about ten times a second.
        started: Called once before the first step, with the steps done before: 0 for a run from the beginning.
        resume: Continue from the newest checkpoint in `run_dir`, or give back its finished result. Without it
            the run starts anew and replaces what is there.
        checkpoint_every_epochs: Save every so many epochs. With this or the next, the last checkpoint and the
            trained weights (`model.safetensors`) stay in the folder.
        checkpoint_every_steps: Save every so many steps.
        tensorboard: Also write TensorBoard curves to `run_dir/tensorboard`.
        accelerator: Lightning Fabric's name: "auto", "cpu", "cuda" (or "gpu"), "mps".
        keeper: Gets the weights after the steps that it wants, and is told first from which step the run goes on.
        processes: Those that train together (`weightspace.training.distribution.start_processes`), in place of
            `accelerator`: all of them call this alike, on a folder that they share, and all get the result. Callbacks
            are called on the first of them.

    Returns:
        The content of `result.json`.

    Raises:
        RunError: The folder cannot be written; or, when resuming, holds a run with other settings or other data.
        RecipeError: Model, optimizer or accelerator cannot be built as asked.
        DataError: The data set has fewer images than a batch.
        Interrupted: A signal asked to stop, this process or another; the state is saved.
    """
    fingerprint = run_fingerprint(recipe, seed)
    processes = processes or one_process(accelerator, recipe.train.precision)
    if (done := _prepare(run_dir, fingerprint, processes, resume=resume)) is not None:
        return done
    if keeper is not None and not processes.is_alone:
        raise RunError("samples of weights are kept by runs of one process; leave out the strategy")
    if not processes.is_first:
        progress = started = None
    keep = checkpoint_every_epochs is not None or checkpoint_every_steps is not None
    with reproducible(deterministic=recipe.train.deterministic), stop_requests() as stop:
        session = open_session(recipe, data, seed=seed, processes=processes)
        records = _place(session, run_dir, fingerprint, resume=resume)
        step = session.progress.step
        thermometers = thermometers_of(session)
        watch = Watch(session.module, keeper, thermometers)
        watch.begin(step)
        with processes.agreed():
            if started is not None:
                started(step)
            silent = not processes.is_first
            log = RunLog(run_dir, records=records, step=step, tensorboard=tensorboard, silent=silent)
        with log:
            loop = TrainingLoop(session, run_dir, fingerprint, log, stop=stop, progress=progress, watch=watch)
            reason = loop.train(checkpoint_every_epochs, checkpoint_every_steps)
            with processes.agreed():
                log.sync()  # a run with a result is never looked at again: its records must be whole by then
            if keep:
                _save_weights(session, run_dir / WEIGHTS_FILE)
            result = _result(session, seed=seed, fingerprint=fingerprint, reason=reason)
            if thermometers is not None:
                result["temperatures"] = thermometers.records()
            if session.rules is not None:
                session.rules.remove()
    with processes.agreed():
        if processes.is_first:
            write_json_atomically(run_dir / RESULT_FILE, result)
            if not keep:
                delete_checkpoints(run_dir)
    return result


def _prepare(run_dir: Path, fingerprint: str, processes: Processes, *, resume: bool) -> JsonObject | None:
    """Make the folder; the result of this very run when it is finished there and may be given back. Collective."""
    done: JsonObject | None = None
    with processes.agreed():
        if processes.is_first:
            ensure_writable_folder(run_dir)
            done = _finished_or_damaged(run_dir, fingerprint) if resume else None
    return processes.from_first(done)


def finished_result(run_dir: Path, fingerprint: str) -> JsonObject | None:
    """The result of a finished run of these settings in `run_dir`, or None.

    Args:
        run_dir: Folder of a run.
        fingerprint: `run_fingerprint` of the settings asked for.

    Raises:
        RunError: `result.json` is damaged.
    """
    path = run_dir / RESULT_FILE
    if not path.exists():
        return None
    result = read_json(path)
    return result if result.get("fingerprint") == fingerprint else None


def _finished_or_damaged(run_dir: Path, fingerprint: str) -> JsonObject | None:
    """The finished result; a damaged one is reported and counts as none, for its last checkpoint gives it again."""
    try:
        return finished_result(run_dir, fingerprint)
    except RunError as error:
        warnings.warn(f"{error}; the run goes on from its last checkpoint", RuntimeWarning, stacklevel=3)
        return None


def _other_result(run_dir: Path, fingerprint: str) -> bool:
    """Whether the folder holds a whole result that is not of this run."""
    try:
        return (run_dir / RESULT_FILE).exists() and finished_result(run_dir, fingerprint) is None
    except RunError:
        return False


def _start(run_dir: Path) -> int:
    """Remove what an earlier run left; the number of records that stay: none.

    In an order that leaves a run to go on with wherever it is broken off: the records after the checkpoints that count
    them.
    """
    try:
        (run_dir / RESULT_FILE).unlink(missing_ok=True)
        delete_checkpoints(run_dir)
        for name in (METRICS_FILE, WEIGHTS_FILE):
            (run_dir / name).unlink(missing_ok=True)
        delete_curves(run_dir)
    except OSError as error:
        raise RunError(f"cannot delete the earlier run in {run_dir}: {reason_of(error)}") from error
    delete_leftovers(run_dir, *_WRITTEN)
    return 0


def _place(session: Session, run_dir: Path, fingerprint: str, *, resume: bool) -> int:
    """Put the session where the newest checkpoint was taken, or at the beginning; the number of records so far.

    Every process reads the checkpoint, and none is written or deleted before all have. Collective.
    """
    processes, records = session.processes, 0
    state: JsonObject | None = None
    with processes.agreed():
        if resume:
            state = load_checkpoint(run_dir, fingerprint=fingerprint)
            if state is None and _other_result(run_dir, fingerprint):
                raise RunError(f"{run_dir} holds the result of other settings; choose another folder, or start anew")
    if not processes.is_alone:
        processes.check_alike("checkpoints", f"step {state['progress']['step']}" if state is not None else "none")
    if state is not None:
        session.load_state_dict(state)  # before anything is cut: a checkpoint that does not fit changes no file
    with processes.agreed():
        if processes.is_first:
            records = _start(run_dir) if state is None else _cut(run_dir, _records_in(state))
    return processes.from_first(records)


def _records_in(state: JsonObject) -> int:
    """How many records had been written when a checkpoint was taken; none where it does not say: curves are no law."""
    records = state.get("records")
    return records if isinstance(records, int) and 0 <= records < 1 << 62 else 0


def _cut(run_dir: Path, records: int) -> int:
    """Remove what was written after a checkpoint; the number of records that stay."""
    delete_leftovers(run_dir, *_WRITTEN)
    return keep_first_records(run_dir / METRICS_FILE, records)


def _save_weights(session: Session, path: Path) -> None:
    # Copies: a matrix that two layers share would be refused by safetensors, and a reader expects both names.
    processes = session.processes
    state = session.module.state_dict()
    if processes.is_sharded:
        state = whole(state, keep=processes.is_first)
    with processes.agreed():
        if processes.is_first:
            weights = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
            write_bytes_atomically(path, save(weights, metadata={"recipe": session.recipe.name}))


def _result(session: Session, *, seed: int, fingerprint: str, reason: str | None) -> JsonObject:
    """The content of `result.json`; what is measured of the weights, the first process measures. Collective."""
    state, processes = session.progress, session.processes
    module = session.whole_module()
    optimizer = session.inner.state_dict() if session.recipe.train.optimizer.name in SUBMANIFOLD else {}
    if processes.is_sharded:
        optimizer = whole(optimizer, keep=processes.is_first)
    measured: JsonObject = {}
    with processes.agreed():
        if module is not None:
            measured = {"constraints": _constraints(session, module, optimizer), "weights": zeros_of(module)}
    return {
        "status": "done" if reason is None else "diverged",
        "reason": reason,
        "seed": seed,
        "steps": state.step,
        "epochs": state.epoch,
        "test_accuracy": state.test_accuracy,
        "test_loss": _finite_or_none(state.test_loss),
        **{name: _finite_or_none(value) for name, value in session.data.test_metrics(state.test_loss).items()},
        "train_loss": _finite_or_none(state.train_loss),
        "seconds": state.seconds,
        "seconds_per_step": state.median_step,
        "parameters": session.parameters,
        **processes.from_first(measured),
        "duty": duties_of(session.rules),
        "vanished": vanished_of(session.rules),
        "fingerprint": fingerprint,
    }


def _constraints(session: Session, module: nn.Module, optimizer: Mapping[str, Any]) -> JsonObject | None:
    """Whether the weights are where the recipe's manifolds have them, measured on the weights themselves."""
    rules = session.recipe.make_rules()
    slack = slack_in(optimizer) if optimizer else None
    return measure_constraints(module, rules, steps=session.progress.step, slack=slack).to_json()


def _finite_or_none(number: float) -> float | None:
    """The number as JSON can hold it: None for NaN and infinity."""
    return number if math.isfinite(number) else None
