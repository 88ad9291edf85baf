"""Reads the docstrings' Markdown: Sphinx takes them for reStructuredText, which has other tables and other code.

Single backticks become code that links where they name something (the default role), tables become list tables, lists
and indented blocks get the empty lines that reStructuredText wants before them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx.domains.python import PyXRefRole
from sphinx.util.docutils import SphinxRole

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_RULE = re.compile(r"\s*\|[\s:|-]+\|\s*")
_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_ITEM = re.compile(r"(\s*)(?:[-*]|\d+\.) \S")


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def _table(rows: list[str]) -> list[str]:
    indent = rows[0][: len(rows[0]) - len(rows[0].lstrip())]
    lines = ["", f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
    for row in (rows[0], *rows[2:]):
        for number, cell in enumerate(_cells(row)):
            lines.append(f"{indent}   {'* -' if number == 0 else '  -'} {cell}".rstrip())
    return [*lines, ""]


def to_rst(lines: list[str]) -> list[str]:
    """A docstring's lines as reStructuredText."""
    out: list[str] = []
    position = 0
    while position < len(lines):
        line = lines[position]
        if position + 1 < len(lines) and line.lstrip().startswith("|") and _RULE.fullmatch(lines[position + 1]):
            end = position
            while end < len(lines) and lines[end].lstrip().startswith("|"):
                end += 1
            out += _table(lines[position:end])
            position = end
            continue
        item = _ITEM.match(line)
        if item and out and out[-1].strip() and not _continues_list(out, item[1]):
            out.append("")
        out.append(line)
        position += 1
    return out


def _continues_list(out: list[str], indent: str) -> bool:
    """Whether the lines above, back to an empty one, belong to a list of this indentation."""
    for line in reversed(out):
        if not line.strip():
            return False
        item = _ITEM.match(line)
        if item and item[1] == indent:
            return True
    return False


class Code(SphinxRole):
    """Text between single backticks: code, which links where it is the name of something documented."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """The role's nodes."""
        if _NAME.fullmatch(self.text):
            return PyXRefRole()("py:obj", self.rawtext, self.text, self.lineno, self.inliner)
        return [nodes.literal(self.rawtext, self.text, classes=["xref"])], []


def _without_colon(line: str) -> str:
    """A first line whose colon stands on the next: napoleon takes what is before it for the type of a property."""
    for space in re.finditer(" ", line.partition(":")[0] if ":" in line else ""):
        if line[: space.start()].count("`") % 2 == 0:  # not within code
            return f"{line[: space.start()]}\n{line[space.end() :]}"
    return line


def _process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    if what in {"property", "attribute", "data"} and lines:
        lines[:1] = _without_colon(lines[0]).splitlines()
    lines[:] = to_rst(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers with Sphinx."""
    app.add_role("code_or_link", Code())
    app.connect("autodoc-process-docstring", _process, priority=100)  # before napoleon reads sections
    return {"parallel_read_safe": True, "parallel_write_safe": True}
