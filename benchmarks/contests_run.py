"""Measures contests and scaling plots, merges them into docs/benchmarks/contests.json, writes the pages from it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import contests_page, contests_scaling
from benchmarks.contests import Rates, Settings, measure, measured_rates, missing
from benchmarks.contests_list import CONTESTS
from benchmarks.timing import machine
from weightspace.files import write_json_atomically, write_text_atomically

DOCS = Path(__file__).parents[1] / "docs"
SCALING = {f"scaling-{name}": name for name in contests_scaling.PLOTS}
NAMES = [*CONTESTS, *SCALING]
# What is imported, and the distribution that brings it.
PEERS = {
    "geoopt": "geoopt",
    "geotorch": "geotorch",
    "pogo": "pogo-torch",
    "pytorch_optimizer": "pytorch_optimizer",
    "deel.torchlip": "deel-torchlip",
    "orthogonium": "orthogonium",
}
Data = dict[str, Any]


def run(names: Iterable[str], settings: Settings, command: str, *, docs: Path | None) -> Data:
    """Measures what is named; with a folder, what was measured is kept there after every contest, and both pages."""
    wanted = set(names)
    data = _known(docs) if docs is not None else {"contests": {}, "scaling": {}}
    rates = measured_rates(settings)
    setting = {
        "machine": machine(),
        "clock": settings.clock,
        "rates": {"bandwidth": rates.bandwidth, "flops": rates.flops},
    }
    data |= {"format": 1, "command": command, "date": _today(), "machine": machine(), **_packages()}
    for name, contest in CONTESTS.items():
        if name in wanted:
            data["contests"][name] = measure(contest, settings, rates) | {"date": _today(), **setting}
            print(
                f"{contest.title}: {data['contests'][name]['verdict']}, {_summary(data['contests'][name])}", flush=True
            )
            _keep(data, docs)
    for name in SCALING:
        if name in wanted:
            _scale(name, data, settings, rates, docs)
            _keep(data, docs)
    return data


def _scale(name: str, data: Data, settings: Settings, rates: Rates, docs: Path | None) -> None:
    plot = contests_scaling.measure(SCALING[name], settings, rates)
    data["scaling"][SCALING[name]] = plot | {"date": _today(), "machine": machine(), "clock": settings.clock}
    if docs is not None:
        contests_scaling.draw(
            plot, docs / "benchmarks" / f"{name}.png", f"{machine()}, {settings.clock} clock, {_today()}"
        )
    print(f"{name}: measured", flush=True)


def write_pages(docs: Path, data: Mapping[str, Any] | None = None) -> None:
    """From the file alone, so that they can be written anew without measuring."""
    found = _known(docs) if data is None else data
    write_text_atomically(docs / "benchmarks.md", contests_page.render(found))
    write_text_atomically(docs / "benchmarks-contests.md", contests_page.render_details(found))


def _keep(data: Data, docs: Path | None) -> None:
    if docs is None:
        return
    data["contests"] = {name: data["contests"][name] for name in CONTESTS if name in data["contests"]}
    data["scaling"] = {name: data["scaling"][name] for name in contests_scaling.PLOTS if name in data["scaling"]}
    known = {*data["contests"], *(f"scaling-{name}" for name in data["scaling"])}
    data["unmeasured"] = [name for name in NAMES if name not in known]
    write_json_atomically(docs / "benchmarks" / "contests.json", data)
    write_pages(docs, data)


def _known(docs: Path) -> Data:
    path = docs / "benchmarks" / "contests.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"contests": {}, "scaling": {}}


def _packages() -> Data:
    """Versions of what is there, reasons for what is not."""
    reasons = {module: missing(module) for module in PEERS}
    versions = {name: metadata.version(name) for name in ("torch", "numpy")} | {"Python": platform.python_version()}
    for module, name in PEERS.items():
        if not reasons[module]:
            versions[name] = metadata.version(name)
    return {"versions": versions, "missing": {PEERS[m]: why for m, why in reasons.items() if why}}


def _summary(contest: Mapping[str, Any]) -> str:
    if contest["ratio"] is None:
        return "no peer answers" if contest["ours"] else "no answer"
    lower, middle, upper = contest["ratio"]
    return f"{contest['rival']} / {contest['ours']} = {middle:.2f} ({lower:.2f}-{upper:.2f})"


def _today() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d")
