"""The table of `weightspace compress`: what each stage is, in zeros, bytes, multiplications, time and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from weightspace.cli.compress_subject import Subject

if TYPE_CHECKING:
    from torch import nn

    from weightspace.compress import Latency, Sizes


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of the way.

    Attributes:
        name: Its name.
        model: Its model.
        bits: Of the values in its sparse file; None for all.
        source: What that file is made of, where it is not the model: before rounding, for it rounds itself.
    """

    name: str
    model: nn.Module
    bits: int | None = None
    source: nn.Module | None = None


@dataclass(frozen=True)
class Row:
    """One stage, measured.

    Attributes:
        stage: Its name.
        zeros: Numbers in all parameters that are zero.
        numbers: Numbers in all parameters.
        bytes: Of real files.
        macs: Multiply-adds for one input.
        one_thread: Time of a batch on one thread.
        all_threads: Time of a batch on torch's own number of threads.
        accuracy: On the test images; None without data.
    """

    stage: str
    zeros: int
    numbers: int
    bytes: Sizes
    macs: int
    one_thread: Latency
    all_threads: Latency
    accuracy: float | None

    @property
    def nonzeros(self) -> int:
        """Numbers that are not zero."""
        return self.numbers - self.zeros

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "nonzeros": self.nonzeros}


def measured(stages: Sequence[Stage], subject: Subject) -> list[Row]:
    """Measure every stage; times are taken side by side."""
    from weightspace import compress

    models = [stage.model for stage in stages]
    single = compress.latency(models, subject.example, threads=1)
    default = compress.latency(models, subject.example, threads=None)
    rows: list[Row] = []
    for stage, one, all_ in zip(stages, single, default, strict=True):
        zero, total = compress.zeros(stage.model)
        sizes = compress.file_sizes(stage.source or stage.model, bits=8 if stage.bits == 8 else None)
        macs = compress.count_macs(stage.model, subject.example) // batch_size(subject.example)
        accuracy = subject.accuracy(stage.model)
        rows.append(Row(stage.name, zero, total, sizes, macs, one, all_, accuracy))
    return rows


def batch_size(example: Any) -> int:
    """How many inputs an example holds."""
    first = example[0] if isinstance(example, tuple | list) else example
    return len(first)


def as_table(rows: Sequence[Row]) -> Table:
    """The rows as a rich table."""
    table = Table("stage", box=None, header_style="bold", pad_edge=False, padding=(0, 0, 0, 1))  # 80 columns suffice
    for title in ("zeros", "nonzero", "plain", "sparse", "zipped", "MACs", "ms", "faster", "accuracy"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        time = row.one_thread
        table.add_row(
            row.stage,
            f"{100 * row.zeros / row.numbers:.1f}%",
            f"{row.nonzeros:,}",
            in_bytes(row.bytes.plain),
            in_bytes(row.bytes.sparse),
            in_bytes(row.bytes.zipped),
            in_millions(row.macs),
            f"{1000 * time.seconds:.2f}",
            "" if row is rows[0] else f"{time.ratio:.2f}x",
            "-" if row.accuracy is None else f"{100 * row.accuracy:.2f}%",
        )
    return table


def legend(subject: Subject, rows: Sequence[Row]) -> str:
    """What the columns are, in one line."""
    facts = {} if subject.data is None else subject.data.describe()
    images = f"; accuracy: on all {facts['test']:,} test {facts.get('unit', 'images')}" if facts else ""
    return (
        "plain, sparse, zipped: bytes of real files, as safetensors, with zeros left out, and plain zipped; MACs: "
        f"multiply-adds for one input; ms: median for a batch of {batch_size(subject.example)} on one thread; faster: "
        f"median ratio of times, side by side with {rows[0].stage}{images}"
    )


def summary(rows: Sequence[Row]) -> str:
    """What the last stage brought against the first, in one sentence."""
    first, last = rows[0], rows[-1]
    time = last.one_thread
    is_noise = time.low <= 1.05 and time.high >= 0.95
    words = [
        f"{first.nonzeros / max(last.nonzeros, 1):.1f} times fewer nonzero numbers",
        f"a file {first.bytes.plain / last.bytes.sparse:.1f} times smaller",
        "no faster" if is_noise else f"{time.ratio:.2f} times as fast (quartiles {time.low:.2f}-{time.high:.2f})",
    ]
    if first.accuracy is not None and last.accuracy is not None:
        words.append(f"accuracy {100 * first.accuracy:.2f} % -> {100 * last.accuracy:.2f} %")
    return f"{first.stage} -> {last.stage}: {', '.join(words)}"


def in_bytes(number: float) -> str:
    """Bytes in a unit that fits.

    >>> in_bytes(999), in_bytes(1500), in_bytes(23_400_000)
    ('999 B', '1.5 kB', '23.4 MB')
    """
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def in_millions(number: int) -> str:
    """Multiply-adds in a unit that fits.

    >>> in_millions(950), in_millions(2_340_000)
    ('950', '2.34 M')
    """
    if number < 10_000:
        return f"{number:,}"
    return f"{number / 1e9:.2f} G" if number >= 1e9 else f"{number / 1e6:.2f} M"
