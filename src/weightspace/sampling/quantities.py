"""What to diagnose of a network: a few functions of its weights that do not depend on how hidden units are numbered."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.errors import SamplingError
from weightspace.sampling._models import device_of, flattened, labelled, name_of, put_into, working_copy

ROUNDING = 1e-5  # relative, of a float32 norm that a constraint holds at one value


@dataclass(frozen=True)
class ChainQuantities:
    """Values of scalar functions of each sample.

    Attributes:
        values: `(chains, draws)` in float64, by name: `loss` and `entropy` on the batch, `log p(label) of point i`,
            `norm of NAME` of each weight matrix or kernel, `projection i` of all weights.
        within: Names of those that hidden units that change places do change: the projections. `chain_diagnostics`
            looks at each chain alone there.
    """

    values: dict[str, Tensor]
    within: tuple[str, ...] = ()


@torch.no_grad()
def chain_quantities(
    model: nn.Module,
    chains: Sequence[Any],
    batch: Any,
    *,
    points: int = 4,
    norms: int = 4,
    projections: int = 2,
    functions: dict[str, Callable[[nn.Module], float]] | None = None,
    device: torch.device | str | None = None,
    logits: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
) -> ChainQuantities:
    """Evaluate a few functions of every sample of every chain.

    R-hat compares chains, so what it is given must mean the same in each. A single weight does not: two hidden units
    that change places (or signs, with tanh) leave the network as it is. Losses, predictions and norms of whole
    tensors stay as they are then; give what you will report of the posterior by `functions`.

    Args:
        model: Takes the samples' weights; a copy does, in evaluation mode.
        chains: One entry a chain: a `SampleStore`, or a list of samples, state_dicts or models. Of longer chains
            the last samples count, as many as the shortest has.
        batch: Inputs and labels, held-out for choice: the same for every sample.
        points: The first labels of the batch whose log-probability is followed.
        norms: Weight tensors of two or more dimensions whose norm is followed: the first ones, and the last. A norm
            that a constraint holds at one value is left out.
        projections: Sums of all weights with random unit-norm coefficients; they show drift within a chain only.
        functions: Your own, by name: from the model with a sample in it to a number.
        device: Where to compute; None: where the model is.
        logits: Takes what the model returns, gives the class scores; None: the model returns them.
        seed: Of the projections.

    Raises:
        SamplingError: Chains have under 4 samples, belong to another model or do not fit the batch.

    Cost: one forward pass on the batch and one pass over the weights a sample; one sample in memory.
    """
    copy = working_copy(model, device)
    place = device_of(copy) if device is None else torch.device(device)
    followed = _followed(copy, norms)

    def evaluate(sample: Any, number: int) -> dict[str, float]:
        name = name_of(sample, number)
        put_into(copy, sample, name)
        found = _predictions(*labelled(copy, batch, place, logits, name), points)
        found |= {f"norm of {key}": float(weight.norm()) for key, weight in followed.items()}
        found |= {f"projection {i}": _projection(copy, seed + i) for i in range(projections)}
        return found | {key: float(function(copy)) for key, function in (functions or {}).items()}

    rows = [[evaluate(sample, number) for number, sample in enumerate(chain)] for chain in _equally_long(chains)]
    table = {
        key: torch.tensor([[found[key] for found in chain] for chain in rows], dtype=torch.float64)
        for key in rows[0][0]
    }
    fixed = {f"norm of {key}" for key in followed if _is_fixed(table[f"norm of {key}"])}
    values = {key: numbers for key, numbers in table.items() if key not in fixed}
    return ChainQuantities(values, tuple(f"projection {i}" for i in range(projections)))


def _equally_long(chains: object) -> list[list[Any]]:
    """The last samples of each chain, as many as the shortest one has."""
    if isinstance(chains, str | bytes) or not isinstance(chains, Sequence) or not chains:
        raise SamplingError("chains is no list of chains; give one, even of a single SampleStore")
    lists = [list(flattened(chain)) for chain in chains]
    shortest = min(map(len, lists))
    if not shortest:
        raise SamplingError("a chain has no samples; sample longer")
    return [chain[-shortest:] for chain in lists]


def _is_fixed(norm: Tensor) -> bool:
    """Whether a constraint holds a norm: it varies by rounding only, and R-hat of rounding errors means nothing."""
    return float(norm.max() - norm.min()) <= ROUNDING * float(norm.max())


def _followed(model: nn.Module, count: int) -> dict[str, Tensor]:
    """The first weight tensors, and the last."""
    found = [(name, weight) for name, weight in model.named_parameters() if weight.ndim > 1]
    chosen = found if len(found) <= count else [*found[: max(0, count - 1)], *(found[-1:] if count else [])]
    return dict(chosen)


def _predictions(log_probabilities: Tensor, labels: Tensor, points: int) -> dict[str, float]:
    """Loss, entropy, and log-probabilities of the first labels."""
    if not len(labels):
        raise SamplingError("the batch holds no labelled point; give at least one")
    alone = log_probabilities.gather(-1, labels[:, None])[:, 0]
    entropy = torch.special.entr(log_probabilities.exp()).sum(-1)
    found = {"loss": -float(alone.mean()), "entropy": float(entropy.mean())}
    return found | {f"log p(label) of point {i}": float(alone[i]) for i in range(min(points, len(alone)))}


def _projection(model: nn.Module, seed: int) -> float:
    """The inner product of all weights with one random direction of length about 1, drawn anew instead of kept."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(weight.numel() for weight in model.parameters())
    parts: list[float] = []
    for weight in model.parameters():
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
        parts.append(float((weight.to("cpu", torch.float32) * direction).sum(dtype=torch.float64)))
    return math.fsum(parts) / math.sqrt(max(1, count))
