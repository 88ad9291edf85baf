"""CIFAR's Python version without unpickling.

Why this is safe: unpickling runs the program that a pickle is: it imports modules and calls functions. Here the
program is only *disassembled*. `pickletools.genops` decodes one instruction after another into its name and its literal
argument; it keeps no stack, imports nothing and calls nothing. From that listing two literals are taken: the one long
byte string (the pixels) and the small integers that follow the key `labels` or `fine_labels`. Whatever else a forged
file asks for is never carried out, and forged literals fail the checks on size and number.
"""

from __future__ import annotations

import pickletools

import torch

from weightspace.errors import DataError
from weightspace.training.data.splits import Split

PIXELS = 3 * 32 * 32
_HUGE = 10**30

# Byte strings as Python 2 wrote them (the published files) and as Python 3 writes them.
_STRINGS = frozenset({
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
})  # fmt: skip
_INTEGERS = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"})
_LABEL_KEYS = frozenset({b"labels", b"fine_labels"})


def parse_pickle(data: bytes, where: str) -> Split:
    """Take images and labels out of one file of CIFAR's Python version, without executing it.

    Args:
        data: The file.
        where: Its name, for errors.

    Raises:
        DataError: Not a pickle, no labels, pixels in column-major order, or pixels that do not match the labels.
    """
    pixels, labels, column_major = _literals(data, where)
    if not labels or len(pixels) != len(labels) * PIXELS:
        raise DataError(
            f"{where} is not a file of CIFAR's Python version: expected {PIXELS:,} pixel bytes for each of the "
            f"{len(labels):,} entries of 'labels' or 'fine_labels', found {len(pixels):,} bytes."
        )
    if column_major:
        raise DataError(f"{where} stores its pixels in column-major order, unlike the published files: get it again.")
    if not all(0 <= label <= 255 for label in labels):
        # A longer integer could not even be printed.
        low, high = (min(max(label, -_HUGE), _HUGE) for label in (min(labels), max(labels)))
        raise DataError(f"{where} holds labels out of range: they run from {low} to {high}.")
    images = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(-1, 3, 32, 32)
    return Split(images, torch.tensor(labels, dtype=torch.int64))


def _literals(data: bytes, where: str) -> tuple[bytes, list[int], bool]:
    """The longest byte string, the integers after the label key, and whether the pixels are column-major."""
    pixels = b""
    labels: list[int] = []
    in_labels = False
    # NumPy writes its "is column-major" flag right before the array's bytes.
    column_major = flag = False
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in _STRINGS:
                text = _as_bytes(argument)
                in_labels = text in _LABEL_KEYS
                if len(text) > len(pixels):
                    pixels, column_major = text, flag
            elif opcode.name in _INTEGERS:
                flag = argument is True
                if in_labels and isinstance(argument, int):
                    labels.append(argument)
            elif opcode.name in {"NEWTRUE", "NEWFALSE"}:
                flag = opcode.name == "NEWTRUE"
    except (ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{where} is truncated or not a file of CIFAR's Python version ({error}).") from error
    return pixels, labels, column_major


def _as_bytes(argument: object) -> bytes:
    # genops shows Python 2 byte strings as text, one character a byte.
    if isinstance(argument, str):
        return argument.encode("latin-1", errors="replace")
    return bytes(argument) if isinstance(argument, (bytes, bytearray)) else b""
