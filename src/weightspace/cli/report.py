"""`weightspace report`: table, plots and one HTML file from what a comparison, chains or a single run wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightspace.cli.console import print_note, stdout
from weightspace.cli.sample import tell_results


def report(
    run_dir: Annotated[
        Path,
        typer.Argument(metavar="RUN_DIR", help="Folder of a comparison, of chains or of one run, finished or not."),
    ],
) -> None:
    """Write report.html (one self-contained file) and plots; for a comparison and for chains also print the table."""
    from weightspace.compare import comparison_table
    from weightspace.report import write_report

    if (run_dir / "compare.json").exists():
        stdout().print(comparison_table(run_dir))
    report_file = write_report(run_dir)
    if (run_dir / "sample.json").exists() and not (run_dir / "compare.json").exists():
        tell_results(run_dir)
    print_note(f"report: {report_file}")
