"""One process at a time in a folder: a lock that goes with its process, however that ends."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from weightspace.errors import RunError
from weightspace.files import ensure_writable_folder, reason_of

LOCK_FILE = ".lock"


@contextmanager
def locked(folder: Path, doing: str) -> Generator[None, None, None]:
    """Hold a folder for this process.

    Some file systems know no locks: there a warning says so and the folder is used without one. Windows has no such
    lock either.

    Args:
        folder: The folder; made when missing. The lock is its file `.lock`, which stays.
        doing: What another process that holds it is doing, for the error: `"training"`, `"running a comparison"`.

    Raises:
        RunError: The folder cannot be written, or another process holds it.
    """
    ensure_writable_folder(folder)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = folder / LOCK_FILE
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RunError(f"cannot write {path}: {reason_of(error)}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"another process is {doing} in {folder}; wait for it, or choose another folder with --out"
            ) from error
        except OSError as error:
            warnings.warn(
                f"{folder} cannot be locked ({reason_of(error)}): see to it that no other process writes there",
                RuntimeWarning,
                stacklevel=3,
            )
        yield
    finally:
        os.close(handle)
