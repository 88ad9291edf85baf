"""`prune_to`: the largest ratio of zeros whose loss of accuracy stays within a bound, measured after pruning.

Bisection over the share of weights that is left, on a logarithmic scale: 0.9 against 0.95 is a file of half the size,
0.4 against 0.45 is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch
from rich.table import Table
from torch import Tensor, nn

from weightspace.compress.masks import Masks, masks_of
from weightspace.compress.pruning import Choice, Groups, Scope, prune_by
from weightspace.errors import CompressError
from weightspace.kernels import Selection, unwrap
from weightspace.kernels.printing import as_text
from weightspace.kernels.selection import convs


@dataclass(frozen=True)
class Trial:
    """One ratio that was tried.

    Attributes:
        ratio: What was asked for.
        zeros: Share of zeros among the weights looked at, after pruning; None if the ratio was refused.
        accuracy: What `evaluate` gave after pruning; None if the ratio was refused.
        is_within: Whether the accuracy is within the bound.
        note: Why it was refused.
    """

    ratio: float
    zeros: float | None
    accuracy: float | None
    is_within: bool
    note: str = ""


@dataclass(frozen=True)
class Search:
    """What `prune_to` looked at. `print(search)` shows it.

    Attributes:
        baseline: Accuracy before pruning.
        loss: The loss that was allowed.
        ratio: The ratio chosen; 0 if no other was within the bound.
        accuracy: Accuracy at that ratio.
        trials: In the order in which they were made.
    """

    baseline: float
    loss: float
    ratio: float
    accuracy: float
    trials: tuple[Trial, ...]

    def __rich__(self) -> Table:
        table = Table(show_edge=False, pad_edge=False)
        for column in ("ratio", "zeros", "accuracy", "change", "within", "note"):
            table.add_column(column, overflow="fold")
        table.add_row("before", "", f"{self.baseline:.4f}", "", "", "")
        for trial in sorted(self.trials, key=lambda t: t.ratio):
            zeros = "–" if trial.zeros is None else f"{trial.zeros:.4f}"
            accuracy = "–" if trial.accuracy is None else f"{trial.accuracy:.4f}"
            change = "–" if trial.accuracy is None else f"{trial.accuracy - self.baseline:+.4f}"
            within = ("yes, chosen" if trial.ratio == self.ratio else "yes") if trial.is_within else "no"
            table.add_row(f"{trial.ratio:.4f}", zeros, accuracy, change, within, trial.note)
        return table

    def __str__(self) -> str:
        return as_text(self, width=140)


def prune_to(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float],
    *,
    loss: float = 0.01,
    scope: Scope = "global",
    groups: Groups | None = None,
    on: Selection | None = None,
    highest: float = 0.999,
    resolution: float = 0.05,
) -> Masks:
    """Prunes as much as a bound on the loss of accuracy allows.

    Every trial starts from the model as it came (parameters and buffers), prunes, and asks `evaluate`. Bisection takes
    accuracy to fall with the ratio; where it does not quite, the ratio chosen is still one that was measured to be
    within the bound. The bound holds for the data that `evaluate` looks at: take held-out data, not the test set.

    Args:
        model: Ends pruned at the ratio chosen, otherwise as it came; as it came if anything raises.
        evaluate: Gives the accuracy (any score where more is better) of the model. It may do more with the model, such
            as reestimating batch norms, or fine-tuning: that belongs to its trial and is undone.
        loss: How much less than before is allowed, in units of the score: 0.01 is one point of a fraction.
        scope: As for `prune`.
        groups: As for `prune`.
        on: As for `prune`.
        highest: No ratio above this is tried.
        resolution: The search ends when the weights left are known to within this share.

    Returns:
        The masks; `masks.search` has every ratio with its accuracy.

    Raises:
        CompressError: An option is out of range, a weight holds NaN, or `evaluate` gave no finite number for the model
            as it came.
        SelectionError: As for `prune`.

    Cost: `1 + log2(log(1 / (1 - highest)) / log(1 + resolution))` evaluations, 9 with the defaults, and a copy of the
    model's state.

    Example:
        >>> layer = nn.Linear(100, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.arange(1.0, 101.0))
        >>> def large_ones_left(layer):  # the 40 smallest may go
        ...     return float((layer.weight > 40).sum()) / 60
        >>> masks = prune_to(layer, large_ones_left, loss=0.0, resolution=0.01)
        >>> 0.39 <= masks.zeros <= 0.4
        True
    """
    _check_options(loss, highest, resolution)
    Choice(ratio=0.0, scope=scope, groups=groups, on=on)  # raises before anything is evaluated
    start = masks_of(model, on=convs if on is None and groups == "kernel" else on)
    before = _Snapshot(model)
    trials: list[Trial] = []
    try:
        baseline = _score(evaluate, model)
        if baseline is None:
            raise CompressError(
                "evaluate() gave no finite number for the model as it came; it must return its accuracy."
            )
        best = Trial(0.0, start.zeros, baseline, is_within=True)
        # Weights left at the best ratio so far, and at the least one that failed (or was never to be tried).
        most, least = 1.0, 1.0 - highest
        while most > least * (1.0 + resolution):
            left = math.sqrt(most * least)
            before.restore()
            trial = _try(model, evaluate, Choice(None, 1.0 - left, scope, groups, on), baseline - loss)
            trials.append(trial)
            if trial.is_within:
                best, most = trial, left
            else:
                least = left
    finally:
        before.restore()
    masks = prune_by(model, Choice(None, best.ratio, scope, groups, on), force=False) if best.ratio else start
    masks.search = Search(baseline, loss, best.ratio, best.accuracy or 0.0, tuple(trials))
    return masks


def _try(model: nn.Module, evaluate: Callable[[nn.Module], float], choice: Choice, bound: float) -> Trial:
    ratio = choice.ratio or 0.0
    try:
        masks = prune_by(model, choice, force=False)
    except CompressError as error:  # a layer would be emptied
        return Trial(ratio, None, None, is_within=False, note=str(error))
    accuracy = _score(evaluate, model)
    if accuracy is None:
        return Trial(ratio, masks.zeros, None, is_within=False, note="evaluate() gave no finite number")
    return Trial(ratio, masks.zeros, accuracy, is_within=accuracy >= bound)


def _score(evaluate: Callable[[nn.Module], float], model: nn.Module) -> float | None:
    """What `evaluate` gives, None if that is no finite number."""
    value: object = evaluate(model)
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, Real):
        raise CompressError(f"evaluate() gave {value!r}; it must return the accuracy as a number.")
    return float(value) if math.isfinite(value) else None


def _check_options(loss: float, highest: float, resolution: float) -> None:
    if not (isinstance(loss, Real) and 0 <= loss < math.inf):
        raise CompressError(f"prune_to() got loss={loss!r}; pass how much accuracy may be lost, from 0.")
    if not (isinstance(highest, Real) and 0 < highest < 1):
        raise CompressError(f"prune_to() got highest={highest!r}; pass a share of zeros above 0 and below 1.")
    if not (isinstance(resolution, Real) and 1e-3 <= resolution < math.inf):
        raise CompressError(f"prune_to() got resolution={resolution!r}; pass a number from 0.001.")


class _Snapshot:
    """Parameters and buffers of a model as they were, each tensor once, and whether each module was training."""

    def __init__(self, model: nn.Module) -> None:
        root = unwrap(model)
        self._tensors = [(t, t.detach().clone()) for t in (*root.parameters(), *root.buffers())]
        self._modes = [(module, module.training) for module in root.modules()]

    @torch.no_grad()
    def restore(self) -> None:
        """Puts them back in place."""
        for tensor, value in self._tensors:
            tensor.copy_(value)
        for module, training in self._modes:
            module.training = training
