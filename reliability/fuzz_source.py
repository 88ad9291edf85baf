"""Where the choices of a fuzz target come from: one target runs under a seeded generator, hypothesis, and atheris."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Source(Protocol):
    """Something that makes choices."""

    def integer(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        ...

    def content(self, most: int) -> bytes:
        """Up to `most` bytes."""
        ...


class RandomSource:
    """Choices of a seeded generator: the same seed gives the same input on every machine."""

    def __init__(self, seed: str) -> None:
        self._generator = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        """See `Source`."""
        return self._generator.randint(low, high)

    def content(self, most: int) -> bytes:
        """See `Source`."""
        return self._generator.randbytes(self._generator.randint(0, most))


class BytesSource:
    """Choices read from bytes, for fuzzers that make bytes (atheris). When they are used up, every choice is the first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def integer(self, low: int, high: int) -> int:
        """See `Source`."""
        width = max(1, ((high - low).bit_length() + 7) // 8)
        return low + int.from_bytes(self._take(width), "little") % (high - low + 1)

    def content(self, most: int) -> bytes:
        """See `Source`."""
        return self._take(self.integer(0, most))

    def _take(self, count: int) -> bytes:
        taken = self._data[self._place : self._place + count]
        self._place += count
        return taken


class DrawnSource:
    """Choices of hypothesis, so that it shrinks what fails.

    Args:
        integer: Draws from `st.integers(low, high)`.
        content: Draws from `st.binary(max_size=most)`.
    """

    def __init__(self, integer: Callable[[int, int], int], content: Callable[[int], bytes]) -> None:
        self.integer, self.content = integer, content


def chosen(source: Source, options: Sequence[T]) -> T:
    """One of some options."""
    return options[source.integer(0, len(options) - 1)]


def happens(source: Source, one_in: int) -> bool:
    """True once in so many times."""
    return source.integer(1, one_in) == one_in
