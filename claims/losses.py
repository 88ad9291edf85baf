"""Losses of a comparison's final runs by arm and seed, which its table.json does not hold: `python -m claims.losses RUN_DIR`.

Writes RUN_DIR/losses.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def collect(run_dir: Path) -> dict[str, Any]:
    """`{arm: {"train_loss": {seed: nats}, "test_loss": {seed: nats}}}`."""
    table = json.loads((run_dir / "table.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for arm in table["arms"]:
        files = sorted((run_dir / "arms" / arm["slug"] / "final").glob("seed*/result.json"))
        results = {
            path.parent.name.removeprefix("seed"): json.loads(path.read_text(encoding="utf-8")) for path in files
        }
        found[arm["name"]] = {key: {seed: r[key] for seed, r in results.items()} for key in ("train_loss", "test_loss")}
    return {"recipe": table["recipe"], "arms": found}


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the file."""
    from weightspace.files import write_json_atomically

    parser = argparse.ArgumentParser(prog="python -m claims.losses", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of a finished comparison")
    asked = parser.parse_args(arguments)
    write_json_atomically(asked.run_dir / "losses.json", collect(asked.run_dir))


if __name__ == "__main__":
    main()
