"""Facts about every gate: the rows that the registry, the contract tests and the how-to-choose table read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from weightspace.gates.base import Gate
from weightspace.gates.coherent import Coherent
from weightspace.gates.schedules import Always, Delayed, RandomGate
from weightspace.kernels.facts import Facts


@dataclass(frozen=True)
class GateEntry(Facts[Gate]):
    """Facts about one gate."""


_GATES = (
    GateEntry(
        Always,
        "open at every step",
        "textbook",
        "gates.md",
        "the default; up to the tolerance level nothing else is needed",
        {"plain": {}},
    ),
    GateEntry(
        Delayed,
        "closed for some steps, then open",
        "Park et al. (their delays are not known)",
        "gates.md",
        "the first steps are what a penalty spoils",
        {"plain": {"steps": 3}},
    ),
    GateEntry(
        Coherent,
        "open while the loss gradient keeps its direction",
        "Park et al. (their test and threshold are not known; these are derived)",
        "gates.md",
        "strengths above the tolerance level",
        {
            "total": {},
            "total, global": {"scope": "global"},
            "history": {"against": "history"},
            "previous": {"against": "previous"},
            "lookahead": {"against": "lookahead"},
        },
    ),
    GateEntry(
        RandomGate,
        "open by chance",
        "derived",
        "gates.md",
        "the control: what a coherent gate must beat at the same duty cycle",
        {"plain": {"duty": 0.5}, "global": {"duty": 0.5, "scope": "global"}},
    ),
)

GATES: Mapping[str, GateEntry] = MappingProxyType({entry.name: entry for entry in _GATES})
"""Every gate by name: what `make_gate`, recipes and the table on docs/gates.md know of it."""
