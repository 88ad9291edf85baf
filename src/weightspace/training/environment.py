"""What ran where: versions of the packages and a description of the machine, for run records and reports."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

_PACKAGES = ("weightspace", "torch", "lightning-fabric", "numpy", "pydantic", "safetensors", "scikit-learn", "scipy")


def versions() -> dict[str, str]:
    """Versions of Python, weightspace and what it computes with; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str | int | None]:
    """Platform, processor, cores this process may use, torch's threads, and the GPU's name or None."""
    import torch

    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine has inside a container or under taskset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_started_by_torchrun() -> bool:
    """Whether torchrun started this process, perhaps among others."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def process_number() -> int:
    """The number that this process was given by whoever started it with others: 0 for the first, or where nobody did.

    >>> process_number()
    0
    """
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def _processor() -> str:
    """The processor's name: Linux tells it in /proc/cpuinfo, elsewhere Python knows some name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in {"model name", "Model"} and value.strip():
                return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown"
