"""Jobs on a Ray cluster: Ray finds a machine with free cores and a free GPU, and says when one is lost.

Ray's own retries stay off: the comparison counts losses itself, for every engine in the same way.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from weightspace.compare.engines import WorkerLost, relay
from weightspace.compare.pool import refuse_count
from weightspace.errors import RecipeError, RunError
from weightspace.training.environment import usable_cores, versions

T = TypeVar("T")
_MUST_EQUAL = ("weightspace", "torch")  # Ray itself refuses another Python or another Ray
_NOTICE_SECONDS = 30.0
_NEW = "local"  # Ray's word for a cluster of its own


def check_installed() -> None:
    """Raises RunError when Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise RunError(
            "the engine 'ray' needs the package ray: install weightspace with its extra, \".[train,ray]\", or use "
            "--engine local"
        )


class RayEngine:
    """A Ray cluster; see `weightspace.compare.engines.Engine`.

    Args:
        count: Jobs that run at the same time.
        threads: Cores, and so threads, of each.
        gpus: GPUs of each: 0, 1, or a part of one.
    """

    shares_folders = False  # not for sure: other machines may have other disks

    def __init__(self, count: int, threads: int, gpus: float) -> None:
        import ray

        self.count, self.threads = count, threads
        # With a GPU, Ray starts a process for every job: one that has touched a GPU would not see another.
        options: dict[str, Any] = {"num_cpus": threads, "num_gpus": gpus, "max_retries": 0}
        self._remote: Any = cast("Any", ray).remote(**options)(work)
        self._expected = {name: version for name, version in versions().items() if name in _MUST_EQUAL}
        self._running: dict[Future[Any], Any] = {}

    def submit(self, function: Callable[..., T], *arguments: object) -> Future[T]:
        """Have a job done somewhere in the cluster, as soon as the cores and GPUs that it needs are free."""
        reference = self._remote.remote(function, arguments, self.threads, self._expected, str(Path.cwd()))
        future: Future[T] = relay(reference.future(), _lost_or_error, _seconds_until_noticed)
        self._running[future] = reference
        future.add_done_callback(lambda done: self._running.pop(done, None))
        return future

    def interrupt(self) -> None:
        """Send Ctrl-C to all running jobs."""
        self._cancel(must_kill=False)

    def kill(self) -> None:
        """End all jobs at once."""
        self._cancel(must_kill=True)

    def _cancel(self, *, must_kill: bool) -> None:
        import ray

        for reference in list(self._running.values()):
            cast("Any", ray).cancel(reference, force=must_kill)


def work(
    function: Callable[..., T], arguments: Sequence[object], threads: int, expected: dict[str, str], folder: str
) -> T:
    """What a Ray worker does: make sure that it computes as the caller would, then the job.

    Args:
        function: What to do.
        arguments: With what.
        threads: Torch's threads.
        expected: Versions that must equal those of the caller.
        folder: Where the caller stands: relative paths of a recipe mean the same here, where the folder exists.

    Raises:
        RunError: The versions differ; everything that the function raises.
    """
    import torch

    here = versions()
    for package, version in expected.items():
        if here.get(package) != version:
            raise RunError(
                f"the machine {os.uname().nodename} has {package} {here.get(package)}, the comparison was started with "
                f"{version}; install the same version on every machine of the cluster"
            )
    if Path(folder).is_dir():
        os.chdir(folder)
    torch.set_num_threads(threads)
    return function(*arguments)


@contextmanager
def ray_engine(
    address: str | None, *, workers: int | None, jobs: int, accelerator: str
) -> Generator[RayEngine, None, None]:
    """A connection to a Ray cluster, or a cluster of this machine alone, which ends with it.

    A program that is connected to Ray already stays so, and its cluster is used.

    Args:
        address: Of a cluster: `host:6379`, `auto` for the one on this machine; None for `RAY_ADDRESS` or a new one.
        workers: Jobs that run at the same time; None: one per GPU of the cluster, or one per core.
        jobs: How many there will be.
        accelerator: As for `train_run`; "auto" takes GPUs if the cluster has any.

    Raises:
        RunError: Ray is not installed, the cluster cannot be reached, or fewer than one worker is asked for.
        RecipeError: The cluster does not have the accelerator.
    """
    check_installed()
    refuse_count(workers)
    import ray

    is_ours = not ray.is_initialized()
    if is_ours:
        _connect(address or os.environ.get("RAY_ADDRESS") or _NEW)
    try:
        nodes = [cast("dict[str, float]", node["Resources"]) for node in ray.nodes() if node["Alive"]]
        engine = RayEngine(*share_out(nodes, workers=workers, jobs=jobs, accelerator=accelerator))
        try:
            yield engine
        except BaseException:
            engine.kill()
            raise
    finally:
        if is_ours:
            ray.shutdown()


def share_out(
    nodes: Sequence[dict[str, float]], *, workers: int | None, jobs: int, accelerator: str
) -> tuple[int, int, float]:
    """How many jobs run at the same time, and what each gets.

    Args:
        nodes: What each machine of the cluster has, as Ray tells it: `{"CPU": 8.0, "GPU": 2.0}`.
        workers: Jobs that run at the same time; None: one per GPU, or one per core.
        jobs: How many there will be.
        accelerator: "auto", "cpu", "cuda" (or "gpu"), "mps".

    Returns:
        Jobs at the same time, threads of each, GPUs of each.

    Raises:
        RecipeError: The cluster does not have the accelerator.

    >>> share_out([{"CPU": 8.0}, {"CPU": 8.0}], workers=3, jobs=100, accelerator="auto")
    (3, 4, 0.0)
    >>> share_out([{"CPU": 8.0, "GPU": 2.0}], workers=None, jobs=100, accelerator="auto")
    (2, 4, 1.0)
    """
    cores = [int(node.get("CPU", 0)) for node in nodes]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if accelerator in {"cuda", "gpu"} and not gpus:
        raise RecipeError(f"cannot use the accelerator '{accelerator}': the Ray cluster has none")
    has_gpus = bool(gpus) and accelerator in {"auto", "cuda", "gpu"}
    count = min(workers or (gpus if has_gpus else sum(cores)) or 1, jobs)
    # As many threads as still let so many jobs find room, since a job cannot be spread over machines.
    most = max(1, sum(cores) // count)
    threads = next((n for n in range(most, 0, -1) if sum(node // n for node in cores) >= count), 1)
    part = min(1.0, int(10_000 * gpus / count) / 10_000) if has_gpus else 0.0  # Ray counts GPUs in 1/10000
    return count, threads, part


def _connect(address: str) -> None:
    import ray
    from ray.exceptions import RayError

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of ours reports nothing to anybody
    options: dict[str, Any] = {"num_cpus": usable_cores(), "include_dashboard": False} if address == _NEW else {}
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)} if is_main else {}
    try:
        cast("Any", ray).init(
            address=address, log_to_driver=False, configure_logging=False, logging_level="ERROR", **options
        )
    except (ConnectionError, OSError, RuntimeError, ValueError, RayError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        where = "start a Ray cluster on this machine" if address == _NEW else f"reach a Ray cluster at '{address}'"
        raise RunError(
            f"cannot {where} ({reason.rstrip('.')}); `ray start --head` starts one and says its address, and one that "
            "wants a token is reached with RAY_AUTH_MODE=token"
        ) from error
    finally:
        for number, handler in handlers.items():  # Ray puts its own in place, which would end us without a word
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _lost_or_error(error: BaseException) -> BaseException:
    """What an exception of Ray means: a lost worker, what the job raised, or a cluster that cannot do the job."""
    from ray import exceptions

    lost = (
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.OutOfMemoryError,
        exceptions.ObjectLostError,
        exceptions.TaskCancelledError,
    )
    if isinstance(error, WorkerLost):
        return error
    if isinstance(error, lost):
        return WorkerLost(_first_sentence(error))
    if isinstance(error, exceptions.LocalRayletDiedError):  # of this machine: no job can be handed out any more
        return RunError(
            f"Ray has ended on this machine ({_first_sentence(error)}); finished runs are kept: start it again, and "
            "the same command continues"
        )
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception) and not isinstance(cause, ImportError):
        return cause
    if isinstance(error, exceptions.RayError):
        return RunError(
            f"a Ray worker could not start a run ({_first_sentence(cause or error)}); every machine of the cluster "
            "needs weightspace and torch in the versions of this one"
        )
    return error


def _seconds_until_noticed(error: BaseException) -> float:
    """How long not to give out a job again: Ray sends jobs to a dead machine until it is sure, 15 seconds or so."""
    from ray import exceptions

    return _NOTICE_SECONDS if isinstance(error, exceptions.NodeDiedError) else 0.0


def _first_sentence(error: object) -> str:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line.partition(". ")[0].rstrip(".")
