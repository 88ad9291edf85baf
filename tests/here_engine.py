"""An engine that runs jobs in the test's own process: what is tested there is not how a worker process starts."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from weightspace.chains import runner as chains_runner
from weightspace.compare import runner as compare_runner
from weightspace.compare.engines import WorkerLost
from weightspace.compare.worker import Order


class HereEngine:
    """Runs jobs at once in this process, where the test can see what happens."""

    count, threads = 1, 1

    def __init__(self, *, shares_folders=True, losses=()):
        self.shares_folders, self.losses, self.jobs = shares_folders, list(losses), []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    def submit(self, function, order, *more):
        future = Future()
        name = order.job.name if isinstance(order, Order) else f"chain {order.chain}"
        self.jobs.append((function.__name__, name))
        if name in self.losses:
            self.losses.remove(name)
            future.set_exception(WorkerLost("its process was killed"))
        else:
            future.set_result(function(order, *more))
        return future


def run_here(patch: pytest.MonkeyPatch, engine: HereEngine | None = None) -> HereEngine:
    """Have comparisons, sweeps and chains run in this process: no seconds of imports for every worker."""
    used = HereEngine() if engine is None else engine
    for module in (compare_runner, chains_runner):
        patch.setattr(module, "open_engine", lambda *_, **__: used)
    return used
