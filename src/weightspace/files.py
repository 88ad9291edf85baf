"""Files: written whole or not at all, read with a clear error when damaged.

A file goes to a temporary name in the same folder and is renamed over the old one, so a reader sees the old content or
the new, never half of it. The content is on the disk before the rename, and the rename before anything that comes
after: a power cut leaves the same states as a killed process. `json_lines.py` has the one file that grows.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from weightspace.errors import RunError

JsonObject = dict[str, Any]


@contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """Give a temporary path beside `path`; on success it replaces `path`, on any error it is deleted.

    Cost: the disk is waited for twice, for the content and for the rename.

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
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {reason_of(error)}") from error
    finally:
        with suppress(OSError):  # gone already, or its folder is a file: the error above says so
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: a rename may otherwise be undone by a power cut."""
    if os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some network file systems sync no folders
            raise
    finally:
        os.close(descriptor)


def delete_leftovers(folder: Path, *patterns: str) -> None:
    """Delete the temporary files that a killed process left behind: nobody else should be writing these files.

    Args:
        folder: Where.
        patterns: Names of the files that were to be written, as globs: `"result.json"`, `"checkpoint-*"`.
    """
    for pattern in patterns:
        for path in folder.glob(f".{pattern}.*-*.tmp"):
            with suppress(OSError):  # the system may refuse; they only take space
                path.unlink()


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


def renew_text(path: Path, text: str) -> bool:
    """Write UTF-8 text where `path` holds another one or is missing: what is up to date keeps its time.

    Args:
        path: File to write; missing parent folders are made.
        text: The whole content.

    Returns:
        Whether it was written.

    Raises:
        RunError: The file cannot be written.
    """
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    write_text_atomically(path, text)
    return True


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write bytes so that `path` holds either its old content or all of `content`.

    Args:
        path: File to write; missing parent folders are made.
        content: The whole content.

    Raises:
        RunError: The file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


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
        RunError: The file is missing, unreadable, not JSON, or JSON but not an object. The sentence gives no advice:
            what helps depends on the file, and its reader knows.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist") from error
    except OSError as error:
        raise RunError(f"cannot read {path}: {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or a number of thousands of digits
        raise RunError(f"{path} is damaged (not JSON: {error})") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged (it should hold a JSON object, not a {type(value).__name__})")
    return cast("JsonObject", value)


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
        with tempfile.TemporaryFile(dir=path):  # has no name where the system can: a killed process leaves nothing
            pass
    except FileExistsError as error:
        raise RunError(f"{path} is a file, but a folder is needed there; choose another folder with --out") from error
    except NotADirectoryError as error:
        raise RunError(f"a parent of {path} is a file; choose another folder with --out") from error
    except OSError as error:
        raise RunError(f"cannot write to the folder {path}: {reason_of(error)}; choose another with --out") from error
    return path


def reason_of(error: OSError) -> str:
    """The system's reason for an error, for the end of a sentence."""
    return (error.strerror or str(error)).lower()
