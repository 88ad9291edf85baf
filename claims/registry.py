"""All claims in the order of the page."""

from __future__ import annotations

from claims.model import Claim
from claims.papers import combined, guo, lao, leimkuhler, own, ozay, park

CLAIMS: tuple[Claim, ...] = (
    *guo.CLAIMS,
    *lao.CLAIMS,
    *park.CLAIMS,
    *ozay.CLAIMS,
    *leimkuhler.CLAIMS,
    *combined.CLAIMS,
    *own.CLAIMS,
)


def claim_named(name: str) -> Claim:
    """The claim of that name.

    Raises:
        KeyError: There is none.
    """
    return {claim.name: claim for claim in CLAIMS}[name]
