"""`weightspace report`: table, plots and one HTML file from what a comparison or a single run wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightspace.cli.console import print_note, stdout
from weightspace.cli.train import RUN_FILE
from weightspace.errors import RunError


def report(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="Folder of a comparison or of one training run, finished or not.")
    ],
) -> None:
    """Write report.html (one self-contained file) and plots; for a comparison also print its table."""
    is_comparison = (run_dir / "compare.json").is_file()
    if not is_comparison and not (run_dir / RUN_FILE).is_file():
        there = f"holds neither compare.json nor {RUN_FILE}" if run_dir.is_dir() else "does not exist"
        raise RunError(f"{run_dir} {there}; give the folder of a comparison or run, such as runs/quickstart")
    from weightspace.compare import comparison_table
    from weightspace.report import write_report

    if is_comparison:
        stdout().print(comparison_table(run_dir))
    print_note(f"report: {write_report(run_dir)}")
