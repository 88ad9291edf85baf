"""Sparse files: the non-zeros of a model's weights, their places in a few bits each, in one safetensors file.

For each tensor the smallest is taken of: as it is; values and places (see `_places`); the same with 8-bit values.
Names, shapes, dtypes and tied weights come back as they were, and without `bits=8` so does every bit.
docs/compress/sparse-files.md describes the format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.table import Table
from torch import Tensor, nn

from weightspace.compress._coding import DTYPES, PLACES, SCALES, VALUES, Bits, Coded, decode, encode
from weightspace.compress._container import from_file, to_bytes
from weightspace.errors import CompressError
from weightspace.files import write_bytes_atomically
from weightspace.kernels import unwrap
from weightspace.kernels.printing import as_text

# What a file may declare whatever its length, and how many times its length it may declare beyond that.
_FREE = 256 << 20
_TIMES = 1000


@dataclass(frozen=True)
class StoredTensor:
    """How one tensor is stored.

    Attributes:
        name: Its name in the state.
        shape: Its shape.
        dtype: Its dtype, as text: `"float32"`.
        way: `"dense"`, `"sparse"`, either with `" 8 bits"`, or `"= name"` for a tied one.
        zeros: Numbers that are not stored, because all their bits are zero (or, with 8 bits, because they round to 0).
        dense_bytes: Bytes of its numbers as they are in memory; 0 for a tied one.
        bytes: Bytes of its parts in the file, without the header.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    way: str
    zeros: int
    dense_bytes: int
    bytes: int


@dataclass(frozen=True)
class SparseSummary:
    """What a sparse file holds. `print(summary)` shows it.

    Attributes:
        bytes: Length of the file.
        dense_bytes: Bytes of all numbers as they are in memory, tied weights once.
        tensors: One entry for each name.
    """

    bytes: int
    dense_bytes: int
    tensors: tuple[StoredTensor, ...]

    @property
    def ratio(self) -> float:
        """How many times smaller the file is than the numbers in memory; 0 for a model without numbers."""
        return self.dense_bytes / self.bytes

    def __rich__(self) -> Table:
        table = Table(show_edge=False, pad_edge=False)
        for column in ("tensor", "shape", "dtype", "stored"):
            table.add_column(column, overflow="fold")
        for column in ("zeros", "bytes", "dense"):
            table.add_column(column, justify="right")
        for entry in self.tensors:
            shape = " × ".join(map(str, entry.shape)) or "scalar"
            figures = (f"{entry.zeros:,}", f"{entry.bytes:,}", f"{entry.dense_bytes:,}")
            table.add_row(entry.name, shape, entry.dtype, entry.way, *figures)
        table.add_section()
        table.add_row("file", "", "", f"{self.ratio:.2f} times smaller", "", f"{self.bytes:,}", f"{self.dense_bytes:,}")
        return table

    def __str__(self) -> str:
        return as_text(self, width=140)


def save_sparse(
    model_or_state: nn.Module | Mapping[str, Tensor], path: str | Path, *, bits: Bits = None
) -> SparseSummary:
    """Writes a model's parameters and buffers, zeros left out, as one safetensors file, atomically.

    Args:
        model_or_state: A model (wrapped by DDP, `torch.compile` or not) or a `state_dict`.
        path: The file. Missing folders are made.
        bits: None keeps every bit. 8 rounds matrices and kernels to 8-bit integers with one scale for each output
            channel: each number by at most half that scale, `max |w| / 254` of its channel (with a float16 scale
            0.05 % more), plus the rounding of its dtype. Vectors (biases, norms) and integers stay exact.

    Returns:
        What was stored how, and the sizes.

    Raises:
        CompressError: Something in the state is no dense tensor with a plain dtype, or safetensors is missing; with 8
            bits, a weight is not finite.
        RunError: The file cannot be written; what was there before stays.

    Cost: about a second for 10 million weights on one core, and the memory of the file twice.

    Example:
        >>> import tempfile
        >>> layer = nn.Linear(1000, 1000)
        >>> _ = layer.weight.data.masked_fill_(torch.rand(1000, 1000) < 0.9, 0.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     summary = save_sparse(layer, Path(folder) / "layer.safetensors")
        ...     read = load_sparse(Path(folder) / "layer.safetensors")
        >>> torch.equal(read["weight"], layer.weight), 8.3 < summary.ratio < 9.0
        (True, True)
    """
    content, summary = content_of(model_or_state, bits)
    write_bytes_atomically(Path(path), content)
    return summary


def sparse_size(model_or_state: nn.Module | Mapping[str, Tensor], *, bits: Bits = None) -> int:
    """Bytes of the file that `save_sparse` would write. Same arguments, errors and cost; nothing is written."""
    return content_of(model_or_state, bits)[1].bytes


def load_sparse(path: str | Path) -> dict[str, Tensor]:
    """Reads a file that `save_sparse` wrote; give the result to `model.load_state_dict`.

    Returns:
        The state: names in their order, shapes, dtypes and (without 8 bits) every bit as saved, on the CPU,
        contiguous. Tied weights are one tensor under several names.

    Raises:
        CompressError: The file is missing, truncated, damaged, foreign or of a newer version; one sentence says which.

    Cost: about half a second for 10 million weights on one core.
    """
    return read_sparse(Path(path))[0]


def read_sparse(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state and the file's metadata; errors as of `load_sparse`."""
    records, parts, header = from_file(path)
    _check_size(path, records)
    state: dict[str, Tensor] = {}
    for name, record in records.items():
        try:
            if record["as"] == "tied":
                state[name] = state[record["to"]]
                continue
            own = {suffix: parts[name + suffix] for suffix in ("", VALUES, PLACES, SCALES) if name + suffix in parts}
            state[name] = decode(record, own)
        except (LookupError, TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise CompressError(f"{path} is damaged at {name}: {reason}; get a whole copy.") from error
    return state, header


def _check_size(path: Path, records: Mapping[str, Any]) -> None:
    """Refuse a small file that declares a huge model, before any of it is made: zeros cost nothing in a file.

    Raises:
        CompressError: It declares more than `_FREE` bytes and `_TIMES` its own length.
    """
    declared, length = 0, path.stat().st_size
    for name, record in records.items():
        shape = cast("dict[str, Any]", record).get("shape") if isinstance(record, dict) else None
        if isinstance(shape, list) and all(isinstance(size, int) for size in cast("list[object]", shape)):
            width = DTYPES.get(str(cast("dict[str, Any]", record).get("dtype")), torch.float64).itemsize
            declared += abs(math.prod(cast("list[int]", shape))) * width
        if declared > max(_FREE, _TIMES * length):
            raise CompressError(
                f"{path} is damaged at {name}: it declares tensors of {min(declared, 1 << 62):,} bytes or more, which "
                f"no network's zeros explain in a file of {length:,}; get a whole copy."
            )


def content_of(
    model_or_state: nn.Module | Mapping[str, Tensor], bits: Bits, more: Mapping[str, str] | None = None
) -> tuple[bytes, SparseSummary]:
    """The bytes of a file and what they hold; `more` goes into its metadata."""
    if bits is not None and (isinstance(bits, bool) or bits != 8):
        raise CompressError(f"bits={bits!r} was asked for; choose None, which is exact, or 8.")
    records: dict[str, dict[str, Any]] = {}
    parts: dict[str, Tensor] = {}
    entries: list[StoredTensor] = []
    first_name: dict[object, str] = {}
    for name, tensor in _state(model_or_state).items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        tied_to = first_name.setdefault(place, name) if tensor.numel() else name
        coded = Coded({"as": "tied", "to": tied_to}, {}, 0) if tied_to != name else encode(name, tensor.cpu(), bits)
        records[name] = coded.record
        if any(name + suffix in parts for suffix in coded.parts):
            raise CompressError(f"{name} has the name of a part of another tensor; rename one of them.")
        parts.update({name + suffix: part for suffix, part in coded.parts.items()})
        entries.append(_entry(name, tensor, coded))
    content = to_bytes(records, parts, more or {})
    return content, SparseSummary(len(content), sum(e.dense_bytes for e in entries), tuple(entries))


def _entry(name: str, tensor: Tensor, coded: Coded) -> StoredTensor:
    record = coded.record
    is_tied = record["as"] == "tied"
    way = f"= {record['to']}" if is_tied else record["as"] + (" 8 bits" if record.get("bits") else "")
    dtype = str(tensor.dtype).removeprefix("torch.")
    size = sum(part.nbytes for part in coded.parts.values())
    return StoredTensor(name, tuple(tensor.shape), dtype, way, coded.zeros, 0 if is_tied else tensor.nbytes, size)


def _state(model_or_state: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by name, checked."""
    is_model = isinstance(model_or_state, nn.Module)
    state: object = unwrap(model_or_state).state_dict() if is_model else model_or_state
    if not isinstance(state, Mapping):
        raise CompressError(f"save_sparse() got a {type(state).__name__}; pass a model or its state_dict().")
    for name, tensor in cast("Mapping[object, object]", state).items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CompressError(
                f"{name!r} holds a {type(tensor).__name__}; a sparse file holds tensors by name: leave it out."
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or hasattr(tensor, "device_mesh"):
            raise CompressError(f"{name} is no plain dense tensor ({_what(tensor)}); make it one before saving.")
        if tensor.dtype not in DTYPES.values():
            raise CompressError(f"{name} is {tensor.dtype}, which safetensors cannot store; convert it first.")
    return {name: tensor.detach() for name, tensor in cast("Mapping[str, Tensor]", state).items()}


def _what(tensor: Tensor) -> str:
    if hasattr(tensor, "device_mesh"):
        return "a sharded DTensor"
    return "on the meta device" if tensor.is_meta else f"layout {tensor.layout}, {tensor.dtype}"
