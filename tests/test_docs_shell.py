"""Every fenced block that is no Python is accounted for: commands parse, recipes load, JSON and TOML are read.

Commands are read by the parser of the program that they call (`tests/page_commands.py`), recipes in YAML are loaded,
with what is left out taken from a bundled recipe. What is output goes into a `text` block, which may hold no command.
Two cheap commands of the README are run; the slow test runs those of the first pages one after the other, as a reader
would, on digits and on made-up data of the right shapes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from page_commands import BadCommandError, check_command, is_command, shell_commands
from test_cli import call
from test_data_formats import write_idx
from test_docs import PAGES, ROOT, Block, blocks, page_id
from weightspace.errors import WeightspaceError
from weightspace.training.recipe import Recipe, load_recipe
from weightspace.training.recipe_yaml import parse_yaml

SHELL = {"bash", "sh", "console"}
DIAGRAM = re.compile(r"\s*(?:flowchart|graph|sequenceDiagram|classDiagram|stateDiagram|timeline)\b")
# Sections of a recipe that stand for themselves: replaced, not merged.
WHOLE = ("optimizer", "schedule", "compare", "sweep", "rules", "model", "data")


SYNOPSES = "docs/cli.md"  # made from the commands themselves


def check_block(block: Block, page: str = "page.md") -> None:
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
    elif block.language == "text" and page != SYNOPSES:
        hidden = [line for line in block.text.splitlines() if is_command(line)]
        if hidden:
            raise BadCommandError(f"a command in a block of output: {hidden[0]}")
    elif block.language not in {"python", "text"}:  # tests/test_docs.py runs it
        raise BadCommandError(f"nobody checks blocks of the language {block.language!r}; name one that is checked")


def check_yaml(text: str) -> None:
    """A recipe; a part of one is put into a bundled recipe first. Other YAML has to be YAML."""
    part = parse_yaml(text, "the block")  # as recipes are read: YAML's own `on` would be a truth value
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


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=page_id)
def test_every_block_of_a_page_can_be_used_as_it_stands(page, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    assert unusable(page.read_text(encoding="utf-8"), page_id(page)) == []


def unusable(page: str, name: str) -> list[str]:
    """Every block that nobody could use as it stands, with the reason."""
    found = []
    for block in blocks(page):
        try:
            check_block(block, name)
        except (BadCommandError, WeightspaceError, ValueError) as error:
            found.append(f"{name}:{block.line}: {error}")
    return found


# --------------------------------------------------------------------------- what the checks above would catch


def test_commands_are_told_apart():
    text = """# a comment
A=1 B='x y' weightspace train quickstart \\
    --set "rules=[
  {rule: L1}]"  # why
python a.py && pip install x | cat; cd there
"""
    assert shell_commands(text, console=False) == [
        ["weightspace", "train", "quickstart", "--set", "rules=[\n  {rule: L1}]"],
        ["python", "a.py"],
        ["pip", "install", "x"],
        ["cat"],
        ["cd", "there"],
    ]
    session = "$ weightspace recipes \\\n  --help\nsome output\n$ cd there\n"
    assert shell_commands(session, console=True) == [["weightspace", "recipes", "--help"], ["cd", "there"]]
    with pytest.raises(BadCommandError, match="never closed"):
        shell_commands("echo 'open\n", console=False)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("weightspace", "prints its help"),
        ("weightspace trian quickstart", "no command trian"),
        ("weightspace train quickstart --epochs 3", "No such option"),
        ("weightspace train quickstrat", "quickstart"),
        ("weightspace train quickstart --set train.epoch=3", "train.epochs"),
        ("weightspace compare verses-transformer", "has no compare"),
        ("weightspace sample quickstart", "has no sample"),
        ("weightspace doctor --jsn", "unrecognized"),
        ("torchrun --nproc-per-node 2 -m weightspace train quickstart --stratgy ddp", "No such option"),
        ("torchrun --nproc-per-node 2 nothing.py", "nothing.py does not exist"),
        ("python -m benchmarks --onyl sphere", "unrecognized"),
        ("python -m reliability --only nothing", "invalid choice"),
        ("python -m experiments.nothing", "no module"),
        ("python examples/nothing.py", "does not exist"),
        ("python -m pytest tests/test_nothing.py", "does not exist"),
        ('python -m pip install -c constraint.txt ".[train]"', "does not exist"),
        ('pip install "weightspace[trian]"', "no extra trian"),
        ("rm -rf runs", "no program"),
    ],
)
def test_commands_that_no_longer_work_are_found(command, reason, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    (problem,) = unusable(f"```bash\n{command}\n```\n", "page.md")
    assert reason in problem


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("```\nplain\n```", "language ''"),
        ("```ini\n[a]\n```", "language 'ini'"),
        ("```text\nweightspace recipes\n```", "a command in a block of output"),
        ("```console\noutput alone\n```", "no command"),
        ("```json\n{1}\n```", "Expecting"),
        ("```mermaid\nflow LR\n```", "diagram"),
        ("```yaml\n- a\n```", "not a mapping"),
        ("```yaml\ntrain: {epoch: 3}\n```", "train.epochs"),
        ("```yaml\nrules: [{rule: L3, weight: 1.0}]\n```", "L3"),
    ],
)
def test_blocks_that_nobody_could_use_are_found(block, reason):
    (problem,) = unusable(block + "\n", "page.md")
    assert reason in problem


# --------------------------------------------------------------------------- they run


def commands_of(page: str) -> list[list[str]]:
    """Every `weightspace` command of a page, in its order."""
    shown = [block for block in blocks((ROOT / page).read_text(encoding="utf-8")) if block.language in SHELL]
    commands = [words for b in shown for words in shell_commands(b.text, console=b.language == "console")]
    return [words for words in commands if words[0] == "weightspace"]


def test_the_cheapest_commands_of_the_readme_run():
    cheap = [words for words in commands_of("README.md") if words[1] in {"recipes", "show"}]
    assert cheap
    for _, *words in cheap:
        code, out, _ = call(*words)
        assert code == 0
        assert out


# A reader's commands, made short: fewer seeds, epochs and images; no tuning.
SHORT = {
    "train": ["--set", "train.epochs=1", "--set", "train.schedule.warmup_epochs=0"],
    "compare": [
        *("--set", "compare.seeds=1", "--set", "compare.tune=null", "--workers", "2"),
        *("--set", "train.epochs=1", "--set", "train.schedule.warmup_epochs=0", "--set", "train.evaluate_every=1"),
    ],
}
FEW = ["--set", "data.train_size=200", "--set", "data.test_size=50"]


@pytest.mark.slow
def test_the_commands_of_the_first_pages_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIGHTSPACE_DATA", str(tmp_path / "data"))
    write_idx(tmp_path / "data" / "fashion-mnist", train=400, test=100)
    write_cifar(tmp_path / "data" / "cifar10", images=400)
    commands = [*commands_of("docs/start.md"), *commands_of("README.md")]
    assert len(commands) >= 8
    for _, name, *words in commands:
        short = SHORT.get(name, [])
        few = FEW if short and words[0] != "quickstart" else []
        command = [sys.executable, "-m", "weightspace", name, *words, *short, *few]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, f"{name} {words}: {done.stdout}{done.stderr}"
    assert (tmp_path / "inspect.html").stat().st_size > 0
    assert (tmp_path / "runs" / "cifar10-vgg" / "report.html").stat().st_size > 0


def write_cifar(folder, *, images: int) -> None:
    """CIFAR-10 in its binary version: five training files and a test file of noise."""
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        labels = [index % 10 for index in range(images // 5)]
        (folder / name).write_bytes(b"".join(bytes([label]) + os.urandom(3072) for label in labels))
