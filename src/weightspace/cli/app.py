"""The typer app, and the one place where errors become exit codes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, ParamSpec

import typer

from weightspace.cli import compare, compress, inspect, report, sample, show, tolerance, train, verify
from weightspace.cli.console import print_error, print_warning
from weightspace.cli.doctor import doctor
from weightspace.cli.version import version_line
from weightspace.errors import WeightspaceError
from weightspace.files import reason_of
from weightspace.training.interrupt import INTERRUPTED

BAD_INPUT = 2

P = ParamSpec("P")

app: typer.Typer = typer.Typer(
    name="weightspace",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # a bug shows Python's own traceback, which is what a bug report needs
    help="Train networks whose weights keep a shape, and compare ways of training them.\n\n"
    "Start with `weightspace compare quickstart`.",
    epilog="Exit codes: 0 done, 1 a run diverged or a constraint is broken, 2 bad input, 130 Ctrl-C, 143 SIGTERM.",
)


def with_exit_codes(command: Callable[P, int | None]) -> Callable[P, None]:
    """Wrap a command: its number, an error on purpose, or an interruption becomes the exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs) or 0
        except WeightspaceError as error:
            print_error(str(error))
            code = BAD_INPUT
        except BrokenPipeError:  # `| head` has seen enough, which click knows how to end
            raise
        except OSError as error:  # the system's no to a name or a place that the user gave
            print_error(f"{error.filename or 'a file'}: {reason_of(error)}")
            code = BAD_INPUT
        except MemoryError:
            print_error("there is not enough memory for this; make the model, the batch or the data smaller")
            code = BAD_INPUT
        except KeyboardInterrupt as error:
            print_error(str(error) or "interrupted")
            code = int(getattr(error, "exit_code", INTERRUPTED))
        raise typer.Exit(code)

    return wrapped


def _print_version(value: bool) -> None:
    if value:
        typer.echo(version_line())
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print versions and exit.")
    ] = False,
) -> None:
    """Options before the command."""
    del version  # its callback has printed and left


app.command("compare")(with_exit_codes(compare.compare))
app.command("train")(with_exit_codes(train.train))
app.command("sample")(with_exit_codes(sample.sample))
app.command("report")(with_exit_codes(report.report))
app.command("recipes")(with_exit_codes(show.recipes))
app.command("show")(with_exit_codes(show.show))
app.command("inspect")(with_exit_codes(inspect.inspect))
app.command("verify")(with_exit_codes(verify.verify))
app.command("tolerance")(with_exit_codes(tolerance.tolerance))
app.command("compress")(with_exit_codes(compress.compress))


# It reads its words itself, with or without typer; here it has its line in the list of commands.
@app.command(
    "doctor",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
@with_exit_codes
def _doctor(context: typer.Context) -> int:
    """Look at this installation and this machine: what works, and what to do about the rest.

    `--json` writes everything as JSON in place of the table, `--json FILE` to a file beside it. Exit codes: 0 healthy,
    1 there is a problem, 2 bad input. Works without any extra, as `--version` does.
    """
    return doctor(context.args)


def run(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit.

    Args:
        arguments: Words after `weightspace`; None takes them from the process.

    Raises:
        SystemExit: Always, with the exit code. The exception of a bug passes through with its traceback.
    """
    warnings.showwarning = print_warning
    app(None if arguments is None else list(arguments), prog_name="weightspace")
