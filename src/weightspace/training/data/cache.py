"""Cache of decoded images, so that 60,000 JPEG files are decoded once and not at every run.

One safetensors file per place, under `$XDG_CACHE_HOME/weightspace/decoded`. Its name holds a digest of the path and one
of every file's name, size and modification time, so a changed file is decoded anew and the stale entry removed. The
cache is an optimization only: whatever goes wrong with it, the images are decoded and the fact is noted in `source`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from weightspace.training.data.found import Found
from weightspace.training.data.splits import Split

# Decoding fewer images than this takes about as long as reading the cache.
SMALLEST = 5_000
# Changes whenever decoding would give other numbers or the file another layout.
_VERSION = "1"


def cache_root(environ: Mapping[str, str] | None = None) -> Path:
    """`$XDG_CACHE_HOME/weightspace`, or `~/.cache/weightspace`."""
    values = os.environ if environ is None else environ
    return Path(values.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "weightspace"  # noqa: PTH111 - Path.expanduser raises where there is no home


def cached(name: str, place: Path, files: Sequence[Path], decode: Callable[[], Found]) -> Found:
    """Take decoded images from the cache, or decode them and put them there.

    Args:
        name: Data set, part of the entry's name.
        place: Folder the files come from.
        files: Every file whose change must invalidate the entry.
        decode: Reads the files.

    Returns:
        What `decode` returns, with a note if it could not be cached.
    """
    path = _entry(name, place, files)
    found = _load(path)
    if found is not None:
        return found
    found = decode()
    if len(found.train) + len(found.test) < SMALLEST:
        return found
    try:
        _store(path, found)
    except _store_errors() as error:
        return found.noted(f"decoded images not cached ({error})")
    return found


def _entry(name: str, place: Path, files: Sequence[Path]) -> Path:
    where = hashlib.sha256(str(place.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
    state = hashlib.sha256(f"{_VERSION}:{name}".encode())
    for file in sorted(files):
        status = file.stat()
        state.update(f"\n{file}:{status.st_size}:{status.st_mtime_ns}".encode(errors="surrogateescape"))
    return cache_root() / "decoded" / f"{name}-{where}-{state.hexdigest()[:16]}.safetensors"


def _load(path: Path) -> Found | None:
    """Read an entry; `None` if it is absent or damaged in any way."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            facts = json.loads(file.metadata()["weightspace"])
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        train = Split(tensors["train_images"], tensors["train_labels"].to(torch.int64))
        test = Split(tensors["test_images"], tensors["test_labels"].to(torch.int64))
        return Found(train, test, facts["what"], class_names=tuple(facts["class_names"]), encoding=facts["encoding"])
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError, RuntimeError):
        return None


def _store_errors() -> tuple[type[Exception], ...]:
    try:
        from safetensors import SafetensorError
    except ImportError:
        return (OSError, ImportError)
    return (OSError, SafetensorError)


def _store(path: Path, found: Found) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"what": found.what, "class_names": list(found.class_names), "encoding": found.encoding}
    tensors = {
        "train_images": found.train.images,
        "train_labels": found.train.labels,
        "test_images": found.test.images,
        "test_labels": found.test.labels,
    }
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata={"weightspace": json.dumps(facts)})
        os.replace(temporary, path)  # noqa: PTH105 - the same call as everywhere else in the house
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise
    prefix = path.name.rpartition("-")[0]
    for stale in path.parent.glob(f"{prefix}-*.safetensors"):
        if stale != path:
            with contextlib.suppress(OSError):
                stale.unlink()
