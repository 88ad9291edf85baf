"""Where the non-zeros of a tensor are, in few bits: Golomb-Rice codes of the gaps between them.

A gap `g` (zeros before the next non-zero) is written as `g mod 2^rice`, in `rice` bits, and `g div 2^rice`, in unary:
so many zeros, then a one. The remainders lie together in front, the unary parts together behind them, so that all gaps
are decoded at once. `rice` is the one that makes the code shortest, by exact count:

- `rice = 0` is the bitmap: one bit for every place up to the last non-zero;
- for zeros at random places with probability p the best `rice` needs at most 4 % more than the entropy of their places
  (1.5 % at p = 0.9 and above), which nothing that does not know the network can beat;
- bytes with an escape (a gap of up to 254 in one byte) are the same thing with a worse choice of bits.

Where whole channels or kernels are zero, places are coded at two levels: which blocks (of consecutive numbers) hold
anything, then the places within these.

Source: Golomb, "Run-length encodings", 1966; Rice, 1979. The optimum by exact count and the two levels: derived.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Level:
    """One coded list of places.

    Attributes:
        count: How many places.
        rice: Bits of a remainder.
        size: Bytes of the code.
    """

    count: int
    rice: int
    size: int


@dataclass(frozen=True, eq=False)
class Places:
    """The places of the non-zeros of a flat tensor.

    Attributes:
        block: Numbers in a block; 1 if there are no blocks, and one level.
        levels: Blocks, then numbers within the blocks that are kept; or numbers alone.
        code: uint8, the codes of the levels one after the other.
    """

    block: int
    levels: tuple[Level, ...]
    code: Tensor


def encode_places(kept: Tensor, blocks: Iterable[int] = ()) -> Places:
    """The shortest code.

    Args:
        kept: bool `(n,)`, on the CPU: True where a number is to be stored.
        blocks: Sizes of blocks to try; those that divide n count.

    Cost: some passes over the n places, a dozen over the gaps.

    Example:
        >>> kept = torch.zeros(1000, dtype=torch.bool)
        >>> kept[::10] = True
        >>> places = encode_places(kept)
        >>> places.levels  # 5 bits for a gap of 9: "01" and two zeros and a one
        (Level(count=100, rice=2, size=63),)
        >>> torch.equal(decode_places(places, 1000), kept.nonzero()[:, 0])
        True
    """
    best = _plan(kept, 1)
    for block in sorted(set(blocks)):
        if 1 < block < kept.numel() and kept.numel() % block == 0:
            plan = _plan(kept, block)
            if plan is not None and best is not None and _bits(plan) < _bits(best):
                best = plan
    if best is None:
        return Places(1, (Level(0, 0, 0),), torch.empty(0, dtype=torch.uint8))
    codes = [_code(gaps, rice) for gaps, rice in best.gaps]
    levels = tuple(Level(len(g), r, len(c)) for (g, r), c in zip(best.gaps, codes, strict=True))
    return Places(best.block, levels, torch.cat(codes))


def decode_places(places: Places, n: int) -> Tensor:
    """The places, int64, ascending.

    Raises:
        ValueError: The code is damaged; the words say how.
    """
    if sum(level.size for level in places.levels) != len(places.code):
        raise ValueError("the places have another length than the header says")
    if places.block < 1 or n % places.block or len(places.levels) != 1 + (places.block > 1):
        raise ValueError(f"blocks of {places.block} do not fit {n} numbers")
    if places.block == 1:
        return _decode(places.code, places.levels[0], n)
    outer, inner = places.levels
    blocks = _decode(places.code[: outer.size], outer, n // places.block)
    within = _decode(places.code[outer.size :], inner, outer.count * places.block)
    return blocks[within // places.block] * places.block + within % places.block


# ---------------------------------------------------------------- the choice


@dataclass(frozen=True, eq=False)
class _Plan:
    block: int
    gaps: tuple[tuple[Tensor, int], ...]


def _plan(kept: Tensor, block: int) -> _Plan | None:
    """Gaps and the best `rice` for each level; None if there is nothing to keep, or blocks save nothing."""
    if block == 1:
        gaps = _gaps(kept)
        return None if len(gaps) == 0 else _Plan(1, ((gaps, _best_rice(gaps)),))
    rows = kept.view(-1, block)
    filled = rows.any(1)
    if bool(filled.all()) or not bool(filled.any()):
        return None
    outer, inner = _gaps(filled), _gaps(rows[filled].view(-1))
    return _Plan(block, ((outer, _best_rice(outer)), (inner, _best_rice(inner))))


def _gaps(kept: Tensor) -> Tensor:
    places = kept.nonzero()[:, 0]
    gaps = torch.diff(places, prepend=places.new_full((1,), -1)) - 1
    return gaps.int() if kept.numel() < 2**31 else gaps  # half the memory traffic


def _best_rice(gaps: Tensor) -> int:
    best, chosen, rice = math.inf, 0, 0
    while len(gaps) * (rice + 1) < best:  # no larger one can be shorter
        bits = _length(gaps, rice)
        if bits < best:
            best, chosen = bits, rice
        rice += 1
    return chosen


def _length(gaps: Tensor, rice: int) -> int:
    return len(gaps) * (rice + 1) + int((gaps >> rice).sum(dtype=torch.int64))


def _bits(plan: _Plan) -> int:
    return sum(_length(gaps, rice) for gaps, rice in plan.gaps)


# ---------------------------------------------------------------- the code


def _code(gaps: Tensor, rice: int) -> Tensor:
    ends = ((gaps >> rice).long() + 1).cumsum(0) - 1
    unary = torch.zeros(int(ends[-1]) + 1, dtype=torch.uint8)
    unary[ends] = 1
    return torch.cat([_remainders(gaps, rice), pack(unary)])


def _remainders(gaps: Tensor, rice: int) -> Tensor:
    bits = torch.empty(len(gaps), rice, dtype=torch.uint8)
    for bit in range(rice):
        bits[:, bit] = (gaps >> bit) & 1
    return pack(bits.view(-1))


def _decode(code: Tensor, level: Level, n: int) -> Tensor:
    count, rice = level.count, level.rice
    if not 0 <= count <= n or not 0 <= rice <= n.bit_length() or count << rice >= 1 << 62:
        raise ValueError(f"{count} places among {n} in {rice}-bit steps cannot be")
    front = -(-count * rice // 8)
    ends = unpack(code[front:]).nonzero()[:, 0]
    if len(code) < front or len(ends) != count:
        raise ValueError(f"the places count {len(ends)} non-zeros, not {count}")
    if count == 0:
        return ends
    if (int(ends[-1]) + 1 - count) << rice > n:
        raise ValueError(f"a place lies beyond the {n} numbers of the tensor")
    gaps = (torch.diff(ends, prepend=ends.new_full((1,), -1)) - 1) << rice
    bits = unpack(code[:front])[: count * rice].view(count, rice)
    for bit in range(rice):
        gaps |= bits[:, bit].long() << bit
    places = (gaps + 1).cumsum(0) - 1
    if int(places[-1]) >= n:
        raise ValueError(f"a place lies beyond the {n} numbers of the tensor")
    return places


def pack(bits: Tensor) -> Tensor:
    """Eight bits to a byte, the first one lowest; zeros fill the last byte.

    Args:
        bits: bool or uint8 zeros and ones `(n,)`.

    Returns:
        uint8 `(ceil(n / 8),)`.

    Example:
        >>> pack(torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 1], dtype=torch.uint8)).tolist()
        [129, 1]
    """
    bits = bits.to(torch.uint8)
    rest = -len(bits) % 8
    if rest:
        bits = torch.cat([bits, bits.new_zeros(rest)])
    columns = bits.view(-1, 8)
    packed = columns[:, 0].clone()
    for bit in range(1, 8):
        packed |= columns[:, bit] << bit
    return packed


def unpack(packed: Tensor) -> Tensor:
    """uint8 zeros and ones `(8 * n,)` of bytes `(n,)`.

    Example:
        >>> unpack(torch.tensor([129], dtype=torch.uint8)).tolist()
        [1, 0, 0, 0, 0, 0, 0, 1]
    """
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> shifts) & 1).view(-1)


def block_sizes(shape: Sequence[int]) -> list[int]:
    """Blocks that zeros of a network may fill: kernels, rows of kernels, whole channels.

    Example:
        >>> block_sizes((64, 32, 3, 3))
        [3, 9, 288]
    """
    return sorted({math.prod(shape[axis:]) for axis in range(1, len(shape))} - {0, 1})
