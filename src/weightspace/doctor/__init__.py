"""The examination behind `weightspace doctor`: what of this machine and this installation works, and what to do.

Needs torch and rich only: it is there to say which packages are missing.
"""

from __future__ import annotations

from weightspace.doctor.examination import Examination, examine
from weightspace.doctor.finding import Finding, Status

__all__ = ["Examination", "Finding", "Status", "examine"]
