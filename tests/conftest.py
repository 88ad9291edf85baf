"""What every test shares: a seeded generator, so that a statistical tolerance that holds once holds always."""

import multiprocessing
import os
import signal
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

# A shell that runs the suite in the background has Ctrl-C ignored, for tests and their child processes too.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Several workers with as many threads each as there are cores wait for one another most of the time.
if os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1") != "1":
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# What a worker process of `compare`, `tolerance` and `sample` imports before its first job: seconds of work.
_PRELOADED = ["weightspace.compare.worker", "weightspace.training.loop", "weightspace.chains", "sklearn.datasets"]


@pytest.fixture(autouse=True)
def _quick_workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes are forked from one server that has loaded the library; `spawned` marks tests of the real start."""
    engine = sys.modules.get("weightspace.compare.engines_local")
    if engine is None or "forkserver" not in multiprocessing.get_all_start_methods():
        return
    if request.node.get_closest_marker("spawned") is None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        monkeypatch.setattr(engine, "multiprocessing", SimpleNamespace(get_context=lambda _: context))
