"""Runs a function in a process and kills it with signal 9: after some seconds, or before one of its file operations.

File operations are those that change a run's folder: opening a file to write, `rename`, `unlink`, `mkdir`, `fsync`,
and a line of `metrics.jsonl`, of which half is written. Between two of them nothing on the disk changes but the
content of a temporary file, so killing before each of them in turn tries every state that a killed process can leave.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from reliability.processes import forking
from weightspace.training.json_lines import JsonLines

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_EVENTS = {"os.rename", "os.remove", "os.mkdir"}
_PATIENCE = 120.0  # seconds


@dataclass(frozen=True)
class Kill:
    """When the process is to die.

    Attributes:
        after: Seconds after the function has begun; None: never.
        at: The number of the file operation that it dies before, from 1; None: never.
        power_cut: With `at`: what `metrics.jsonl` got since its last `fsync` is lost too.
    """

    after: float | None = None
    at: int | None = None
    power_cut: bool = False


@dataclass(frozen=True)
class Attempt:
    """What became of a process.

    Attributes:
        is_killed: Whether it was killed before it ended.
        seconds: From the function's beginning to its end or death.
        operations: File operations, where it ended and they were counted.
        value: What the function returned.
    """

    is_killed: bool
    seconds: float
    operations: int = 0
    value: Any = None


def attempt(
    function: Callable[..., Any], folder: Path, *arguments: Any, kill: Kill | None = None, is_counted: bool = False
) -> Attempt:
    """Calls `function(folder, *arguments)` in a process of its own, which may be killed.

    Warnings that a file is damaged or has lost records are errors: a killed process must not leave such files.

    Args:
        function: Of a module, not a closure.
        folder: The folder whose file operations count.
        arguments: Sent to the process.
        kill: When it is to die.
        is_counted: Whether to count file operations although it does not die at one.

    Raises:
        RuntimeError: The function failed (its traceback is the message), or took two minutes.
    """
    kill = kill or Kill()
    context = forking()
    here, there = context.Pipe(duplex=False)
    is_counted = is_counted or kill.at is not None
    process = context.Process(target=_work, args=(there, function, folder, arguments, kill, is_counted), daemon=True)
    process.start()
    there.close()
    here.recv()  # the function begins
    begun = time.perf_counter()
    process.join(_PATIENCE if kill.after is None else kill.after)
    is_late = process.exitcode is None
    process.kill()
    process.join()
    seconds = time.perf_counter() - begun
    if is_late and kill.after is None:
        raise RuntimeError(f"the process took more than {_PATIENCE:g} s")
    if process.exitcode == -signal.SIGKILL:
        return Attempt(True, seconds)
    error, operations, value = here.recv()
    if error:
        raise RuntimeError(error)
    return Attempt(False, seconds, operations, value)


def _work(
    end: Connection,
    function: Callable[..., Any],
    folder: Path,
    arguments: tuple[Any, ...],
    kill: Kill,
    is_counted: bool,
) -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", message=".*(is damaged|has lost)")
    counter = _FileOperations(folder, kill) if is_counted else None
    end.send(None)
    error, value = "", None
    try:
        value = function(folder, *arguments)
    except BaseException:  # noqa: BLE001 - it is raised in the parent
        error = traceback.format_exc()
    end.send((error, 0 if counter is None else counter.count, value))
    end.close()


class _FileOperations:
    """Counts this process's file operations below a folder, from now on, and kills it before one of them."""

    def __init__(self, folder: Path, kill: Kill) -> None:
        self.count = 0
        self._folder, self._kill = str(folder), kill
        self._synced: dict[int, int] = {}  # by inode
        self._sync, self._write = os.fsync, JsonLines.write
        os.fsync = self._on_sync
        JsonLines.write = lambda lines, record: self._on_line(lines, record)  # noqa: PLW0108 - a method of the lines # pyright: ignore[reportAttributeAccessIssue]
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS and not (event == "open" and _is_writing(arguments)):
            return
        if str(arguments[0]).startswith(self._folder):
            self._next()

    def _on_sync(self, descriptor: int) -> None:
        self._next()
        self._sync(descriptor)
        info = os.fstat(descriptor)
        self._synced[info.st_ino] = info.st_size

    def _on_line(self, lines: JsonLines, record: Mapping[str, object]) -> None:
        if self.count + 1 == self._kill.at:
            lines._stream.write('{"kind": "la')  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            lines._stream.flush()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        self._next()
        self._write(lines, record)

    def _next(self) -> None:
        self.count += 1
        if self.count != self._kill.at:
            return
        if self._kill.power_cut:
            self._forget_unsynced()
        os.kill(os.getpid(), signal.SIGKILL)

    def _forget_unsynced(self) -> None:
        for path in Path(self._folder).rglob("metrics.jsonl"):
            os.truncate(path, self._synced.get(path.stat().st_ino, 0))


def _is_writing(arguments: tuple[Any, ...]) -> bool:
    """Whether an `open` event is of a file to write: by its mode, or where there is none its flags."""
    _, mode, flags = arguments
    return bool(set(mode) & set("wxa+")) if isinstance(mode, str) else bool(flags & _WRITING)
