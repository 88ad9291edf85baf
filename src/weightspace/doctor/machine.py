"""The machine: Python, processor cores, threads, memory, and places to write to."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from weightspace.doctor.finding import Finding

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
_GIB = 2**30
LITTLE_DISK, NO_DISK = 2 * _GIB, _GIB // 10  # bytes
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def python() -> Finding:
    """Whether this is a Python that weightspace was tested on."""
    found = f"{platform.python_version()}, {sys.executable}"
    here = sys.version_info[:2]
    if here < OLDEST_PYTHON:
        return Finding("Python", "problem", found, "take Python 3.10 or newer")
    if here > NEWEST_PYTHON:
        return Finding("Python", "note", f"{found}; newer than any that was tested", "if something fails, take 3.13")
    return Finding("Python", "ok", found)


def system() -> Finding:
    """Operating system, processor, cores and memory."""
    from weightspace.training.environment import machine

    here = machine()
    memory = _memory()
    size = f", {memory / _GIB:.0f} GiB of memory" if memory else ""
    return Finding("machine", "ok", f"{here['platform']}; {here['processor']}, {here['cores']} cores{size}")


def cores_allowed() -> int:
    """Cores that this process may keep busy: a container's share of time counts, not only which cores it sees."""
    from weightspace.training.environment import usable_cores

    cores = usable_cores()
    try:
        quota, period = _CPU_LIMIT.read_text(encoding="utf-8").split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such limit ("max" is no number), or another system
        return cores


def threads() -> Finding:
    """Whether torch uses as many threads as there are cores."""
    import torch

    used, cores = torch.get_num_threads(), cores_allowed()
    variable = os.environ.get("OMP_NUM_THREADS")
    found = f"torch uses {used} of {cores} cores; OMP_NUM_THREADS is {variable or 'not set'}"
    if variable and not all(part.strip().isdigit() for part in variable.split(",")):
        return Finding("threads", "problem", f"{found}, which is no number", f"export OMP_NUM_THREADS={cores}")
    if used > cores:
        found += "; threads that wait for one another make every step slow"
        return Finding("threads", "problem", found, f"export OMP_NUM_THREADS={cores}")
    return Finding("threads", "ok", found)


def places(folder: Path) -> Iterator[Finding]:
    """Folders that are written to: for runs and for temporary files.

    Args:
        folder: Where runs go: `runs` in the folder that the command was called from.
    """
    yield place("runs", folder, "call weightspace in a folder of yours, or give another one with --out")
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError:
        yield Finding("temporary files", "problem", "no folder for them can be written to", "set TMPDIR to one")
    else:
        yield place("temporary files", temporary, "set TMPDIR to a folder with more room")


def place(name: str, folder: Path, cure: str) -> Finding:
    """Whether a folder (or the nearest one above it that exists) can be written to, and how much room is left."""
    existing = next((parent for parent in (folder, *folder.parents) if parent.is_dir()), Path.cwd())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        free = shutil.disk_usage(existing).free
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return Finding(name, "problem", f"{folder} cannot be written to: {reason}", cure)
    found = f"{folder}, {free / _GIB:.1f} GiB free"
    if free < NO_DISK:
        return Finding(name, "problem", f"{found}: too little for checkpoints", f"make room, or {cure}")
    if free < LITTLE_DISK:
        return Finding(name, "note", f"{found}: enough for small runs only", f"make room, or {cure}")
    return Finding(name, "ok", found)


def _memory() -> int | None:
    """Bytes of memory of the machine, where the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not Linux or macOS
        return None
