"""The claims page, recomputed: `python -m claims [--write | --list | --rerun NAME [--quick] [--root FOLDER]]`.

Without options: every number of docs/claims.md is computed anew from the committed raw values, the verdict rules are
applied, and the result is compared with the page; exit code 1 if the page says anything else.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from claims.evaluate import Result, evaluate_all
from claims.page import render
from claims.registry import CLAIMS
from claims.rerun import CHEAP, rerun
from claims.runs import RUNS
from claims.sources import DOCS, Sources
from claims.tables import costs, verdicts

PAGE = DOCS / "claims.md"
SHOWN = 40  # lines of difference


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m claims", description="Recomputes every number and verdict of docs/claims.md from raw values."
    )
    what = made.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="write the page instead of comparing with it")
    what.add_argument("--list", action="store_true", help="names of claims and runs, with what they cost")
    what.add_argument(
        "--rerun", metavar="NAME", choices=[CHEAP, *RUNS, *(c.name for c in CLAIMS if c.runs)],
        help=f"run an experiment anew and compare: a run, a claim (all its runs), or '{CHEAP}' (some ten minutes)",
    )  # fmt: skip
    made.add_argument("--quick", action="store_true", help="with --rerun: see that it runs; decides nothing")
    made.add_argument(
        "--keep", action="store_true", help="with --rerun: put the new raw values in the place of the old"
    )
    made.add_argument("--root", type=Path, help="with --rerun: folder of data that a run needs")
    made.add_argument("--out", type=Path, default=Path("runs/claims"), help="with --rerun (default: %(default)s)")
    return made


def check(results: Sequence[Result], page: Path = PAGE) -> list[str]:
    """Lines in which the page differs from what the raw values give; empty if it says the same."""
    committed = page.read_text(encoding="utf-8").splitlines() if page.is_file() else []
    return list(
        difflib.unified_diff(committed, render(results).splitlines(), "the page", "the raw values", lineterm="", n=0)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks, writes, lists or runs; the exit code."""
    asked = parser().parse_args(arguments)
    if asked.list:
        costs()
        return 0
    if asked.rerun:
        return rerun(asked.rerun, out=asked.out, root=asked.root, is_quick=asked.quick, keep=asked.keep)
    results = evaluate_all(CLAIMS, Sources())
    if asked.write:
        from weightspace.files import write_text_atomically

        write_text_atomically(PAGE, render(results))
        print(f"wrote {PAGE}")
        return 0
    verdicts(results)
    differences = check(results)
    if differences:
        print("\n".join(differences[:SHOWN]))
        print(f"\n{PAGE} does not say what the raw values give; if they are right: python -m claims --write")
        return 1
    print(f"{sum(len(r.found) for r in results)} numbers and {len(results)} verdicts recomputed: {PAGE} says the same.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
