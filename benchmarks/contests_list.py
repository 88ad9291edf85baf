"""All contests by name, in the order of the page."""

from __future__ import annotations

from benchmarks import (
    contests_manifolds,
    contests_metrics,
    contests_operators,
    contests_sampling,
    contests_weights,
)
from benchmarks.contests import Contest

_TOPICS = (contests_metrics, contests_manifolds, contests_operators, contests_sampling, contests_weights)
CONTESTS: dict[str, Contest] = {contest.name: contest for topic in _TOPICS for contest in topic.CONTESTS}
