"""Modules with weights that are no layer of the table: each gets a reason, none is left out in silence."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from weightspace.inspection.report import Unsupported
from weightspace.inspection.trace import LAYERS

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # noqa: SLF001  # the common base
_REASONS: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    (
        _NORMS,
        "scales channels by what it reads; its factors are in the folded gains of the layer before",
    ),
    ((nn.Embedding, nn.EmbeddingBag), "looks up vectors: no linear map of signals"),
    ((nn.RNNBase, nn.RNNCellBase), "recurrent: its map depends on time; look at the Jacobian of the whole"),
    (
        (nn.MultiheadAttention,),
        "its in_proj_weight holds three matrices that attention joins by products; look at the Jacobian of the whole",
    ),
    ((nn.Bilinear,), "linear in each of two inputs, not in both"),
    ((nn.PReLU,), "an activation with learned slopes"),
)


def find_unsupported(model: nn.Module, shown: Collection[nn.Module]) -> tuple[Unsupported, ...]:
    """Every module with parameters of its own that is not shown as a layer.

    Normalizations of one kind are named together.

    Args:
        model: The model.
        shown: Layers that are in the table.
    """
    norms: dict[str, list[str]] = {}
    found: list[Unsupported] = []
    for name, module in _with_weights(model):
        if module in shown:
            continue
        if isinstance(module, LAYERS):
            reason = "not called by this forward pass, so the size of its input is not known"
        else:
            reason = next((text for kinds, text in _REASONS if isinstance(module, kinds)), None)
            if isinstance(module, _NORMS):
                norms.setdefault(type(module).__name__, []).append(name)
                continue
            reason = reason or _parameters_of(module)
        found.append(Unsupported(name, type(module).__name__, reason))
    for kind, names in norms.items():
        label = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        found.append(Unsupported(label, kind, _REASONS[0][1]))
    return tuple(found)


def _with_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules with parameters of their own; the insides of a parametrization belong to what it parametrizes."""
    for name, module in model.named_modules():
        if "parametrizations" in name.split("."):
            continue
        owned = any(True for _ in module.parameters(recurse=False))
        if owned or nn.utils.parametrize.is_parametrized(module):
            yield name, module


def _parameters_of(module: nn.Module) -> str:
    names = ", ".join(f"{name} {tuple(p.shape)}" for name, p in module.named_parameters(recurse=False))
    return f"a module of its own kind ({names or 'parametrized'}): its linear map, if it has one, is not known"
