"""Makes the site's navigation from the list of pages in index.md, so that the list is kept once.

A paragraph `**Caption**` opens a section of the sidebar. Every item of the list under it is an entry: the first page
that the item links to, with the item's other pages below it. A page belongs to the first item that names it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# A reference's own list: its pages of one module each are the entries below it.
_REFERENCE = "api/index"
_LINK = re.compile(r"\]\(([^()\s#]+\.(?:md|rst))(?:#[^()\s]*)?\)")


@dataclass
class Sections:
    """The pages of an index, by section, and the pages below a page.

    Attributes:
        captions: Pages by caption, in order.
        below: Pages below a page, in order.
    """

    captions: dict[str, list[str]] = field(default_factory=dict)
    below: dict[str, list[str]] = field(default_factory=dict)


def read_index(text: str) -> Sections:
    """The sections of an index page.

    Args:
        text: The Markdown of the index, its links relative to itself.

    Returns:
        Pages without their suffix. Links that leave the folder (`../`) are none of its pages.
    """
    sections, caption, seen = Sections(), "", set[str]()
    for line in text.splitlines():
        if heading := re.fullmatch(r"\*\*(.+)\*\*", line.strip()):
            caption = heading[1]
        if not line.startswith("- ") or not caption:
            continue
        links = (link.rpartition(".")[0] for link in _LINK.findall(line) if not link.startswith(".."))
        pages = [page for page in dict.fromkeys(links) if page not in seen]
        seen.update(pages)
        if pages:
            sections.captions.setdefault(caption, []).append(pages[0])
            sections.below[pages[0]] = pages[1:]
    return sections


def _toctree(pages: list[str], caption: str = "") -> str:
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["", "```{toctree}", *options, "", *(f"/{page}" for page in pages), "```", ""])


def _add_toctrees(app: Sphinx, docname: str, content: list[str]) -> None:
    sections = read_index((Path(app.srcdir) / "index.md").read_text(encoding="utf-8"))
    if docname == "index":
        content[0] += "".join(_toctree(pages, caption) for caption, pages in sections.captions.items())
    elif docname == _REFERENCE:
        pages = dict.fromkeys(link for link in _LINK.findall(content[0]) if link.endswith(".rst"))
        content[0] += _toctree([f"api/{page.removesuffix('.rst')}" for page in pages])
    elif below := sections.below.get(docname):
        content[0] += _toctree(below)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers with Sphinx."""
    app.connect("source-read", _add_toctrees)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
