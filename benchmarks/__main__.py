"""Runs the benchmarks: `python -m benchmarks [--only NAME ...] [--quick] [--threads N]`.

Six pages are made of sections: docs/benchmarks.md (step, rules, sobolev, loop), docs/benchmarks-operators.md
(spectra, moments, penalties, scaling, memory), docs/benchmarks-manifolds.md (sphere, stiefel, slices),
docs/benchmarks-gates.md (gates, synchronizations), docs/benchmarks-langevin.md (langevin) and docs/benchmarks-processes.md (processes). A page is written when all its sections were measured, and never
with `--quick`, which measures little, to see that it runs. Sections are printed as they are done.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks import (
    gates_step,
    langevin_step,
    manifolds_page,
    memory,
    metrics_page,
    moments,
    operators_scaling,
    penalties,
    shared_work,
    spectra,
)
from benchmarks.timing import machine
from weightspace.files import write_text_atomically

DOCS = Path(__file__).parents[1] / "docs"
Section = Callable[[Path, bool], str]  # folder for pictures, quick or not, to Markdown

PAGES: dict[str, tuple[str, dict[str, Section]]] = {
    "benchmarks.md": (
        "Benchmarks",
        {
            "step": lambda _, quick: metrics_page.step_section(quick=quick),
            "rules": lambda _, quick: metrics_page.rules_section(quick=quick),
            "sobolev": lambda pictures, quick: metrics_page.sobolev_section(pictures, quick=quick),
            "loop": lambda _, quick: metrics_page.loop_section(quick=quick),
        },
    ),
    "benchmarks-operators.md": (
        "Benchmarks of spectra, moments, bounds and penalties",
        {
            "spectra": lambda _, quick: spectra.section(quick=quick),
            "moments": lambda _, quick: moments.section(quick=quick),
            "penalties": lambda _, quick: penalties.section(quick=quick),
            "scaling": lambda pictures, quick: operators_scaling.section(
                pictures / "operators-scaling.png", machine(), quick=quick
            ),
            "memory": lambda _, quick: memory.section(quick=quick),
        },
    ),
    "benchmarks-manifolds.md": (
        "Benchmarks of steps on manifolds, beside other packages",
        {
            "sphere": lambda _, quick: manifolds_page.sphere_section(quick=quick),
            "stiefel": lambda _, quick: manifolds_page.stiefel_section(quick=quick),
            "slices": lambda _, quick: manifolds_page.slices_section(quick=quick),
        },
    ),
    "benchmarks-gates.md": (
        "Benchmarks of penalties behind gates",
        {
            "gates": lambda _, quick: gates_step.step_section(quick=quick),
            "synchronizations": lambda _, quick: gates_step.synchronizations_section(quick=quick),
        },
    ),
    "benchmarks-langevin.md": (
        "Benchmarks of Langevin steps",
        {
            "langevin": lambda _, quick: langevin_step.section(quick=quick),
        },
    ),
    "benchmarks-processes.md": (
        "Benchmarks of several processes",
        {
            "processes": lambda _, quick: shared_work.section(quick=quick),
        },
    ),
}
NAMES = [name for _, sections in PAGES.values() for name in sections]


def intro(title: str, names: list[str]) -> str:
    """The head of a page: the command, the machine, how to read ratios."""
    others = ", ".join(f"[{page}]({page})" for page, (_, sections) in PAGES.items() if not set(names) <= set(sections))
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return f"""# {title}

Written by `python -m benchmarks --only {" ".join(names)}` on {now}: {machine()}. Contestants take turns; ratios are taken
turn by turn, then their median and quartiles. Absolute times depend on the machine and on what else it does.
`python -m benchmarks` alone measures this page and {others}; `--quick` only shows that it runs.

"""


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and writes the pages that are complete."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads for torch")
    parser.add_argument("--only", choices=NAMES, nargs="+", default=NAMES, help="measure these sections")
    parser.add_argument("--quick", action="store_true", help="few turns, small networks; writes no page")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for page, (title, sections) in PAGES.items():
        chosen = [name for name in sections if name in options.only]
        is_written = chosen == list(sections) and not options.quick
        with tempfile.TemporaryDirectory() as folder:
            pictures = DOCS / "benchmarks" if is_written else Path(folder)
            parts: list[str] = []
            for name in chosen:
                parts.append(sections[name](pictures, options.quick))
                print(parts[-1], flush=True)
        if is_written:
            write_text_atomically(DOCS / page, intro(title, chosen) + "\n".join(parts))


if __name__ == "__main__":
    main()
