"""Checkpoints without pickle: nested state as one safetensors file, written whole, the last two kept.

Tensors go into the file's body, everything else (numbers, text, the nesting itself, integer keys, tuples) as JSON
into its header. Floats survive exactly: JSON writes the shortest text that reads back as the same number.

A digest of all of it stands in the header, for safetensors has no checksum of its own: a bit that flips on a disk
would otherwise go on training. It finds damage, not intent: whoever edits a file can write the digest that fits.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from weightspace.errors import RunError
from weightspace.files import write_bytes_atomically

_FORMAT = "weightspace-checkpoint-3"
_WITHOUT_DIGEST = "weightspace-checkpoint-2"  # what earlier versions wrote: read as it is
_NAME = re.compile(r"^checkpoint-(\d{9})\.safetensors$")
_KEPT = 2
# What a bad file raises.
_DAMAGE = (OSError, SafetensorError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, OverflowError)


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], *, fingerprint: str) -> Path:
    """Write a checkpoint and delete all but the last two.

    When this returns, the file is on the disk under its name, and only then do older ones go. Those of later steps go
    too: they are of a future that this run, gone on from before it, will not have.

    Cost: a copy of the state on the CPU, and again as the file's bytes; the digest adds a tenth to the time (measured:
    25 of 280 ms for 100 MB).

    Args:
        folder: The run's folder.
        step: Training steps done; decides the file's name and which one is newest.
        state: Nested dicts (keys: text, integers), lists and tuples of tensors, numbers, text, booleans and None.
        fingerprint: `run_fingerprint` of the run: the checkpoint serves only a run with the same one.

    Returns:
        The file.

    Raises:
        RunError: The file cannot be written (the checkpoints before it stay), or the state holds something that is
            not in the list above.
    """
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, tensors)
    header = {"format": _FORMAT, "step": str(step), "fingerprint": fingerprint, "tree": json.dumps(tree)}
    header["digest"] = _digest(header, tensors)
    path = folder / f"checkpoint-{step:09d}.safetensors"
    try:
        # Not save_file: it makes temporary files of its own, which a killed process leaves behind.
        write_bytes_atomically(path, save(tensors, metadata=header))
    except RunError as error:
        kept = newest_checkpoint(folder)
        stays = f"{kept.name} stays, so --resume goes on from there" if kept is not None else "nothing is saved yet"
        raise RunError(f"{error}; {stays}") from error
    others = list(_checkpoints(folder))
    upto = [other for other in others if other.name <= path.name]
    for other in (*(other for other in others if other.name > path.name), *upto[_KEPT:]):
        with suppress(OSError):  # the next checkpoint tries again
            other.unlink()
    return path


def load_checkpoint(folder: Path, *, fingerprint: str) -> dict[str, Any] | None:
    """Read the newest good checkpoint of a run.

    A newest file that is truncated, foreign or changed in as little as one bit is reported as a warning, and the one
    before is used.

    Args:
        folder: The run's folder.
        fingerprint: `run_fingerprint` of the run that is to continue.

    Returns:
        The state as saved, tensors on the CPU; None when the folder holds no checkpoint.

    Raises:
        RunError: The checkpoint belongs to other settings, or all checkpoints are damaged.
    """
    paths = list(_checkpoints(folder))
    for path in paths:
        try:
            header, tensors = _read(path)
            state = _state_of(header, tensors)
        except _DAMAGE as error:
            warnings.warn(f"{path} is damaged ({error}); trying the checkpoint before it", RuntimeWarning, stacklevel=2)
            continue
        if header["fingerprint"] != fingerprint:
            raise RunError(
                f"{path} was written with other settings or another seed than asked for now; "
                "give the settings it was started with, choose another folder with --out, or start anew with --fresh"
            )
        return state
    if paths:
        raise RunError(f"no checkpoint in {folder} can be read; start the run anew with --fresh")
    return None


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint file in a folder, good or damaged; None if there is none."""
    return next(_checkpoints(folder), None)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint file, of whatever run.

    Args:
        path: The file.

    Returns:
        The state as saved, tensors on the CPU.

    Raises:
        RunError: It is damaged, missing or no checkpoint.
    """
    try:
        header, tensors = _read(path)
        return _state_of(header, tensors)
    except _DAMAGE as error:
        raise RunError(f"{path} is no whole checkpoint ({error})") from error


def has_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint, good or damaged."""
    return newest_checkpoint(folder) is not None


def delete_checkpoints(folder: Path) -> None:
    """Delete all checkpoints of a run."""
    for path in _checkpoints(folder):
        path.unlink(missing_ok=True)


def _checkpoints(folder: Path) -> Iterator[Path]:
    """The folder's checkpoints, newest first."""
    names = sorted((path.name for path in folder.glob("checkpoint-*") if _NAME.match(path.name)), reverse=True)
    return (folder / name for name in names)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, framework="pt", device="cpu") as file:
        header = cast("dict[str, str]", file.metadata() or {})
        if header.get("format") not in {_FORMAT, _WITHOUT_DIGEST}:
            raise ValueError(_not_ours(header.get("format", "")))
        # clone: the tensors otherwise stay views of the mapped file, which may be deleted or replaced
        tensors = {name: cast("Tensor", file.get_tensor(name)).clone() for name in file.keys()}  # noqa: SIM118
    # One bit makes a 2 of a 3: what has a digest is held to it.
    if (header["format"] == _FORMAT or "digest" in header) and header["digest"] != _digest(header, tensors):
        raise ValueError("its content is not what was written: the digest differs")
    return header, tensors


def _state_of(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    state = _unpack(json.loads(header["tree"]), tensors)
    if not isinstance(state, dict) or "fingerprint" not in header:
        raise ValueError("it holds no state of a run")
    return cast("dict[str, Any]", state)


def _not_ours(found: str) -> str:
    if found.startswith("weightspace-checkpoint-"):
        return f"its format is {found}, this weightspace reads {_FORMAT}: update weightspace"
    return "it is not a weightspace checkpoint"


def _digest(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the header and of every tensor's name, dtype, shape and CRC-32.

    The CRC of the many bytes, because it is two to four times as fast as what nobody could forge, and nobody is kept
    from writing a digest that fits.
    """
    rows = [[name, str(tensor.dtype), list(tensor.shape), _crc(tensor)] for name, tensor in sorted(tensors.items())]
    facts = [header["format"], header["step"], header["fingerprint"], header["tree"], rows]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _crc(tensor: Tensor) -> int:
    """CRC-32 of a contiguous CPU tensor's memory."""
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _pack(value: object, tensors: dict[str, Tensor]) -> object:
    """JSON for `value`; containers and tensors become one-key dicts, tensors are put into `tensors`."""
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name, "channels_last": _is_channels_last(value)}
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {"dict": [[_key(key), _pack(entry, tensors)] for key, entry in items]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(entry, tensors) for entry in cast("list[object]", value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise RunError(f"a checkpoint cannot hold a {type(value).__name__}: only tensors, numbers, text, lists and dicts")


def _key(key: object) -> object:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise RunError(f"a checkpoint cannot hold a dict with the key {key!r}: only text and integers")
    return key


def _unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(packed, dict):
        return packed
    entry = cast("dict[str, Any]", packed)
    if "tensor" in entry:
        tensor = tensors[entry["tensor"]]
        return tensor.contiguous(memory_format=torch.channels_last) if entry["channels_last"] else tensor
    if "dict" in entry:
        return {key: _unpack(value, tensors) for key, value in entry["dict"]}
    kind = "list" if "list" in entry else "tuple"
    values = [_unpack(value, tensors) for value in entry[kind]]
    return values if kind == "list" else tuple(values)


def _is_channels_last(tensor: Tensor) -> bool:
    """Whether the strides are channels_last and nothing else: momentum buffers keep the strides of their weights."""
    four = tensor.dim() == 4
    return four and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
