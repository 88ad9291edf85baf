"""What the numbers of a comparison say, in plain sentences; and what to be careful about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weightspace.compare.results import ArmResult, Comparison
from weightspace.compare.statistics import Estimate


def verdict(comparison: Comparison) -> list[str]:
    """Which arms differ from the baseline beyond chance, after Holm's adjustment over all arms.

    Args:
        comparison: A comparison, finished or not.

    Returns:
        One to four sentences, computed from the numbers alone.
    """
    baseline = comparison.baseline.arm.name
    others = [arm for arm in comparison.arms if arm is not comparison.baseline]
    if not others:
        return [f"There is only one arm, {baseline}: nothing is compared."]
    tested = [arm for arm in others if arm.adjusted_p is not None]
    if not tested:
        return [f"Nothing can be said yet about a difference to {baseline}: that takes at least two seeds of two arms."]
    limit = 1.0 - comparison.level
    better = [arm for arm in tested if _differs(arm, limit) and _mean(arm) > 0]
    worse = [arm for arm in tested if _differs(arm, limit) and _mean(arm) < 0]
    condition = f"after Holm's adjustment over {_count(len(tested), 'arm')} (adjusted p below {limit:.2g})"
    sentences: list[str] = []
    if better:
        sentences.append(f"Better than {baseline} {condition}: {_listed(better)}.")
    if worse:
        sentences.append(f"Worse than {baseline}{'' if better else ' ' + condition}: {_listed(worse)}.")
    if not better and not worse:
        sentences.append(f"No arm differs from {baseline} {condition}. {_resolution(tested)}")
    elif len(better) + len(worse) < len(tested):
        sentences.append("The other arms do not differ from it beyond what seeds alone would do.")
    untested = [arm.arm.name for arm in others if arm.adjusted_p is None]
    if untested:
        sentences.append(f"Not tested: {', '.join(untested)}.")
    return sentences


def warnings(comparison: Comparison) -> list[str]:
    """What a reader must know before believing the table: missing runs, edges of the grid, divergence."""
    found: list[str] = []
    if comparison.missing:
        total = comparison.plan.total
        shown = ", ".join(f"'{name}'" for name in comparison.missing[:4])
        more = f" and {len(comparison.missing) - 4} more" if len(comparison.missing) > 4 else ""
        found.append(
            f"Not finished: {len(comparison.missing)} of {total} runs are missing ({shown}{more}); "
            "the same command continues, and every number here may still change."
        )
    found += [_edge_warning(arm, comparison) for arm in comparison.arms if arm.choice is not None and arm.choice.edge]
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
    if _versions_differ(comparison.facts):
        found.append("The runs were made with different versions of the packages; see compare.json.")
    return found


def path_words(path: str) -> str:
    """A tuned path in words.

    >>> path_words("train.optimizer.lr"), path_words("train.batch_size"), path_words("rules.0.smoothing")
    ('learning rate', 'batch size', 'smoothing')
    """
    last = path.rpartition(".")[2]
    return "learning rate" if last == "lr" else last.replace("_", " ")


def _edge_warning(arm: ArmResult, comparison: Comparison) -> str:
    choice = arm.choice
    if choice is None:
        return ""
    tune = comparison.plan.settings.tune
    where = "at the edge of the grid" if tune is not None and tune.grid is not None else "the outermost of the draws"
    parts: list[str] = []
    for path in choice.edge:
        tried = [trial.settings[path] for trial in comparison.plan.trials]
        value = choice.trial.settings[path]
        side = "smallest" if value == min(tried) else "largest"
        parts.append(f"best {path_words(path)} {where} ({value:g}, the {side} tried)")
    return f"{arm.arm.name}: {'; '.join(parts)}; a better value may lie beyond."


def _differs(arm: ArmResult, limit: float) -> bool:
    return arm.adjusted_p is not None and arm.adjusted_p < limit


def _mean(arm: ArmResult) -> float:
    return arm.difference.mean if arm.difference is not None else 0.0


def _listed(arms: Sequence[ArmResult]) -> str:
    ordered = sorted(arms, key=_mean, reverse=True)
    return "; ".join(f"{arm.arm.name} ({_points(arm.difference)})" for arm in ordered)


def _points(difference: Estimate | None) -> str:
    if difference is None or difference.low is None or difference.high is None:
        return "no interval"
    return (
        f"{100 * difference.mean:+.2f} percentage points, {100 * difference.level:g}% interval "
        f"{100 * difference.low:+.2f} to {100 * difference.high:+.2f}"
    )


def _resolution(tested: Sequence[ArmResult]) -> str:
    """How small a difference this comparison could have seen: a negative verdict is worth what its intervals are."""
    halves = [
        (d.high - d.low) / 2 for arm in tested if (d := arm.difference) and d.high is not None and d.low is not None
    ]
    if not halves:
        return ""
    return f"The intervals reach {100 * min(halves):.2f} to {100 * max(halves):.2f} percentage points to either side."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _versions_differ(facts: dict[str, Any]) -> bool:
    first = facts.get("versions")
    return any(session.get("versions") != first for session in facts.get("resumed", []))
