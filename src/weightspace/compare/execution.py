"""How runs are carried out: by whom, on what, and who is told. No result depends on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from weightspace.compare.pool import find_devices, refuse_count
from weightspace.errors import RecipeError, nearest

Progress = Callable[[str, int, int], None]
"""Called with (what is going on, how much is done, how much there is): runs of a comparison, steps of chains."""
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class EngineChoice:
    """The engine that is asked for.

    Attributes:
        name: One of `ENGINES`: "local", processes of this machine, or "ray", a Ray cluster. The results are the same.
        address: Of a cluster that is running, such as `host:6379` or `auto`; None starts one on this machine. `local`
            has none.
    """

    name: str = "local"
    address: str | None = None

    def checked(self, accelerator: str) -> EngineChoice:
        """Itself, after refusing what is not there: before anything is touched.

        Args:
            accelerator: As for `train_run`.

        Raises:
            RecipeError: An unknown engine, an address that `local` has no use for, or this machine is to do the work
                and does not have the accelerator.
            RunError: The engine's package is not installed.
        """
        if self.name not in ENGINES:
            guess = nearest(self.name, ENGINES, "did you mean '{}'?")
            raise RecipeError(f"there is no engine '{self.name}'; {guess or 'known are ' + ', '.join(ENGINES)}")
        if self.name == "local":
            if self.address is not None:
                raise RecipeError(f"the engine 'local' has no address, got '{self.address}'; say --engine ray with it")
            find_devices(accelerator)
            return self
        from weightspace.compare.engines_ray import check_installed

        check_installed()
        if self.address is None:
            find_devices(accelerator)
        return self


@dataclass(frozen=True)
class Execution:
    """Who carries out the runs of a comparison, of a sweep or of chains.

    Attributes:
        workers: Runs at the same time, each in a process of its own. None: one per GPU, or one per CPU core where there
            is no GPU. The cores are shared evenly among the workers' threads.
        accelerator: "auto", "cpu", "cuda" (or "gpu"), "mps": as for `train_run`.
        engine: Where the processes are: on this machine or in a Ray cluster.
        command: The command line, for the record and for the sentence that says how to go on.
        progress: Told how far things are.
    """

    workers: int | None = None
    accelerator: str = "auto"
    engine: EngineChoice = EngineChoice()
    command: str = ""
    progress: Progress | None = None

    def checked(self) -> Execution:
        """Itself, after refusing what is not there: before anything is touched.

        Raises:
            RecipeError: There is no such engine, or the accelerator is not there.
            RunError: Fewer than one worker, or the engine's package is not installed.
        """
        self.engine.checked(self.accelerator)
        refuse_count(self.workers)
        return self

    @property
    def again(self) -> str:
        """What continues after an interruption, in words."""
        return "the same command" + (" without --fresh" if "--fresh" in self.command.split() else "")

    def tell(self, text: str, done: int, total: int) -> None:
        """Pass on how far things are, to whoever wants to know."""
        if self.progress is not None:
            self.progress(text, done, total)


ON_THIS_MACHINE = Execution()
"""Processes of this machine, as many as it has GPUs or cores, and nobody is told."""
