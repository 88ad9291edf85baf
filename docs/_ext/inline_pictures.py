"""Puts the drawings of `_static/pictures/` into the page itself, where they follow its light or dark theme.

As a plain image (on a repository's page) such an SVG follows the system's setting, by a rule of its own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_FOLDER = "_static/pictures/"


def _inline(app: Sphinx, doctree: nodes.document) -> None:
    for image in list(doctree.findall(nodes.image)):
        path = str(image["uri"])
        if _FOLDER not in path or not path.endswith(".svg"):
            continue
        file = Path(app.srcdir) / _FOLDER / Path(path).name
        app.env.note_dependency(str(file))
        svg = re.sub(r"<\?xml.*?\?>\s*", "", file.read_text(encoding="utf-8"))
        image.replace_self(nodes.raw("", f'<div class="picture">{svg}</div>', format="html"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers with Sphinx."""
    app.connect("doctree-read", _inline, priority=100)  # before Sphinx collects images as files
    return {"parallel_read_safe": True, "parallel_write_safe": True}
