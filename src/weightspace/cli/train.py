"""`weightspace train`: one run."""

from __future__ import annotations

import os
import shlex
import warnings
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.console import print_error, print_note, progress_bar, stdout
from weightspace.cli.options import (
    AcceleratorOption,
    DevicesOption,
    FreshOption,
    OutOption,
    RecipeArgument,
    ResumeOption,
    SetOption,
    StrategyOption,
    command_line,
    command_words,
    read_recipe_option,
)
from weightspace.cli.run_folder import RUN_FILE, finished_or_refused, look
from weightspace.errors import RunError, WeightspaceError
from weightspace.files import JsonObject, write_json_atomically
from weightspace.training.checkpoint import has_checkpoint
from weightspace.training.environment import is_started_by_torchrun, process_number
from weightspace.training.interrupt import INTERRUPTED, Interrupted
from weightspace.training.lock import locked
from weightspace.training.recipe import Recipe, run_fingerprint
from weightspace.training.sparsity import sparsity_text

if TYPE_CHECKING:
    from weightspace.training.data import Data
    from weightspace.training.distribution import Processes

__all__ = ["RUN_FILE", "train"]

DIVERGED = 1
BAD_INPUT = 2


def train(
    recipe: RecipeArgument,
    *,
    out: OutOption = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Decides initial weights, dropout and the order of the batches.")
    ] = 0,
    set_: SetOption = None,
    resume: ResumeOption = False,
    fresh: FreshOption = False,
    accelerator: AcceleratorOption = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard curves.")] = False,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(min=1, metavar="STEPS", help="Save every STEPS steps too, not only after epochs."),
    ] = None,
    strategy: StrategyOption = None,
    devices: DevicesOption = None,
) -> int:
    """Train a recipe once, with its own `rules` and no tuning.

    Writes metrics.jsonl, result.json, model.safetensors and checkpoints to DIR (default: runs/NAME-train).
    Ctrl-C saves the state; the same command with --resume goes on from there, bit for bit.

    Several processes: `torchrun --nproc-per-node 2 -m weightspace train RECIPE --strategy ddp`, or --devices 2 without
    torchrun. They share every batch.
    """
    is_first = (strategy is None and not is_started_by_torchrun()) or process_number() == 0
    if not is_first:
        warnings.simplefilter("ignore")  # the first process warns
    try:
        settings = read_recipe_option(recipe, set_)
        if resume and fresh:
            raise RunError("--resume continues a run and --fresh deletes it; give one of them")
        folder = out if out is not None else Path("runs") / f"{settings.name}-train"
        processes = _processes(strategy, accelerator, devices, settings)
        job = _Job(settings, folder, seed, resume, fresh, accelerator, tensorboard, checkpoint_every, processes)
        return job.do()
    except (WeightspaceError, KeyboardInterrupt) as error:
        if is_first:
            raise
        # The first process says what has happened to all.
        return int(getattr(error, "exit_code", INTERRUPTED)) if isinstance(error, KeyboardInterrupt) else BAD_INPUT


def _processes(strategy: str | None, accelerator: str, devices: int | None, recipe: Recipe) -> Processes | None:
    """The processes that train together; None for a run of this one alone."""
    if strategy is None:
        others = int(os.environ.get("WORLD_SIZE", "1")) if is_started_by_torchrun() else 1
        if others > 1:
            raise RunError(f"torchrun started {others} processes; say how they share the work: --strategy ddp or fsdp2")
        if devices is not None:
            raise RunError(f"--devices {devices} needs --strategy ddp or --strategy fsdp2")
        return None
    from weightspace.training.distribution import start_processes

    return start_processes(strategy, accelerator=accelerator, devices=devices, precision=recipe.train.precision)


@dataclass(frozen=True)
class _Job:
    """What is to be trained where, seen from one process."""

    recipe: Recipe
    folder: Path
    seed: int
    resume: bool
    fresh: bool
    accelerator: str
    tensorboard: bool
    checkpoint_every: int | None
    processes: Processes | None

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.processes is None or self.processes.is_first

    def agreed(self) -> AbstractContextManager[None]:
        """What fails inside on one process fails on all."""
        return nullcontext() if self.processes is None else self.processes.agreed()

    def do(self) -> int:
        """Train, or give back what is finished; the exit code. The first process holds the folder for all."""
        with ExitStack() as held:
            finished: JsonObject | None = None
            with self.agreed():
                if self.is_first:
                    held.enter_context(locked(self.folder, "training"))
                    finished = self._finished()
            if self.processes is not None:
                finished = self.processes.from_first(finished)
            return _tell(self.folder, self._train() if finished is None else finished, silent=not self.is_first)

    def _finished(self) -> JsonObject | None:
        if self.fresh:
            look(self.folder)  # refuses a comparison
            return None
        finished = finished_or_refused(self.folder, self.recipe, self.seed, resume=self.resume)
        if finished is not None:
            print_note(f"{self.folder} holds this run, already finished; --fresh trains it again")
        return finished

    def _train(self) -> JsonObject:
        from weightspace.training.distribution import is_lost_peer

        begun: list[int] = []
        try:
            return self._run(begun)
        except KeyboardInterrupt as error:
            raise _with_advice(error, self.folder, begun=bool(begun)) from error
        except RuntimeError as error:
            if self.processes is None or isinstance(error, WeightspaceError) or not is_lost_peer(error):
                raise
            raise RunError("another process of this run has ended; the same command with --resume goes on") from error

    def _run(self, begun: list[int]) -> JsonObject:
        """Load the data and train; `begun` gets the steps done before as soon as the folder is this run's."""
        from weightspace.training.last_records import temperature_text
        from weightspace.training.loop import train_run

        data = self._data()

        def started(steps: int) -> None:
            begun.append(steps)
            if self.resume and steps == 0:
                print_note(f"{self.folder} holds no checkpoint: training starts from the beginning")
            self._record(data, steps)

        with progress_bar("steps") if self.is_first else nullcontext() as move:
            return train_run(
                *(self.recipe, self.folder),
                seed=self.seed,
                data=data,
                progress=lambda done, total: (
                    move(f"{self.recipe.name}{temperature_text(self.folder)}", done, total) if move else None
                ),
                started=started,
                resume=self.resume,
                checkpoint_every_epochs=1,
                checkpoint_every_steps=self.checkpoint_every,
                tensorboard=self.tensorboard,
                accelerator=self.accelerator,
                processes=self.processes,
            )

    def _data(self) -> Data:
        """The data; the first process loads it first, for it may have to download it for the others."""
        from weightspace.training.session import load_recipe_data

        found: list[Data] = []
        for turn in (self.is_first, not self.is_first):
            with self.agreed():
                if turn:
                    found.append(load_recipe_data(self.recipe))
        return found[0]

    def _record(self, data: Data, steps: int) -> None:
        """Write `run.json`; a resumed run keeps what is there and adds when, how and with what it went on."""
        from weightspace.training.environment import machine, versions

        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        shared = {} if self.processes is None else {"processes": self.processes.text}
        earlier = look(self.folder).run if steps else None
        if earlier is not None:
            session = {"at": now, "step": steps, "command": command_line(), "versions": versions(), **shared}
            resumed = earlier.get("resumed")
            earlier["resumed"] = [*(resumed if isinstance(resumed, list) else []), session]
            write_json_atomically(self.folder / RUN_FILE, earlier)
            return
        run = {
            "recipe": self.recipe.to_dict(),
            "seed": self.seed,
            "fingerprint": run_fingerprint(self.recipe, self.seed),
            "command": command_line(),
            "versions": versions(),
            "machine": machine(),
            "data": data.describe(),
            "created": now,
            **shared,
        }
        write_json_atomically(self.folder / RUN_FILE, run)


def _with_advice(error: KeyboardInterrupt, folder: Path, *, begun: bool) -> KeyboardInterrupt:
    """The interruption with the command that goes on, whether the state was saved or a second Ctrl-C left no time."""
    words = command_words()
    if begun:  # before that the folder is as it was, and the same command does the same
        words = [word for word in words if word not in {"--resume", "--fresh"}]
        words += ["--resume"] if has_checkpoint(folder) else []
    number = int(getattr(error, "exit_code", INTERRUPTED)) - 128
    return Interrupted(f"{str(error) or 'interrupted'}; go on with: {shlex.join(words)}", number)


def _tell(folder: Path, result: JsonObject, *, silent: bool) -> int:
    if silent:
        return DIVERGED if result["status"] == "diverged" else 0
    if result["status"] == "diverged":
        print_error(f"the run diverged: {result['reason']}; what was reached is in {folder}")
        return DIVERGED
    stdout().print(
        f"test accuracy {result['test_accuracy']:.2%}{_of_text(result)} after {result['epochs']} epochs "
        f"({result['steps']} steps, {result['seconds']:.1f} s, {1000 * result['seconds_per_step']:.2f} ms a step) "
        f"in {folder}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if text := sparsity_text(result):
        print_note(text)
    return 0


def _of_text(result: JsonObject) -> str:
    """The numbers that only a run on text has, as the end of a phrase; empty for images."""
    if result.get("perplexity") is None:
        return ""
    return f", perplexity {result['perplexity']:.3f} ({result['bits_per_character']:.3f} bits per character)"
