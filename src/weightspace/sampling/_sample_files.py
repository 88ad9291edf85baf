"""One sample as the bytes of a safetensors file: dense tensors in, the same names and values out."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from weightspace.errors import SamplingError
from weightspace.files import reason_of
from weightspace.sampling._extras import package

FORMAT = "weightspace-sample"
VERSION = 1
ROUNDED_TO = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def to_bytes(state: Mapping[str, Any], where: Mapping[str, str], dtype: torch.dtype | None) -> bytes:
    """The content of a sample's file.

    Args:
        state: A state_dict. Tensors that share their memory whole (tied weights) are stored once.
        where: Metadata: step, chain, weight.
        dtype: What floating-point tensors are rounded to; None keeps them.

    Returns:
        The bytes. Peak memory: the tensors of the sample once more, on the CPU.

    Raises:
        SamplingError: An entry is no dense tensor, holds NaN, does not fit `dtype`, or has a dtype without a code.
    """
    library = package("safetensors", "A sample store")
    torch_side = package("safetensors.torch", "A sample store")
    if not state:
        raise SamplingError("the sample has no tensors; offer a model with weights, or its state_dict()")
    shared: dict[str, str] = {}
    parts: dict[str, Tensor] = {}
    first_at: dict[tuple[Any, ...], str] = {}
    for name, value in state.items():
        tensor = _dense(name, value)
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() and place in first_at:
            shared[name] = first_at[place]
            continue
        first_at[place] = name
        parts[name] = _rounded(name, tensor, dtype)
    header = {"format": FORMAT, "version": str(VERSION), **where, "shared": json.dumps(shared, ensure_ascii=False)}
    try:
        return cast("bytes", torch_side.save(parts, metadata=header))
    except (library.SafetensorError, KeyError, ValueError) as error:
        raise SamplingError(
            f"safetensors cannot store this sample: {_words(error)}; convert that tensor first"
        ) from error


def from_file(path: Path, size: int, checksum: int) -> dict[str, Tensor]:
    """The tensors of a sample's file, on the CPU, in memory of their own.

    Args:
        path: The file.
        size: Bytes that the index says it has.
        checksum: CRC-32 that the index says its content has.

    Raises:
        SamplingError: The file is missing, truncated, changed, foreign or newer; the sentence says which.
    """
    library = package("safetensors", "A sample store")
    torch_side = package("safetensors.torch", "A sample store")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise SamplingError(f"{path} is missing; restore it, or sample again") from error
    except OSError as error:
        raise SamplingError(f"cannot read {path}: {reason_of(error)}") from error
    check_size(path, len(content), size)
    if zlib.crc32(content) != checksum:
        raise SamplingError(f"{path} is damaged: its checksum is not the one of the index; restore it, or sample again")
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        tensors = cast("dict[str, Tensor]", torch_side.load(content))
        shared = cast("dict[str, str]", json.loads(header["shared"]))
        kind, version = header["format"], int(header["version"])
        tied = {name: tensors[source] for name, source in shared.items()}
    except (library.SafetensorError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise SamplingError(f"{path} holds no sample of weightspace ({_words(error)}); restore it") from error
    if kind != FORMAT or version > VERSION:
        raise SamplingError(f"{path} has format {kind} {version}, this weightspace reads {FORMAT} {VERSION}; update it")
    return {**tensors, **tied}


def check_size(path: Path, found: int, size: int) -> None:
    """Refuse a file of another size than the index says.

    Raises:
        SamplingError: It has.
    """
    if found != size:
        raise SamplingError(f"{path} has {found} bytes, the index says {size}; restore it, or sample again")


def _dense(name: str, value: Any) -> Tensor:
    is_sharded = hasattr(value, "full_tensor")  # its state_dict must be gathered by who sharded it
    if not isinstance(value, Tensor) or is_sharded or value.is_meta or value.layout != torch.strided:
        kind = type(value).__name__ if not isinstance(value, Tensor) or is_sharded else "tensor without dense values"
        raise SamplingError(f"{name} of the sample is a {kind}; only dense tensors can be stored: leave it out")
    tensor = value.detach()
    if (tensor.is_floating_point() or tensor.is_complex()) and bool(tensor.isnan().any()):
        raise SamplingError(
            f"{name} of the sample holds NaN: the run has diverged; lower the step size and start again"
        )
    return tensor


def _rounded(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A contiguous copy on the CPU in memory of its own: safetensors refuses views of one storage."""
    if dtype is None or not tensor.is_floating_point():
        return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
    rounded = tensor.to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
    if int(rounded.isinf().sum()) > int(tensor.isinf().sum()):
        largest = float(tensor[tensor.isfinite()].abs().max())
        raise SamplingError(
            f"{name} of the sample reaches {largest:.3g}, beyond {dtype}; store as bfloat16 or unrounded"
        )
    return rounded


def _words(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
