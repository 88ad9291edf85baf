"""Hostile input: bytes and trees that are damaged, values that nobody expects, pickles that run a program."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reliability.fuzz_source import Source, chosen

_NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    255,
    2**15,
    2**31 - 1,
    2**31,
    2**32,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
    10**12,
    10**18,
    10**400,
)
_FLOATS = (0.0, -0.0, 0.5, 1e-300, 1e300, -1.5, float("nan"), float("inf"), -float("inf"))
_TEXTS = (
    *(
        "",
        " ",
        "a",
        "0",
        "1e5",
        "null",
        "nan",
        "../../escaped",
        "/",
        "..",
        "a/b",
        "x\x00y",
        "\x1b[2J",
        "é\u202e",
        "{",
        "[",
    ),
    *(
        "__class__",
        "self",
        "lr",
        "SGD",
        "name",
        "convs",
        "~" * 300,
        "(" * 300,
        "x" * 5000,
        "{0.__class__}",
        "%s%n",
        "'; --",
    ),
    *("<script>alert(1)</script>", "chain-1", "\ud800", "9" * 30, "<<", "\n\n", "float32", "stiefel(matrix)", "[bold]"),
)


def hostile_value(source: Source, depth: int = 0) -> Any:  # noqa: PLR0911 - a list of kinds
    """Something that JSON or YAML can hold, and that is out of place nearly everywhere."""
    kind = source.integer(0, 9 if depth < 3 else 6)
    if kind <= 1:
        return chosen(source, _NUMBERS)
    if kind == 2:
        return chosen(source, _FLOATS)
    if kind <= 4:
        return chosen(source, _TEXTS)
    if kind <= 6:
        return chosen(source, (None, True, False, [], {}))
    if kind == 7:
        return [hostile_value(source, depth + 1) for _ in range(source.integer(0, 3))]
    if kind == 8:
        return {chosen(source, _TEXTS): hostile_value(source, depth + 1) for _ in range(source.integer(0, 3))}
    return nested(source.integer(1, 400))


_MOST_PLACES = 5000


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def damaged_tree(source: Source, tree: Any, most: int = 3) -> Any:
    """A copy of nested dicts and lists with one to `most` entries replaced, removed, renamed, doubled or wrapped."""
    root = [copy.deepcopy(tree)]
    for _ in range(source.integer(1, most)):
        _damage_one(source, root)
    return root[0]


def _damage_one(source: Source, root: list[Any]) -> None:
    here, key = chosen(source, _places(root))
    kind = source.integer(0, 7)
    if kind <= 4 or here is root:
        here[key] = hostile_value(source)
    elif kind == 5:
        del here[key]
    elif kind == 6 and isinstance(here, dict):
        here[chosen(source, _TEXTS)] = here.pop(key)
    elif isinstance(here, list):
        here.append(copy.deepcopy(here[key]))
    else:
        here[key] = [here[key]]


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    """Every entry of nested dicts and lists, as container and key: each is damaged as often as any other."""
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [root]
    while waiting and len(found) < _MOST_PLACES:
        here = waiting.pop()
        for key in list(here) if isinstance(here, dict) else range(len(here)):
            found.append((here, key))
            if isinstance(here[key], dict | list):
                waiting.append(here[key])
    return found


def damaged_bytes(source: Source, good: bytes, most: int = 4) -> bytes:
    """A copy with one to `most` pieces cut off, flipped, removed, doubled, filled or replaced."""
    data = bytearray(good)
    for _ in range(source.integer(1, most)):
        if not data:
            break
        place = source.integer(0, len(data) - 1)
        length = min(source.integer(1, 16), len(data) - place)
        kind = source.integer(0, 7)
        if kind == 0:
            del data[place:]
        elif kind <= 2:
            data[place] ^= 1 << source.integer(0, 7)
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length]
        elif kind == 5:
            data[place : place + length] = bytes([chosen(source, (0, 255, 0x7F, 0x80))]) * length
        elif kind == 6:
            data[place : place + 8] = (chosen(source, _NUMBERS[:-1]) % 2**64).to_bytes(8, "little")
        else:
            data[place : place + length] = source.content(16)
    return bytes(data)


# ---------------------------------------------------------------- safetensors


def safetensors_bytes(header: Mapping[str, Any], body: bytes) -> bytes:
    """A safetensors file with whatever header; the library itself would refuse to write most of them."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def safetensors_parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body of a good safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def damaged_safetensors(source: Source, good: bytes, embedded: tuple[str, ...] = ()) -> bytes:
    """A safetensors file with damaged bytes, a damaged header, or a header that is whole and lies.

    Args:
        source: Choices.
        good: The file.
        embedded: Keys of the metadata that hold JSON of their own: more often than not one of them is damaged inside.
    """
    kind = source.integer(0, 9)
    if kind == 0:
        return damaged_bytes(source, good)
    if kind == 1:
        return chosen(source, _HEADERS)
    header, body = safetensors_parts(good)
    if kind <= 7 and embedded:
        key = chosen(source, embedded)
        header["__metadata__"][key] = json.dumps(damaged_tree(source, json.loads(header["__metadata__"][key])))
        return safetensors_bytes(header, body)
    header = damaged_tree(source, header)
    return safetensors_bytes(header, body)


def _length_first(length: int, rest: bytes) -> bytes:
    return length.to_bytes(8, "little") + rest


_HEADERS = (
    *(
        b"",
        b"\0",
        b"\0" * 7,
        b"\0" * 8,
        _length_first(2, b"{}"),
        _length_first(2**63, b"{}"),
        _length_first(2**64 - 1, b"{}"),
    ),
    *(_length_first(10**8, b"{"), _length_first(5, b"[1,2]"), _length_first(4, b"null"), _length_first(1, b"{")),
    _length_first(200_000, b"[" * 200_000),
    _length_first(600_006, b'{"a":' + b"[" * 600_001),
    safetensors_bytes({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}, b""),
    safetensors_bytes({"w": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 0]}}, b""),
    safetensors_bytes({"w": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}, b""),
    safetensors_bytes({"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, b"\0" * 8),
    safetensors_bytes({"w": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
    safetensors_bytes({"w": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, b"\0" * 2),
    safetensors_bytes({"w": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}, b"\0" * 4),
    safetensors_bytes({"w": {"dtype": "U64", "shape": [1], "data_offsets": [0, 8]}}, b"\0" * 8),
    safetensors_bytes({k: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for k in "ab"}, b"\0" * 8),
)


# ---------------------------------------------------------------- pickle


class Payload:
    """Unpickling this makes a folder: a test that finds it has seen a program run."""

    def __init__(self, sentinel: Path) -> None:
        self._sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        """What the pickle runs."""
        return os.mkdir, (str(self._sentinel),)


def malicious_pickle(sentinel: Path, protocol: int = 2) -> bytes:
    """A pickle that makes the folder `sentinel` when it is loaded."""
    return pickle.dumps({b"data": Payload(sentinel), b"labels": [0, 1]}, protocol=protocol)


def malicious_checkpoint(sentinel: Path) -> bytes:
    """The same as `torch.save` writes it: a zip archive that holds a pickle."""
    import io

    import torch

    stream = io.BytesIO()
    torch.save({"weight": Payload(sentinel)}, stream)
    return stream.getvalue()
