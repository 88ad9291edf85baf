"""What the commands print: errors, warnings and progress. Results go to stdout, everything else to stderr."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def stdout() -> Console:
    """The console for results. Tables need no wrapping in a pipe: there the width is not that of a screen."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 160))


def stderr() -> Console:
    """The console for errors, warnings and progress."""
    return Console(stderr=True)


def print_error(message: str) -> None:
    """Print `error: ...` as one red line on stderr."""
    stderr().print(
        f"error: {' '.join(message.split())}", style="bold red", markup=False, highlight=False, soft_wrap=True
    )


def print_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a Python warning as one yellow line; takes the place of `warnings.showwarning`."""
    text = f"warning: {' '.join(str(message).split())}"
    stderr().print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def print_note(message: str) -> None:
    """Print one plain line on stderr."""
    stderr().print(message, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(unit: str) -> Generator[Callable[[str, int, int], None], None, None]:
    """A progress bar on stderr; silent when stderr is not a terminal.

    Args:
        unit: What is counted, for example "steps".

    Yields:
        A function of (description, done, in all) that moves the bar.
    """
    console = stderr()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def move(description: str, done: int, total: int) -> None:
            bar.update(task, description=description, completed=done, total=total)

        yield move
