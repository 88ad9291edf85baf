"""The column "hostile input": how many inputs were tried on everything that reads input, and what came of them.

Law: an input is accepted, or refused with one sentence. Nothing that is read runs a program or unpickles, nothing is
written outside of the folder that was named, and nothing is allocated because a file says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reliability.findings import Finding
from reliability.fuzz_data import DATA_TARGETS
from reliability.fuzz_files import FILE_TARGETS
from reliability.fuzz_guard import Target, judge
from reliability.fuzz_runs import RUN_TARGETS
from reliability.fuzz_source import RandomSource
from reliability.fuzz_texts import TEXT_TARGETS

TARGETS: tuple[Target, ...] = (*TEXT_TARGETS, *FILE_TARGETS, *DATA_TARGETS, *RUN_TARGETS)
_SHOWN = 5  # crashes whose text is kept


@dataclass
class Tally:
    """What came of the attempts on one target.

    Attributes:
        tried: Inputs.
        accepted: Read without complaint.
        refused: Refused with a sentence.
        crashes: Everything else, by seed: the law is broken.
    """

    tried: int = 0
    accepted: int = 0
    refused: int = 0
    crashes: dict[str, str] = field(default_factory=dict[str, str])


def attack(target: Target, count: int, first: int = 0) -> Tally:
    """Makes `count` attempts on a target; the same seeds give the same inputs.

    Args:
        target: What is attacked.
        count: How many attempts.
        first: Number of the first one.
    """
    if target.prepare is not None:
        target.prepare()
    tally = Tally()
    for number in range(first, first + count):
        seed = f"{target.name} {number}"
        outcome = judge(target.attempt, RandomSource(seed))
        tally.tried += 1
        tally.accepted += outcome.kind == "accepted"
        tally.refused += outcome.kind == "refused"
        if outcome.kind == "crash":
            tally.crashes[seed] = outcome.text
    return tally


def measure(*, quick: bool) -> list[Finding]:
    """One finding for each target, and their sum. Quick: minutes; whole: about an hour on one core."""
    findings: list[Finding] = []
    total = Tally()
    for target in TARGETS:
        tally = attack(target, target.quick if quick else target.full)
        findings.append(_finding(target.name, tally, target.text))
        total.tried += tally.tried
        total.accepted += tally.accepted
        total.refused += tally.refused
        total.crashes |= tally.crashes
    return [_finding("all targets", total, f"{len(TARGETS)} targets"), *findings]


def _finding(name: str, tally: Tally, what: str) -> Finding:
    text = (
        f"{name}: {tally.tried:,} inputs, {tally.refused:,} refused with a sentence, {tally.accepted:,} accepted, "
        f"{len(tally.crashes)} crashes"
    )
    details = {"target": name, "what": what, "tried": tally.tried, "refused": tally.refused, "accepted": tally.accepted}
    shown = {seed: text[-2000:] for seed, text in list(tally.crashes.items())[:_SHOWN]}
    return Finding("all", text, not tally.crashes, {**details, "crashes": len(tally.crashes), "shown": shown})
