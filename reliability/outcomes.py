"""What a finished run leaves in its folder, and whether two of them are alike in every bit but times."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file

from weightspace.files import read_json
from weightspace.training.json_lines import read_json_lines

_NOT_COMPARED = {"seconds", "seconds_per_step", "crc32"}


def outcome(folder: Path) -> dict[str, Any]:
    """What a finished run, or its chains, leaves: every file's content but for times, and its checkpoints, which hold times too."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.name == "metrics.jsonl":
            found[name] = [_without_times(record) for record in read_json_lines(path)]
        elif path.suffix == ".json" and path.name != "run.json":
            found[name] = _without_times(read_json(path))
        elif path.suffix == ".safetensors" and not path.name.startswith("checkpoint-"):
            # Not the file's bytes: safetensors writes the notes of its header in any order.
            found[name] = {key: (str(t.dtype), list(t.shape), _bytes(t)) for key, t in load_file(path).items()}
    return found


def unequal(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Where two outcomes differ."""
    missing = [f"{name} is only in one" for name in sorted(one.keys() ^ other.keys())]
    return missing + [f"{name} differs" for name in sorted(one.keys() & other.keys()) if one[name] != other[name]]


def _without_times(record: Any) -> Any:
    """Without times, and without the check sums of files, whose headers are in any order."""
    if isinstance(record, list):
        return [_without_times(entry) for entry in cast("list[Any]", record)]
    if not isinstance(record, dict):
        return record
    entries = cast("dict[str, Any]", record)
    return {key: _without_times(value) for key, value in entries.items() if key not in _NOT_COMPARED}


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
