"""Writes formulas as MathML, which browsers set by themselves: no script, no LaTeX, no network.

The font is STIX Two Math (SIL Open Font License), copied at build time from the package `ziamath`. Where a browser does
not load it, a math font of the system takes its place.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

from docutils import nodes
from latex2mathml.converter import convert

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

FONT = "STIXTwoMath-Regular.ttf"
# Names of functions, which the converter sets like variables or like binary operators: too close, or too far apart.
_FUNCTION = re.compile(r"<m([io])>([A-Za-z]{2,})</m\1>(?=(<mo[^>]*>&#x00028;)?)")


def mathml(latex: str, *, block: bool) -> str:
    """A formula as a `<math>` element with its LaTeX as the accessible label."""
    element = convert(latex.strip(), display="block" if block else "inline")
    element = _FUNCTION.sub(_spaced, element)
    return element.replace("<math ", f"<math aria-label={quoteattr(' '.join(latex.split()))} ", 1)


def _spaced(function: re.Match[str]) -> str:
    """A function's name with a thin space before it, and one after it unless a parenthesis follows."""
    after = "0" if function[3] else "0.167em"
    return f'<mo form="prefix" lspace="0.167em" rspace="{after}">{function[2]}</mo>'


def _visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def _visit_block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def _copy_font(app: Sphinx, error: Exception | None) -> None:
    found = importlib.util.find_spec("ziamath")
    if error is None and found is not None and found.origin is not None and app.builder.format == "html":
        folder = Path(app.outdir) / "_static" / "fonts"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(found.origin).parent / "fonts" / FONT, folder / FONT)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers with Sphinx."""
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
    app.connect("build-finished", _copy_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
