"""What every test shares: a seeded generator, so that a statistical tolerance that holds once holds always."""

import signal
import threading

import pytest
import torch

# A shell that runs the suite in the background has Ctrl-C ignored, for tests and their child processes too.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
