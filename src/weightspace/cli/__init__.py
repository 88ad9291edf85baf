"""The command line: `weightspace train | compare | sample | report | recipes | show | inspect | verify | doctor | ...`.

Exit codes: 0 done; 1 a training run diverged or a constraint is broken; 2 bad input (one line says what); 130 Ctrl-C;
143 SIGTERM. A bug shows its traceback and gives 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

_TRAIN_PACKAGES = {"typer", "click", "pydantic", "yaml", "lightning_fabric", "safetensors", "numpy", "sklearn", "scipy"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: Words after `weightspace`; None takes them from the process.

    Raises:
        SystemExit: Always, with the exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    answer_without_extras(words)
    try:
        from weightspace.cli.app import run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _TRAIN_PACKAGES:
            raise
        message = f"error: the command line needs the package '{package}'; run: pip install \"weightspace[train]\""
        print(message, file=sys.stderr)
        sys.exit(2)
    run(words)


def answer_without_extras(words: Sequence[str]) -> None:
    """Answer `--version` and `doctor`, which must work where every other command misses its packages.

    Args:
        words: The command line after `weightspace`.

    Raises:
        SystemExit: It was one of the two.
    """
    if list(words) == ["--version"]:
        from weightspace.cli.version import version_line

        print(version_line())
        sys.exit(0)
    if words and words[0] == "doctor":
        from weightspace.cli.doctor import doctor

        sys.exit(doctor(words[1:]))
