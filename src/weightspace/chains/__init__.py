"""Chains of a recipe: sampled in processes, resumable, averaged, judged. `weightspace sample` is made of this."""

from __future__ import annotations

from weightspace.chains.runner import run_sampling

__all__ = ["run_sampling"]
