"""Runs short measurements: `python -m claims.measurements [NAME ...] [--out FOLDER] [--quick]`.

Each writes FOLDER/NAME.json: raw values by seed, case or chain, with versions and machine.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Sequence
from pathlib import Path

# Name: module of this package and function in it.
MEASUREMENTS = {
    "toeplitz": ("operators", "structure"),
    "exact-spectra": ("operators", "spectra"),
    "penalty-gradients": ("operators", "gradients"),
    "gain-sweep": ("training", "gains"),
    "channel-metric": ("metrics", "directions"),
    "linear-cost": ("metrics", "cost"),
    "any-optimizer": ("attached", "optimizers"),
    "any-rule": ("attached", "rules"),
    "collapse-and-rescue": ("training", "collapse"),
    "sparse-storage": ("storage", "files"),
    "on-manifold": ("manifolds", "distances"),
    "products": ("manifolds", "products"),
    "known-optima": ("manifolds", "optima"),
    "known-laws": ("laws", "laws"),
    "unchanged-networks": ("attached", "unchanged"),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m claims.measurements", description=__doc__)
    made.add_argument("names", nargs="*", choices=[*MEASUREMENTS, []], metavar="NAME", help=", ".join(MEASUREMENTS))
    made.add_argument("--out", type=Path, default=Path("docs/claims"), help="folder (default: %(default)s)")
    made.add_argument("--quick", action="store_true", help="few seeds and cases: to see that it runs")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes."""
    import torch

    from weightspace.files import write_json_atomically
    from weightspace.training.environment import machine, versions

    asked = parser().parse_args(arguments)
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.names or MEASUREMENTS:
        module, function = MEASUREMENTS[name]
        started, processor = time.perf_counter(), time.process_time()
        found = getattr(importlib.import_module(f"claims.measurements.{module}"), function)(is_quick=asked.quick)
        seconds, processor = round(time.perf_counter() - started, 1), round(time.process_time() - processor, 1)
        record = {
            "seconds": seconds,
            "processor_seconds": processor,
            "versions": versions(),
            "machine": machine(),
            **found,
        }
        write_json_atomically(asked.out / f"{name}.json", record)
        print(f"{name}: {seconds} s ({processor} s of the processor)", flush=True)


if __name__ == "__main__":
    main()
