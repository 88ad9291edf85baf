"""The documentation's site: what it is made of is complete, equal to its sources, and answers what a page must answer.

Sphinx is not needed here; `.ci/run` builds the site with `-W -n`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from test_architecture import ARROWS
from weightspace.registry import GATES, REGISTRY

DOCS = Path(__file__).parents[1] / "docs"
# What a page on an algorithm must answer, by the beginnings of headings that answer it.
FACTS = {
    "equation": r"Equations?\b",
    "source": r"(What is certain|What is from the paper|Sources?)\b",
    "law or guarantee": r"Guarantees?\b",
    "parameters": r"(Parameters|Options)\b",
    "cost": r"Cost\b",
    "when not to use it": r"When to use (it|them), and when not$",
}
ALGORITHMS = sorted(
    {entry.page for entry in (*REGISTRY.values(), *GATES.values())}
    | {"manifolds/level-set.md", "constrained-langevin.md", "submanifold-optimizers.md"}
    | {f"compress/{name}.md" for name in ("pruning", "shrinking", "sparse-files")}
)


def script(name: str) -> ModuleType:
    """A module of docs/, imported from its file."""
    path = DOCS / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def missing_facts(text: str) -> list[str]:
    """Facts of FACTS that no heading of a page promises, and a table of parameters without units."""
    headings = re.findall(r"^#{2,3} (.+?)\s*$", text, re.MULTILINE)
    missing = [fact for fact, heading in FACTS.items() if not any(re.match(heading, h) for h in headings)]
    tables = re.findall(r"^\| (?:name|option) \| unit, range \|", text, re.MULTILINE)
    return missing if tables else [*missing, "units of parameters"]


# --------------------------------------------------------------------------- pages on algorithms


@pytest.mark.parametrize("page", ALGORITHMS)
def test_a_page_on_an_algorithm_answers_six_questions(page):
    assert missing_facts((DOCS / page).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", [*REGISTRY, *GATES])
def test_every_option_is_on_its_page(name):
    entry = {**REGISTRY, **GATES}[name]
    text = (DOCS / entry.page).read_text(encoding="utf-8")
    rows = " ".join(line.split("|")[1] for line in text.splitlines() if re.match(r"\| `", line))
    options = [field.name for field in dataclasses.fields(entry.factory)]
    assert [option for option in options if f"`{option}`" not in rows] == []


def test_a_page_without_its_facts_is_found():
    assert missing_facts("# X\n\n## Equation\n\n## When to use it\n") == [
        "source", "law or guarantee", "parameters", "cost", "when not to use it", "units of parameters",
    ]  # fmt: skip


# --------------------------------------------------------------------------- pages made by scripts


@pytest.mark.parametrize("name", ["_gallery", "_cli"])
def test_a_page_equals_what_its_script_writes(name):
    module = script(name)
    assert module.PAGE.read_text(encoding="utf-8") == module.render(), f"run: python docs/{name}.py"


def test_the_pages_of_the_reference_equal_what_their_script_writes():
    pages = script("_api").pages()
    stale = [path.name for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    assert stale == [], "run: python docs/_api.py"
    assert {path.name for path in (DOCS / "api").iterdir()} == {path.name for path in pages}


def test_the_drawings_equal_what_their_script_draws():
    module = script("_pictures")
    for name, draw in module.PICTURES.items():
        assert (module.FOLDER / name).read_text(encoding="utf-8") == draw().svg(), "run: python docs/_pictures.py"


def test_the_drawing_of_the_rooms_is_that_of_the_imports():
    below: set[str] = set()
    for _, _, _, tiles in script("_pictures").ROOMS:
        for room in tiles:
            assert ARROWS.get(room, frozenset()) <= below, f"{room} stands too low"
            below.add(room)
    assert below - {"cli"} == set(ARROWS)


# --------------------------------------------------------------------------- the reference


def test_every_public_name_has_a_sentence():
    api = script("_api")
    names = [*api.top_level(), *(name for short in api.MODULES for name in api.names_of(short))]
    assert [f"{name.module}.{name.name}" for name in names if len(name.summary) < 8] == []


def test_every_public_class_and_function_has_a_docstring_of_its_own():
    api = script("_api")
    bare = []
    for short in api.MODULES:
        module = importlib.import_module(f"weightspace.{short}")
        for name in api.public_names(module):
            value = getattr(module, name)
            if api.is_documented(value) and not (inspect.getdoc(value) or "").strip():
                bare.append(f"{short}.{name}")
    assert bare == []


def test_the_package_gives_nothing_that_the_reference_leaves_out():
    api = script("_api")
    package = importlib.import_module("weightspace")
    modules = {name for name in package.__all__ if inspect.ismodule(getattr(package, name))}
    assert modules <= set(api.MODULES), "a new module of the public face: add it to MODULES in docs/_api.py"
    assert all(name.module for name in api.top_level()), "a name of ws.* that no module of the reference documents"


# --------------------------------------------------------------------------- navigation


def index_reader() -> ModuleType:
    return script("_ext/index_toctrees")


def test_the_sidebar_holds_every_page_once():
    sections = index_reader().read_index((DOCS / "index.md").read_text(encoding="utf-8"))
    entries = [page for pages in (*sections.captions.values(), *sections.below.values()) for page in pages]
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")} - {"index"}
    # The reference's own pages stand below its index, which names them all.
    assert sorted(entries) == sorted(pages)


def test_items_of_the_index_become_entries_with_pages_below_them():
    text = (
        "# T\n\n[intro](no.md)\n\n**Use**\n\n- [A](a.md): see [B](b/index.md) and [again](a.md#x), [out](../OUT.md).\n"
        "- [B](b/index.md), [C](c.rst)\n\n**See**\n\n- [D](d.md)\n"
    )
    sections = index_reader().read_index(text)
    assert sections.captions == {"Use": ["a", "c"], "See": ["d"]}
    assert sections.below == {"a": ["b/index"], "c": [], "d": []}


# --------------------------------------------------------------------------- reports and what Sphinx reads


def test_reports_are_whole_small_and_private_to_nobody():
    reports = sorted((DOCS / "gallery" / "reports").glob("*.html"))
    assert len(reports) >= 5
    assert sum(report.stat().st_size for report in reports) < 6_000_000
    for report in reports:
        assert report.stat().st_size < 1_500_000
        text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", report.read_text(encoding="utf-8"))
        assert re.findall(r"/(?:work|tmp|root|home)/\S*|(?:src|href)=\"https?:", text) == []
        assert f'href="gallery/reports/{report.name}"' in (DOCS / "gallery.md").read_text(encoding="utf-8")


def test_the_site_asks_no_other_host():
    for path in [*(DOCS / "_static").rglob("*.css"), *(DOCS / "_static").rglob("*.svg"), DOCS / "conf.py"]:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert re.findall(r"https?:", text) == [], path


def test_markdown_of_docstrings_becomes_restructured_text():
    pytest.importorskip("sphinx")
    lines = ["Text", "- one", "- two", "", "| a | b |", "|---|---|", "| `x \\| y` | 2 |"]
    found = script("_ext/markdown_docstrings").to_rst(lines)
    assert found[:4] == ["Text", "", "- one", "- two"]
    assert [line.strip() for line in found if line.strip()][-4:] == ["* - a", "- b", "* - `x | y`", "- 2"]


def test_links_out_of_the_docs_lead_to_pages_of_the_site():
    rebased = script("_ext/outside_pages").rebased
    assert rebased("[c](../CONTRIBUTING.md#laws) [t](../tests/x.py)", "index.md", ".") == (
        "[c](contributing.md#laws) [t](../tests/x.py)"
    )
    assert rebased("[c](../../CONTRIBUTING.md)", "metrics/a.md", "metrics") == "[c](../contributing.md)"
    assert rebased("[a](docs/attach.md#x) [l](LICENSE)", "contributing.md", "..") == "[a](attach.md#x) [l](../LICENSE)"
