"""All checks in one list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from weightspace.doctor.data_sets import data_sets
from weightspace.doctor.extras import companions, extra_findings, own_requirements
from weightspace.doctor.finding import Finding
from weightspace.doctor.machine import places, python, system, threads
from weightspace.doctor.packages import installed_version
from weightspace.doctor.self_test import self_tests
from weightspace.doctor.torch_build import torch_findings


@dataclass(frozen=True)
class Examination:
    """What was found, in the order of the checks."""

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> list[Finding]:
        """What does not or will not work."""
        return [finding for finding in self.findings if finding.status == "problem"]

    def figures(self) -> dict[str, object]:
        """All of it, for JSON: `{"healthy": bool, "findings": [{"name", "status", "found", "cure"}, ...]}`."""
        return {"healthy": not self.problems, "findings": [asdict(finding) for finding in self.findings]}


def examine(folder: Path | None = None) -> Examination:
    """Look at this installation and this machine.

    Writes one empty temporary file into each folder that it asks about, and deletes it. Cost: a few seconds, most of
    them for importing packages.

    Args:
        folder: Where runs would go; `runs` in the current folder by default.
    """
    found: list[Finding] = []
    for check in _checks(Path("runs") if folder is None else folder):
        found.extend(check())
    return Examination(tuple(found))


def _checks(folder: Path) -> Iterator[Callable[[], list[Finding]]]:
    yield lambda: [weightspace(), python(), system()]
    yield lambda: [*torch_findings(), threads()]
    yield lambda: [*own_requirements(), *extra_findings(), *companions()]
    yield lambda: list(data_sets())
    yield lambda: list(places(folder.absolute()))
    yield lambda: list(self_tests())


def weightspace() -> Finding:
    """Which weightspace this is, and where it lies."""
    import weightspace

    where = Path(weightspace.__file__).parent
    return Finding("weightspace", "ok", f"{installed_version('weightspace')}, {where}")
