"""Gates: at which steps a penalty acts. `Coherent` listens to the gradient; the others are what it has to beat.

Give one to any penalty: `weightspace.penalties.L1(1e-3, gate=weightspace.gates.Coherent())`.
"""

from weightspace.gates.base import SCOPES, ComparingGate, Gate, LooksAt, Products, ScheduledGate, Scope
from weightspace.gates.coherent import Against, Coherent
from weightspace.gates.schedules import Always, Delayed, RandomGate

__all__ = [
    "SCOPES",
    "Against",
    "Always",
    "Coherent",
    "ComparingGate",
    "Delayed",
    "Gate",
    "LooksAt",
    "Products",
    "RandomGate",
    "ScheduledGate",
    "Scope",
]
