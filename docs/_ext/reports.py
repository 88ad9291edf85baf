"""Copies the gallery's reports, which are whole pages of their own, to the same place on the site."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_FOLDER = "gallery/reports"


def _copy(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        shutil.copytree(Path(app.srcdir) / _FOLDER, Path(app.outdir) / _FOLDER, dirs_exist_ok=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers with Sphinx."""
    app.connect("build-finished", _copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
