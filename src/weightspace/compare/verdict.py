"""What the numbers of a comparison say, in plain sentences. `concerns` says what to be careful about."""

from __future__ import annotations

from collections.abc import Sequence

from weightspace.compare.concerns import warnings
from weightspace.compare.notes import counted, path_words
from weightspace.compare.results import ArmResult, Comparison
from weightspace.compare.statistics import Estimate

__all__ = ["path_words", "verdict", "warnings"]


def verdict(comparison: Comparison) -> list[str]:
    """Which arms differ from the baseline beyond chance, after Holm's adjustment over all arms.

    Args:
        comparison: A comparison, finished or not.

    Returns:
        One to four sentences, computed from the numbers alone. The last names the arms that could not be tested.
    """
    baseline = comparison.baseline.arm.name
    others = [arm for arm in comparison.arms if arm is not comparison.baseline]
    if not others:
        return [f"There is only one arm, {baseline}: nothing is compared."]
    tested = [arm for arm in others if arm.adjusted_p is not None]
    untested = [arm for arm in others if arm.adjusted_p is None]
    if not tested:
        yet = "yet " if comparison.missing else ""
        sentences = [f"Nothing can be said {yet}about a difference to {baseline}: no arm could be tested."]
    else:
        sentences = _tested_sentences(tested, baseline, comparison.level, every=not untested)
    return [*sentences, *_untested_sentences(untested, one_seed=len(comparison.plan.final_seeds) == 1)]


def _tested_sentences(tested: Sequence[ArmResult], baseline: str, level: float, *, every: bool) -> list[str]:
    limit = 1.0 - level
    better = [arm for arm in tested if _differs(arm, limit) and _mean(arm) > 0]
    worse = [arm for arm in tested if _differs(arm, limit) and _mean(arm) < 0]
    condition = f"after Holm's adjustment over {counted(len(tested), 'arm')} (adjusted p below {limit:.2g})"
    if not better and not worse:
        none = "No arm differs" if every else "No tested arm differs"
        return [f"{none} from {baseline} {condition}. {_resolution(tested, baseline)}"]
    sentences: list[str] = []
    if better:
        sentences.append(f"Better than {baseline} {condition}: {_listed(better)}.")
    if worse:
        sentences.append(f"Worse than {baseline}{'' if better else ' ' + condition}: {_listed(worse)}.")
    if len(better) + len(worse) < len(tested):
        which = "other arms" if every else "other tested arms"
        sentences.append(f"The {which} do not differ from it beyond what seeds alone would do.")
    return sentences


def _untested_sentences(arms: Sequence[ArmResult], *, one_seed: bool) -> list[str]:
    """Why some arms have no p-value; one sentence, the arms gathered by their reason."""
    reasons: dict[str, list[str]] = {}
    for arm in arms:
        difference = arm.difference
        if difference is None:
            why = "no seed is finished in both this arm and the baseline"
        elif difference.n == 1 and one_seed:
            why = "one seed shows no spread; a test takes `compare.seeds` of at least 2"
        elif difference.n == 1:
            why = "so far only one seed is finished in both this arm and the baseline"
        else:
            size = f"{100 * difference.mean:+.2f} points in each of the {difference.n} pairs"
            why = f"the difference is {size}: there is no spread to compare it with"
        reasons.setdefault(why, []).append(arm.arm.name)
    if not reasons:
        return []
    listed = [f"{', '.join(names)} ({why})" for why, names in reasons.items()]
    return [f"Not tested: {'; '.join(listed)}."]


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


def _resolution(tested: Sequence[ArmResult], baseline: str) -> str:
    """How small a difference this comparison could have seen: a negative verdict is worth what its intervals are."""
    halves = [
        (d.high - d.low) / 2
        for arm in tested
        if (d := arm.difference) and d.high is not None and d.low is not None and d.high > d.low
    ]
    if not halves:
        return f"Every pair of results equals that of {baseline}: the settings may come down to the same training."
    low, high = f"{100 * min(halves):.2f}", f"{100 * max(halves):.2f}"
    reach = f"The intervals reach {low} to {high}" if low != high else f"The intervals reach {low}"
    if len(halves) == 1:
        reach = f"The interval reaches {low}"
    return f"{reach} percentage points to either side; smaller differences would go unseen."
