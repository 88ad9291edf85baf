"""Masks as a table."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table
from torch import Tensor

from weightspace.kernels import ParameterInfo
from weightspace.kernels.points import Channels, whole
from weightspace.kernels.printing import as_text


@dataclass(frozen=True)
class MaskRow:
    """One weight.

    Attributes:
        name: Its name.
        shape: Its shape.
        kept: Numbers that are kept.
        zeros: Share of zeros, in [0, 1].
        empty: Output channels that are all zero; None for what has no channels.
        channels: Output channels; None likewise.
    """

    name: str
    shape: tuple[int, ...]
    kept: int
    zeros: float
    empty: int | None
    channels: int | None

    @classmethod
    def of(cls, info: ParameterInfo, dropped: Tensor) -> MaskRow:
        """The row of a weight with what is dropped of it. Synchronizes."""
        zeros, numel = int(dropped.sum()), dropped.numel()
        empty = channels = None
        if info.role == "weight" and (info.is_kernel or info.kind == "linear"):
            parts = whole(dropped, Channels(info.out_axis, info.groups))
            emptied = parts.flatten(2).all(2)
            empty, channels = int(emptied.sum()), emptied.numel()
        return cls(info.name, info.shape, numel - zeros, zeros / numel, empty, channels)


@dataclass(frozen=True)
class MaskTable:
    """All masked weights. `print(table)` shows it; rich consoles show it in color.

    Attributes:
        rows: One a weight, in the model's order.
    """

    rows: tuple[MaskRow, ...]

    def __rich__(self) -> Table:
        table = Table(show_edge=False, pad_edge=False)
        for column in ("weight", "shape", "kept", "zeros", "empty outputs"):
            table.add_column(column, overflow="fold")
        for row in self.rows:
            shape = " × ".join(map(str, row.shape)) or "scalar"
            empty = "–" if row.empty is None else f"{row.empty} of {row.channels}"
            table.add_row(row.name, shape, f"{row.kept:,}", f"{100 * row.zeros:.2f}%", empty)
        return table

    def __str__(self) -> str:
        return as_text(self, width=140)
