"""Products and convolutions in the precision of their operands, whatever the script allows its own layers.

`torch.set_float32_matmul_precision("high")` lets float32 products round their operands to TF32 or bfloat16, and cuDNN
does so for convolutions unless told not to: fine for a forward pass, wrong by 1e-3 for a linear solve or a singular
value, and a bound computed from such products bounds nothing. `torch.autocast` does so on any device, to three digits,
where a script leaves the optimizer's step inside its block. The rules and spectra of this library ask for full
precision while they run and put the script's settings back.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_FULL = ("ieee", "none", "highest", False)
_AUTOCAST = tuple(d for d in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(d))


@contextmanager
def full_precision() -> Generator[None]:
    """Inside, float32 arithmetic is float32 arithmetic on every device; the caller's settings come back, errors or not.

    Autocast is off inside.

    Works as a decorator too. The settings are torch's global ones: another thread that multiplies at the same moment
    does so in full precision. Cost: some ten microseconds.

    Example:
        >>> torch.set_float32_matmul_precision("high")
        >>> with full_precision():
        ...     torch.backends.cuda.matmul.fp32_precision
        'ieee'
        >>> torch.backends.cuda.matmul.fp32_precision
        'tf32'
        >>> torch.set_float32_matmul_precision("highest")
    """
    lowered = [setting for setting in _settings() if setting[2] not in _FULL]
    cast = [device for device in _AUTOCAST if torch.is_autocast_enabled(device)]
    try:
        for holder, name, _, full in lowered:
            setattr(holder, name, full)
        with ExitStack() as off:
            for device in cast:
                off.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        for holder, name, before, _ in lowered:
            setattr(holder, name, before)


def _settings() -> list[tuple[Any, str, Any, Any]]:
    """Who holds a setting, its name, its value now and its value at full precision."""
    matmul: Any = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):  # before torch 2.9
        switch, cudnn = _Products(), torch.backends.cudnn
        return [(switch, "precision", switch.precision, "highest"), (cudnn, "allow_tf32", cudnn.allow_tf32, False)]
    holders: list[Any] = [
        matmul,
        getattr(torch.backends.mkldnn, "matmul", None),
        getattr(torch.backends.cudnn, "conv", None),
        getattr(torch.backends.mkldnn, "conv", None),
    ]
    name = "fp32_precision"
    return [(holder, name, getattr(holder, name), "ieee") for holder in holders if hasattr(holder, name)]


class _Products:
    """The one setting of products before torch 2.9; `allow_tf32` knows two of its three values only."""

    @property
    def precision(self) -> str:
        """As `torch.get_float32_matmul_precision` names it."""
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)
