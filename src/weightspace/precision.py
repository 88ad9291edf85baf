"""Matrix products in the precision of their operands, whatever the script allows its own layers.

`torch.set_float32_matmul_precision("high")` lets float32 products round their operands to TF32 or bfloat16: fine for a
forward pass, wrong by 1e-3 for a linear solve or a singular value. The rules of this library ask for full precision
while they run and put the script's setting back.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

_FULL = ("ieee", "none")


@contextmanager
def full_matmul_precision() -> Generator[None]:
    """Inside, float32 products are float32 products on every device; the caller's setting comes back, errors or not.

    Works as a decorator too. The setting is torch's global one: another thread that multiplies at the same moment does
    so in full precision. Cost: a few microseconds where nothing has to change.

    Example:
        >>> torch.set_float32_matmul_precision("high")
        >>> with full_matmul_precision():
        ...     torch.backends.cuda.matmul.fp32_precision
        'ieee'
        >>> torch.backends.cuda.matmul.fp32_precision
        'tf32'
        >>> torch.set_float32_matmul_precision("highest")
    """
    backends = _backends()
    if not backends:
        before = torch.get_float32_matmul_precision()
        if before == "highest":
            yield
            return
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    saved = [(backend, backend.fp32_precision) for backend in backends]
    lowered = [(backend, value) for backend, value in saved if value not in _FULL]
    for backend, _ in lowered:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, value in lowered:
            backend.fp32_precision = value


def _backends() -> list[Any]:
    """The settings of torch >= 2.9, one a backend; none before, where there is one for all."""
    candidates: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # pyright: ignore[reportAttributeAccessIssue]  # added in 2.9
    return [backend for backend in candidates if hasattr(backend, "fp32_precision")]
