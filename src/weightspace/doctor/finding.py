"""One thing that was looked at, and what is to be done about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "problem"]
"""`"ok"`; `"note"`, worth knowing, nothing is broken; `"problem"`, something does not or will not work."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: What was looked at: a few words.
        status: How bad it is.
        found: What is there, in plain words.
        cure: What to do; empty if nothing.
    """

    name: str
    status: Status
    found: str
    cure: str = ""
