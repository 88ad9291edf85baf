"""One row for every rule: what it is called, what it is, who thought of it, where its page is.

The contract tests, the benchmarks, recipes and the how-to-choose table all read this registry: a rule that has a row is
tested, measured and usable from YAML.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from types import MappingProxyType
from typing import Any

from weightspace import gates, manifolds, metrics, penalties
from weightspace.errors import RuleError, nearest, shortened
from weightspace.gates.facts import GATES, GateEntry
from weightspace.kernels import Rule, Stage
from weightspace.kernels.facts import Facts
from weightspace.kernels.selection import Selection, parse


@dataclass(frozen=True)
class RuleEntry(Facts[Rule]):
    """Facts about one rule."""

    @property
    def stage(self) -> Stage:
        """When in a step it acts."""
        return self.factory.stage


_ENTRIES = (
    RuleEntry(
        metrics.ChannelL2,
        "keeps the mean over output channels, damps deviations from it",
        "Lao et al., arXiv 2008.10766 (constants reconstructed)",
        "metrics/channel-l2.md",
        "the default channel-directed gradient: cheap, indifferent to the order of channels",
        {
            "out": {"smoothing": 4.0},
            "out, keep_norm": {"smoothing": 4.0, "keep_norm": True},
            "in": {"smoothing": 4.0, "axis": "in"},
            "spatial": {"smoothing": 4.0, "axis": "spatial"},
        },
    ),
    RuleEntry(
        metrics.ChannelSobolev,
        "smooths along the sequence of output channels",
        "Lao et al., arXiv 2008.10766 (forms reconstructed)",
        "metrics/channel-sobolev.md",
        "to study smoothing along channels; always next to its permuted control",
        {
            "H1": {},
            "H1, periodic": {"boundary": "periodic"},
            "H1, keep_norm": {"keep_norm": True},
            "H1, in": {"axis": "in"},
            "H1, spatial": {"axis": "spatial"},
            "H1, permuted": {"permutation_seed": 0},
            "mean+derivative": {"order": "mean+derivative"},
            "mean+derivative, periodic": {"order": "mean+derivative", "boundary": "periodic"},
        },
    ),
    RuleEntry(
        metrics.GradientCentralization,
        "removes the mean of each filter's gradient",
        "Yong et al., arXiv 2004.01461",
        "metrics/centralization.md",
        "baseline; combines with the channel metrics",
        {"plain": {}, "keep_norm": {"keep_norm": True}},
    ),
    RuleEntry(
        metrics.LaplacianSmoothing,
        "smooths the flattened gradient",
        "Osher et al., arXiv 1806.06317",
        "metrics/laplacian.md",
        "baseline",
        {"plain": {}, "keep_norm": {"keep_norm": True}},
    ),
    RuleEntry(
        penalties.GramSpectralNorm,
        "pulls the squared singular value that is farthest from alpha towards it",
        "Guo & Ye, arXiv 1906.04866",
        "penalties/singular-values.md",
        "to compare with the first of these penalties",
        {"plain": {}, "layer": {"padding_mode": "layer"}},
    ),
    RuleEntry(
        penalties.GramFrobenius,
        "pulls all squared singular values towards alpha, in closed form under the layer's own padding",
        "Guo, arXiv 1907.11235 (closed form derived)",
        "penalties/singular-values.md",
        "the cheapest way to a whole spectrum around one",
        {
            "plain": {},
            "circular": {"padding_mode": "circular"},
            "every second step": {"every": 2},
            "probes": {"probes": 4},
        },
    ),
    RuleEntry(
        penalties.LargestSingularValue,
        "pulls the largest singular value below a bound",
        "derived",
        "penalties/singular-values.md",
        "gradients or activations explode; cheap, leaves all other values alone",
        {"plain": {"bound": 0.5}, "circular": {"bound": 0.5, "padding_mode": "circular"}},
    ),
    RuleEntry(
        penalties.SmallestSingularValue,
        "pushes the smallest singular value above a bound",
        "derived",
        "penalties/singular-values.md",
        "layers lose directions; acts on one value at a time",
        {"plain": {}, "layer": {"padding_mode": "layer"}},
    ),
    RuleEntry(
        penalties.SingularValueBand,
        "pulls every singular value into a band",
        "derived",
        "penalties/singular-values.md",
        "neither too large nor too small, dead values included; the one to try first where its cost is bearable",
        {"plain": {"low": 1.0, "high": 1.0}, "random frequencies": {"low": 1.0, "high": 1.0, "frequencies": 4}},
    ),
    RuleEntry(
        penalties.ConditionNumber,
        "lowers the ratio of the largest to the smallest singular value",
        "derived",
        "penalties/singular-values.md",
        "the scale of a weight should stay free",
        {"plain": {}, "random frequencies": {"frequencies": 4}},
    ),
    RuleEntry(
        penalties.SoftOrthogonality,
        "pulls the flattened kernel towards orthogonal rows",
        "Bansal et al., arXiv 1810.09102",
        "penalties/orthogonality.md",
        "baseline: it looks at the flattened kernel, not at the layer",
        {"SO": {}, "DSO": {"variant": "DSO"}, "SRIP": {"variant": "SRIP"}},
    ),
    RuleEntry(
        penalties.SelfConvolution,
        "pulls filters towards being orthogonal to each other and to their own shifts",
        "Wang et al., arXiv 1911.12207",
        "penalties/orthogonality.md",
        "baseline: the rows of the layer, whatever the size of the image",
        {"plain": {}},
    ),
    RuleEntry(
        penalties.L1,
        "pulls every number of a weight towards zero by the same amount",
        "textbook; Park et al. gate it",
        "penalties/weights.md",
        "sparse weights: gate it where a strength that compresses enough stops the network from learning",
        {
            "gradient": {},
            "proximal": {"application": "proximal"},
            "coherent": {"weight": 0.01, "gate": {"gate": "Coherent"}},
            "proximal, history": {"application": "proximal", "gate": {"gate": "Coherent", "against": "history"}},
        },
    ),
    RuleEntry(
        penalties.L2,
        "weight decay",
        "textbook; Park et al. gate it",
        "penalties/weights.md",
        "weight decay that can be gated, delayed, decoupled or restricted to some weights",
        {"gradient": {}, "proximal": {"application": "proximal"}},
    ),
    RuleEntry(
        penalties.ElasticNet,
        "a mixture of L1 and L2",
        "Zou & Hastie 2005",
        "penalties/weights.md",
        "sparse weights, and none of them large",
        {"gradient": {}, "proximal": {"application": "proximal"}},
    ),
    RuleEntry(
        penalties.GroupL1,
        "pulls whole output channels, kernels or input channels towards zero",
        "Yuan & Lin 2006",
        "penalties/weights.md",
        "channels that can be removed: a smaller dense network, not only a smaller file",
        {
            "out": {},
            "in": {"groups": "in"},
            "kernel": {"groups": "kernel", "on": "convs"},
            "out, proximal": {"application": "proximal"},
        },
    ),
    RuleEntry(
        penalties.CautiousWeightDecay,
        "decay of the numbers that the optimizer moves towards zero anyway",
        "Chen et al., arXiv 2510.12402",
        "penalties/weights.md",
        "baseline: a gate for every single number",
        {"plain": {}},
    ),
    RuleEntry(
        manifolds.Sphere,
        "keeps the norm of each filter, slice or kernel",
        "Ozay & Okatani, arXiv 1610.07008 (steps derived)",
        "manifolds/sphere.md",
        "the constraint to begin with: as cheap as the optimizer's own step",
        {"filter": {}, "slice": {"grouping": "slice"}, "kernel": {"grouping": "kernel", "radius": 2.0}},
    ),
    RuleEntry(
        manifolds.ZeroMeanSphere,
        "keeps the norm and the zero mean of each filter, slice or kernel",
        "derived",
        "manifolds/zero-mean-sphere.md",
        "the mean of a filter carries no information, as after a normalization layer",
        {"filter": {}, "slice": {"grouping": "slice"}},
    ),
    RuleEntry(
        manifolds.Oblique,
        "keeps unit rows (filters) or unit columns, with one step size for the kernel",
        "Ozay & Okatani, arXiv 1610.07008 (steps derived)",
        "manifolds/oblique.md",
        "as Sphere, when all filters of a layer should share a step size",
        {"filter": {}, "column": {"by": "column"}, "slice": {"grouping": "slice"}},
    ),
    RuleEntry(
        manifolds.Stiefel,
        "keeps filters orthonormal, or slices orthogonal",
        "Ozay & Okatani, arXiv 1610.07008 (steps derived)",
        "manifolds/stiefel.md",
        "every direction should pass a layer with the same gain",
        {
            "polar": {},
            "QR": {"retraction": "qr"},
            "canonical": {"metric": "canonical"},
            "slice": {"grouping": "slice"},
        },
    ),
    RuleEntry(
        manifolds.Orthogonal,
        "keeps square slices orthogonal, and their determinants",
        "Ozay & Okatani, arXiv 1610.07008 (steps derived)",
        "manifolds/orthogonal.md",
        "square kernels as rotations; the slices of a kernel with exact geodesics in closed form",
        {"slice": {"grouping": "slice"}},
    ),
    RuleEntry(
        manifolds.Circle,
        "bounds every number of a weight, by slack variables that only ConstrainedLangevin keeps",
        "Leimkuhler et al., arXiv 2006.10114 (slack above 1: derived)",
        "manifolds/circle.md",
        "numbers should stay within a bound while ConstrainedLangevin samples or trains",
        {"auto": {}, "slack 2": {"radius": 2.0, "slack": 2}},
    ),
    RuleEntry(
        manifolds.Product,
        "shares the channels of a weight out among manifolds, fixed or drawn anew",
        "after Ozay & Okatani, arXiv 1701.06123, 1905.09054 (assignments derived)",
        "manifolds/product.md",
        "no single manifold fits all channels, or as an ensemble to compare with",
        {
            "input": {"parts": ["sphere(slice)", "stiefel(slice)"]},
            "output": {"parts": ["stiefel(matrix)", "sphere(filter)"], "over": "output"},
            "slice, random": {
                "parts": ["sphere(slice)", "orthogonal(slice)"],
                "over": "slice",
                "assignment": "random",
                "every": 2,
            },
        },
    ),
)

__all__ = ["GATES", "REGISTRY", "GateEntry", "RuleEntry", "make_gate", "make_rule"]

REGISTRY: Mapping[str, RuleEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""Every rule by name: what `make_rule`, recipes, contract tests and docs/how-to-choose.md know of it."""


def make_gate(name: str, /, **options: Any) -> gates.Gate:
    """Builds a gate from its name and options, as recipes do.

    Raises:
        RuleError: Unknown name or option (the nearest known one is named), or a value out of range.

    Example:
        >>> make_gate("Coherent", against="history").least_cosine
        0.2
    """
    entry = GATES.get(name) if isinstance(name, str) else None
    if entry is None:
        raise RuleError(f"There is no gate {shortened(name)}{_hint(name, GATES)}")
    _check_options(name, entry.factory, options)
    missing = [f.name for f in fields(entry.factory) if f.default is MISSING and f.name not in options]
    if missing:
        raise RuleError(f"{name} needs {' and '.join(missing)}; give it as {missing[0]}=.")
    return entry.factory(**options)


def make_rule(name: str, /, **options: Any) -> Rule:
    """Builds a rule from its name and options, as recipes do.

    `on` may be text such as `"convs & ~head"`, `gate` a mapping such as `{"gate": "Coherent", "against": "history"}`.

    Raises:
        RuleError: Unknown name or option (the nearest known one is named), or a value out of range.

    Example:
        >>> make_rule("ChannelL2", smoothing=2.0, on="convs")
        ChannelL2(smoothing=2.0, axis='out', keep_norm=False, on=convs)
    """
    entry = REGISTRY.get(name) if isinstance(name, str) else None
    if entry is None:
        raise RuleError(f"There is no rule {shortened(name)}{_hint(name, REGISTRY)}")
    _check_options(name, entry.factory, options)
    on = options.get("on")
    if not isinstance(on, str | Selection | None):
        raise RuleError(
            f"{name} got on={on!r}; pass a selection such as ws.on.convs, or text such as 'convs & ~head', or None."
        )
    if isinstance(options.get("gate"), Mapping):
        options["gate"] = _gate(name, options["gate"])
    return entry.factory(**{**options, "on": parse(on) if isinstance(on, str) else on})


def _gate(rule: str, given: Mapping[str, Any]) -> gates.Gate:
    kind = given.get("gate")
    if not isinstance(kind, str):
        raise RuleError(f"{rule} got gate={dict(given)!r}; name it, as in {{gate: Coherent, against: history}}.")
    return make_gate(kind, **{key: value for key, value in given.items() if key != "gate"})


def _check_options(name: str, factory: type, options: Mapping[str, Any]) -> None:
    known = [f.name for f in fields(factory) if f.init]  # every rule and gate is a dataclass
    for option in options:
        if option not in known:
            raise RuleError(f"{name} has no option {option!r}{_hint(option, known)}")


def _hint(name: object, known: Collection[str]) -> str:
    return nearest(name, known, "; did you mean {!r}?") or f"; known are {', '.join(known)}."
