"""What the commands print: errors, warnings and progress. Results go to stdout, everything else to stderr."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LONGEST = 4000  # characters


def stdout() -> Console:
    """The console for results. Tables need no wrapping in a pipe: there the width is not that of a screen."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 160))


def stderr() -> Console:
    """The console for errors, warnings and progress."""
    return Console(stderr=True)


def printable(text: str) -> str:
    r"""A text without characters that steer a terminal: what stands in a file must not move the cursor.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(message: str) -> str:
    """A message as one line that a terminal shows as it is, cut where it is longer than anybody reads."""
    text = printable(" ".join(message.split()))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def print_error(message: str) -> None:
    """Print `error: ...` as one red line on stderr."""
    stderr().print(f"error: {one_line(message)}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def print_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a Python warning as one yellow line; takes the place of `warnings.showwarning`."""
    text = f"warning: {one_line(str(message))}"
    stderr().print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def print_note(message: str) -> None:
    """Print one plain line on stderr."""
    stderr().print(printable(message), markup=False, highlight=False, soft_wrap=True)


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
