"""Samples the chains of a recipe, each from its own initialization, and judges them; resumable at any moment."""

from __future__ import annotations

import re
import warnings
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

from weightspace.chains.evaluation import evaluate_chains
from weightspace.chains.keeper import ChainOrder, plan_of, sample_chain
from weightspace.chains.records import SAMPLE_FILE, now, open_folder, remove_leftovers
from weightspace.chains.worker import Ended, do_chain, do_chain_elsewhere
from weightspace.compare.directory import write_errors
from weightspace.compare.engines import Engine, Losses, WorkerLost, open_engine
from weightspace.compare.execution import ON_THIS_MACHINE, Execution
from weightspace.compare.pool import find_devices, signals, worker_count
from weightspace.compare.worker import check_data, describe_data
from weightspace.errors import RunError
from weightspace.files import JsonObject, write_json_atomically
from weightspace.training.data import Data
from weightspace.training.environment import usable_cores
from weightspace.training.interrupt import INTERRUPTED, Interrupted
from weightspace.training.last_records import last_step, progress_text
from weightspace.training.lock import locked
from weightspace.training.recipe import Recipe, SampleSettings
from weightspace.training.session import load_recipe_data

_LOOK_SECONDS = 0.5  # between two looks at how far the workers are
_SAVE_SECONDS = 60.0  # that workers get to save their state before they are killed


def run_sampling(
    recipe: Recipe,
    run_dir: Path,
    how: Execution = ON_THIS_MACHINE,
    *,
    checkpoint_every_steps: int | None = None,
    tensorboard: bool = False,
) -> JsonObject:
    """Sample the chains of a recipe, or go on with them, and judge what they predict.

    Chain k has seed k: its own initialization, order of batches and noise.

    Args:
        recipe: A recipe; without `sample` it gets the defaults of that part. `compare` and `sweep` do not matter.
        run_dir: Folder of the chains: empty, missing, or one where this recipe was begun.
        how: Who samples; one worker does so in this process. Chains save as they go, so all machines of a Ray cluster
            must see `run_dir`. `progress` is called about twice a second.
        checkpoint_every_steps: Save the chains every so many steps too.
        tensorboard: Write TensorBoard curves to the chains' folders.

    Returns:
        The content of `sample.json`; `results` in it is what `evaluate_chains` gives.

    Raises:
        RecipeError: The accelerator is not there, or model and optimizer cannot be built as asked.
        DataError: The data are not there or damaged.
        SamplingError: The burn-in leaves no sample, or every chain diverged.
        RunError: The folder belongs to another recipe or cannot be written; a chain failed.
        Interrupted: Ctrl-C or SIGTERM; the states are saved, and the same command continues.
    """
    if recipe.sample is None:
        recipe = recipe.model_copy(update={"sample": SampleSettings()})
        recipe = Recipe.from_dict(recipe.to_dict(), source=f"recipe '{recipe.name}'")
    chains = (recipe.sample or SampleSettings()).chains
    how.checked()
    with locked(run_dir, "sampling"):
        facts = open_folder(recipe, run_dir, how.command)
        data = load_recipe_data(recipe)
        if "data" in facts:
            check_data(describe_data(data), facts["data"]["checksum"])
        plan_of(recipe, data)  # a burn-in that leaves nothing is refused before anything is touched
        remove_leftovers(run_dir)
        facts |= {"data": describe_data(data)}
        folder = run_dir if how.engine.name == "local" else run_dir.resolve()  # other processes stand elsewhere
        template = ChainOrder(recipe, folder, 0, how.command, checkpoint_every_steps, tensorboard, how.accelerator)
        running = _Running(run_dir, facts, how, template, data, chains)
        running.sample()
        how.tell("judging the samples", running.total, running.total)
        facts["results"] = evaluate_chains(recipe, run_dir, data, accelerator=how.accelerator)
        facts["finished"] = now()
        write_json_atomically(run_dir / SAMPLE_FILE, facts)
    return facts


@dataclass
class _Running:
    """One call of `run_sampling`: its chains, and how far they are."""

    run_dir: Path
    facts: JsonObject
    how: Execution
    template: ChainOrder
    data: Data
    chains: int
    failed: list[Ended] = field(default_factory=list[Ended])
    warned: set[str] = field(default_factory=set[str])
    losses: Losses = field(default_factory=Losses)

    @property
    def steps(self) -> int:
        """Steps of a chain."""
        train = self.template.recipe.train
        return train.epochs * max(1, self.data.samples // train.batch_size)

    @property
    def total(self) -> int:
        """Steps of all chains."""
        return self.chains * self.steps

    def sample(self) -> None:
        """Sample the chains that are left: one worker in this process, several as the engine has them."""
        every = (replace(self.template, chain=chain) for chain in range(self.chains))
        left = [order for order in every if not _is_finished(order)]
        if self._is_alone():
            self._begin(workers=1, threads=usable_cores())
            self._one_by_one(left)
        elif left:
            with signals(self.run_dir, self.how.again), open_engine(self.how, jobs=self.chains) as engine:
                self._begin(workers=engine.count, threads=engine.threads)
                self._run(left, engine)

    def _is_alone(self) -> bool:
        if self.how.engine.name != "local":
            return False
        return worker_count(self.how.workers, self.chains, find_devices(self.how.accelerator)) == 1

    def _begin(self, *, workers: int, threads: int) -> None:
        self.facts |= {"engine": self.how.engine.name, "workers": workers, "threads": threads}
        write_json_atomically(self.run_dir / SAMPLE_FILE, self.facts)

    def _one_by_one(self, orders: list[ChainOrder]) -> None:
        """Sample in this process."""
        for order in orders:
            before = order.chain * self.steps

            def tell(done: int, _: int, before: int = before, order: ChainOrder = order) -> None:
                self.how.tell(progress_text([order.folder]), before + done, self.total)

            try:
                sample_chain(order, self.data, tell)
            except KeyboardInterrupt as error:
                number = int(getattr(error, "exit_code", INTERRUPTED)) - 128
                raise Interrupted(f"{error}; {self.how.again} continues", number) from error

    def _run(self, orders: list[ChainOrder], engine: Engine) -> None:
        """Keep the engine's workers busy until all chains are done, or until the running ones are after a failure."""
        waiting, running = list(orders), dict[Future[Ended], ChainOrder]()
        work = do_chain if engine.shares_folders else do_chain_elsewhere
        checksum = str(self.facts["data"]["checksum"])
        try:
            while running or (waiting and not self.failed):
                while waiting and len(running) < engine.count and not self.failed:
                    order = waiting.pop(0)
                    running[engine.submit(work, order, checksum)] = order
                finished, _ = wait(running, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
                for future in finished:
                    order = running.pop(future)
                    try:
                        ended = future.result()
                    except WorkerLost as error:
                        ended = self._lost(order, error)
                        waiting[:0] = [order] if ended is None else []
                    if ended is not None:
                        self._warn(ended)
                        self.failed += [ended] if ended.error else []
                self._tell([order.folder for order in running.values()])
        except KeyboardInterrupt:
            engine.interrupt()  # a chain takes hours, and its last checkpoint may be an epoch old
            wait(running, timeout=_SAVE_SECONDS)
            raise
        if self.failed:
            self._report_failures()

    def _lost(self, order: ChainOrder, error: WorkerLost) -> Ended | None:
        """How a chain ended whose worker is gone; None if it goes on from its last checkpoint."""
        name = f"chain {order.chain}"
        if self.losses.again(name):
            warnings.warn(f"{name}: its worker was lost ({error}); it goes on", RuntimeWarning, stacklevel=3)
            return None
        return Ended(order.chain, sentence := self.losses.sentence(error), traceback=f"{sentence}\n")

    def _warn(self, ended: Ended) -> None:
        """Pass on what a worker warned of; sentences that differ in numbers alone only once."""
        for kind, text in ended.told:
            if (pattern := re.sub(r"[\d.]+", "", text)) not in self.warned:
                self.warned.add(pattern)
                warnings.warn(f"chain {ended.chain}: {text}", kind, stacklevel=2)

    def _tell(self, folders: list[Path]) -> None:
        if self.how.progress is not None:  # what is done takes a look at every chain's files
            done = sum(self._steps_of(chain) for chain in range(self.chains))
            self.how.tell(progress_text(folders), done, self.total)

    def _steps_of(self, chain: int) -> int:
        order = replace(self.template, chain=chain)
        return self.steps if _is_finished(order) else min(self.steps, last_step(order.folder))

    def _report_failures(self) -> None:
        text = "\n".join(f"chain {ended.chain}\n{ended.traceback}" for ended in self.failed)
        where = write_errors(self.template.run_dir, text)
        first = self.failed[0]
        raise RunError(
            f"chain {first.chain} failed: {first.error.rstrip('.')}; {where}what was sampled is kept, and "
            f"{self.how.again} continues"
        )


def _is_finished(order: ChainOrder) -> bool:
    try:
        return order.finished() is not None
    except RunError:  # a damaged result: `train_run` says so and goes on from the last checkpoint
        return False
