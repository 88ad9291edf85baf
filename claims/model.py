"""What a claim is made of: paper, claim, numbers with their sources, and the runs that repeat them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from claims.intervals import Interval
from claims.verdicts import Condition, Rule

# A number from the parsed source file, at a confidence level.
Measure = Callable[[Any, float], Interval]


@dataclass(frozen=True)
class Paper:
    """Where claims come from.

    Attributes:
        key: Short name, the first part of the names of its claims.
        heading: Of its section on the page.
        authors: As printed.
        arxiv: Identifier; empty for this project.
        about: One or two sentences for somebody who never heard of it.
    """

    key: str
    heading: str
    authors: str
    arxiv: str
    about: str

    @property
    def link(self) -> str:
        """Authors and arXiv link, in Markdown."""
        return f"{self.authors}, [{self.arxiv}](https://arxiv.org/abs/{self.arxiv})" if self.arxiv else self.authors


@dataclass(frozen=True)
class Number:
    """One number of the page.

    Attributes:
        text: What it is, with its unit.
        source: File with the raw values, relative to docs/.
        how: How it is computed from them, in words.
        measure: The computation.
        condition: Where it must lie; None for what is shown and decides nothing.
        form: Format of mean and ends.
        is_time: It depends on the machine, so a rerun shows it and does not judge it.
    """

    text: str
    source: str
    how: str
    measure: Measure
    condition: Condition | None = None
    form: str = "+.2f"
    is_time: bool = False


@dataclass(frozen=True)
class Claim:
    """A claim and how it was tested.

    Attributes:
        name: For the command line: paper's key, a dash, a few words.
        paper: Whose claim, or whose method a question of ours is about.
        text: The claim in plain words.
        tested: Task, arms, metric.
        refuted_by: What would have refuted it.
        limits: One sentence on what limits the verdict.
        numbers: The first that decides is the one in the table of verdicts.
        rule: How outcomes become the verdict.
        unit_of_n: What n counts.
        report: Page with the whole story, relative to docs/.
        is_papers: Whether the paper says it; otherwise it is a question of ours or a claim of this project.
        runs: Names of the runs that make the numbers (`claims.runs`).
        pictures: Of the results, relative to docs/.
        extra: A source file and what makes lines of Markdown of it, such as a table of all means.
    """

    name: str
    paper: Paper
    text: str
    tested: str
    refuted_by: str
    limits: str
    numbers: tuple[Number, ...]
    report: str
    rule: Rule = "all"
    unit_of_n: str = "seeds"
    is_papers: bool = True
    runs: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    extra: tuple[str, Callable[[Any], list[str]]] | None = None

    @property
    def decisive(self) -> tuple[Number, ...]:
        """Numbers with a condition."""
        return tuple(number for number in self.numbers if number.condition is not None)


@dataclass(frozen=True)
class Run:
    """A command that makes raw values anew.

    Attributes:
        name: For `--rerun`.
        arguments: After `python -m`; {out} is the folder it writes to, {root} the user's folder of data.
        produces: Source file (relative to docs/) by the file of that folder which replaces it.
        minutes: About how long on two cores; None where it was not recorded.
        cost: What was run, in words.
        quick: Arguments added by `--quick`, which shows that it runs and decides nothing.
        needs: Data that is not installed with weightspace, in words; empty for none.
        then: Arguments of a second command, which collects what the first one left.
    """

    name: str
    arguments: tuple[str, ...]
    produces: Mapping[str, str]
    minutes: float | None
    cost: str
    quick: tuple[str, ...] = field(default=())
    needs: str = ""
    then: tuple[str, ...] = ()

    def commands(self, out: str, root: str = "FOLDER", *, is_quick: bool = False) -> list[list[str]]:
        """What follows `python -m`, with both folders filled in; one command or two."""
        lines = [(*self.arguments, *(self.quick if is_quick else ())), self.then]
        return [[word.replace("{out}", out).replace("{root}", root) for word in line] for line in lines if line]

    @property
    def needs_root(self) -> bool:
        """Whether it reads the user's folder of data."""
        return any("{root}" in word for word in self.arguments)
