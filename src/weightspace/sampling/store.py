"""A store of weights: the samples of one chain on disk, chosen by step, thinned when the disk it may use is full.

One safetensors file a sample and one index (`samples.json`). Every file is written whole or not at all, the index last
when a sample comes and first when one goes, so a killed run leaves a store that can be read and continued.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.errors import SamplingError
from weightspace.files import delete_leftovers, ensure_writable_folder, write_bytes_atomically
from weightspace.sampling._grid import Grid
from weightspace.sampling._index import INDEX, Index, Sample, read_index, write_index
from weightspace.sampling._models import plain_module
from weightspace.sampling._sample_files import ROUNDED_TO, check_size, to_bytes

_CHAIN = re.compile(r"^chain-(\d+)$")


class SampleStore:
    """Samples of one chain in one folder.

    Steps count finished optimizer steps: 1 after the first. Candidates are `burn_in + every`, `burn_in + 2 every`, ...;
    with `cycle` and `per_cycle` they are the last ones of each cycle, counted back from its end every `every` steps.
    Cycles begin with step 1 (so that they are those of a cyclical schedule), and nothing up to `burn_in` is taken.

    When a sample would exceed `max_samples` or `max_bytes`, every second stored one goes and the spacing doubles. What
    remains is evenly spaced over the run, lies on disk at no time above the limit (but for the index and the
    temporary file of the sample that comes), and depends on the steps alone: a resumed run keeps what a whole one does.

    Args:
        folder: Where the files lie; made when missing. A store that is there is continued.
        burn_in: Steps that give no sample.
        every: Steps between two candidates.
        per_cycle: Candidates in a cycle; needs `cycle`.
        cycle: Steps of a cycle; needs `per_cycle`.
        max_samples: The most samples; None: no limit.
        max_bytes: The most bytes of all samples together; None: no limit.
        dtype: float16 or bfloat16 halve the files of a float32 model; integers are left alone. None keeps every bit.
        chain: The number of the chain; by habit its folder is `chain_folder(run, chain)`.

    Raises:
        SamplingError: A number is out of range, or the folder holds a store with other settings (the limits may
            change), a damaged one, or files of samples without an index.
        RunError: The folder cannot be written.

    Cost: a stored sample is one copy of the weights on the CPU and one file; the index is written with each. One
    writer at a time: two processes in one folder are not kept apart.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(2, 1)
        >>> store = SampleStore(tempfile.mkdtemp(), burn_in=10, every=5)
        >>> [step for step in range(1, 26) if store.offer(step, model)]
        [15, 20, 25]
        >>> [sample.step for sample in store], sorted(store.load(next(iter(store))))
        ([15, 20, 25], ['bias', 'weight'])
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        burn_in: int = 0,
        every: int = 1,
        per_cycle: int | None = None,
        cycle: int | None = None,
        max_samples: int | None = None,
        max_bytes: int | None = None,
        dtype: torch.dtype | None = None,
        chain: int = 0,
    ) -> None:
        grid = Grid(burn_in=burn_in, every=every, cycle=cycle, per_cycle=per_cycle)
        _check_limits(max_samples, max_bytes, dtype, chain)
        limits = {"max_samples": max_samples, "max_bytes": max_bytes}
        settings = {**asdict(grid), **limits, "dtype": None if dtype is None else str(dtype).removeprefix("torch.")}
        self._folder = ensure_writable_folder(Path(folder))
        self._read_only = False
        if not (self._folder / INDEX).exists():
            if any(self._folder.glob("chain-*-step-*.safetensors")):
                raise SamplingError(f"{folder} holds samples without {INDEX}; restore it, or choose another folder")
            write_index(self._folder, Index(chain, settings))
        self._index = read_index(self._folder)
        self._continue_with(chain, settings)
        self._set_up(grid, dtype)

    @classmethod
    def open(cls, folder: str | Path) -> SampleStore:
        """Open a store to read it; `offer` and `truncate` are refused.

        Args:
            folder: The folder of one chain.

        Raises:
            SamplingError: It is no store, or a file of it is missing or damaged.
        """
        store = cls.__new__(cls)
        store._read(Path(folder))  # noqa: SLF001
        return store

    def offer(self, step: int, model_or_state: nn.Module | Mapping[str, Tensor], *, weight: float = 1.0) -> bool:
        """Store the weights after a step, if the step is to be sampled.

        Args:
            step: Finished optimizer steps.
            model_or_state: The model, or its `state_dict()`: parameters and buffers.
            weight: What the sample counts in averages, positive: 1, or the step size where it shrinks.

        Returns:
            Whether the store holds a sample of this step now. A step that is stored already is not written again.

        Raises:
            SamplingError: The sample holds NaN, does not fit the dtype, or is larger than `max_bytes`; the store was
                opened to read. What was stored stays.
            RunError: A file cannot be written.
        """
        self._check_writable("offer a sample")
        if not (isinstance(weight, int | float) and math.isfinite(weight) and weight > 0):
            raise SamplingError(f"weight is {weight!r}; give a positive number")
        if any(sample.step == step for sample in self._index.samples):
            return True
        if not self.wants(step) or not self._thin_for(step, 0):
            return False
        where = {"step": str(step), "chain": str(self.chain), "weight": repr(float(weight))}
        state = plain_module(model_or_state).state_dict() if isinstance(model_or_state, nn.Module) else model_or_state
        content = to_bytes(state, where, self._dtype)
        if self.max_bytes is not None and len(content) > self.max_bytes:
            raise SamplingError(
                f"one sample has {len(content)} bytes, above max_bytes {self.max_bytes}; raise the limit"
            )
        if not self._thin_for(step, len(content)):
            return False
        path = self._folder / f"chain-{self.chain}-step-{step:010d}.safetensors"
        sample = Sample(step, self.chain, float(weight), path, len(content), zlib.crc32(content))
        write_bytes_atomically(path, content)
        self._replace(sorted([*self._index.samples, sample], key=lambda s: s.step))
        return True

    def wants(self, step: int) -> bool:
        """Whether a step is on the grid of samples as it is now spaced (an offer may still double the spacing).

        Args:
            step: Finished optimizer steps.

        Raises:
            SamplingError: `step` is no whole number, or negative.
        """
        number = self._grid.number(step)
        return number is not None and number % self._index.spacing == 0

    def truncate(self, step: int) -> int:
        """Forget the samples after a step: a run that resumes from its checkpoint there comes by them again.

        Args:
            step: The last step to keep.

        Returns:
            How many samples went.

        Raises:
            SamplingError: The store was opened to read.
        """
        self._check_writable("truncate it")
        kept = [sample for sample in self._index.samples if sample.step <= step]
        gone = len(self) - len(kept)
        if gone:
            self._replace(kept)
        return gone

    def load(self, sample: Sample) -> dict[str, Tensor]:
        """Read a sample: parameters and buffers by name, on the CPU, with the dtype of the file.

        Args:
            sample: One that iterating over the store gave.

        Raises:
            SamplingError: Its file is missing, truncated or damaged.
        """
        return sample.load()

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self._folder

    @property
    def chain(self) -> int:
        """The number of the chain."""
        return self._index.chain

    @property
    def spacing(self) -> int:
        """Every which candidate is kept: 1, doubled by every thinning."""
        return self._index.spacing

    @property
    def max_samples(self) -> int | None:
        """The most samples, or None."""
        return self._index.settings["max_samples"]

    @property
    def max_bytes(self) -> int | None:
        """The most bytes of all samples together, or None."""
        return self._index.settings["max_bytes"]

    @property
    def bytes(self) -> int:
        """Bytes of all samples together."""
        return sum(sample.size for sample in self._index.samples)

    def __len__(self) -> int:
        return len(self._index.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(tuple(self._index.samples))

    def __repr__(self) -> str:
        return f"<SampleStore chain {self.chain}: {len(self)} samples, {self.bytes} bytes in {self._folder}>"

    def _read(self, folder: Path) -> None:
        self._folder, self._read_only, self._index = folder, True, read_index(folder)
        settings = self._index.settings
        try:
            grid = Grid(**{name: settings[name] for name in ("burn_in", "every", "cycle", "per_cycle")})
            name = settings["dtype"]
            dtype = None if name is None else {str(d).removeprefix("torch."): d for d in ROUNDED_TO}[name]
        except (KeyError, TypeError, SamplingError) as error:
            raise SamplingError(f"{folder / INDEX} is damaged: these are no settings of a store ({error})") from error
        self._set_up(grid, dtype)

    def _set_up(self, grid: Grid, dtype: torch.dtype | None) -> None:
        self._grid, self._dtype = grid, dtype
        for sample in self._index.samples:
            if not sample.path.is_file():
                raise SamplingError(f"{sample.path} is missing; restore it, or delete the folder and sample again")
            check_size(sample.path, sample.path.stat().st_size, sample.size)

    def _continue_with(self, chain: int, settings: dict[str, Any]) -> None:
        """Take over a store that is there: the same settings but for the limits; what a killed run left goes."""
        for name, new in {**settings, "chain": chain}.items():
            old = self.chain if name == "chain" else self._index.settings.get(name)
            if old != new and name not in {"max_samples", "max_bytes"}:
                raise SamplingError(
                    f"{self._folder} was begun with {name}={old}, now {name}={new} is asked for; choose another folder"
                )
        if settings != self._index.settings:
            self._index.settings = settings
            write_index(self._folder, self._index)
        known = {sample.path.name for sample in self._index.samples}
        for path in self._folder.glob(f"chain-{chain}-step-*.safetensors"):
            if path.name not in known:
                _delete(path)
        delete_leftovers(self._folder, f"chain-{chain}-step-*.safetensors", INDEX)

    def _thin_for(self, step: int, size: int) -> bool:
        """Double the spacing until a sample of `size` bytes fits; whether its step is then still on the grid."""
        spacing, kept = self._index.spacing, self._index.samples
        number = self._grid.number(step) or 0
        while (self.max_samples is not None and len(kept) >= self.max_samples) or (
            self.max_bytes is not None and sum(sample.size for sample in kept) + size > self.max_bytes
        ):
            spacing *= 2
            kept = [sample for sample in kept if (self._grid.number(sample.step) or 0) % spacing == 0]
            if number % spacing:
                break
        if spacing != self._index.spacing:
            self._index.spacing = spacing
            self._replace(kept)
        return number % spacing == 0

    def _replace(self, samples: list[Sample]) -> None:
        """Write the index with these samples, then delete the files of those that went."""
        gone = {sample.path for sample in self._index.samples} - {sample.path for sample in samples}
        self._index.samples = samples
        write_index(self._folder, self._index)
        for path in gone:
            _delete(path)

    def _check_writable(self, wish: str) -> None:
        if self._read_only:
            raise SamplingError(
                f"the store in {self._folder} was opened to read; make it with SampleStore(...) to {wish}"
            )


def chain_folder(folder: str | Path, chain: int) -> Path:
    """The folder of one chain of several: `folder/chain-0`, ...

    >>> chain_folder("samples", 2).name
    'chain-2'
    """
    return Path(folder) / f"chain-{chain}"


def open_chains(folder: str | Path) -> list[SampleStore]:
    """Open all chains of a folder to read them, in the order of their numbers.

    Args:
        folder: Holds `chain-0`, `chain-1`, ..., or is itself the folder of one chain.

    Raises:
        SamplingError: It holds no store, or a damaged one.
    """
    folder = Path(folder)
    if (folder / INDEX).is_file():
        return [SampleStore.open(folder)]
    found = {int(match[1]): path for path in folder.glob("chain-*") if (match := _CHAIN.match(path.name))}
    if not found:
        raise SamplingError(f"{folder} holds no samples: neither {INDEX} nor folders chain-0, chain-1, ...")
    return [SampleStore.open(found[chain]) for chain in sorted(found)]


def _delete(path: Path) -> None:
    with suppress(OSError):  # the index no longer names it; opening the store again deletes what the system keeps now
        path.unlink()


def _check_limits(max_samples: int | None, max_bytes: int | None, dtype: torch.dtype | None, chain: int) -> None:
    for name, value, least in (("max_samples", max_samples, 1), ("max_bytes", max_bytes, 1), ("chain", chain, 0)):
        if value is None and name != "chain":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SamplingError(f"{name} is {value!r}; give a whole number of at least {least}")
    if dtype is not None and dtype not in ROUNDED_TO:
        known = ", ".join(str(entry) for entry in ROUNDED_TO)
        raise SamplingError(f"dtype is {dtype!r}; give one of {known}, or None to keep every bit")
