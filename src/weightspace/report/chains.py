"""The report of sampled chains: what their average predicts, how well it knows itself, and whether chains agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from weightspace.chains.pictures import PREDICTIONS, RELIABILITY, TEMPERATURES, TRACES, draw_pictures
from weightspace.chains.records import PAGE_FILE, PLOTS_FOLDER, SAMPLE_FILE, chain_folders, read_facts
from weightspace.chains.text import (
    HEADINGS,
    concerns,
    diagnostic_rows,
    markdown,
    table_notes,
    table_rows,
    temperature_line,
    verdict,
)
from weightspace.errors import RunError
from weightspace.files import JsonObject, reason_of, write_text_atomically
from weightspace.report.facts import facts_of, recipe_of
from weightspace.report.page import Page, image_of
from weightspace.training.last_records import last_step

_TITLES = {
    PREDICTIONS: "Predictions against the number of samples",
    f"{RELIABILITY}-point": "Reliability of the last point of one chain",
    RELIABILITY: "Reliability of the average of all chains",
    TRACES: "Traces",
    TEMPERATURES: "Temperatures",
}
_CAPTIONS = {
    PREDICTIONS: "Lines: the average over a chain's samples so far. Faint dots: one sample alone. Diamonds: the first "
    "one, two, ... chains together. Dashed: last points. Where lines still fall, more samples would help.",
    f"{RELIABILITY}-point": "How often it is right, for each confidence. Below the diagonal it is too sure.",
    RELIABILITY: "The same for the average of all samples of all chains.",
    TRACES: "Functions of the network, sample by sample; right: ranks of each chain's draws among all draws. Chains "
    "that mix cross each other, and their ranks are flat at 1.",
    TEMPERATURES: "Measured over asked for. Velocities tell whether noise and friction balance, positions whether the "
    "weights have spread over the posterior. Both should be near 1 after burn-in.",
}


def is_sampling(run_dir: Path) -> bool:
    """Whether a folder holds sampled chains."""
    return (run_dir / SAMPLE_FILE).exists()


def chains_page(run_dir: Path) -> Page:
    """The page of a folder of chains, finished or not. Draws `plots/*.png` and writes `sample.md` if they are.

    Raises:
        RunError: `sample.json` is damaged, or something cannot be written.
    """
    facts = read_facts(run_dir)
    recipe = cast("dict[str, Any]", facts["recipe"])
    if not isinstance(facts.get("results"), dict):
        return _unfinished(run_dir, facts, recipe)
    results = cast("dict[str, Any]", facts["results"])
    folder = run_dir / PLOTS_FOLDER
    try:
        made = draw_pictures(results, run_dir, folder)
        shown = [(name, made[name]) for name in _TITLES if name in made]
        for path in folder.glob("*.png"):
            if path.stem in _TITLES and path.stem not in made:
                path.unlink()  # of an earlier state of the folder
    except (KeyError, TypeError, IndexError) as error:
        raise RunError(f"{run_dir / SAMPLE_FILE} is damaged ({error!r}); sample again, without --fresh") from error
    except OSError as error:
        raise RunError(f"cannot delete an earlier picture in {folder}: {reason_of(error)}") from error
    pictures = [(_TITLES[name], f"{PLOTS_FOLDER}/{path.name}") for name, path in shown]
    write_text_atomically(run_dir / PAGE_FILE, markdown(facts, pictures))
    rows = table_rows(results)
    return Page(
        title=f"{recipe.get('name')}: {len(results['chains'])} sampled chains",
        description=str(recipe.get("description", "")),
        verdict=[*verdict(results), *filter(None, [temperature_line(results)])],
        warnings=concerns(results),
        columns=list(HEADINGS),
        rows=rows,
        baseline_row=len(rows) - 2,
        notes=table_notes(results),
        images=[image_of(path, _TITLES[name], _CAPTIONS[name]) for name, path in shown],
        diagnostics=diagnostic_rows(results),
        facts=[*facts_of(facts), ("samples on disk", f"{results['bytes'] / 1e6:.1f} MB")],
        recipe=recipe_of(recipe),
    )


def _unfinished(run_dir: Path, facts: JsonObject, recipe: dict[str, Any]) -> Page:
    """What there is to say before all chains have ended."""
    found = [f"{folder.name}: step {last_step(folder)}" for folder in chain_folders(run_dir)]
    return Page(
        title=f"{recipe.get('name')}: chains that are being sampled",
        description=str(recipe.get("description", "")),
        verdict=[f"{', '.join(found)}." if found else "No chain has begun."],
        warnings=["Not finished: sample.json holds no results; the same command, without --fresh, goes on."],
        facts=facts_of(facts),
        recipe=recipe_of(recipe),
    )
