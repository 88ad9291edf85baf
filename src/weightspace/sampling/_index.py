"""The index of a sample store: which samples there are, where, how long, and under which settings they were chosen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from weightspace.errors import RunError, SamplingError
from weightspace.files import read_json, write_json_atomically
from weightspace.sampling._sample_files import from_file

INDEX = "samples.json"
FORMAT = "weightspace-samples"
VERSION = 1
_NAME = re.compile(r"chain-\d{1,9}-step-\d{10,18}\.safetensors")


@dataclass(frozen=True)
class Sample:
    """One sample of a store, on disk.

    Attributes:
        step: The optimizer step after which it was taken.
        chain: The number of its chain.
        weight: What it counts in averages, relative to others; 1 if nothing else was said.
        path: Its file.
        size: The file's bytes.
        checksum: CRC-32 of the file's content.
    """

    step: int
    chain: int
    weight: float
    path: Path
    size: int
    checksum: int

    def load(self) -> dict[str, Tensor]:
        """Read the sample: parameters and buffers by name, on the CPU, with the dtype of the file.

        Raises:
            SamplingError: The file is missing, truncated or damaged.
        """
        return from_file(self.path, self.size, self.checksum)


@dataclass
class Index:
    """What `samples.json` holds.

    Attributes:
        chain: The chain's number.
        settings: How steps are chosen and files are limited, as they were given.
        spacing: Every which candidate is kept: 1, doubled by every thinning.
        samples: In the order of their steps.
    """

    chain: int
    settings: dict[str, Any]
    spacing: int = 1
    samples: list[Sample] = field(default_factory=list[Sample])


def write_index(folder: Path, index: Index) -> None:
    """Write an index, whole or not at all.

    Raises:
        RunError: It cannot be written.
    """
    rows = [
        {"step": s.step, "weight": s.weight, "file": s.path.name, "bytes": s.size, "crc32": s.checksum}
        for s in index.samples
    ]
    head = {"format": FORMAT, "version": VERSION, "chain": index.chain, "settings": index.settings}
    write_json_atomically(folder / INDEX, {**head, "spacing": index.spacing, "samples": rows})


def read_index(folder: Path) -> Index:
    """Read an index.

    Raises:
        SamplingError: It is missing, damaged, foreign or newer; the sentence says which.
    """
    path = folder / INDEX
    if not path.is_file():
        raise SamplingError(f"{folder} holds no samples: it has no {INDEX}; give the folder of a sample store")
    try:
        content = read_json(path)
    except RunError as error:
        raise SamplingError(f"{error}; restore a copy, or delete the folder and sample again") from error
    kind, version = content.get("format"), content.get("version")
    if kind != FORMAT:
        raise SamplingError(f"{path} has format {kind!r}, not {FORMAT!r}; give the folder of a sample store")
    if isinstance(version, int) and version > VERSION:
        raise SamplingError(f"{path} has version {version}, this weightspace reads {VERSION}: update weightspace")
    try:
        chain = int(content["chain"])
        samples = [_sample(folder, chain, row) for row in cast("list[Mapping[str, Any]]", content["samples"])]
        index = Index(chain, dict(content["settings"]), int(content["spacing"]), samples)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise SamplingError(f"{path} is damaged ({reason}); restore a copy, or delete the folder") from error
    steps = [sample.step for sample in samples]
    if steps != sorted(set(steps)) or index.spacing < 1:
        raise SamplingError(f"{path} is damaged: its steps do not rise; restore a copy, or delete the folder")
    return index


def _sample(folder: Path, chain: int, row: Mapping[str, Any]) -> Sample:
    name = str(row["file"])
    if Path(name).name != name:
        raise ValueError(f"the file {name[:80]!r} is outside the folder")
    if not _NAME.fullmatch(name):  # thinning deletes what the index names: nothing but samples
        raise ValueError(f"the file {name[:80]!r} has not the name of a sample")
    step, weight, size, checksum = int(row["step"]), float(row["weight"]), int(row["bytes"]), int(row["crc32"])
    return Sample(step, chain, weight, folder / name, size, checksum)
