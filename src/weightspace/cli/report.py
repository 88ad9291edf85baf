"""`weightspace report`: tables, plots and one HTML file from what a comparison wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightspace.cli.console import print_note, stdout
from weightspace.errors import RunError


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a comparison, finished or not.")],
) -> None:
    """Print a comparison's table and write its report.html (one self-contained file) and plots."""
    if not (run_dir / "compare.json").is_file():
        there = "has no compare.json" if run_dir.is_dir() else "does not exist"
        raise RunError(f"{run_dir} {there}; give the folder of a comparison, such as runs/quickstart")
    from weightspace.compare import comparison_table
    from weightspace.report import write_report

    stdout().print(comparison_table(run_dir))
    print_note(f"report: {write_report(run_dir)}")
