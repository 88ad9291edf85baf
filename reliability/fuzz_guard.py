"""Judges one attempt: accepted, refused with a sentence, or a crash. Watches what the attempt does meanwhile.

Python reports opened files, started programs, looked-up pickled classes and connections to audit hooks: whatever
input makes the library write outside its folder, start a program or unpickle is a crash, even if it then refuses.
Memory and time of an attempt are limited, so that an input that asks for a terabyte fails instead of getting it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from reliability.fuzz_source import Source
from weightspace.errors import WeightspaceError

GIGABYTE = 1 << 30
MEMORY = 2 * GIGABYTE
SECONDS = 20.0
LONGEST = 20_000  # characters of a refusal
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_RUNS = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "pickle.find_class",
    "socket.connect",
}
_CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
}
_NO_MEMORY = ("allocate", "not enough memory", "bad_alloc", "MemoryError", "out of memory")
_HARMLESS = ("/dev/null", "__pycache__", ".hypothesis")  # of Python itself, and of the fuzzer


@dataclass(frozen=True)
class Target:
    """Something that reads input from outside.

    Attributes:
        name: For tables and commands.
        text: What is attacked, in words.
        attempt: Makes an input from choices, in an empty folder, and has the library read it.
        quick: Attempts of a quick measurement.
        full: Attempts of a full one.
        prepare: Makes what all attempts share (imports, good files), before anything is watched.
    """

    name: str
    text: str
    attempt: Callable[[Source, Path], None]
    quick: int = 100
    full: int = 5000
    prepare: Callable[[], object] | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt.

    Attributes:
        kind: `"accepted"`, `"refused"` or `"crash"`.
        text: The sentence of a refusal; the traceback, or what was done, of a crash.
    """

    kind: str
    text: str = ""


class _TimeLimitError(BaseException):
    """The attempt took too long. No `Exception`: what is attacked must not catch it."""


class _Watch:
    """What the audit hook sees. One for the process: hooks cannot be taken off."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        self._installed = False

    @contextmanager
    def over(self, folder: Path) -> Generator[list[str], None, None]:
        if not self._installed:
            sys.addaudithook(self._look)
            self._installed = True
        self.seen, self.folder = [], str(folder.resolve())
        try:
            yield self.seen
        finally:
            self.folder = None

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = any(c in mode for c in "wax+") if isinstance(mode, str) else bool(int(flags or 0) & _WRITES)
            if writes and isinstance(path, str | bytes):
                self._check(event, os.fsdecode(path))
        elif event in _CHANGES:
            for path in arguments[: 2 if event in {"os.rename", "os.symlink", "os.link"} else 1]:
                if isinstance(path, str | bytes):
                    self._check(event, os.fsdecode(path))
        elif event in _RUNS:
            self.seen.append(f"{event} {arguments[:2]!r:.200}")

    def _check(self, event: str, path: str) -> None:
        folder, self.folder = self.folder, None  # resolving must not be looked at
        try:
            place = os.path.realpath(path)
        finally:
            self.folder = folder
        is_inside = place == folder or place.startswith(f"{folder}{os.sep}")
        if not is_inside and not any(part in place for part in _HARMLESS):
            self.seen.append(f"{event} {path}")


_WATCH = _Watch()


def judge(attempt: Callable[[Source, Path], None], source: Source) -> Outcome:
    """Make one attempt in a fresh folder and judge it."""
    root = Path(tempfile.mkdtemp(prefix="hostile-"))
    folder = root / "inside"
    folder.mkdir()
    before = Path.cwd()
    try:
        tempfile.tempdir = str(folder)
        with _limited(), warnings.catch_warnings(), _WATCH.over(root) as seen:
            warnings.simplefilter("ignore")
            outcome = _made(attempt, source, folder)
        # What was written beside the folder: the sentinel of a pickle, or an escaped name.
        others = [path.name for path in root.iterdir() if path != folder]
        if others or seen:
            return Outcome("crash", f"{'; '.join(seen)} {others}")
        return outcome
    finally:
        tempfile.tempdir = None
        os.chdir(before)
        shutil.rmtree(root, ignore_errors=True)


def _made(attempt: Callable[[Source, Path], None], source: Source, folder: Path) -> Outcome:
    try:
        attempt(source, folder)
    except WeightspaceError as error:
        sentence = str(error)
        if not sentence.strip() or len(sentence) > LONGEST or any(word in sentence for word in _NO_MEMORY):
            return Outcome("crash", f"no sentence for people: {sentence[:500]!r}")
        return Outcome("refused", sentence)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - everything else is a crash
        return Outcome("crash", traceback.format_exc())
    return Outcome("accepted")


@contextmanager
def _limited() -> Generator[None, None, None]:
    """Two gigabytes more than now, and twenty seconds. Where the system has no such limits, there are none."""
    try:
        import resource

        before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError):
        yield
        return
    alarm = threading.current_thread() is threading.main_thread()
    old = signal.signal(signal.SIGALRM, _too_long) if alarm else None
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        if alarm:
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
        yield
    finally:
        if alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _too_long(_: int, __: FrameType | None) -> None:
    raise _TimeLimitError(f"the attempt took more than {SECONDS:g} s")
