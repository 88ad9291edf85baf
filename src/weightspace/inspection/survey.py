"""From a trace to the rows of the table: spectra of all layers, each computed once, beside what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from weightspace.errors import OperatorError
from weightspace.inspection.expectation import Expectation, expectations
from weightspace.inspection.layers import Detail, LayerSpectrum, describe_layer, folded_s2, layer_spectrum
from weightspace.inspection.report import LayerReport, Measured
from weightspace.inspection.trace import Call, Trace, rms
from weightspace.operators import ConvOperator, operator_of

Progress = Callable[[str, int, int], None]


class Survey:
    """All layers of a model that can be looked at. Use it inside `untouched`.

    Attributes:
        layers: One report for each layer and input size, in the order of execution; layers that were not called last.
        shown: The modules of these layers.
        refused: Layers that were called but have no linear map, and why.
    """

    def __init__(
        self,
        model: nn.Module,
        seen: Trace,
        detail: Detail,
        *,
        frozen: frozenset[int],
        ratios: Mapping[str, float],
        progress: Progress | None,
    ) -> None:
        self._model, self._seen, self._progress = model, seen, progress
        self._detail: Detail = detail
        self._frozen, self._ratios = frozen, ratios
        self._known: dict[Any, LayerSpectrum] = {}
        self._names = {id(p): name for name, p in model.named_parameters()}
        calls = [call for call in seen.calls if call.operator is not None]
        distinct = list({(id(c.module), c.operator.geometry): c for c in reversed(calls) if c.operator}.values())[::-1]
        uncalled = list(self._uncalled())
        self._count = len(distinct) + len(uncalled)
        self.refused: dict[nn.Module, tuple[str, str]] = {
            c.module: (c.name, c.problem) for c in seen.calls if c.operator is None
        }
        self.shown: set[nn.Module] = (
            {c.module for c in distinct} | {module for _, module, _ in uncalled} | set(self.refused)
        )
        spectra = {id(c.operator): self._spectrum(c.name, c.operator) for c in distinct if c.operator is not None}
        s2 = [spectra[id(c.operator)].s2 if id(c.operator) in spectra else None for c in seen.calls]
        foreseen = dict(zip(map(id, seen.calls), expectations(seen, _finite(s2)), strict=True))
        self.layers: tuple[LayerReport, ...] = tuple(
            [self._called(c, spectra[id(c.operator)], foreseen[id(c)]) for c in distinct]
            + [self._not_called(name, module, operator) for name, module, operator in uncalled]
        )

    def _uncalled(self) -> list[tuple[str, nn.Module, ConvOperator]]:
        """Linear layers that the forward pass did not call (attention applies the weights of some itself)."""
        called = {call.module for call in self._seen.calls}
        found: list[tuple[str, nn.Module, ConvOperator]] = []
        for name, module in self._model.named_modules():
            if isinstance(module, nn.Linear) and module not in called:
                try:
                    found.append((name, module, operator_of(module)))
                except OperatorError:
                    continue  # find_unsupported names it
        return found

    def _spectrum(self, name: str, operator: ConvOperator) -> LayerSpectrum:
        """The spectrum of an operator; one of a shared weight is computed once."""
        weight = operator.weight
        key = (weight.data_ptr(), tuple(weight.shape), weight.stride(), operator.geometry, operator.is_transposed)
        if self._progress is not None:
            self._progress(name, len(self._known), self._count)
        if key not in self._known:
            self._known[key] = layer_spectrum(operator.with_weight(weight.detach()), self._detail)
        return self._known[key]

    def _called(self, call: Call, spectrum: LayerSpectrum, foreseen: Expectation) -> LayerReport:
        folded: tuple[float | None, float | None] = (None, None)
        if call.norm is not None and call.operator is not None:
            s2 = folded_s2(call.operator, call.norm[1])
            folded = (None, None) if s2 is None else _gains(s2, spectrum.shape)
        return self._row(
            call.name,
            call.module,
            call.operator,
            spectrum,
            measured=self._measured(call, spectrum, foreseen),
            after=foreseen.reads,
            norm=None if call.norm is None else call.norm[0],
            folded=folded,
        )

    def _not_called(self, name: str, module: nn.Module, operator: ConvOperator) -> LayerReport:
        return self._row(name, module, operator, self._spectrum(name, operator))

    def _row(
        self,
        name: str,
        module: nn.Module,
        operator: ConvOperator | None,
        spectrum: LayerSpectrum,
        *,
        measured: Measured | None = None,
        after: tuple[str, ...] = (),
        norm: str | None = None,
        folded: tuple[float | None, float | None] = (None, None),
    ) -> LayerReport:
        reads, writes = ((), ()) if operator is None else (operator.input_shape, operator.output_shape)
        return LayerReport(
            name=name,
            operator=describe_layer(module),
            input_size=tuple(reads[1:]),
            channels=(reads[0] if reads else 0, writes[0] if writes else 0),
            spectrum=spectrum,
            measured=measured,
            after=after,
            norm=norm,
            folded_forward_gain=folded[0],
            folded_backward_gain=folded[1],
            notes=(*self._notes(module, is_called=measured is not None), *_rank_note(spectrum)),
        )

    def _measured(self, call: Call, spectrum: LayerSpectrum, foreseen: Expectation) -> Measured:
        rows, columns = spectrum.shape
        sides = math.sqrt(rows / columns)
        name = self._weight_name(call.module)
        gradient = self._seen.gradients.get(name)
        back = None
        if call.gradient_rms and call.returned_rms is not None:
            back = call.returned_rms / call.gradient_rms / sides
        return Measured(
            input_rms=call.input_rms,
            activation_rms=call.activation_rms,
            expected_activation_rms=foreseen.activation_rms,
            gradient_rms=call.gradient_rms,
            expected_gradient_rms=foreseen.gradient_rms,
            forward_gain=call.output_rms / call.input_rms * sides if call.input_rms else math.nan,
            backward_gain=back,
            dead_inputs=call.dead_inputs,
            images=call.images,
            weight_gradient_rms=None if gradient is None else rms(gradient),
            update_ratio=self._ratios.get(name),
        )

    def _weight_name(self, module: nn.Module) -> str:
        return self._names.get(id(module._parameters.get("weight")), "")  # noqa: SLF001  # the table: no parametrization runs

    def _notes(self, module: nn.Module, *, is_called: bool) -> tuple[str, ...]:
        """Frozen, parametrized, shared, called often or not at all."""
        notes: list[str] = []
        layer: Any = module
        own = [
            p for name, p in module.named_parameters() if name == "weight" or name.startswith("parametrizations.weight")
        ]
        if own and all(id(p) in self._frozen for p in own):
            notes.append("frozen")
        if nn.utils.parametrize.is_parametrized(module, "weight"):
            kinds = [type(p).__name__.lstrip("_") for p in layer.parametrizations.weight]
            notes.append(f"parametrized ({', '.join(kinds)})")
        elif any(type(hook).__name__ == "SpectralNorm" for hook in module._forward_pre_hooks.values()):  # noqa: SLF001
            notes.append("parametrized (SpectralNorm)")
        sharing = self._sharing(module)
        if sharing:
            notes.append(f"shares its weight with {', '.join(sharing)}")
        times = sum(call.module is module for call in self._seen.calls)
        if times > 1:
            notes.append(f"called {times} times, figures of the first at each size")
        if not is_called:
            notes.append("not called as a module by this forward pass")
        return tuple(notes)

    def _sharing(self, module: nn.Module) -> list[str]:
        weight = module._parameters.get("weight")  # noqa: SLF001
        if weight is None:
            return []
        return [n for n, m in self._model.named_modules() if m is not module and m._parameters.get("weight") is weight]  # noqa: SLF001


def _rank_note(spectrum: LayerSpectrum) -> tuple[str, ...]:
    most = min(spectrum.shape)
    if spectrum.rank_bound == most:
        return ()
    return (f"its geometry leaves room for {spectrum.rank_bound:,} of {most:,} singular values, the others are zero",)


def _gains(s2: float, shape: tuple[int, int]) -> tuple[float, float]:
    return math.sqrt(s2 / shape[1]), math.sqrt(s2 / shape[0])


def _finite(values: list[float | None]) -> list[float | None]:
    return [None if value is None or not math.isfinite(value) else value for value in values]
