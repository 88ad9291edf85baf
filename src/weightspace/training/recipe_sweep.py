"""`sweep:` in a recipe: one rule at strengths an octave apart, under several gates. See `weightspace tolerance`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from weightspace.errors import nearest
from weightspace.training.recipe_checks import check_rule
from weightspace.training.recipe_settings import Number, Positive, RuleEntry, Runs, Settings

GatePlan = dict[str, Any]

GATE_PRESETS: Mapping[str, GatePlan] = {
    "always": {"gate": "Always"},
    "delayed": {"gate": "Delayed", "share": 0.25},
    "coherent-total": {"gate": "Coherent", "against": "total"},
    "coherent-history": {"gate": "Coherent", "against": "history"},
    "coherent-previous": {"gate": "Coherent", "against": "previous"},
    "coherent-lookahead": {"gate": "Coherent", "against": "lookahead"},
    "random": {"like": "coherent-total"},
    "random-history": {"like": "coherent-history"},
    "cautious": {"rule": "CautiousWeightDecay"},
}
"""Gates that `--gates` knows by name."""

_DEFAULT_GATES = ("always", "delayed", "coherent-total", "coherent-history", "random")
_LIKE_KEYS = {"like", "per", "seed", "strengths"}
_OF_THE_SWEEP = {"weight", "gate"}  # what a sweep sets of its rule
_SOME_STEPS = 100  # stands for those of the run, which the size of the data decides, where an entry is only checked


def _goes_up(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"strengths should go up, but {ends[0]:g} is above {ends[1]:g}")
    return ends


Ends = Annotated[tuple[Positive, Positive], AfterValidator(_goes_up)]


class SweepSettings(Settings):
    """A sweep of strengths: `sweep:` in a recipe.

    `gates` maps a name to one of

    - a gate as a rule takes it, `{gate: Coherent, against: history}`; for `Delayed`, `share: 0.25` may stand for
      `steps`, a share of the run's;
    - `{like: NAME}`: open by chance, as often as that gate was in the runs of the same strength (`per: layer`: at each
      weight as often as there);
    - another rule in place of the swept one, `{rule: CautiousWeightDecay}`.

    Each may have `strengths` of its own.
    """

    rule: RuleEntry = Field(default_factory=lambda: {"rule": "L1"})
    strengths: Ends = (1e-4, 1.28e-2)
    gates: Annotated[dict[str, GatePlan], Field(min_length=1)] = Field(
        default_factory=lambda: {name: dict(GATE_PRESETS[name]) for name in _DEFAULT_GATES}
    )
    seeds: Runs = 1
    level: Annotated[Number, Field(gt=0, lt=1)] = 0.95

    @field_validator("rule")
    @classmethod
    def _known_rule(cls, rule: RuleEntry) -> RuleEntry:
        _refuse_swept(rule)
        check_rule(rule)
        return rule

    @model_validator(mode="after")
    def _known_gates(self) -> SweepSettings:
        for name, entry in self.gates.items():
            kinds = [key for key in ("gate", "like", "rule") if key in entry]
            if len(kinds) != 1:
                raise ValueError(
                    f"gates.{name} needs exactly one of gate, like and rule, for example {{gate: Coherent}}, "
                    "{like: coherent-total} or {rule: CautiousWeightDecay}"
                )
            low = self.ends_of(name)[0]
            if kinds == ["like"]:
                self._check_like(name, entry)
            else:
                try:
                    check_rule(self.rule_of(name, low, steps=_SOME_STEPS))
                except ValueError as error:
                    raise ValueError(f"gates.{name}: {error}") from error
        return self

    def _check_like(self, name: str, entry: GatePlan) -> None:
        for key in entry:
            if key not in _LIKE_KEYS:
                raise ValueError(f"gates.{name} has no key '{key}'; it takes {', '.join(sorted(_LIKE_KEYS))}")
        other = self.gates.get(str(entry["like"]))
        if other is None:
            guess = nearest(entry["like"], self.gates, "; did you mean '{}'?")
            raise ValueError(
                f"gates.{name} is like '{entry['like']}', which is not among the gates{guess or '; add it'}"
            )
        if "gate" not in other or other["gate"] == "Always":
            raise ValueError(f"gates.{name} is like '{entry['like']}', which has no gate that is ever closed; leave it")
        if entry.get("per", "run") not in ("run", "layer"):
            raise ValueError(f"gates.{name}.per should be run or layer, not {entry['per']!r}")
        check_rule(self.random_rule(name, self.ends_of(name)[0], duty=0.5))

    @property
    def names(self) -> tuple[str, ...]:
        """The gates, those that are like others last: they are trained after them."""
        return tuple(sorted(self.gates, key=lambda name: "like" in self.gates[name]))

    def ends_of(self, name: str) -> tuple[float, float]:
        """Lowest and highest strength of a gate.

        Raises:
            ValueError: Its own `strengths` are not two positive numbers that go up.
        """
        own = self.gates[name].get("strengths")
        if own is None:
            return self.strengths
        numbers = [float(end) for end in own if _is_number(end)] if isinstance(own, list | tuple) else []
        if len(numbers) != 2 or len(numbers) != len(own) or not 0 < numbers[0] <= numbers[1] < math.inf:
            raise ValueError(f"gates.{name}.strengths should be two positive numbers that go up, not {own!r}")
        return numbers[0], numbers[1]

    def octaves_of(self, name: str) -> tuple[float, ...]:
        """The strengths of a gate. One that is like another has those that both have."""
        found = octaves(*self.ends_of(name))
        like = self.gates[name].get("like")
        return found if like is None else tuple(s for s in found if s in self.octaves_of(like))

    def rule_of(self, name: str, strength: float, *, steps: int) -> RuleEntry:
        """The rule entry of a gate (or other rule) at a strength.

        Args:
            name: A gate that is not like another.
            strength: The rule's `weight`.
            steps: Steps of a run, for `share`.
        """
        entry = {key: value for key, value in self.gates[name].items() if key != "strengths"}
        if "rule" in entry:
            _refuse_swept(entry)
            return {**entry, "weight": strength}
        if "share" in entry:
            entry = _with_steps(entry, steps)
        return {**self.rule, "weight": strength, "gate": entry}

    def random_rule(self, name: str, strength: float, *, duty: float, layer: str | None = None) -> RuleEntry:
        """The rule entry of a gate that is like another, for all weights or for one.

        Args:
            name: The gate.
            strength: The rule's `weight`.
            duty: Share of the steps at which it is open.
            layer: Name of the one weight.
        """
        seed = self.gates[name].get("seed", 0)
        entry = {**self.rule, "weight": strength, "gate": {"gate": "RandomGate", "duty": duty, "seed": seed}}
        return entry if layer is None else {**entry, "on": f"name({layer!r})"}


def octaves(low: float, high: float) -> tuple[float, ...]:
    """Strengths from `low` on, each twice the one before, up to `high`.

    >>> octaves(1e-4, 1e-3)
    (0.0001, 0.0002, 0.0004, 0.0008)
    """
    count = math.floor(math.log2(high / low) + 1e-6) + 1
    return tuple(float(f"{low * 2**k:.10g}") for k in range(count))


def _with_steps(entry: GatePlan, steps: int) -> GatePlan:
    share = entry["share"]
    if entry.get("gate") != "Delayed" or "steps" in entry or not _is_number(share) or not 0 <= share <= 1:
        raise ValueError(
            f"share={share!r} is for {{gate: Delayed}} in place of steps: a number from 0 to 1, of the run"
        )
    return {**{key: value for key, value in entry.items() if key != "share"}, "steps": round(share * steps)}


def _refuse_swept(rule: RuleEntry) -> None:
    for key in _OF_THE_SWEEP & rule.keys():
        raise ValueError(f"the rule {rule.get('rule')} has '{key}', which the sweep sets; leave it out")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
