"""Seeds and deterministic algorithms: the same seed gives the same weights, dropout and order for every arm.

Every stream of random numbers has its own seed, derived from the run's seed and the stream's name. So two arms of
a comparison start from equal weights and see equal batches (paired), whatever one of them draws on the way.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

from weightspace.training.data.batches import derived_seed


def seed_stream(seed: int, stream: str) -> None:
    """Seed torch's global generators (all devices) for one stream of a run.

    Args:
        seed: The run's seed.
        stream: What is drawn next: `"initialization"` or `"training"` (dropout; each process has a stream of its own).
    """
    torch.manual_seed(derived_seed(stream, seed))


@contextmanager
def reproducible(*, deterministic: bool) -> Generator[None, None, None]:
    """Give torch's random state and determinism switches back as they were.

    Args:
        deterministic: Whether to use only algorithms that give the same bits every time. An operation that has
            none raises torch's own RuntimeError, which names it.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    switches: Any = torch.utils.deterministic  # a module whose attributes are properties
    fill = switches.fill_uninitialized_memory
    benchmark = torch.backends.cudnn.benchmark
    with torch.random.fork_rng():
        if deterministic:
            # cuBLAS reads this when it starts: without it torch refuses deterministic matrix products.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            switches.fill_uninitialized_memory = False  # a debugging aid that costs time
            torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)
            switches.fill_uninitialized_memory = fill
            torch.backends.cudnn.benchmark = benchmark


def random_states(device: torch.device | None = None) -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """The states of torch's generators (CPU and CUDA), as uint8 tensors.

    Args:
        device: The only device of this process, where several processes share a machine; None for all devices.
    """
    cuda: list[torch.Tensor] = []
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        cuda = torch.cuda.get_rng_state_all() if device is None else [torch.cuda.get_rng_state(device)]
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_states(states: dict[str, torch.Tensor | list[torch.Tensor]], device: torch.device | None = None) -> None:
    """Put generators back into the states that `random_states` gave, with the same device."""
    cpu, cuda = states["cpu"], states["cuda"]
    if isinstance(cpu, torch.Tensor):
        torch.set_rng_state(cpu)
    if not isinstance(cuda, list) or not cuda:
        return
    if device is not None and device.type == "cuda":
        torch.cuda.set_rng_state(cuda[0], device)
    elif device is None and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
