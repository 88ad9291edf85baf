"""From figures to sentences: what is wrong, on what evidence, and the rule that would act on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightspace.inspection.limits import Limits

if TYPE_CHECKING:
    from weightspace.inspection.jacobian import JacobianSpectrum
    from weightspace.inspection.report import LayerReport, Measured

MOST_ADVICE = 5
_RELU_LIKE = frozenset({"Relu", "Gelu", "Silu", "LeakyRelu", "Elu", "Hardswish", "Mish", "Threshold", "Hardtanh"})


@dataclass(frozen=True)
class Alert:
    """One finding beyond a limit.

    Attributes:
        layer: Its layer; None for the network.
        kind: A word for filters: "non-finite", "end to end", "sigma_max", "gain", ...
        evidence: What was measured, and the limit.
        remedy: A rule to paste into `attach`, or None where no rule acts.
        advice: What to do, in words.
        severity: For the order: decades beyond the limit, more for what stops training.
    """

    layer: str | None
    kind: str
    evidence: str
    remedy: str | None
    advice: str
    severity: float

    def __str__(self) -> str:
        return f"{self.layer or 'network'}: {self.evidence}"


@dataclass(frozen=True)
class Advice:
    """What to do about one or several findings.

    Attributes:
        layers: Where; empty for the whole network.
        reason: The evidence.
        words: What to do.
        rule: To paste into `attach`, or None where no rule acts.
    """

    layers: tuple[str, ...]
    reason: str
    words: str
    rule: str | None

    def __str__(self) -> str:
        where = ", ".join(self.layers) or "network"
        return f"{where}: {self.reason}: {self.rule or self.words}"


@dataclass(frozen=True)
class Network:
    """Figures of the whole network that sentences are made of."""

    forward_gain: float
    backward_gain: float | None
    layers: Sequence[LayerReport]
    head: str | None
    jacobian: JacobianSpectrum | None = None
    nonfinite: Sequence[str] = ()


def find_alerts(network: Network, limits: Limits) -> tuple[Alert, ...]:
    """All findings beyond a limit, worst first."""
    found = [*_of_network(network, limits)]
    for layer in network.layers:
        found += [*_of_weights(layer, limits), *_of_signals(layer, network, limits)]
    return tuple(sorted(found, key=lambda alert: -alert.severity))


def make_advice(alerts: Sequence[Alert], most: int = MOST_ADVICE) -> tuple[Advice, ...]:
    """The worst findings as things to do; findings that ask for the same are put together."""
    groups: dict[tuple[str, str], list[Alert]] = {}
    for alert in alerts:
        groups.setdefault((alert.kind, alert.advice), []).append(alert)
    made: list[Advice] = []
    for members in list(groups.values())[:most]:
        first = members[0]
        layers = tuple(dict.fromkeys(m.layer for m in members if m.layer is not None))
        reason = first.evidence if len(layers) < 2 else f"{first.evidence} (at {layers[0]}, the worst of {len(layers)})"
        made.append(Advice(layers, reason, first.advice, _on(first.remedy, layers)))
    return tuple(made)


def verdict(network: Network, alerts: Sequence[Alert]) -> tuple[str, ...]:
    """Sentences that say how the network is, the most important first."""
    sentences: list[str] = []
    for label, gain, key in (
        ("Backward", network.backward_gain, "backward"),
        ("Forward", network.forward_gain, "forward"),
    ):
        if gain is None or math.isnan(gain):
            continue
        word = "vanishing" if gain < 1e-2 else "exploding" if gain > 1e2 else "in range"
        culprits = _culprits(network.layers, key, gain) if word != "in range" else ""
        sentences.append(f"{label} gain end to end {gain:.2g} ({word}){culprits}.")
    if any(alert.kind == "nonfinite" for alert in alerts):
        worst = next(alert for alert in alerts if alert.kind == "nonfinite")
        sentences.insert(0, f"NaN or infinity was met, first to look at: {worst}.")
    count = len(alerts)
    sentences.append(
        "Nothing is beyond its limit." if not count else f"{count} finding{'s' if count > 1 else ''} beyond a limit."
    )
    return tuple(sentences)


# ------------------------------------------------------------------------------------------------------ findings


def _of_network(network: Network, limits: Limits) -> Iterator[Alert]:
    relu = _follows_relu(network.layers)
    target, why = (2.0, "twice, because ReLU-like activations halve the square") if relu else (1.0, "once")
    for name in network.nonfinite:
        yield Alert(name, "nonfinite", "its weight holds NaN or infinity", None, _FINITE, 110.0)
    yield from _of_jacobian(network.jacobian, limits)
    for label, gain in (("gradient", network.backward_gain), ("signal", network.forward_gain)):
        if gain is None or math.isnan(gain):
            continue
        if not math.isfinite(gain):
            yield Alert(None, "nonfinite", f"the {label} at the end is not finite", None, _FINITE, 100.0)
        elif not 1 / limits.end_to_end <= gain <= limits.end_to_end:
            beyond = abs(math.log10(max(gain, 1e-300))) - math.log10(limits.end_to_end)
            verb = "shrinks" if gain < 1 else "grows"
            # The band begins (ends) where signals keep their size: docs/results/deep-plain.md has what trained.
            low, high = (1.0, math.sqrt(2)) if gain < 1 else (0.5, 1.0)
            band = f"{low * math.sqrt(target):.2g}, {high * math.sqrt(target):.2g}"
            yield Alert(
                None,
                "end to end",
                f"the {label} {verb} by {gain:.2g} end to end (limit {limits.end_to_end:g} either way)",
                f"ws.penalties.SingularValueBand({band}, weight=3e-2)",
                f"bring the mean squared singular value of every layer near {target:g} ({why}); starting from "
                "nn.init.kaiming_normal_ does that at once, the rule does it from any start (clip gradients meanwhile)",
                2.0 + beyond,
            )


def _of_jacobian(jacobian: JacobianSpectrum | None, limits: Limits) -> Iterator[Alert]:
    """A map that hardly depends on its input, whatever size its activations have (biases can keep that up)."""
    top = None if jacobian is None else float(jacobian.values[0])
    if top is None or jacobian is None or not (top > limits.end_to_end or (top < 1 / limits.end_to_end)):
        return
    if top < 1 and not jacobian.is_exact:
        return  # a lower bound says nothing about how small the value is
    means = "hardly change the output" if top < 1 else "are blown up"
    yield Alert(
        None,
        "jacobian",
        f"small changes of the input {means}: the largest singular value of the whole map is {top:.2g} (limit "
        f"{limits.end_to_end:g} either way)",
        None,
        "see the depth plot for where that begins",
        1.0 + abs(math.log10(max(top, 1e-300))) - math.log10(limits.end_to_end),
    )


def _of_extremes(layer: LayerReport, limits: Limits) -> Iterator[Alert]:
    """What the largest singular value alone gives rise to."""
    spectrum, extremes, name = layer.spectrum, layer.spectrum.extremes, layer.name
    if extremes is None:
        return
    top, bound = extremes.sigma_max * _norm_factor(layer), extremes.sigma_max_bound * _norm_factor(layer)
    allowed = limits.sigma_max * math.sqrt(max(1.0, spectrum.shape[0] / spectrum.shape[1]))
    if top > allowed:
        gain = layer.measured.backward_gain if layer.measured is not None else None
        grows = f", gradients grow {gain:.2g}x here" if gain is not None and gain > 1 else ""
        folded = " with its batch norm" if layer.norm is not None else ""
        yield Alert(
            name,
            "sigma_max",
            f"sigma_max {top:.3g}{folded}{grows} (limit {allowed:.3g})",
            f"ws.penalties.LargestSingularValue({allowed / 2:.2g}, weight=1e-2)",
            "pull the largest singular value down",
            0.5 + math.log10(top / allowed),
        )
    if not extremes.is_converged and bound > 1.5 * top:
        yield Alert(
            name,
            "unconverged",
            f"sigma_max is only known to lie in [{top:.3g}, {bound:.3g}]",
            None,
            "ask extreme_singular_values() with more steps",
            0.0,
        )
    claim = next((n for n in layer.notes if "SpectralNorm" in n), None)
    if claim is not None and layer.input_size and not 0.95 <= top <= 1.05:
        yield Alert(
            name,
            "spectral_norm",
            f"spectral_norm claims a norm of 1 (of the flattened weight), the layer has {top:.3g}",
            "ws.penalties.LargestSingularValue(1.0, weight=1e-1)",
            "take spectral_norm off and bound the layer's own norm",
            1.0 + abs(math.log10(max(top, 1e-30))),
        )


def _of_weights(layer: LayerReport, limits: Limits) -> Iterator[Alert]:
    spectrum, name = layer.spectrum, layer.name
    yield from _of_extremes(layer, limits)
    dead = spectrum.dead_modes
    if dead is not None and dead > limits.dead_modes:
        yield Alert(
            name,
            "dead modes",
            f"{dead:.0%} of the singular values are below a thousandth of the largest (limit {limits.dead_modes:.0%})",
            "ws.penalties.SingularValueBand(0.5, 2.0, weight=1e-2)",
            "push small singular values up",
            math.log10(dead / limits.dead_modes),
        )
    if spectrum.padding_loss > limits.padding_loss:
        size = "x".join(map(str, layer.input_size))
        yield Alert(
            name,
            "padding",
            f"zero padding takes {spectrum.padding_loss:.0%} of the variance at {size} (limit "
            f"{limits.padding_loss:.0%})",
            None,
            "no weight makes this layer an isometry: use a larger map, a smaller kernel or padding_mode='reflect'",
            math.log10(spectrum.padding_loss / limits.padding_loss),
        )


_FINITE = "look at the first layer whose figures are not finite; lower the learning rate or go back to a checkpoint"


def _of_signals(layer: LayerReport, network: Network, limits: Limits) -> Iterator[Alert]:
    measured, name = layer.measured, layer.name
    if measured is None:
        return
    figures = (measured.activation_rms, measured.gradient_rms or 0.0)
    if not all(map(math.isfinite, figures)):
        yield Alert(name, "nonfinite", "activation or gradient is not finite", None, _FINITE, 90.0)
        return
    # What a batch norm behind the layer multiplies with takes part: alone, the scale of the weight means nothing there.
    gain = None if measured.backward_gain is None else measured.backward_gain * _norm_factor(layer)
    if gain is not None and gain > 0 and not 1 / limits.layer_gain <= gain <= limits.layer_gain:
        verb = f"grows {gain:.2g}x" if gain > 1 else f"shrinks to {gain:.2g}"
        yield Alert(
            name,
            "gain",
            f"the gradient {verb} here (limit {limits.layer_gain:g}x; the weights alone would give "
            f"{layer.spectrum.backward_gain * _norm_factor(layer):.2g})",
            "ws.penalties.SingularValueBand(0.5, 2.0, weight=1e-2)",
            "bring the layer's singular values towards one",
            abs(math.log10(gain)) - math.log10(limits.layer_gain) + (0.0 if name != network.head else -1.0),
        )
    ratio = measured.gradient_ratio
    if ratio is not None and ratio > 0 and not 1 / limits.disagreement <= ratio <= limits.disagreement:
        yield Alert(
            name,
            "alignment",
            f"the gradient is {ratio:.2g} times what the weights predict (limit {limits.disagreement:g} either way)",
            None,
            "signals line up with large (or small) singular vectors, often a constant component: look at the frequency "
            "maps, and at normalization and biases",
            abs(math.log10(ratio)) - math.log10(limits.disagreement) - 1.0,
        )
    yield from _of_dead_channels(layer, measured, limits)


def _of_dead_channels(layer: LayerReport, measured: Measured, limits: Limits) -> Iterator[Alert]:
    places = layer.spectrum.shape[1] // max(1, layer.channels[0])
    share = measured.dead_inputs / max(1, layer.channels[0])
    if share > limits.dead_channels and measured.images * places >= limits.least_samples:
        yield Alert(
            layer.name,
            "dead channels",
            f"{measured.dead_inputs} of {layer.channels[0]} input channels are zero for all {measured.images} images "
            f"(limit {limits.dead_channels:.0%})",
            None,
            "units before this layer are dead: lower the learning rate, use a leaky activation, or prune them",
            math.log10(share / limits.dead_channels),
        )


# ------------------------------------------------------------------------------------------------------ wording


def _follows_relu(layers: Sequence[LayerReport]) -> bool:
    """Whether most layers but the first read what a ReLU-like activation wrote."""
    later = [layer for layer in layers if layer.measured is not None][1:]
    return sum(bool(_RELU_LIKE & set(layer.after)) for layer in later) * 2 > len(later)


def _norm_factor(layer: LayerReport) -> float:
    """What a batch norm behind the layer multiplies its gain with; 1 without one."""
    own = layer.spectrum.backward_gain
    if layer.folded_backward_gain is None or not own or not math.isfinite(own):
        return 1.0
    return layer.folded_backward_gain / own


def _culprits(layers: Sequence[LayerReport], key: str, gain: float) -> str:
    """The three layers that take most part in a gain, by their own measured factors."""
    gains: list[tuple[float, str]] = []
    for layer in layers:
        own = None if layer.measured is None else getattr(layer.measured, f"{key}_gain")
        if own is not None and own > 0 and math.isfinite(own):
            rows, columns = layer.spectrum.shape
            own *= _norm_factor(layer) * (math.sqrt(columns / rows) if key == "forward" else 1.0)
            gains.append((math.log10(own), layer.name))
    side = [g for g in gains if (g[0] < 0) == (gain < 1)]
    if not side:
        return "; no single layer, what lies between them does it"
    side.sort(key=lambda g: -abs(g[0]))
    share = sum(log for log, _ in side[:3]) / sum(log for log, _ in side)
    if len(side) > 3 and share < 0.5:
        ends = sorted(10**log for log, _ in side)
        return f"; spread over {len(side)} layers, {ends[0]:.2g}x to {ends[-1]:.2g}x each, and what lies between them"
    named = ", ".join(f"{name} ({10**log:.2g}x)" for log, name in side[:3])
    return f"; most of it in {named}" + (f", {share:.0%} of what {len(side)} layers do" if len(side) > 3 else "")


def _on(remedy: str | None, layers: tuple[str, ...]) -> str | None:
    """The rule with the layers it is for."""
    if remedy is None or not layers or "" in layers:
        return remedy
    names = " | ".join(f'ws.on.name("{_glob(layer)}")' for layer in layers[:6])
    if len(layers) > 6:
        return remedy  # so many that the default selection is meant
    return f"{remedy[:-1]}, on={names})"


def _glob(name: str) -> str:
    """A name as a pattern that matches nothing else."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
