"""Writes the table of rules in how-to-choose.md from the registry: `python docs/_registry_table.py`.

`tests/test_docs.py` fails while the page and the registry differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

from weightspace.files import write_text_atomically
from weightspace.registry import REGISTRY

PAGE = Path(__file__).with_name("how-to-choose.md")
BEGIN, END = "<!-- registry:begin -->", "<!-- registry:end -->"


def render() -> str:
    """The table as Markdown: a row for each rule of the registry, in its order."""
    lines = ["| rule | stage | what it does | choose it when | source | page |", "|---|---|---|---|---|---|"]
    for entry in REGISTRY.values():
        cells = (
            f"`{entry.name}`",
            entry.stage.name.lower(),
            entry.summary,
            entry.choose,
            entry.source,
            f"[{Path(entry.page).stem}]({entry.page})",
        )
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def replace_table(text: str) -> str:
    """The page's text with the table between its markers renewed.

    Raises:
        ValueError: A marker is missing or stands twice.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{PAGE.name} must hold {BEGIN} and {END} once each.")
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    return f"{head}{BEGIN}\n{render()}\n{END}{tail}"


def main() -> int:
    """Rewrites the page if its table is out of date; the exit code is 0."""
    old = PAGE.read_text(encoding="utf-8")
    new = replace_table(old)
    if new != old:
        write_text_atomically(PAGE, new)
        print(f"{PAGE.name}: table renewed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
