"""The file around the parts: safetensors, with the format's name, version and records in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from weightspace.compress._extras import package
from weightspace.errors import CompressError
from weightspace.files import reason_of

FORMAT = "weightspace-sparse"
VERSION = 1


def to_bytes(records: Mapping[str, Any], parts: Mapping[str, Tensor], more: Mapping[str, str]) -> bytes:
    """The content of a file; `more` goes into its metadata.

    Raises:
        CompressError: safetensors is not installed or cannot store a dtype.
    """
    library, torch_side = (package(name, "a sparse file") for name in ("safetensors", "safetensors.torch"))
    text = json.dumps(records, separators=(",", ":"), ensure_ascii=False)
    header = {"format": FORMAT, "version": str(VERSION), "tensors": text, **more}
    try:
        return cast("bytes", torch_side.save(_unshared(parts), metadata=header))
    except (library.SafetensorError, KeyError, ValueError) as error:
        raise CompressError(f"safetensors cannot store this: {_words(error)}; convert the tensor first.") from error


def from_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """Records, parts and metadata; the parts are views of the mapped file.

    Raises:
        CompressError: The file is missing, truncated, foreign or newer; the sentence says which.
    """
    library = package("safetensors", "a sparse file")
    _check_beginning(path)
    try:
        with library.safe_open(path, framework="pt", device="cpu") as file:
            header = cast("dict[str, str]", file.metadata() or {})
            _check_header(path, header)
            parts = {name: cast("Tensor", file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (library.SafetensorError, OSError) as error:
        raise CompressError(f"{path} is truncated or damaged ({_words(error)}); get a whole copy.") from error
    try:
        records = json.loads(header["tensors"])
    except (KeyError, ValueError, RecursionError) as error:
        raise CompressError(f"{path} is damaged: its header does not list its tensors; get a whole copy.") from error
    if not isinstance(records, dict):
        raise CompressError(f"{path} is damaged: its list of tensors is a {type(records).__name__}; get a whole copy.")
    return cast("dict[str, Any]", records), parts, header


def _check_beginning(path: Path) -> None:
    """A file that never was one of safetensors is told from one that broke."""
    try:
        with path.open("rb") as stream:
            beginning = stream.read(9)
    except OSError as error:
        raise CompressError(f"cannot read {path}: {reason_of(error)}.") from error
    # Eight bytes of length, then JSON. All but the lowest bytes of the length are zero below 16 MB of header.
    if not beginning:
        raise CompressError(f"{path} is empty; get a whole copy.")
    if len(beginning) == 9 and beginning[8:] != b"{":
        raise CompressError(f"{path} is no safetensors file; give one that save_sparse() wrote.")


def _check_header(path: Path, header: Mapping[str, str]) -> None:
    if header.get("format") != FORMAT:
        raise CompressError(
            f"{path} is a safetensors file but no {FORMAT} file; read it with safetensors.torch.load_file()."
        )
    version = header.get("version", "")
    if not version.isascii() or not version.isdigit():
        raise CompressError(f"{path} is damaged: its version is {version!r}; get a whole copy.")
    if int(version) > VERSION:
        raise CompressError(
            f"{path} has version {version} of {FORMAT}, this weightspace reads {VERSION}: update weightspace."
        )


def _unshared(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with memory of their own each: safetensors refuses slices of one storage."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for name, part in parts.items():
        storage = part.untyped_storage()
        if storage.nbytes() != part.nbytes or storage.data_ptr() in seen:
            part = part.clone()  # noqa: PLW2901
        seen.add(part.untyped_storage().data_ptr())
        result[name] = part
    return result


def _words(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
