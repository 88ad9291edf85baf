"""One tensor as the parts that a sparse file keeps of it, and back: whichever of all ways is the smallest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from weightspace.compress._eight_bits import dequantize, quantize
from weightspace.compress._places import Level, Places, block_sizes, decode_places, encode_places

Bits = Literal[8] | None

VALUES, PLACES, SCALES = "#values", "#places", "#scales"
# Bytes in the file's header for one part: its name, dtype, shape and offsets, and its share of the record.
PART_OVERHEAD = 140
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "complex64", "bool"),
        *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    )
}


@dataclass(frozen=True, eq=False)
class Coded:
    """A tensor as it is stored.

    Attributes:
        record: What the header says of it, as JSON.
        parts: Suffix of the name -> tensor; a plain dense tensor has the suffix `""`.
        zeros: Numbers that are not stored.
    """

    record: dict[str, Any]
    parts: dict[str, Tensor]
    zeros: int

    @property
    def size(self) -> int:
        """Bytes of the parts and, about, of what the header says of them."""
        return sum(part.nbytes + PART_OVERHEAD for part in self.parts.values())


def encode(name: str, tensor: Tensor, bits: Bits) -> Coded:
    """The smallest way to keep a tensor.

    Args:
        name: For errors.
        tensor: On the CPU, of a dtype in `DTYPES`.
        bits: 8 lets matrices and kernels be rounded; None keeps every bit.

    Raises:
        CompressError: 8 bits were asked for and the weight holds NaN or infinity.
    """
    tensor = tensor.contiguous()
    dtype = str(tensor.dtype).removeprefix("torch.")
    ways = [Coded({"as": "dense"}, {"": tensor}, 0)]
    _add_sparse(ways, tensor, {"dtype": dtype}, {})
    small = quantize(name, tensor) if bits == 8 else None
    if small is not None:
        numbers, scales = small
        facts, extra = {"dtype": dtype, "bits": 8}, {SCALES: scales}
        ways.append(Coded({"as": "dense", **facts}, {VALUES: numbers, **extra}, 0))
        _add_sparse(ways, numbers, facts, extra)
    return min(ways, key=lambda way: way.size)  # the first of equals: plain before coded, exact before rounded


def _add_sparse(ways: list[Coded], tensor: Tensor, facts: dict[str, Any], extra: dict[str, Tensor]) -> None:
    words = as_words(tensor).view(-1)
    kept = words != 0
    record, tail = {"as": "sparse", "shape": list(tensor.shape), **facts}, _minus_zeros(tensor, words, kept)
    count = int(kept.sum())
    # A place takes at least a bit or so; where that alone is too much, nothing is coded.
    if count * words.itemsize + count // 8 + 2 * PART_OVERHEAD >= tensor.nbytes:
        return
    places = encode_places(kept, block_sizes(tensor.shape))
    record["block"], record["levels"] = places.block, [_facts(level) for level in places.levels]
    code = places.code
    if tail is not None:
        record["minus"] = _facts(tail.levels[0])
        code = torch.cat([code, tail.code])
    values = words[kept].view(tensor.dtype)
    ways.append(Coded(record, {VALUES: values, PLACES: code, **extra}, words.numel() - count))


def _minus_zeros(tensor: Tensor, words: Tensor, kept: Tensor) -> Places | None:
    """Takes minus zeros out of `kept` and gives their places among the zeros; None if they are few.

    Masks that multiply, as those of `torch.nn.utils.prune`, turn half of what they drop into minus zeros: a bit each
    instead of a whole number.
    """
    if not tensor.is_floating_point():
        return None
    minus = words == _sign_bit(words.dtype)
    if int(minus.sum()) * words.itemsize < PART_OVERHEAD:
        return None
    kept.logical_and_(~minus)
    return encode_places(minus[~kept])


def _sign_bit(words: torch.dtype) -> int:
    return 1 << 7 if words == torch.uint8 else torch.iinfo(words).min


def _facts(level: Level) -> list[int]:
    return [level.count, level.rice, level.size]


def decode(record: Mapping[str, Any], parts: Mapping[str, Tensor]) -> Tensor:
    """The tensor again.

    Args:
        record: As `encode` made it, or damaged.
        parts: By suffix.

    Raises:
        ValueError: Record and parts do not make a tensor; KeyError, TypeError and RuntimeError for records that are no
            records at all.
    """
    way, bits = record["as"], record.get("bits")
    if way == "dense":
        if bits is None:
            return parts[""].clone()  # not a view of the mapped file, which may be replaced
        numbers, scales = parts[VALUES], _scales(record, parts, parts[VALUES].shape)
        flat = numbers.reshape(len(scales), -1)
        return dequantize(flat, scales[:, None], DTYPES[record["dtype"]]).view(numbers.shape)
    if way != "sparse":
        raise ValueError(f"it is stored as {way!r}, which is unknown")
    return _decode_sparse(record, parts)


def _decode_sparse(record: Mapping[str, Any], parts: Mapping[str, Tensor]) -> Tensor:
    shape = _shape(record["shape"])
    n = math.prod(shape)
    code, tail = _bytes(parts[PLACES]), _level(record["minus"]) if "minus" in record else Level(0, 0, 0)
    front = len(code) - tail.size
    levels = tuple(_level(level) for level in record["levels"])
    places = decode_places(Places(_whole(record["block"]), levels, code[: max(front, 0)]), n)
    values, dtype = parts[VALUES], DTYPES[record["dtype"]]
    if values.shape != places.shape:
        raise ValueError(f"{len(places)} places have values of shape {tuple(values.shape)}")
    if "bits" in record:
        scales = _scales(record, parts, shape)
        values = dequantize(values, scales[places // (n // len(scales))], dtype)
    if values.dtype != dtype:
        raise ValueError(f"the values are {values.dtype}, not {dtype}")
    tensor = torch.zeros(shape, dtype=dtype)
    words = as_words(tensor).view(-1)
    if tail.count:
        zeros = torch.ones(n, dtype=torch.bool)
        zeros[places] = False
        rest = zeros.nonzero()[:, 0]
        words[rest[decode_places(Places(1, (tail,), code[front:]), len(rest))]] = _sign_bit(words.dtype)
    words[places] = as_words(values)
    return tensor


def as_words(tensor: Tensor) -> Tensor:
    """The same bits as integers: minus zero and NaN are numbers like any other. Shares the memory of `tensor`."""
    return tensor.view(_WORDS[tensor.itemsize])


def _scales(record: Mapping[str, Any], parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    scales, numbers = parts[SCALES], parts[VALUES]
    if record["bits"] != 8 or numbers.dtype != torch.int8 or not DTYPES[record["dtype"]].is_floating_point:
        raise ValueError(f"{record['bits']} bits as {numbers.dtype} for {record['dtype']} are unknown")
    if len(shape) < 2 or 0 in shape or tuple(scales.shape) != (shape[0],) or not scales.is_floating_point():
        raise ValueError(f"scales of shape {tuple(scales.shape)} do not fit a weight of shape {tuple(shape)}")
    return scales


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(_whole(size) for size in value)


def _level(value: Any) -> Level:
    count, rice, size = (_whole(number) for number in value)
    return Level(count, rice, size)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _bytes(part: Tensor) -> Tensor:
    if part.dtype != torch.uint8 or part.ndim != 1:
        raise ValueError(f"the places are {part.dtype} of shape {tuple(part.shape)}, not bytes")
    return part
