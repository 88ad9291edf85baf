"""How Sphinx builds the site: `python -m sphinx -W --keep-going -n -b html docs site`.

Everything that a page loads lies beside it: no fonts, scripts or pictures from elsewhere, so the site works without a
network and from a folder. What Sphinx does not do by itself is in `_ext/`, one module for each thing.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "weightspace"
author = "The weightspace developers"
project_copyright = f"2026, {author}, Apache-2.0"
release = metadata.version("weightspace")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "index_toctrees",
    "outside_pages",
    "mathml",
    "inline_pictures",
    "markdown_docstrings",
    "api_links",
    "reports",
]
# `_ext`, `_static` and reports are no sources; folders of results hold pictures and numbers.
exclude_patterns = ["_*", "gallery/reports"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

# --------------------------------------------------------------------------- Markdown

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
html_math_renderer = "mathml"

# --------------------------------------------------------------------------- docstrings

default_role = "code_or_link"  # single backticks in docstrings: code, and a link where it names something
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autoclass_content = "class"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False
viewcode_line_numbers = True
# Trainers that a machine without their extra does not have.
autodoc_mock_imports = ["lightning", "transformers"]

# --------------------------------------------------------------------------- strictness

# `-n` warns of every name that leads nowhere. Names of other projects have no page here, and the site asks no network.
nitpick_ignore_regex = [
    ("py:obj", r".*"),  # the default role: most code in docstrings is no name of ours
    ("py:.*", r"(torch|numpy|np|nn|pathlib|collections|abc|enum|typing|typer|lightning|transformers|matplotlib)\..*"),
    ("py:.*", r"Tensor|Module|Optimizer|dict\[str"),
    ("py:class", r"weightspace\.\w+\.\w+\.\w+"),  # bases and types that their package does not give on
    # Type variables and aliases of types, which have no entry; each is told where it is used.
    ("py:class", r"[A-Z]|Application|Against|Groups|Grouping|Over|PenaltyPadding|Scope|Table|Variant"),
]

# --------------------------------------------------------------------------- looks

html_theme = "furo"
html_title = f"weightspace {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/mark.svg"
html_show_sphinx = False
html_copy_source = False
templates_path: list[str] = []
pygments_style = "friendly"
pygments_dark_style = "github-dark"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5f8b", "color-brand-content": "#1f5f8b"},
    "dark_css_variables": {"color-brand-primary": "#7fb8dd", "color-brand-content": "#7fb8dd"},
    "navigation_with_keys": True,
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
