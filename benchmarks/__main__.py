"""Side by side: `python -m benchmarks [--only NAME ...] [--clock cpu] [--threads N] [--device cpu] [--quick]`.

Alone it runs every contest (ours beside other packages: time, error, memory, floor) and every scaling plot, merges the
numbers into docs/benchmarks/contests.json and writes docs/benchmarks.md and docs/benchmarks-contests.md from that file.
`--only` takes names of contests, of scaling plots, or of sections of the detail pages: docs/benchmarks-metrics.md (step,
rules, sobolev, loop), -operators.md (spectra, moments, penalties, scaling, memory), -manifolds.md (sphere, stiefel,
slices), -gates.md, -langevin.md, -processes.md; such a page is written when all its sections were measured. `--details`
runs all sections. `--pages` measures nothing and writes both contest pages anew. `--quick` writes nothing.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks import contests_memory, contests_run
from benchmarks.contests import CLOCKS, Settings
from benchmarks.timing import choose_device, device, machine
from weightspace.files import write_text_atomically

DOCS = Path(__file__).parents[1] / "docs"
Section = Callable[[Path, bool], str]  # folder for pictures, quick or not, to Markdown


def of(module: str, function: str = "section") -> Section:
    """A section of a module that is imported when it is measured: contests start sooner without all of them."""
    return lambda _, quick: getattr(importlib.import_module(f"benchmarks.{module}"), function)(quick=quick)


def sobolev(pictures: Path, quick: bool) -> str:
    """With a plot."""
    return importlib.import_module("benchmarks.metrics_page").sobolev_section(pictures, quick=quick)


def scaling(pictures: Path, quick: bool) -> str:
    """With a plot."""
    module = importlib.import_module("benchmarks.operators_scaling")
    return module.section(pictures / "operators-scaling.png", machine(), quick=quick)


PAGES: dict[str, tuple[str, dict[str, Section]]] = {
    "benchmarks-metrics.md": (
        "Benchmarks of metrics and of the training loop",
        {
            "step": of("metrics_page", "step_section"),
            "rules": of("metrics_page", "rules_section"),
            "sobolev": sobolev,
            "loop": of("metrics_page", "loop_section"),
        },
    ),
    "benchmarks-operators.md": (
        "Benchmarks of spectra, moments, bounds and penalties",
        {
            "spectra": of("spectra"),
            "moments": of("moments"),
            "penalties": of("penalties"),
            "scaling": scaling,
            "memory": of("memory"),
        },
    ),
    "benchmarks-manifolds.md": (
        "Benchmarks of steps on manifolds, beside other packages",
        {
            "sphere": of("manifolds_page", "sphere_section"),
            "stiefel": of("manifolds_page", "stiefel_section"),
            "slices": of("manifolds_page", "slices_section"),
        },
    ),
    "benchmarks-gates.md": (
        "Benchmarks of penalties behind gates",
        {
            "gates": of("gates_step", "step_section"),
            "synchronizations": of("gates_step", "synchronizations_section"),
        },
    ),
    "benchmarks-langevin.md": ("Benchmarks of Langevin steps", {"langevin": of("langevin_step")}),
    "benchmarks-processes.md": ("Benchmarks of several processes", {"processes": of("shared_work")}),
}
SECTIONS = [name for _, sections in PAGES.values() for name in sections]
NAMES = [*contests_run.NAMES, *SECTIONS]


def intro(title: str, names: list[str]) -> str:
    """The head of a page: the command, the machine, how to read ratios."""
    others = ", ".join(f"[{page}]({page})" for page, (_, sections) in PAGES.items() if not set(names) <= set(sections))
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return f"""# {title}

Written by `python -m benchmarks --only {" ".join(names)}` on {now}: {machine()}. Contestants take turns; ratios are taken
turn by turn, then their median and quartiles. Absolute times depend on the machine and on what else it does.
`python -m benchmarks --details` measures this page and {others}; `--quick` only shows that it runs. Side by side with
other packages: [who is first](benchmarks.md).

"""


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and writes the pages that are complete."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    choose_device(options.device)
    if options.pages:
        contests_run.write_pages(DOCS)
        return
    chosen = options.only or (SECTIONS if options.details else contests_run.NAMES)
    contests = [name for name in contests_run.NAMES if name in chosen]
    if contests:
        run_contests(contests, options)
    run_sections([name for name in SECTIONS if name in chosen], quick=options.quick)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    made.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads for torch")
    made.add_argument("--device", help="cpu or cuda; left out: the accelerator if there is one")
    made.add_argument("--only", choices=NAMES, nargs="+", metavar="NAME", help=f"of {', '.join(NAMES)}")
    made.add_argument("--details", action="store_true", help="the detail pages instead of the contests")
    made.add_argument("--pages", action="store_true", help="measure nothing, write the contests' pages from their file")
    made.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default="wall",
        help="cpu: this process's processor time, on a shared machine; contests only",
    )
    made.add_argument("--seconds", type=float, default=12.0, help="for the turns of one contest, about")
    made.add_argument(
        "--no-memory", action="store_true", help="leave the peaks of memory out, which take a process each"
    )
    made.add_argument("--quick", action="store_true", help="few turns, small networks; writes nothing")
    return made


def run_contests(names: list[str], options: argparse.Namespace) -> None:
    """Times and errors here, memory in processes of their own."""
    if options.clock == "cpu" and device().type != "cpu":
        raise SystemExit(
            "--clock cpu reads the processor's time, which says nothing about an accelerator; leave it out."
        )
    peak = contests_memory.peak_of(quick=options.quick)
    limits: dict[str, Any] = {"seconds": 0.2, "rounds": 3} if options.quick else {"seconds": options.seconds}
    settings = Settings(
        options.clock, quick=options.quick, peak=None if options.quick or options.no_memory else peak, **limits
    )
    words = ["python -m benchmarks", f"--threads {options.threads}", f"--clock {options.clock}"]
    contests_run.run(names, settings, " ".join(words), docs=None if options.quick else DOCS)


def run_sections(chosen: list[str], *, quick: bool) -> None:
    """The detail pages."""
    for page, (title, sections) in PAGES.items():
        names = [name for name in sections if name in chosen]
        is_written = names == list(sections) and not quick
        with tempfile.TemporaryDirectory() as folder:
            pictures = DOCS / "benchmarks" if is_written else Path(folder)
            parts: list[str] = []
            for name in names:
                parts.append(sections[name](pictures, quick))
                print(parts[-1], flush=True)
        if is_written:
            write_text_atomically(DOCS / page, intro(title, names) + "\n".join(parts))


if __name__ == "__main__":
    main()
