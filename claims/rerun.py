"""Runs experiments anew and says whether the new interval agrees with the page's."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from claims.evaluate import Found, Result, evaluate_all
from claims.model import Run
from claims.registry import CLAIMS
from claims.runs import RUNS, cheap_runs
from claims.sources import DOCS, ROOT, Sources

CHEAP = "cheap"


def all_cheap() -> Run:
    """All short measurements in one process, which starts once."""
    cheap = cheap_runs()
    names = [run.name for run in cheap]
    produces = {source: file for run in cheap for source, file in run.produces.items()}
    minutes = sum(run.minutes or 0.0 for run in cheap)
    words = ("claims.measurements", *names, "--out", "{out}")
    return Run(CHEAP, words, produces, minutes, "all short measurements", quick=("--quick",))


def runs_of(name: str) -> list[Run]:
    """The runs of a name: all cheap ones, one run, or those of a claim."""
    if name == CHEAP:
        return [all_cheap()]
    if name in RUNS:
        return [RUNS[name]]
    claim = next(claim for claim in CLAIMS if claim.name == name)
    return [RUNS[run] for run in claim.runs]


def rerun(name: str, *, out: Path, root: Path | None = None, is_quick: bool = False, keep: bool = False) -> int:
    """Runs and compares.

    Args:
        name: A run, a claim, or "cheap".
        out: Folder; each run writes to a folder of its own name in it.
        root: The user's folder of data, for runs that need one.
        is_quick: Show that it runs: new numbers are printed, not judged.
        keep: Put the new raw values in the place of the committed ones.

    Returns:
        0 if all runs ended and every number agrees, 1 otherwise, 2 if something is missing.
    """
    console, agree = Console(), True
    for run in runs_of(name):
        if root is None and run.needs_root:
            print(f"{run.name} needs {run.needs}: give its folder with --root FOLDER", file=sys.stderr)
            return 2
        folder = (out / (f"{run.name}-quick" if is_quick else run.name)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if not all(_execute(words, console) for words in run.commands(str(folder), _folder(root), is_quick=is_quick)):
            agree = False
            continue
        if not run.produces:
            console.print(
                f"{run.name} writes its own files in docs/: python -m claims says whether the page still agrees"
            )
            continue
        agree &= compare(run, folder, console, is_quick=is_quick)
        if keep and not is_quick:
            for source, file in run.produces.items():
                (DOCS / source).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, DOCS / source)
    return 0 if agree else 1


def compare(run: Run, folder: Path, console: Console, *, is_quick: bool) -> bool:
    """Prints old and new numbers side by side; whether all agree."""
    instead = {source: folder / file for source, file in run.produces.items()}
    touched = [claim for claim in CLAIMS if any(number.source in instead for number in claim.numbers)]
    committed = Sources()
    if not all(committed.exists(source) for source in instead):
        console.print(f"{run.name}: nothing committed to compare with")
        return True
    old, new = evaluate_all(touched, committed), evaluate_all(touched, Sources(instead=instead))
    table = Table(title=f"{run.name}: the page and now" + (" (quick: not comparable)" if is_quick else ""))
    for column in ("claim", "number", "page", "now", "agrees"):
        table.add_column(column, overflow="fold")
    whole = True
    for before, after in zip(old, new, strict=True):
        for one, other in zip(before.found, after.found, strict=True):
            if one.number.source in instead:
                does = one.number.is_time or agrees(one, other)
                whole &= does
                table.add_row(
                    before.claim.name,
                    one.number.text,
                    one.value,
                    other.value,
                    "–" if is_quick or one.number.is_time else "yes" if does else "NO",
                )
        table.add_row(
            before.claim.name,
            "verdict",
            before.verdict.value,
            after.verdict.value,
            "–" if is_quick else _same(before, after),
            end_section=True,
        )
    console.print(table)
    return whole or is_quick


def agrees(old: Found, new: Found) -> bool:
    """Whether both say the same: intervals that overlap, or for exact numbers and conditions the same outcome.

    A number with a condition that has no interval, or one of width zero, agrees if the condition ends the same way:
    errors of rounding differ from machine to machine.
    """
    a, b = old.interval, new.interval
    if a.low is None or a.high is None or b.low is None or b.high is None or a.is_exact or b.is_exact:
        if old.outcome is not None:
            return old.outcome == new.outcome
        return abs(a.mean - b.mean) <= 0.1 * abs(a.mean)
    return a.low <= b.high and b.low <= a.high


def _same(before: Result, after: Result) -> str:
    return "yes" if before.verdict is after.verdict else "NO"


def _execute(words: list[str], console: Console) -> bool:
    """Runs `python -m` with these words in the repository's root; whether it ended well."""
    console.print(f"[bold]python -m[/bold] {shlex.join(words)}", highlight=False, soft_wrap=True)
    started = time.perf_counter()
    command = [sys.executable, "-m", *words]
    code = subprocess.run(command, cwd=ROOT, env=_environment(), check=False).returncode  # noqa: S603 - words of our own
    console.print(f"{time.perf_counter() - started:.0f} s, exit code {code}", highlight=False)
    return code == 0


def _folder(root: Path | None) -> str:
    return "" if root is None else str(root.absolute())


def _environment() -> dict[str, str]:
    """One thread a run, as everything here was measured, unless the user says otherwise."""
    return {"OMP_NUM_THREADS": "1", **os.environ}
