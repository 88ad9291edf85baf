"""Commands in fenced blocks of pages, checked by the parsers that would read them; nothing is run."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import typer

from weightspace.cli import doctor
from weightspace.cli.app import app
from weightspace.errors import WeightspaceError
from weightspace.training.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[1]
# Programs of the system, and what only a terminal can show: nobody here knows their options.
FOREIGN = frozenset({"mkdir", "cp", "cd", "export", "source", "git", "ray", "apt-get", "pre-commit", "ruff", "pyright"})
# Settings of a recipe that a command needs.
NEEDS = {"compare": "compare", "tolerance": "sweep", "sample": "sample"}
_OURS = re.compile(r"^\$?\s*(?:weightspace|torchrun|pip|python -m|python \w+\.py)\s(?!.*\[OPTIONS\])")


class BadCommandError(Exception):
    """A command that its own parser refuses, or that names what does not exist."""


def shell_commands(text: str, *, console: bool) -> list[list[str]]:
    """Words of every command of a block.

    Args:
        text: The block. Comments, continued lines, quotes over several lines, `&&`, `;`, `|` and variables set in
            front of a command are understood.
        console: Whether commands stand behind `$ ` and everything else is output.
    """
    if console:
        text = "".join(_typed(text))
    found: list[list[str]] = []
    for line in _logical_lines(text):
        command: list[str] = []
        for word in _words(line):
            if word in {"&&", "||", ";", "|", "&"}:
                while command and re.fullmatch(r"[A-Z_]+=.*", command[0], re.DOTALL):
                    command.pop(0)
                if command:
                    found.append(command)
                command = []
            else:
                command.append(word)
    if found and all(command[0] == "--set" for command in found):
        return [[word for command in found for word in command]]  # each may build on those above it
    return found


def _words(line: str) -> Iterator[str]:
    """Words of a line, with a `;` that clings to one as a word of its own, and one at the end."""
    for word in shlex.split(line, comments=True):
        yield word.removesuffix(";")
        if word.endswith(";"):
            yield ";"
    yield ";"


def _typed(text: str) -> Iterator[str]:
    """What was typed in a terminal session: lines behind `$ `, and those that continue them."""
    goes_on = False
    for line in text.splitlines(keepends=True):
        if line.startswith("$ ") or goes_on:
            yield line.removeprefix("$ ")
            goes_on = line.rstrip().endswith("\\")


def _logical_lines(text: str) -> Iterator[str]:
    """Lines, joined while a quote is open or a backslash ends them."""
    line = ""
    for part in text.replace("\\\n", " ").splitlines():
        line += part + "\n"
        try:
            shlex.split(line, comments=True)
        except ValueError:  # a quote is open
            continue
        yield line
        line = ""
    if line:
        raise BadCommandError(f"a quote is never closed: {line.strip()}")


def is_command(line: str) -> bool:
    """Whether a line looks like a command of ours, which must not hide in a block of another language."""
    return _OURS.match(line) is not None


def check_command(words: list[str]) -> None:
    """Have a command parsed by what would parse it.

    Raises:
        BadCommandError: It would be refused.
    """
    program, *rest = words
    if program == "--set":  # a list of options by themselves: they fit the first recipe of the documentation
        _check_weightspace(["show", "quickstart", *words])
    elif program == "weightspace":
        _check_weightspace(rest)
    elif program in {"python", "python3"}:
        _check_python(rest)
    elif program == "pip":
        _check_pip(rest)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        options = _parsed(get_args_parser(), rest)
        check_command(
            [
                *(["python", "-m"] if options.module else ["python"]),
                options.training_script,
                *options.training_script_args,
            ]
        )
    elif program not in FOREIGN:
        raise BadCommandError(f"{program} is no program that a page may call; see FOREIGN in tests/page_commands.py")


def _check_weightspace(words: list[str]) -> None:
    if words == ["--version"]:
        return
    if not words:
        raise BadCommandError("weightspace alone only prints its help")
    name, *rest = words
    if name == "doctor":
        _parsed(doctor.parser(), rest)
        return
    command = typer.main.get_command(app).commands.get(name)  # type: ignore[attr-defined]  # a group
    if command is None:
        raise BadCommandError(f"weightspace has no command {name}")
    try:
        options = command.make_context(name, list(rest)).params
    except Exception as error:  # typer brings a copy of click of its own, with its own classes of errors
        if not hasattr(error, "format_message"):
            raise
        raise BadCommandError(f"weightspace {name}: {error.format_message()}") from error
    if "recipe" in options:
        recipe = _recipe(options["recipe"], options.get("set_") or ())
        needed = NEEDS.get(name)
        if recipe is not None and needed is not None and getattr(recipe, needed) is None:
            raise BadCommandError(f"the recipe of weightspace {name} has no {needed}")


def _recipe(name: str, overrides: list[str]) -> Recipe | None:
    """The recipe with its overrides; None for a file of the reader's, which is not here."""
    is_file = name.endswith((".yaml", ".yml"))
    if is_file and not (ROOT / name).exists():
        return None
    try:
        return load_recipe(str(ROOT / name) if is_file else name, overrides)
    except WeightspaceError as error:
        raise BadCommandError(str(error)) from error


def _check_python(words: list[str]) -> None:
    if words[:2] == ["-m", "pip"]:
        _check_pip(words[2:])
    elif words[:2] == ["-m", "weightspace"]:
        _check_weightspace(words[2:])
    elif words[:2] in (["-m", "pytest"], ["-m", "build"], ["-m", "venv"], ["-m", "sphinx"]):
        _check_paths(words[2:])
    elif words[0] == "-m":
        check_module(words[1], words[2:])
    elif words[0] == "-c":
        compile(words[1], "-c", "exec")
    else:
        _check_paths(words[:1])


def _check_paths(words: list[str]) -> None:
    for word in words:
        looks_like_one = "/" in word or word.endswith(".py") or word in {"tests", "src", "docs"}
        if looks_like_one and not word.startswith("-") and not (ROOT / word.partition("::")[0]).exists():
            if word.startswith(("docs/_build", "build/", "site/")):  # what the command makes
                continue
            raise BadCommandError(f"{word} does not exist")


def check_module(name: str, arguments: list[str]) -> None:
    """Have `python -m name` parse its arguments, and stop it there.

    Raises:
        BadCommandError: There is no such module, or it refuses its arguments.
    """
    real = argparse.ArgumentParser.parse_args

    class Done(Exception):  # noqa: N818
        """The arguments are fine."""

    def parse(self, args=None, namespace=None):
        real(self, args, namespace)
        raise Done

    try:
        module = importlib.import_module(name)
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"{name}.__main__")
    except ModuleNotFoundError as error:
        raise BadCommandError(f"there is no module {name}") from error
    if "parse_args" not in inspect.getsource(module):  # it takes words as they come; calling it would run it
        return
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse),
        mock.patch.object(sys, "argv", [name, *arguments]),
        contextlib.suppress(Done),
        _refusals(name),
    ):
        module.main()
        raise BadCommandError(f"{name} parsed no arguments")


def _parsed(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    with _refusals(parser.prog):
        return parser.parse_args(words)


@contextlib.contextmanager
def _refusals(name: str) -> Iterator[None]:
    """A parser's refusal as our error, with its sentence."""
    reasons: list[str] = []
    with mock.patch.object(argparse.ArgumentParser, "_print_message", lambda _, text, *__: reasons.append(text)):
        try:
            yield
        except SystemExit as error:
            if error.code:
                raise BadCommandError(f"{name}: {reasons[-1] if reasons else error}") from error


def _check_pip(words: list[str]) -> None:
    if words[0] == "uninstall":
        return
    if words[0] not in {"install", "download"}:
        raise BadCommandError(f"pip {words[0]}: pages install and download only")
    rest = iter(words[1:])
    for word in rest:
        if word in {"-d", "--find-links"}:
            next(rest)
        elif word in {"-c", "-r"}:
            _check_paths([f"./{next(rest)}"])
        elif match := re.fullmatch(r"(?:\.|weightspace|\S*\.whl)\[([^\]]*)\]", word):
            unknown = set(match[1].split(",")) - extras()
            if unknown:
                raise BadCommandError(f"pip install {word}: no extra {', '.join(sorted(unknown))}")


def extras() -> set[str]:
    """Extras that pyproject.toml names; read by hand, since Python 3.10 reads no TOML."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return set(re.findall(r"^([\w-]+) = \[", section, re.MULTILINE))
