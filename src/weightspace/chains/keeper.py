"""One chain: a training run whose weights go into a store after the steps of a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import nn

from weightspace.errors import SamplingError
from weightspace.files import JsonObject, write_json_atomically
from weightspace.sampling import SampleStore, chain_folder
from weightspace.training.data import Data
from weightspace.training.environment import machine, versions
from weightspace.training.logs import RUN_FILE
from weightspace.training.loop import finished_result, train_run
from weightspace.training.recipe import Recipe, run_fingerprint
from weightspace.training.recipe_sampling import SamplePlan, sample_plan

_CHECKPOINTS = 50  # of a run, at most: a short epoch costs less than writing its checkpoint


@dataclass(frozen=True)
class ChainOrder:
    """One chain with all that is needed to sample it.

    Attributes:
        recipe: With its `sample`; `compare` and `sweep` do not matter.
        run_dir: Folder of all chains.
        chain: Its number, which is the seed.
        command: For the record.
        checkpoint_every_steps: Save every so many steps too.
        tensorboard: Write TensorBoard curves.
        accelerator: As for `train_run`.
    """

    recipe: Recipe
    run_dir: Path
    chain: int
    command: str = ""
    checkpoint_every_steps: int | None = None
    tensorboard: bool = False
    accelerator: str = "auto"

    @property
    def folder(self) -> Path:
        """The chain's folder: samples, metrics, checkpoints, last weights."""
        return chain_folder(self.run_dir, self.chain)

    @property
    def fingerprint(self) -> str:
        """Of the settings that decide the chain's numbers."""
        return run_fingerprint(self.recipe, self.chain)

    def finished(self) -> JsonObject | None:
        """The chain's result, if it has ended."""
        return finished_result(self.folder, self.fingerprint)


class StoreKeeper:
    """Puts a run's weights into a store. A run without a plan's step takes none."""

    def __init__(self, store: SampleStore) -> None:
        self._store = store

    def wants(self, step: int) -> bool:
        """Whether the store takes the weights after so many steps."""
        return self._store.wants(step)

    def keep(self, step: int, module: nn.Module) -> None:
        """Store them."""
        self._store.offer(step, module)

    def truncate(self, step: int) -> None:
        """Forget later ones: the run goes on from here."""
        self._store.truncate(step)


def plan_of(recipe: Recipe, data: Data) -> SamplePlan:
    """Which steps of a chain are kept.

    Raises:
        SamplingError: None would be.
    """
    if recipe.sample is None:
        raise SamplingError(f"the recipe '{recipe.name}' has no sample part; add sample: {{chains: 4}}")
    try:
        return sample_plan(recipe.sample, recipe.train, max(1, data.samples // recipe.train.batch_size))
    except ValueError as error:
        raise SamplingError(f"{error}") from error


def open_store(folder: Path, plan: SamplePlan, chain: int) -> SampleStore:
    """The store of a chain, continued if it is there.

    Raises:
        SamplingError: It was begun with other settings, or is damaged.
    """
    return SampleStore(
        folder,
        burn_in=plan.burn_in,
        every=plan.every,
        cycle=plan.cycle,
        per_cycle=plan.per_cycle,
        max_bytes=plan.max_bytes,
        dtype=None if plan.dtype is None else getattr(torch, plan.dtype),
        chain=chain,
    )


def sample_chain(order: ChainOrder, data: Data, progress: Callable[[int, int], None] | None = None) -> JsonObject:
    """Sample one chain into its folder, from its last checkpoint on if there is one.

    Args:
        order: The chain.
        data: The recipe's data.
        progress: Called with (steps done, steps in all).

    Returns:
        The chain's `result.json`.

    Raises:
        RunError, RecipeError, DataError, SamplingError: As `train_run` and `SampleStore` do.
        Interrupted: A signal asked to stop; the state is saved.
    """
    recipe = order.recipe
    keeper = StoreKeeper(open_store(order.folder, plan_of(recipe, data), order.chain))

    def started(steps: int) -> None:
        if steps and (order.folder / RUN_FILE).exists():
            return
        run = {
            "recipe": recipe.to_dict(),
            "seed": order.chain,
            "fingerprint": order.fingerprint,
            "command": order.command,
            "versions": versions(),
            "machine": machine(),
            "data": data.describe(),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        write_json_atomically(order.folder / RUN_FILE, run)

    return train_run(
        recipe,
        order.folder,
        seed=order.chain,
        data=data,
        progress=progress,
        started=started,
        resume=True,
        checkpoint_every_epochs=-(-recipe.train.epochs // _CHECKPOINTS),
        checkpoint_every_steps=order.checkpoint_every_steps,
        tensorboard=order.tensorboard,
        accelerator=order.accelerator,
        keeper=keeper,
    )
