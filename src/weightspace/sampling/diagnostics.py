"""Chain diagnostics: have the chains forgotten where they began, and how many independent draws are they worth?

Rank-normalized split R-hat, bulk and tail effective sample size and Monte Carlo standard error of Vehtari, Gelman,
Simpson, Carpenter and Buerkner (2021), "Rank-normalization, folding, and localization", computed by ArviZ. Their
advice: four chains or more, R-hat below 1.01, both effective sample sizes above 400 for four chains: 100 a chain.

Give functions of a network, not its weights: two hidden units that change places leave the function as it is, so chains
that sample the same law sit in different copies of it, and R-hat of a single weight says nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from weightspace.errors import SamplingError
from weightspace.sampling._extras import package

MOST_RHAT = 1.01  # section 4 of the paper
LEAST_ESS = 100  # a chain, likewise
LEAST_CHAINS = 4
LEAST_DRAWS = 4  # that ArviZ can split


@dataclass(frozen=True)
class QuantityDiagnostics:
    """One quantity over all chains.

    Attributes:
        name: Of the quantity.
        mean: Over all draws.
        std: Over all draws.
        rhat: The larger of bulk and tail (folded) rank-normalized split R-hat; 1 is perfect, NaN if a chain stands
            still, or is the only one and under 8 draws. A single chain is cut into four parts instead of two.
        ess_bulk: Effective sample size for the middle of the distribution, all chains together.
        ess_tail: The smaller of those for the 5 % and 95 % quantiles.
        mcse: Monte Carlo standard error of `mean`.
        chains: How many.
        draws: Of each.
        within: Whether chains were looked at one by one (the worst R-hat; sample sizes of the worst times the chains).
    """

    name: str
    mean: float
    std: float
    rhat: float
    ess_bulk: float
    ess_tail: float
    mcse: float
    chains: int
    draws: int
    within: bool

    @property
    def converged(self) -> bool:
        """R-hat at most 1.01, both sample sizes at least 100 a chain, and two chains or more; False if in doubt."""
        enough = [size >= LEAST_ESS * self.chains for size in (self.ess_bulk, self.ess_tail)]  # False for NaN
        return self.chains > 1 and self.rhat <= MOST_RHAT and all(enough)

    @property
    def verdict(self) -> str:
        """One sentence: what is fine, or what is wrong and what helps."""
        if any(map(math.isnan, (self.rhat, self.ess_bulk, self.ess_tail))):
            return "does not vary in some chain, or has too few draws: nothing can be said"
        problems: list[str] = []
        if self.rhat > MOST_RHAT:
            told = "the chain drifts" if self.chains == 1 or self.within else "the chains disagree or drift"
            problems.append(f"{told} (R-hat {self.rhat:.3f} > {MOST_RHAT}): longer burn-in, longer chains")
        least = LEAST_ESS * self.chains
        for name, size in (("bulk", self.ess_bulk), ("tail", self.ess_tail)):
            if size < least:
                problems.append(f"{name} effective sample size {size:.0f} < {least}: longer chains")
                break
        if self.chains == 1:
            problems.append(f"one chain cannot show what it missed: run {LEAST_CHAINS}")
        if problems:
            return "; ".join(problems)
        few = "" if self.chains >= LEAST_CHAINS else f" (with {self.chains} chains; {LEAST_CHAINS} are advised)"
        return f"R-hat {self.rhat:.3f} and {self.ess_bulk:.0f} effective draws{few}"


@dataclass(frozen=True)
class Diagnostics:
    """All quantities.

    Attributes:
        rows: One for each quantity, in the order given.
    """

    rows: tuple[QuantityDiagnostics, ...]

    @property
    def converged(self) -> bool:
        """Whether every quantity passes."""
        return all(row.converged for row in self.rows)

    @property
    def verdict(self) -> str:
        """One sentence about the worst quantity."""
        failed = [row for row in self.rows if not row.converged]
        if not failed:
            return f"no sign against convergence in any of {len(self.rows)} quantities"
        worst = max(failed, key=lambda row: math.inf if math.isnan(row.rhat) else row.rhat)
        return f"{len(failed)} of {len(self.rows)} quantities fail; {worst.name}: {worst.verdict}"

    def summary(self) -> list[dict[str, Any]]:
        """One dict a quantity, ready for JSON, verdict included."""
        return [{**asdict(row), "converged": row.converged, "verdict": row.verdict} for row in self.rows]

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        head = f"{'':<{width}}  {'mean':>10} {'mcse':>9} {'R-hat':>6} {'bulk':>6} {'tail':>6}"
        lines = [
            f"{row.name:<{width}}  {row.mean:>10.4g} {row.mcse:>9.2g} {row.rhat:>6.3f} "
            f"{row.ess_bulk:>6.0f} {row.ess_tail:>6.0f}  {'' if row.converged else row.verdict}".rstrip()
            for row in self.rows
        ]
        return "\n".join([head, *lines, self.verdict])

    def __getitem__(self, name: str) -> QuantityDiagnostics:
        return {row.name: row for row in self.rows}[name]


def chain_diagnostics(values: Any, names: Sequence[str] | None = None, *, within: Iterable[str] = ()) -> Diagnostics:
    """Diagnose chains.

    Args:
        values: `(chains, draws)`, `(chains, draws, quantities)`, or a dict of `(chains, draws)` by name; tensors,
            arrays or nested lists. What `chain_quantities` returns is right as it is.
        names: Of the quantities; not with a dict.
        within: Names of quantities whose chains are not comparable (functions of weights, under permutation
            symmetry): each chain is compared with itself alone.

    Raises:
        SamplingError: There are under 4 draws, values are not finite, or shapes and names do not fit; ArviZ is not
            installed.

    Example:
        >>> found = chain_diagnostics(torch.randn(4, 1000), ["loss"])
        >>> found.converged, found["loss"].ess_bulk > 3000
        (True, True)
    """
    table = as_table(values, names)
    library = package("arviz", "Chain diagnostics")
    alone = {*getattr(values, "within", ()), *within}
    if unknown := sorted(alone - set(table)):
        raise SamplingError(f"within names {unknown[0]!r}, but the quantities are {', '.join(table)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # half a chain that stands still: R-hat is infinite, as it says
        return Diagnostics(tuple(_row(library, name, chains, name in alone) for name, chains in table.items()))


def trace_plot(
    values: Any, path: str | Path, names: Sequence[str] | None = None, *, notes: Mapping[str, str] | None = None
) -> Path:
    """Draw each quantity's trace and, beside it, the ranks of each chain's draws: flat for chains that mix.

    Args:
        values: As for `chain_diagnostics`.
        path: The PNG file.
        names: Of the quantities; not with a dict.
        notes: What to write above the ranks, by name, for instance R-hat; None for nothing.

    Returns:
        `path`.

    Raises:
        SamplingError: The values are no chains, or matplotlib is not installed.
        RunError: The file cannot be written.
    """
    table = as_table(values, names)
    package("matplotlib", "A trace plot")
    from weightspace.sampling.plots import draw_traces

    alone = frozenset(getattr(values, "within", ()))  # ranks of one chain among another's say nothing there
    return draw_traces({name: chains.numpy() for name, chains in table.items()}, Path(path), notes or {}, alone)


def as_table(values: Any, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Values of any accepted form as `(chains, draws)` in float64 by name.

    Raises:
        SamplingError: They have another shape, are too few or not finite, or names do not fit.
    """
    held = getattr(values, "values", None)
    if isinstance(held, Mapping):  # what chain_quantities returns
        values = held
    if isinstance(values, Mapping):
        if names is not None:
            raise SamplingError("names are given for a dict, which has its own; leave them out")
        table = {str(name): _tensor(chains) for name, chains in cast("Mapping[Any, Any]", values).items()}
    else:
        whole = _tensor(values)
        whole = whole[..., None] if whole.ndim == 2 else whole
        if whole.ndim != 3:
            raise SamplingError(f"values have shape {tuple(whole.shape)}; give (chains, draws, quantities)")
        given = [f"quantity {i}" for i in range(whole.shape[-1])] if names is None else [str(name) for name in names]
        if len(given) != whole.shape[-1] or len(set(given)) != len(given):
            raise SamplingError(f"{len(set(given))} different names are given for {whole.shape[-1]} quantities")
        table = {name: whole[..., i] for i, name in enumerate(given)}
    if not table:
        raise SamplingError("there are no quantities; give at least one")
    for name, chains in table.items():
        if chains.ndim != 2 or chains.shape[0] < 1 or chains.shape[1] < LEAST_DRAWS:
            raise SamplingError(
                f"{name} has shape {tuple(chains.shape)}; give (chains, draws) with at least {LEAST_DRAWS} draws"
            )
        if not bool(chains.isfinite().all()):
            raise SamplingError(f"{name} has values that are not finite: a chain has diverged; leave it out")
    return table


def _tensor(values: Any) -> Tensor:
    try:
        return torch.as_tensor(values).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SamplingError(f"values are no table of numbers ({error}); give chains of equal length") from error


def _row(library: Any, name: str, chains: Tensor, within: bool) -> QuantityDiagnostics:
    count, draws = chains.shape
    mean, std = float(chains.mean()), float(chains.std())
    if any(float(chain.max()) == float(chain.min()) for chain in chains):
        return QuantityDiagnostics(name, mean, std, *[math.nan] * 4, chains=count, draws=draws, within=within)
    groups = [chain[None] for chain in chains] if within else [chains]
    rhat = max(_rhat(library, group) for group in groups)
    bulk, tail = (len(groups) * min(_ess(library, group, method) for group in groups) for method in ("bulk", "tail"))
    errors = [float(library.mcse(group.numpy(), method="mean")) for group in groups]
    mcse = math.sqrt(math.fsum(error * error for error in errors)) / len(groups)
    return QuantityDiagnostics(name, mean, std, rhat, bulk, tail, mcse, count, draws, within)


def _rhat(library: Any, chains: Tensor) -> float:
    """Rank-normalized split R-hat; a single chain is cut into two before, and NaN if that leaves too little."""
    if len(chains) == 1:
        half = chains.shape[1] // 2
        chains = torch.cat((chains[:, :half], chains[:, -half:]))
    return float(library.rhat(chains.numpy(), method="rank")) if chains.shape[1] >= LEAST_DRAWS else math.nan


def _ess(library: Any, chains: Tensor, method: str) -> float:
    options = {"prob": (0.05, 0.95)} if method == "tail" else {}  # ArviZ 1.x asks for what 0.x assumes
    return float(library.ess(chains.numpy(), method=method, **options))
