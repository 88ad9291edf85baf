"""What `python -m claims` prints, as tables of rich."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from claims.evaluate import Result
from claims.registry import CLAIMS
from claims.runs import RUNS, duration
from claims.verdicts import Verdict

_COLORS = {
    Verdict.REPRODUCED: "green",
    Verdict.HOLDS: "green",
    Verdict.IN_PART: "yellow",
    Verdict.HOLDS_IN_PART: "yellow",
    Verdict.NOT: "red",
    Verdict.DOES_NOT_HOLD: "red",
}


def verdicts(results: Sequence[Result]) -> None:
    """One row a claim: verdict, n, a number that decides, how many conditions hold."""
    table = Table(title="claims, recomputed from raw values", expand=False)
    for column in ("claim", "verdict", "n", "a number that decides", "conditions"):
        table.add_column(column, overflow="fold", justify="right" if column == "n" else "left")
    for result in results:
        color, key = _COLORS.get(result.verdict, "dim"), result.key
        table.add_row(
            result.claim.name,
            f"[{color}]{result.verdict.value}[/{color}]",
            str(key.interval.n) if key else "–",
            f"{key.number.text}: {key.value}" if key else "–",
            result.tally if key else "–",
        )
    Console(width=None if Console().is_terminal else 160).print(table)


def costs() -> None:
    """One row a run: what it costs, which claims it is for."""
    table = Table(title="python -m claims --rerun NAME (or the name of a claim)", expand=False)
    for column in ("run", "time", "what", "needs", "claims"):
        table.add_column(column, overflow="fold")
    for run in RUNS.values():
        claims = [claim.name for claim in CLAIMS if run.name in claim.runs]
        table.add_row(run.name, duration(run), run.cost, run.needs or "–", ", ".join(claims))
    Console(width=None if Console().is_terminal else 160).print(table)
