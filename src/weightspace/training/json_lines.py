"""A file of records that grows while a run trains (`metrics.jsonl`): one JSON object a line.

Every line is handed to the system at once; a process that dies in the middle of a line leaves one torn last line, which
the reader drops. `sync` waits for the disk, so that a checkpoint never counts lines that a power loss takes away.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, cast, final

from weightspace.errors import RunError
from weightspace.files import JsonObject, finite, reason_of, write_text_atomically


@final
class JsonLines:
    """Append-only writer of one JSON object a line; every line is flushed to the system at once.

    Use as a context manager. Opening repairs a torn last line of an earlier process, so that a new
    line never continues half of an old one.

    Args:
        path: The file; made (with its folder) when missing.

    Raises:
        RunError: The file cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _drop_torn_line(path)
            self._stream: IO[str] = path.open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise RunError(f"cannot write {path}: {reason_of(error)}") from error

    def write(self, record: Mapping[str, object]) -> None:
        """Append one record as one line (NaN and infinity become null)."""
        try:
            self._stream.write(json.dumps(finite(record), ensure_ascii=False, allow_nan=False) + "\n")
            self._stream.flush()
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {reason_of(error)}") from error

    def sync(self) -> None:
        """Wait until every line is on the disk: what refers to them may be written after this.

        Raises:
            RunError: The disk did not take them.
        """
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {reason_of(error)}") from error

    def close(self) -> None:
        """Close the file; a closed writer writes no more."""
        with suppress(OSError):  # a line that the disk refused: its `write` has said so
            self._stream.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_json_lines(path: Path) -> list[JsonObject]:
    """Read all records of a JSON-lines file; one torn last line is dropped.

    Args:
        path: The file. A missing file reads as no records: the run has not written any yet.

    Returns:
        The records in the order they were written.

    Raises:
        RunError: The file cannot be read, or a line before the last is damaged; the sentence names its number.
    """
    records, damage = read_whole_lines(path)
    if damage:
        raise RunError(f"{path} is damaged at {damage}")
    return records


def read_whole_lines(path: Path) -> tuple[list[JsonObject], str]:
    """Read the records that can be read.

    Args:
        path: The file. A missing file reads as no records.

    Returns:
        The whole records, and what is damaged (`"line 3 (not JSON)"`; empty when nothing is). A torn last line is no
        damage.

    Raises:
        RunError: The file cannot be read at all.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], ""
    except OSError as error:
        raise RunError(f"cannot read {path}: {reason_of(error)}") from error
    lines = content.split(b"\n")
    records: list[JsonObject] = []
    damage: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            if number < len(lines):  # a last line without its newline was torn by an interruption
                damage.append(f"line {number} (not JSON)")
            continue
        if isinstance(record, dict):
            records.append(cast("JsonObject", record))
        else:
            damage.append(f"line {number} (no JSON object)")
    more = f" and {len(damage) - 1} more lines" if len(damage) > 1 else ""
    return records, damage[0] + more if damage else ""


def keep_first_records(path: Path, count: int) -> int:
    """Cut a JSON-lines file back to its first `count` records (atomically): a resumed run writes the rest again.

    Records that are gone only thin out the curves of the run, so they are reported as a warning.

    Args:
        path: The file.
        count: Records to keep.

    Returns:
        Records that are left: `count`, or fewer where the file had lost some.

    Raises:
        RunError: The file cannot be read or written.
    """
    records, damage = read_whole_lines(path)
    if len(records) < count:
        reason = f": it is damaged at {damage}" if damage else ""
        warnings.warn(
            f"{path} has lost {count - len(records)} of {count} records{reason}; the run goes on without them",
            RuntimeWarning,
            stacklevel=2,
        )
    if path.exists():
        kept = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records[:count])
        write_text_atomically(path, kept)
    return min(count, len(records))


def _drop_torn_line(path: Path) -> None:
    """Cut the bytes behind the last newline, if any."""
    if not path.exists():
        return
    with path.open("r+b") as stream:
        content = stream.read()
        if content and not content.endswith(b"\n"):
            stream.truncate(content.rfind(b"\n") + 1)
