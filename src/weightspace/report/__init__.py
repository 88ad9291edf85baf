"""Reports: one self-contained HTML file and PNG plots of a comparison, of sampled chains or of a single run."""

from __future__ import annotations

from weightspace.report.html import write_report

__all__ = ["write_report"]
