"""What every test shares: a seeded generator, so that a statistical tolerance that holds once holds always."""

import os
import signal
import threading

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
