"""Points of any dtype: 16-bit ones are computed in float32, and products keep the precision of their operands."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from weightspace.precision import full_precision

# What these methods return are points or tangent vectors, in the dtype that came; and numbers, which stay wide.
VECTORS = ("project", "project_tangent", "gradient", "retract", "retract_counted", "geodesic", "transport")
NUMBERS = ("inner", "distance")


def widened(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, computed in float32 where its first tensor is 16 bits wide, in full precision on every device.

    Cost: some ten microseconds a call; copies of 16-bit operands.
    """
    rounds = method.__name__ in VECTORS

    @wraps(method)
    def wide(self: object, *operands: Any, **options: Any) -> Any:
        with full_precision():
            given = next((o.dtype for o in operands if isinstance(o, torch.Tensor)), torch.float32)
            if given.itemsize >= 4 or not given.is_floating_point:
                return method(self, *operands, **options)
            result = method(self, *(_wide(o) for o in operands), **{k: _wide(o) for k, o in options.items()})
            if not rounds:
                return result
            return result.to(given) if isinstance(result, torch.Tensor) else (result[0].to(given), *result[1:])

    return wide


def _wide(operand: Any) -> Any:
    return operand.float() if isinstance(operand, torch.Tensor) else operand
