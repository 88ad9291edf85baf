"""Files of a run: written whole or not at all, read with a clear error when damaged.

A whole file (`result.json`, a report) goes to a temporary name in the same folder and is renamed over the
old one, so a reader sees the old content or the new, never half of it. A growing file (`metrics.jsonl`)
is appended line by line and flushed; a process that dies in the middle of a line leaves one torn last
line, which the reader drops.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast, final

from weightspace.errors import RunError

JsonObject = dict[str, Any]


@contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """Give a temporary path beside `path`; on success it replaces `path`, on any error it is deleted.

    Args:
        path: The file to write. Its folder is made when missing.

    Yields:
        The temporary path to write to.

    Raises:
        RunError: The folder or file cannot be written; the sentence holds the system's reason.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())  # the rename must not reach the disk before the content does
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        with suppress(OSError):  # gone already, or its folder is a file: the error above says so
            temporary.unlink()


def write_text_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text so that `path` holds either its old content or all of `text`.

    Args:
        path: File to write; missing parent folders are made.
        text: The whole content.

    Raises:
        RunError: The file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json_atomically(path: Path, obj: object) -> None:
    """Write `obj` as indented JSON, atomically. Non-finite numbers become `null`: strict JSON has no NaN.

    Args:
        path: File to write; missing parent folders are made.
        obj: Anything `json` can write (dicts, lists, strings, numbers, booleans, None, tuples).

    Raises:
        RunError: The file cannot be written.
    """
    write_text_atomically(path, json.dumps(finite(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(obj: object) -> object:
    """Copy `obj` with NaN and infinities replaced by None, in nested dicts, lists and tuples.

    >>> finite({"loss": float("nan"), "steps": (1, 2)})
    {'loss': None, 'steps': [1, 2]}
    """
    if isinstance(obj, float):
        return obj if obj - obj == 0.0 else None
    if isinstance(obj, Mapping):
        return {str(key): finite(value) for key, value in cast("Mapping[object, object]", obj).items()}
    if isinstance(obj, list | tuple):
        return [finite(value) for value in cast("list[object]", obj)]
    return obj


def read_json(path: Path) -> JsonObject:
    """Read a JSON file that holds one object.

    Args:
        path: The file.

    Returns:
        The object as a dict.

    Raises:
        RunError: The file is missing, unreadable, not JSON, or JSON but not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist") from error
    except OSError as error:
        raise RunError(f"cannot read {path}: {_reason(error)}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"{path} is damaged (not JSON: {error}); delete it and run again") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} should hold a JSON object, not a {type(value).__name__}; delete it and run again")
    return cast("JsonObject", value)


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
            raise RunError(f"cannot write {path}: {_reason(error)}") from error

    def write(self, record: Mapping[str, object]) -> None:
        """Append one record as one line (NaN and infinity become null)."""
        try:
            self._stream.write(json.dumps(finite(record), ensure_ascii=False, allow_nan=False) + "\n")
            self._stream.flush()
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {_reason(error)}") from error

    def close(self) -> None:
        """Close the file; a closed writer writes no more."""
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
        RunError: A line before the last is damaged; the sentence names its number.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"cannot read {path}: {_reason(error)}") from error
    lines = content.split(b"\n")
    records: list[JsonObject] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no newline behind it: torn by an interruption
                break
            raise RunError(
                f"{path} is damaged at line {number} ({error}); delete the run and start it again"
            ) from error
        if not isinstance(record, dict):
            raise RunError(f"{path} line {number} should be a JSON object; delete the run and start it again")
        records.append(cast("JsonObject", record))
    return records


def keep_first_records(path: Path, count: int) -> None:
    """Cut a JSON-lines file back to its first `count` records (atomically): a resumed run writes the rest again.

    Args:
        path: The file; may be missing when `count` is 0.
        count: Records to keep.

    Raises:
        RunError: The file is damaged, holds fewer records, or cannot be written.
    """
    records = read_json_lines(path)
    if len(records) < count:
        raise RunError(
            f"{path} holds {len(records)} records but {count} were written; start the run again with --fresh"
        )
    if path.exists():
        kept = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records[:count])
        write_text_atomically(path, kept)


def ensure_writable_folder(path: Path) -> Path:
    """Make `path` a folder that files can be written to, and prove it by writing one.

    Args:
        path: The folder; missing parents are made.

    Returns:
        `path`.

    Raises:
        RunError: It is a file, or cannot be made or written to; the sentence holds the reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except FileExistsError as error:
        raise RunError(f"{path} is a file, but a folder is needed there; choose another folder with --out") from error
    except NotADirectoryError as error:
        raise RunError(f"a parent of {path} is a file; choose another folder with --out") from error
    except OSError as error:
        raise RunError(f"cannot write to the folder {path}: {_reason(error)}; choose another with --out") from error
    return path


def _drop_torn_line(path: Path) -> None:
    """Cut the bytes behind the last newline, if any."""
    if not path.exists():
        return
    with path.open("r+b") as stream:
        content = stream.read()
        if content and not content.endswith(b"\n"):
            stream.truncate(content.rfind(b"\n") + 1)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
