"""Downloads with check sums: to a temporary file, verified, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from weightspace.errors import DataError
from weightspace.training.data.catalog import DatasetInfo, Remote

Progress = Callable[[str, int, "int | None"], None]
"""Called with the file's name, the bytes received so far, and the bytes expected (`None` where no one says)."""

TIMEOUT = 20.0
_CHUNK = 1 << 18


def download(info: DatasetInfo, folder: Path, *, progress: Progress | None = None, timeout: float = TIMEOUT) -> None:
    """Download every file of a data set that `folder` does not hold yet.

    Args:
        info: The data set.
        folder: Where the files go; created when the first server answers.
        progress: Called after every chunk.
        timeout: Seconds of silence after which a server is given up.

    Raises:
        DataError: No server delivered a file with the published check sum, or the folder cannot be written.
    """
    for remote in info.remotes:
        if not (folder / remote.file_name).is_file():
            fetch(remote, folder, progress=progress, timeout=timeout)


def fetch(remote: Remote, folder: Path, *, progress: Progress | None = None, timeout: float = TIMEOUT) -> Path:
    """Download one file.

    A file appears under its name only when it is complete and its check sum is right.

    Args:
        remote: What to download and its check sum.
        folder: Where it goes; created when a server answers.
        progress: Called after every chunk.
        timeout: Seconds of silence after which a server is given up.

    Returns:
        Path of the file.

    Raises:
        DataError: Every URL failed; says why for each.
    """
    failures: list[str] = []
    for url in remote.urls:
        try:
            # The URLs are constants of the catalog, all http(s).
            with urllib.request.urlopen(url, timeout=timeout) as response:  # noqa: S310
                return _receive(remote, response, folder, progress)
        except (OSError, http.client.HTTPException, _ChecksumError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            failures.append(f"{url}: {reason}")
    raise DataError(f"{remote.file_name} could not be downloaded ({'; '.join(failures)})")


class _ChecksumError(Exception):
    """What came is not what was published."""


def _receive(remote: Remote, response: Any, folder: Path, progress: Progress | None) -> Path:
    announced = response.headers.get("Content-Length")
    total = int(announced) if announced and announced.isdigit() else None
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{remote.file_name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            found, size = _copy(remote, response, file, total, progress)
        _check(remote, found, size, total)
        os.replace(temporary, folder / remote.file_name)  # noqa: PTH105 - atomic where the house's writers are
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise
    return folder / remote.file_name


def _check(remote: Remote, found: str, size: int, total: int | None) -> None:
    if found != remote.checksum:
        announced = f" of {total:,}" if total is not None else ""
        raise _ChecksumError(f"received {size:,}{announced} bytes with {found}, expected {remote.checksum}")


def _copy(
    remote: Remote, response: Any, file: IO[bytes], total: int | None, progress: Progress | None
) -> tuple[str, int]:
    algorithm = remote.checksum.partition(":")[0]
    checksum = hashlib.new(algorithm, usedforsecurity=False)
    size = 0
    while chunk := response.read(_CHUNK):
        file.write(chunk)
        checksum.update(chunk)
        size += len(chunk)
        if progress is not None:
            progress(remote.file_name, size, total)
    return f"{algorithm}:{checksum.hexdigest()}", size
