"""Measures what docs/reliability.md claims: `python -m reliability [--only COLUMN ...] [--quick]`.

Each column is kept in docs/reliability/COLUMN.json as soon as it is measured, and the page's tables are written anew.
With `--quick` little is measured and nothing is kept: to see that it runs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from reliability.findings import Finding, keep
from reliability.page import COLUMNS, machine, write_page


def main() -> int:
    """Measures the columns; 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m reliability", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--only", nargs="+", choices=tuple(COLUMNS), metavar="COLUMN", help=", ".join(COLUMNS))
    parser.add_argument("--quick", action="store_true", help="measure little and keep nothing")
    arguments = parser.parse_args()
    is_whole = True
    for column in arguments.only or COLUMNS:
        started = time.perf_counter()
        findings: list[Finding] = importlib.import_module(f"reliability.{column}").measure(quick=arguments.quick)
        for finding in findings:
            print(
                f"{column}: {finding.method}: {finding.text}{'' if finding.holds else '   DOES NOT HOLD'}", flush=True
            )
        print(f"{column}: {time.perf_counter() - started:.0f} s", flush=True)
        is_whole &= all(finding.holds for finding in findings)
        if not arguments.quick:
            keep(column, findings, command=f"python -m reliability --only {column}", machine=machine())
            write_page()
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
