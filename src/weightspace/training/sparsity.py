"""What penalties left of a trained model: zeros of its weights, weights that vanished, how often gates were open."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import torch
from torch import nn

from weightspace.files import JsonObject

if TYPE_CHECKING:
    from weightspace.optim import Rules


def zeros_of(model: nn.Module) -> JsonObject:
    """The share of exact zeros among the weights.

    Weights are the parameters with at least two dimensions: kernels and matrices, no biases or scales.

    Args:
        model: The model.

    Returns:
        `{"numbers", "zeros", "layers"}`: how many numbers the weights have, the share of zeros in all of them, and in
        each by the parameter's name. `"zeros"` is 0 for a model without weights.

    Cost: one pass over the weights and one synchronization for each.

    >>> layer = nn.Linear(2, 2)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    >>> zeros_of(layer)
    {'numbers': 4, 'zeros': 0.25, 'layers': {'weight': 0.25}}
    """
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim > 1}
    zeros = {name: weight.numel() - int(torch.count_nonzero(weight.detach())) for name, weight in weights.items()}
    numbers = sum(weight.numel() for weight in weights.values())
    return {
        "numbers": numbers,
        "zeros": sum(zeros.values()) / max(1, numbers),
        "layers": {name: zeros[name] / max(1, weight.numel()) for name, weight in weights.items()},
    }


def duties_of(rules: Rules | None) -> JsonObject:
    """How often the gates of penalties were open over the run.

    Returns:
        By penalty, as text: `{"duty", "layers"}`, the mean over weights and the share of steps of each. Penalties that
        are always on are not in it.
    """
    by_penalty: dict[str, dict[str, float]] = {}
    for name, shares in (rules.duty_cycles if rules is not None else {}).items():
        for penalty, share in shares.items():
            by_penalty.setdefault(penalty, {})[name] = share
    return {
        penalty: {"duty": statistics.fmean(layers.values()), "layers": layers} for penalty, layers in by_penalty.items()
    }


def vanished_of(rules: Rules | None) -> JsonObject:
    """Weights that penalties have made zero altogether, with the step at which that was seen first."""
    return dict(rules.vanished) if rules is not None else {}


def sparsity_text(result: JsonObject) -> str:
    """Zeros, duty cycles and vanished weights of a `result.json` in words; empty where there is nothing to say.

    >>> sparsity_text({"weights": {"zeros": 0.91}, "duty": {"L1(0.01)": {"duty": 0.25}}, "vanished": {"fc.weight": 50}})
    '91.0 % of the weights are zero; L1(0.01) acted at 25.0 % of the steps; all of fc.weight zero since step 50'
    """
    parts: list[str] = []
    zeros = float((result.get("weights") or {}).get("zeros") or 0.0)
    if zeros > 0.0:
        parts.append(f"{100 * zeros:.1f} % of the weights are zero")
    parts += [f"{name} acted at {100 * entry['duty']:.1f} % of the steps" for name, entry in _items(result, "duty")]
    parts += [f"all of {name} zero since step {step}" for name, step in _items(result, "vanished")]
    return "; ".join(parts)


def _items(result: JsonObject, key: str) -> list[tuple[str, JsonObject]]:
    """The entries of one part of a result; none in results of earlier versions."""
    return list((result.get(key) or {}).items())
