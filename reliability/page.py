"""Writes the tables of docs/reliability.md from what was measured."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from reliability.findings import METHODS, kept
from weightspace.files import write_text_atomically

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
# Module of this package: heading in the table.
COLUMNS = {
    "ddp": "DDP",
    "fsdp2": "FSDP2",
    "resume": "resume after kill -9",
    "precision": "precision",
    "compilation": "torch.compile",
    "elastic": "elastic restart",
    "hostile": "hostile input",
}
_BY_METHOD = ("ddp", "fsdp2", "resume", "elastic", "precision", "compilation")


def machine() -> str:
    """Date, processor and torch, in a line."""
    import torch

    from weightspace.training.environment import machine as describe

    facts = describe()
    day = datetime.now(timezone.utc).date().isoformat()
    return f"{day}, {facts['processor']}, {facts['cores']} cores, torch {torch.__version__}"


def write_page(page: Path = PAGE) -> None:
    """Puts the tables between their markers."""
    text = page.read_text(encoding="utf-8")
    for name, table in (("methods", methods_table()), ("all", others_table())):
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = f"{head}{begin}\n{table}{end}{tail}"
    write_text_atomically(page, text)


def methods_table() -> str:
    """Methods by columns, and below it the command and machine of each column."""
    records = {column: kept(column) for column in _BY_METHOD}
    lines = [
        f"| method | {' | '.join(COLUMNS[c] for c in _BY_METHOD)} |",
        "|---" * (len(_BY_METHOD) + 1) + "|",
    ]
    for method in METHODS:
        cells = [_cell(records[column], method) for column in _BY_METHOD]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += ["", *(_origin(column, record) for column, record in records.items() if record is not None)]
    return "\n".join(lines) + "\n"


def others_table() -> str:
    """What does not depend on the method."""
    lines = ["| what | found |", "|---|---|"]
    origins: list[str] = []
    for column, heading in COLUMNS.items():
        record = kept(column)
        findings = [] if record is None else [f for f in record["findings"] if f["method"] not in METHODS]
        lines += [f"| {heading} | {_text(f)} |" for f in findings]
        if record is not None and findings and column not in _BY_METHOD:
            origins.append(_origin(column, record))
    return "\n".join([*lines, "", *origins]) + "\n"


def _cell(record: dict[str, Any] | None, method: str) -> str:
    findings = [] if record is None else [f for f in record["findings"] if f["method"] == method]
    return "; ".join(map(_text, findings)) or "not measured"


def _text(finding: dict[str, Any]) -> str:
    return finding["text"] if finding["holds"] else f"**does not hold**: {finding['text']}"


def _origin(column: str, record: dict[str, Any]) -> str:
    return f"- {COLUMNS[column]}: `{record['command']}`; {record['machine']}; every case in [{column}.json](reliability/{column}.json)."
