"""Brings CONTRIBUTING.md and CHANGELOG.md, which lie beside docs/, onto the site.

docs/contributing.md and docs/changelog.md are stubs that lead a reader of the repository to those files. On the site
each stub shows the file itself, and every link to the file leads to the stub's page.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# Pages of the site by the file that they show, relative to docs/.
SHOWN = {"../CONTRIBUTING.md": "contributing.md", "../CHANGELOG.md": "changelog.md", "../README.md": "index.md"}
_LINK = re.compile(r"\]\(([^()\s#:]+)(#[^()\s]*)?\)")


def rebased(text: str, page: str, base: str) -> str:
    """Markdown with its relative links led to pages of the site, as seen from another page.

    Args:
        text: The Markdown.
        page: The page that shows it, relative to docs/.
        base: The folder that its links start from, relative to docs/: `..` for files of the root.
    """

    def lead(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(base, link[1]))
        target = target.removeprefix("../docs/")
        target = posixpath.relpath(SHOWN.get(target, target), posixpath.dirname(page) or ".")
        return f"]({target}{link[2] or ''})"

    return _LINK.sub(lead, text)


def _read(app: Sphinx, docname: str, content: list[str]) -> None:
    page = f"{docname}.md"
    if app.env.doc2path(docname).suffix != ".md":
        return
    for file, stub in SHOWN.items():
        if page == stub and page != "index.md":
            source = Path(app.srcdir) / file
            app.env.note_dependency(str(source))
            content[0] = rebased(source.read_text(encoding="utf-8"), page, "..")
            return
    if any(posixpath.basename(file) in content[0] for file in SHOWN):
        content[0] = rebased(content[0], page, posixpath.dirname(page) or ".")


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers with Sphinx."""
    app.connect("source-read", _read, priority=400)  # before toctrees are added
    return {"parallel_read_safe": True, "parallel_write_safe": True}
