"""Writes the reference of the command line from its commands: `python docs/_cli.py`.

docs/cli.md has a section for every command, with its arguments and options as `--help` has them.
`tests/test_site.py` fails while page and commands differ.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo, OptionInfo

from weightspace.cli.app import app
from weightspace.files import renew_text

PAGE = Path(__file__).with_name("cli.md")
# What a page tells at length about a command.
GUIDES = {
    "train": "[recipes](recipes.md), [resume](resume.md), [many processes](distributed.md)",
    "compare": "[compare](compare.md)",
    "sample": "[sampling on the command line](sampling/command.md)",
    "report": "[compare](compare.md)",
    "recipes": "[the gallery of recipes](gallery.md)",
    "show": "[recipes](recipes.md)",
    "inspect": "[inspect a network](inspect.md)",
    "verify": "[verify](verify.md)",
    "tolerance": "[the tolerance level](tolerance.md)",
    "compress": "[`weightspace compress`](compress/command.md)",
}
INTRODUCTION = """# The command line

Made from the commands themselves by `docs/_cli.py`. `weightspace COMMAND --help` prints the same. `python -m weightspace` is another way to say `weightspace`.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a run diverged, or a constraint is broken |
| 2 | bad input: one line says what |
| 130, 143 | stopped by Ctrl-C or by SIGTERM |
"""


@dataclass(frozen=True)
class Word:
    """An argument or option.

    Attributes:
        usage: How it is written, as `--set KEY=VALUE`.
        default: Its default as text; empty where there is none to tell.
        meaning: Its help.
        is_option: False for an argument.
    """

    usage: str
    default: str
    meaning: str
    is_option: bool


def words_of(command: Callable[..., Any]) -> list[Word]:
    """Arguments and options of a command, in its order; hidden ones are left out."""
    hints = typing.get_type_hints(command, include_extras=True)
    found: list[Word] = []
    for parameter in inspect.signature(command).parameters.values():
        info = next((x for x in getattr(hints[parameter.name], "__metadata__", ()) if _is_info(x)), None)
        if info is not None and not info.hidden:
            found.append(_word(parameter, info, hints[parameter.name]))
    return found


def _is_info(value: object) -> bool:
    return isinstance(value, (ArgumentInfo, OptionInfo))


def _word(parameter: inspect.Parameter, info: ArgumentInfo | OptionInfo, hint: object) -> Word:
    meaning = " ".join((info.help or "").split())
    if isinstance(info, ArgumentInfo):
        return Word(info.metavar or parameter.name.upper(), "", meaning, is_option=False)
    names = ", ".join(f"`{name}`" for name in _names(parameter, info))
    is_flag = typing.get_args(hint)[0] is bool
    value = "" if is_flag else f" {info.metavar or typing.get_args(hint)[0]!s}"
    usage = names[:-1] + value + "`" if value else names
    default = "" if is_flag and "/" not in names else _default(parameter.default, info, is_flag=is_flag)
    return Word(usage.replace("/", "`, `"), default, meaning, is_option=True)


def _names(parameter: inspect.Parameter, info: OptionInfo) -> tuple[str, ...]:
    """The option's names; in `Annotated` typer keeps the first of them where a default would stand."""
    first = (info.default,) if isinstance(info.default, str) and info.default.startswith("-") else ()
    return (*first, *(info.param_decls or ())) or (f"--{parameter.name.replace('_', '-')}",)


def _default(value: object, info: OptionInfo, *, is_flag: bool) -> str:
    if isinstance(info.show_default, str):
        return info.show_default
    if value is None or value is inspect.Parameter.empty or info.show_default is False:
        return ""
    if is_flag:
        yes, _, no = str(info.default).partition("/")
        return f"`{yes if value else no}`"
    return f"`{value}`"


def section(name: str, command: Callable[..., Any]) -> str:
    """The Markdown of one command."""
    words = words_of(command)
    arguments = [word for word in words if not word.is_option]
    options = [word for word in words if word.is_option]
    synopsis = " ".join(["weightspace", name, *(word.usage for word in arguments), *(["[OPTIONS]"] if options else [])])
    text = inspect.cleandoc(command.__doc__ or "")
    parts = [f"## weightspace {name}", f"```text\n{synopsis}\n```", text]
    if arguments:
        rows = "\n".join(f"| `{word.usage}` | {_cell(word.meaning)} |" for word in arguments)
        parts.append(f"| argument | meaning |\n|---|---|\n{rows}")
    if options:
        rows = "\n".join(f"| {word.usage} | {_cell(word.default)} | {_cell(word.meaning)} |" for word in options)
        parts.append(f"| option | default | meaning |\n|---|---|---|\n{rows}")
    if name in GUIDES:
        parts.append(f"Guide: {GUIDES[name]}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def render() -> str:
    """The whole page."""
    commands = [
        (str(c.name), inspect.unwrap(c.callback)) for c in app.registered_commands if c.callback and not c.hidden
    ]
    return "\n".join([INTRODUCTION, *(section(name, command) for name, command in commands)])


def main() -> int:
    """Writes the page if it is out of date; the exit code is 0."""
    if renew_text(PAGE, render()):
        print(f"{PAGE.name}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
