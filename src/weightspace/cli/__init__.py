"""The command line: `weightspace train | compare | sample | report | recipes | show | inspect | verify`.

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
    try:
        from weightspace.cli.app import run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _TRAIN_PACKAGES:
            raise
        message = f"error: the command line needs the package '{package}'; run: pip install \"weightspace[train]\""
        print(message, file=sys.stderr)
        sys.exit(2)
    run(arguments)
