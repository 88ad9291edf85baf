"""Tables as plain text: what `print` shows of an object that rich consoles show in color."""

from __future__ import annotations

from rich.console import Console, RenderableType


def as_text(renderable: RenderableType, width: int) -> str:
    """What a console of `width` columns shows, without color and trailing spaces.

    Example:
        >>> from rich.table import Table
        >>> table = Table("layer", "zeros", box=None, pad_edge=False)
        >>> table.add_row("fc", "3")
        >>> as_text(table, width=40).splitlines()
        ['layer  zeros', 'fc     3']
    """
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
