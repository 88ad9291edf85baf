"""Every fenced block that is no Python is accounted for: commands parse, recipes load, JSON and TOML are read.

Commands are read by the parser of the program that they call (`tests/page_commands.py`), recipes in YAML are loaded,
with what is left out taken from a bundled recipe. What is output goes into a `text` block, which may hold no command.
Cheap commands of the README are run here, all of them in the slow test.
"""

from __future__ import annotations

import json
import re

import pytest
import yaml

from page_commands import BadCommandError, check_command, is_command, shell_commands
from test_cli import call
from test_docs import PAGES, ROOT, Block, blocks, page_id
from weightspace.errors import WeightspaceError
from weightspace.training.recipe import Recipe, load_recipe

SHELL = {"bash", "sh", "console"}
DIAGRAM = re.compile(r"\s*(?:flowchart|graph|sequenceDiagram|classDiagram|stateDiagram|timeline)\b")
# Sections of a recipe that stand for themselves: replaced, not merged.
WHOLE = ("optimizer", "schedule", "compare", "sweep", "rules", "model", "data")


def check_block(block: Block) -> None:
    """Raises for a block that nobody could use as it stands."""
    if block.language in SHELL:
        commands = shell_commands(block.text, console=block.language == "console")
        if not commands:
            raise BadCommandError("no command in a block of commands; what is output is `text`")
        for words in commands:
            check_command(words)
    elif block.language == "yaml":
        check_yaml(block.text)
    elif block.language == "json":
        json.loads(block.text if block.text.lstrip().startswith(("{", "[")) else "{" + block.text + "}")
    elif block.language == "toml":
        check_toml(block.text)
    elif block.language == "mermaid":
        if not DIAGRAM.match(block.text):
            raise BadCommandError("no kind of diagram that is known")
    elif block.language == "text":
        hidden = [line for line in block.text.splitlines() if is_command(line)]
        if hidden:
            raise BadCommandError(f"a command in a block of output: {hidden[0]}")
    elif block.language != "python":  # tests/test_docs.py runs it
        raise BadCommandError(f"nobody checks blocks of the language {block.language!r}; name one that is checked")


def check_yaml(text: str) -> None:
    """A recipe; a part of one is put into a bundled recipe first. Other YAML has to be YAML."""
    part = yaml.safe_load(text)
    if not isinstance(part, dict):
        raise BadCommandError("not a mapping")
    if not set(part) <= set(Recipe.model_fields):
        return
    base = load_recipe("quickstart-sample" if "sample" in part else "quickstart").model_dump(mode="json")
    whole = dict(base) if not {"data", "model", "train"} <= set(part) else {}
    for key, value in part.items():
        inner = base.get(key)
        if key in WHOLE or not isinstance(inner, dict) or not whole:
            whole[key] = value
        else:
            whole[key] = {**inner, **value}
    Recipe.from_dict(whole)


def check_toml(text: str) -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    tomllib.loads(text)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_block_of_a_page_can_be_used_as_it_stands(page, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    for block in blocks(page.read_text(encoding="utf-8")):
        try:
            check_block(block)
        except (BadCommandError, WeightspaceError, ValueError, yaml.YAMLError) as error:
            pytest.fail(f"{page_id(page)}:{block.line}: {error}", pytrace=False)
