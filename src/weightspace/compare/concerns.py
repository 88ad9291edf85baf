"""What a reader must know before believing a comparison's table."""

from __future__ import annotations

from typing import Any

from weightspace.compare.notes import path_words
from weightspace.compare.results import ArmResult, Comparison

_SHOWN = 4  # missing runs that are named


def warnings(comparison: Comparison) -> list[str]:
    """Missing runs, best values at the edge, divergence, unequal budgets, and what else weakens the numbers."""
    found = _missing_runs(comparison)
    found += [_edge(arm, comparison) for arm in comparison.arms if arm.choice is not None and arm.choice.edge]
    for arm in comparison.arms:
        if arm.diverged:
            found.append(
                f"{arm.arm.name}: {arm.diverged} of {len(arm.accuracy)} final runs diverged and count as chance level "
                f"({100 * comparison.chance:.3g} %); its interval assumes normal spread and is only a rough guide."
            )
        if arm.difference is not None and arm.difference.note:
            found.append(f"{arm.arm.name}: {arm.difference.note}.")
    untuned = [arm.arm.name for arm in comparison.arms if not arm.arm.tuned]
    if untuned and len(untuned) < len(comparison.arms):
        found.append(
            f"Not tuned, at the recipe's own settings: {', '.join(untuned)}; the budget is not equal for these."
        )
    found += _unequal_training(comparison)
    if _sessions_differ(comparison.facts, "versions"):
        found.append("The runs were made with different versions of the packages; see compare.json.")
    if _sessions_differ(comparison.facts, "accelerator"):
        found.append("The runs were made with different settings of --accelerator; see compare.json.")
    if comparison.facts.get("recovered"):
        found.append(
            f"compare.json was lost and made anew ({comparison.facts['recovered']}): whether the runs before that saw "
            "the same data and versions of the packages is not recorded."
        )
    return found


def _missing_runs(comparison: Comparison) -> list[str]:
    missing = comparison.missing
    if not missing:
        return []
    shown = ", ".join(f"'{name}'" for name in missing[:_SHOWN])
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    text = (
        f"Not finished: {len(missing)} of {comparison.plan.total} runs are missing ({shown}{more}); the same command "
        "without --fresh continues, and every number here may still change."
    )
    return [text]


def _edge(arm: ArmResult, comparison: Comparison) -> str:
    choice = arm.choice
    if choice is None:
        return ""
    tune = comparison.plan.settings.tune
    search = tune.random if tune is not None else None
    ranges = {**(search.ranges if search is not None else {}), **comparison.plan.settings.arms[arm.arm.name].ranges}
    where = "the outermost of the draws" if search is not None else "at the edge of the grid"
    parts: list[str] = []
    for path in choice.edge:
        tried = [trial.settings[path] for trial in arm.arm.trials]
        value = choice.trial.settings[path]
        side = "smallest" if value == min(tried) else "largest"
        low, high = ranges.get(path, (None, None))
        drawn = f" of {len(tried)} between {low:g} and {high:g}" if path in ranges else " tried"
        parts.append(f"best {path_words(path)} {where} ({value:g}, the {side}{drawn})")
    return f"{arm.arm.name}: {'; '.join(parts)}; a better value may lie beyond."


def _unequal_training(comparison: Comparison) -> list[str]:
    """Arms that train longer or in other batches than the baseline: what differs may be that, not the method."""
    baseline = comparison.baseline
    data = comparison.facts.get("data") or {}
    own, images = _amount(baseline), data.get("samples", data.get("train"))
    other = {arm.arm.name: _amount(arm) for arm in comparison.arms if _amount(arm) != own}
    if not other:
        return []
    listed = "; ".join(f"{name}: {_amount_text(amount, images)}" for name, amount in other.items())
    text = f"Unequal training: {listed}; the baseline, {baseline.arm.name}: {_amount_text(own, images)}. "
    return [text + "A difference may come from that alone."]


def _amount(arm: ArmResult) -> tuple[int, int]:
    """Epochs and batch size of an arm's final runs."""
    return arm.recipe.train.epochs, arm.recipe.train.batch_size


def _amount_text(amount: tuple[int, int], images: object) -> str:
    epochs, batch_size = amount
    text = f"{epochs} epochs of batches of {batch_size}"
    return f"{text} ({epochs * (images // batch_size):,} steps)" if isinstance(images, int) else text


def _sessions_differ(facts: dict[str, Any], key: str) -> bool:
    first = facts.get(key)
    return any(key in session and session[key] != first for session in facts.get("resumed") or [])
