"""The documentation keeps its word: its Python runs and prints what it says, its links lead somewhere.

A page's ```python blocks share one namespace. `# prints: text` promises a line of output, `>>>` blocks are doctests, a
block marked `<!-- output -->` is what the Python block before it printed. `<!-- no-run -->` exempts the next block.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NO_RUN, OUTPUT = "<!-- no-run -->", "<!-- output -->"
MOST_NO_RUN = 8
# Paths of the machine where pages are written, and hosts or options of package registries.
PRIVATE = re.compile(r"/(?:work|tmp|root|home)/|pypi\.|index-url|artifactory|localhost|127\.0\.0\.1")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line of its fence, and the marker on the line before, if any."""

    language: str
    text: str
    line: int
    marker: str


def blocks(page: str) -> Iterator[Block]:
    lines = page.splitlines()
    fence, language, start = "", "", 0
    for number, line in enumerate(lines):
        opened = re.match(r"\s*(`{3,})(\w*)", line)
        if not fence and opened:
            fence, language, start = opened[1], opened[2], number
        elif fence and line.strip() == fence:
            marker = lines[start - 1].strip() if start else ""
            yield Block(language, "\n".join(lines[start + 1 : number]) + "\n", start + 1, marker)
            fence = ""


def run_page(page: str, name: str) -> None:
    """Runs the Python of one page in one namespace and compares what it prints with what the page says."""
    namespace: dict[str, object] = {"__name__": "__page__"}
    printed = ""
    for block in blocks(page):
        place = f"{name}:{block.line}"
        if block.marker == OUTPUT:
            assert _stripped(printed) == _stripped(block.text), f"{place}: the output is\n{printed}"
        if block.language != "python" or block.marker == NO_RUN:
            continue
        if block.text.startswith(">>>"):
            _run_doctest(block, namespace, place)
            continue
        # Line numbers of a traceback are those of the page.
        code = compile("\n" * block.line + block.text, name, "exec")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, namespace)  # that the page runs is what is tested
        printed = out.getvalue()
        promised = re.findall(r"# prints: (.*)$", block.text, re.MULTILINE)
        if promised:
            assert printed.splitlines() == promised, place


def _run_doctest(block: Block, namespace: dict[str, object], place: str) -> None:
    test = doctest.DocTestParser().get_doctest(block.text, {}, place, place, block.line)
    test.globs = namespace
    report = io.StringIO()
    results = doctest.DocTestRunner(verbose=False).run(test, out=report.write, clear_globs=False)
    assert results.attempted, f"{place}: no example found"
    assert not results.failed, report.getvalue()


def _stripped(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def links(page: str) -> list[str]:
    """Targets of relative links, `#section` included; links in fenced blocks are none."""
    prose = re.sub(r"^(\s*`{3,}).*?^\s*`{3,}\s*$", "", page, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"\]\(([^()\s]+)\)", prose) + re.findall(r'(?:src|href)="([^"]+)"', prose)
    return [target for target in found if not re.match(r"[a-z][a-z+.-]*:", target)]


def anchors(page: str) -> set[str]:
    """Anchors of headings, as GitHub makes them."""
    prose = re.sub(r"^(\s*`{3,}).*?^\s*`{3,}\s*$", "", page, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+\s+(.+?)\s*$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in links(page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        goal = page.parent / path if path else page
        is_page = bool(anchor) and goal.suffix == ".md" and goal.is_file()
        if not goal.exists() or (is_page and anchor not in anchors(goal.read_text(encoding="utf-8"))):
            broken.append(target)
    return broken


def table_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_registry_table", ROOT / "docs" / "_registry_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# --------------------------------------------------------------------------- the pages


def _no_network(host, *_, **__):
    raise OSError(f"a page wants to reach {host}; mark the block {NO_RUN}")


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """An empty folder to run in, empty caches, no network, and torch's global state given back."""
    monkeypatch.chdir(tmp_path)
    for variable in ("XDG_CACHE_HOME", "HF_HOME", "WEIGHTSPACE_DATA"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    monkeypatch.setattr(socket, "getaddrinfo", _no_network)
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
@pytest.mark.usefixtures("workshop")
def test_the_python_of_a_page_runs_and_prints_what_it_says(page):
    run_page(page.read_text(encoding="utf-8"), page_id(page))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_lead_somewhere(page):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_no_page_mentions_a_private_path_or_a_registry(page):
    assert PRIVATE.findall(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_the_tests_that_a_page_names_exist(page):
    files = list((ROOT / "tests").rglob("test_*.py"))
    known = {file.stem for file in files}
    for file in files:
        known.update(re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8")))
    text = page.read_text(encoding="utf-8")
    # Elsewhere in prose `test_labels` and its like are attributes of data.
    section = text.partition("## How it is tested")[2]
    named = {*re.findall(r"\btest_\w+", section), *re.findall(r"tests/(test_\w+)", text)}
    assert named <= known, named - known


def test_few_blocks_are_not_run():
    skipped = [
        f"{page_id(page)}:{block.line}"
        for page in PAGES
        for block in blocks(page.read_text(encoding="utf-8"))
        if block.marker == NO_RUN
    ]
    assert len(skipped) <= MOST_NO_RUN, skipped


def test_every_page_is_in_the_index():
    index = ROOT / "docs" / "index.md"
    listed = {(index.parent / target).resolve() for target in links(index.read_text(encoding="utf-8"))}
    assert [page_id(page) for page in PAGES if page != index and page not in listed] == []


def test_the_table_of_rules_equals_the_registry():
    script = table_script()
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.replace_table(page) == page, "run: python docs/_registry_table.py"


# --------------------------------------------------------------------------- what the checks above would catch


def test_the_table_needs_its_markers():
    with pytest.raises(ValueError, match="once each"):
        table_script().replace_table("# no markers\n")


def test_a_rule_that_is_missing_from_the_table_is_found():
    script = table_script()
    stale = f"{script.BEGIN}\n| rule |\n|---|\n{script.END}\n{script.BEGIN_GATES}\n{script.END_GATES}\n"
    assert script.replace_table(stale) != stale
    assert "`ChannelL2`" in script.replace_table(stale)
    assert "`RandomGate`" in script.replace_table(stale).partition(script.BEGIN_GATES)[2]


@pytest.mark.parametrize(
    "page",
    [
        "```python\nprint(1 + 1)  # prints: 3\n```\n",
        "```python\n>>> 1 + 1\n3\n```\n",
        "```python\nprint(2)\n```\n\n<!-- output -->\n```text\n3\n```\n",
        "```python\nprint(2)  # prints: 2\nprint(3)\n```\n",
    ],
)
def test_a_wrong_output_is_found(page):
    with pytest.raises(AssertionError):
        run_page(page, "page.md")


def test_code_that_fails_is_found_and_marked_code_is_skipped():
    broken = "```python\nx = 1\n```\n\n```python\nraise KeyError(x)\n```\n"
    with pytest.raises(KeyError):
        run_page(broken, "page.md")
    run_page(broken.replace("```python\nraise", f"{NO_RUN}\n```python\nraise"), "page.md")
    run_page("```console\n$ not python\n```\n", "page.md")


def test_broken_links_and_sections_are_found(tmp_path):
    (tmp_path / "other.md").write_text("# Some Title, here\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#some-title-here) [c](https://example.org/x.md)\n```text\n[d](none.md)\n```\n"
        "[e](gone.md) [f](other.md#elsewhere) [g](#nowhere)\n",
        encoding="utf-8",
    )
    assert broken_links(page) == ["gone.md", "other.md#elsewhere", "#nowhere"]


@pytest.mark.parametrize("text", ["cd /home/me/project", "pip install --index-url x", "/tmp/x/venv/bin/python"])
def test_private_paths_are_found(text):
    assert PRIVATE.search(text)
