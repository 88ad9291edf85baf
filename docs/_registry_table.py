"""Writes the tables of rules and gates in how-to-choose.md from the registry: `python docs/_registry_table.py`.

`tests/test_docs.py` fails while the page and the registry differ.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from weightspace.files import renew_text
from weightspace.registry import GATES, REGISTRY, GateEntry, RuleEntry

PAGE = Path(__file__).with_name("how-to-choose.md")
BEGIN, END = "<!-- registry:begin -->", "<!-- registry:end -->"
BEGIN_GATES, END_GATES = "<!-- gates:begin -->", "<!-- gates:end -->"


def render() -> str:
    """The table of rules as Markdown: a row for each rule of the registry, in its order."""
    return _table(("rule", "stage", "what it does"), REGISTRY)


def render_gates() -> str:
    """The table of gates, likewise."""
    return _table(("gate", "what it does"), GATES)


def _table(head: tuple[str, ...], entries: Mapping[str, RuleEntry] | Mapping[str, GateEntry]) -> str:
    titles = (*head, "choose it when", "source", "page")
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for entry in entries.values():
        stage = (entry.stage.name.lower(),) if isinstance(entry, RuleEntry) else ()
        page = f"[{Path(entry.page).stem}]({entry.page})"
        cells = (f"`{entry.name}`", *stage, entry.summary, entry.choose, entry.source, page)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def replace_table(text: str) -> str:
    """The page's text with the tables between their markers renewed.

    Raises:
        ValueError: A marker is missing or stands twice.
    """
    for begin, end, table in ((BEGIN, END, render()), (BEGIN_GATES, END_GATES, render_gates())):
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{PAGE.name} must hold {begin} and {end} once each.")
        head, _, rest = text.partition(begin)
        tail = rest.partition(end)[2]
        text = f"{head}{begin}\n{table}\n{end}{tail}"
    return text


def main() -> int:
    """Rewrites the page if a table is out of date; the exit code is 0."""
    if renew_text(PAGE, replace_table(PAGE.read_text(encoding="utf-8"))):
        print(f"{PAGE.name}: tables renewed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
