"""Leads the names in the tables of api/index.md to their own entries, not only to the module's page.

In the repository such a link opens the page; the place on the page exists only once Sphinx has set the docstrings.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_NAME = re.compile(r"\[`(\w+)`\]\(([\w.]+)\.rst\)")


def _read(app: Sphinx, docname: str, content: list[str]) -> None:
    if docname == "api/index":
        content[0] = _NAME.sub(r"{py:obj}`\1 <weightspace.\2.\1>`", content[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers with Sphinx."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
