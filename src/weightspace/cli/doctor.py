"""`weightspace doctor`: one screen on what of this machine and installation works, and what to do about the rest.

It reads its words itself, because it must answer where the package that reads them for the other commands is missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from weightspace.cli.console import print_error, print_note, stdout
from weightspace.errors import WeightspaceError
from weightspace.files import write_json_atomically

UNHEALTHY, BAD_INPUT = 1, 2
_SCREEN = "-"
_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def parser() -> argparse.ArgumentParser:
    """What may follow `weightspace doctor`."""
    words = argparse.ArgumentParser(
        prog="weightspace doctor",
        description="Look at this installation and this machine: what works, and what to do about the rest. "
        "Exit codes: 0 healthy, 1 there is a problem, 2 bad input.",
    )
    words.add_argument(
        "--json",
        nargs="?",
        const=_SCREEN,
        metavar="FILE",
        help="Write everything as JSON, to FILE or, without one, in place of the table.",
    )
    return words


def doctor(arguments: Sequence[str]) -> int:
    """Examine, print, and say by the exit code whether all is well.

    Args:
        arguments: The words after `weightspace doctor`.

    Returns:
        0 healthy, 1 at least one problem, 2 the JSON file cannot be written.

    Raises:
        SystemExit: Help was asked for, or the words are no options.
    """
    options = parser().parse_args(list(arguments))
    from weightspace.doctor import examine

    examination = examine()
    if options.json == _SCREEN:
        print(json.dumps(examination.figures(), indent=2, ensure_ascii=False))
        return UNHEALTHY if examination.problems else 0
    table = Table.grid("what", "status", "found", padding=(0, 2))
    for finding in examination.findings:
        cure = f"\n-> {finding.cure}" if finding.cure else ""
        status = f"[{_STYLES[finding.status]}]{finding.status}"
        table.add_row(escape(finding.name), status, escape(finding.found + cure))
    stdout().print(table)
    if options.json is not None:
        try:
            write_json_atomically(Path(options.json), examination.figures())
        except WeightspaceError as error:
            print_error(str(error))
            return BAD_INPUT
        print_note(f"wrote {options.json}")
    problems = examination.problems
    if not problems:
        print_note("healthy: no problems found")
        return 0
    print_error(f"{len(problems)} problem(s): {', '.join(problem.name for problem in problems)}; the cures are above")
    return UNHEALTHY
