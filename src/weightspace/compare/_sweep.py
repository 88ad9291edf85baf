"""A sweep of strengths as a comparison: every gate at every strength is an arm that is not tuned.

Gates that are like others get theirs as soon as the others' runs are there: an arm that is added to a comparison leaves
the runs of the others as they are.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weightspace.compare.plan import Plan, final_jobs, make_plan
from weightspace.compare.records import COMPARE_FILE, read_facts, read_result
from weightspace.errors import RecipeError
from weightspace.files import JsonObject
from weightspace.training.recipe import ArmSettings, Recipe, RuleEntry, SweepSettings

BASELINE = "no penalty"
_DIGITS = 4  # of a duty cycle: more of them would only make recipes hard to read


@dataclass(frozen=True)
class SweepArm:
    """One arm of a sweep.

    Attributes:
        gate: Name of the gate; `BASELINE` for the arm without the swept rule.
        strength: The rule's `weight`; 0 for the baseline.
        rules: The swept rule; one for each weight where random gates have duty cycles of their own.
    """

    gate: str
    strength: float
    rules: tuple[RuleEntry, ...] = ()

    @property
    def name(self) -> str:
        """Its name in the comparison.

        >>> SweepArm("always", 0.0001, ({"rule": "L1"},)).name
        'always 0.0001'
        """
        return f"{self.gate} {self.strength:g}" if self.rules else self.gate


def sweep_of(recipe: Recipe) -> SweepSettings:
    """The recipe's `sweep`.

    Raises:
        RecipeError: It has none, or its rules have the swept one already.
    """
    if recipe.sweep is None:
        raise RecipeError(f"recipe '{recipe.name}' has no 'sweep' part; add one with rule, strengths and gates")
    swept = {recipe.sweep.rule["rule"], *(gate["rule"] for gate in recipe.sweep.gates.values() if "rule" in gate)}
    for entry in recipe.rules:
        if entry["rule"] in swept:
            raise RecipeError(
                f"recipe '{recipe.name}' has the rule {entry['rule']} already, which its sweep adds; "
                "take it out of rules"
            )
    return recipe.sweep


def own_arms(sweep: SweepSettings, *, steps: int) -> list[SweepArm]:
    """The baseline and all arms that need no other arm's runs.

    Args:
        sweep: What is swept.
        steps: Steps of a run.
    """
    arms = [SweepArm(BASELINE, 0.0)]
    for name in sweep.names:
        if "like" not in sweep.gates[name]:
            arms += [SweepArm(name, s, (sweep.rule_of(name, s, steps=steps),)) for s in sweep.octaves_of(name)]
    return arms


def like_arms(recipe: Recipe, arms: Sequence[SweepArm], results: Mapping[str, Sequence[JsonObject]]) -> list[SweepArm]:
    """The arms of gates that are like others, as far as these have all their runs.

    Args:
        recipe: The recipe with its sweep.
        arms: What `own_arms` gives.
        results: By arm, the results of its runs; all of its seeds or none.
    """
    sweep = sweep_of(recipe)
    by_key = {(arm.gate, arm.strength): arm for arm in arms}
    found: list[SweepArm] = []
    for name in sweep.names:
        like = str(sweep.gates[name].get("like"))
        for strength in sweep.octaves_of(name) if "like" in sweep.gates[name] else ():
            other = by_key[(like, strength)]
            if other.name in results:
                duty, layers = duties(recipe, results[other.name])
                if sweep.gates[name].get("per") == "layer" and layers:
                    pairs = layers.items()
                    rules = [sweep.random_rule(name, strength, duty=d, layer=layer) for layer, d in pairs]
                else:
                    rules = [sweep.random_rule(name, strength, duty=duty or 0.0)]
                found.append(SweepArm(name, strength, tuple(rules)))
    return found


def kept_arms(recipe: Recipe, plan: Plan | None, arms: Sequence[SweepArm]) -> list[SweepArm]:
    """The arms of gates that are like others which a folder has and `arms` lack, as they are there.

    What they are like has lost a run, which is about to be trained again: they stay meanwhile.

    Args:
        recipe: The recipe with its sweep.
        plan: The folder's comparison; None in an empty one.
        arms: What `like_arms` gives.
    """
    sweep, there = sweep_of(recipe), plan.settings.arms if plan is not None else {}
    found: list[SweepArm] = []
    for name in sweep.names:
        for strength in sweep.octaves_of(name) if "like" in sweep.gates[name] else ():
            arm = SweepArm(name, strength, _stored_rules(there, f"{name} {strength:g}", len(recipe.rules)))
            if arm.rules and arm.name not in {other.name for other in arms}:
                found.append(arm)
    return found


def _stored_rules(arms: Mapping[str, ArmSettings], name: str, own: int) -> tuple[RuleEntry, ...]:
    """The rules of an arm behind the recipe's `own` ones; none where there is no such arm."""
    return (arms[name].rules or ())[own:] if name in arms else ()


def duties(recipe: Recipe, results: Sequence[JsonObject]) -> tuple[float | None, dict[str, float]]:
    """How often the swept rule's gate was open: the mean over weights and runs, and the mean over runs for each weight.

    Args:
        recipe: The recipe with its sweep: gates of its other rules do not count.
        results: The runs of one arm.

    Returns:
        None and nothing where no gate was asked: the baseline, and penalties that are always on.
    """
    others = {str(rule) for rule in recipe.make_rules()}
    layers: dict[str, list[float]] = {}
    for result in results:
        for penalty, entry in (result.get("duty") or {}).items():
            for layer, share in entry["layers"].items() if penalty not in others else ():
                layers.setdefault(layer, []).append(float(share))
    means = {layer: round(statistics.fmean(shares), _DIGITS) for layer, shares in layers.items()}
    every = [share for shares in layers.values() for share in shares]
    return (round(statistics.fmean(every), _DIGITS) if every else None), means


def comparison_recipe(recipe: Recipe, arms: Sequence[SweepArm]) -> Recipe:
    """The recipe of the comparison of these arms."""
    sweep = sweep_of(recipe)
    base = list(recipe.to_dict()["rules"])
    entries = {arm.name: {"tune": False, "rules": [*base, *arm.rules]} for arm in arms}
    compare = {"baseline": BASELINE, "seeds": sweep.seeds, "level": sweep.level, "arms": entries}
    return Recipe.from_dict(recipe.to_dict() | {"sweep": None, "compare": compare}, source=f"sweep of '{recipe.name}'")


def results_in(run_dir: Path) -> tuple[Plan | None, dict[str, list[JsonObject]]]:
    """The comparison in a folder and, by arm, the results of those that have all their runs; nothing in an empty one.

    Raises:
        RunError: The folder's `compare.json` is damaged.
    """
    if not (run_dir / COMPARE_FILE).exists():
        return None, {}
    facts, recipe = read_facts(run_dir)
    plan = make_plan(recipe, facts["slugs"])
    found: dict[str, list[JsonObject]] = {}
    for arm in plan.arms:
        results = [read_result(run_dir, job) for job in final_jobs(plan, arm, None)]
        whole = [result for result in results if result is not None]
        if len(whole) == len(results):
            found[arm.name] = whole
    return plan, found
