"""One column of docs/reliability.md measured into another folder: `python -m claims.columns COLUMN --out FOLDER [--quick]`.

`python -m reliability` itself writes into docs/; this leaves the committed file alone.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

COLUMNS = ("ddp", "fsdp2", "resume", "elastic", "precision", "compilation", "hostile")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m claims.columns", description=__doc__)
    made.add_argument("column", choices=COLUMNS)
    made.add_argument("--out", type=Path, required=True, help="folder for COLUMN.json")
    made.add_argument("--quick", action="store_true", help="measure little")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes, with the command and the machine as the committed files have them."""
    from reliability.findings import keep
    from reliability.page import machine

    asked = parser().parse_args(arguments)
    found = importlib.import_module(f"reliability.{asked.column}").measure(quick=asked.quick)
    keep(
        asked.column, found, command=f"python -m reliability --only {asked.column}", machine=machine(), folder=asked.out
    )


if __name__ == "__main__":
    main()
