"""Presets: constrained Langevin dynamics with the settings of its authors, where those are known.

| preset | constraint | origin |
|---|---|---|
| `o-cola-ud` | `Stiefel()` on every layer but the first | authors' script |
| `o-cola-od` | the same, overdamped | derived |
| `c-cola-ud` | `Circle`, radius 0.05 in the first layer, 0.1 in others | authors' script |
| `c-cola-od` | the same, overdamped | derived |

| setting | `o-cola-ud` | `c-cola-ud` |
|---|---|---|
| step | lr 0.1 [authors] | h = 0.3, lr 0.09 [authors] |
| damping | momentum 0.9 [authors] | friction 1 [authors] |
| temperature | 0 [authors] | 0 [authors] |
| order | OBA [authors] | BAOA [ours] |
| weight decay | none [authors] | none [ours] |

Overdamped ones take the lr of the underdamped ones [ours].

"Every layer" is every weight of a convolution or linear layer, the last one included; biases and normalization stay
free: what the authors did with the last layer is not known to us. Around the presets their scripts had: `o-cola-ud`,
ResNet-34 with batch normalization on CIFAR-10, batches of 128, 150 epochs, lr warmed up over 3 epochs and divided by 10
after epochs 50 and 100; `c-cola-ud`, a 784-1000-10 ReLU network on 10 000 images of Fashion-MNIST, batches of 128, 400
epochs.

Source: Leimkuhler, Vlaar, Pouchon, Storkey, arXiv 2006.10114, and their scripts; overdamped forms are **derived**.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from torch import nn

from weightspace.errors import RuleError, SelectionError, nearest
from weightspace.kernels import Selection, describe
from weightspace.kernels.selection import convs, linears, name
from weightspace.manifolds import Circle, Manifold, Stiefel
from weightspace.optim.constrained_langevin import ConstrainedLangevin
from weightspace.optim.groups import ParamGroups, param_groups

Radius = float | Literal["auto"]


@dataclass(frozen=True)
class LangevinPreset:
    """One preset.

    Attributes:
        name: As in `langevin_preset`.
        constraint: `"orthogonality"` or `"circle"`.
        options: Of `ConstrainedLangevin`.
        origin: Of every option: the authors' script, derived, or ours.
        first_radius: Circle: r of the first layer.
        radius: Circle: r of other layers.
    """

    name: str
    constraint: Literal["orthogonality", "circle"]
    options: Mapping[str, Any]
    origin: Mapping[str, str]
    first_radius: float | None = None
    radius: float | None = None


_PAPER, _DERIVED, _OURS = "authors' script", "derived", "ours"


def _overdamped(preset: str, of: LangevinPreset) -> LangevinPreset:
    """The same constraint without velocities; `lr` is the time step itself."""
    options = {"lr": of.options["lr"], "temperature": 0.0, "scheme": "overdamped"}
    origin = {"lr": f"{_OURS}: that of {of.name}", "temperature": of.origin["temperature"], "scheme": _DERIVED}
    return LangevinPreset(preset, of.constraint, options, origin, of.first_radius, of.radius)


_O_COLA = LangevinPreset(
    "o-cola-ud",
    "orthogonality",
    {"lr": 0.1, "momentum": 0.9, "temperature": 0.0, "weight_decay": 0.0, "scheme": "OBA"},
    dict.fromkeys(("lr", "momentum", "temperature", "weight_decay", "scheme"), _PAPER),
)
_C_COLA = LangevinPreset(
    "c-cola-ud",
    "circle",
    {"lr": 0.3**2, "friction": 1.0, "temperature": 0.0, "scheme": "BAOA"},
    {"lr": _PAPER, "friction": _PAPER, "temperature": _PAPER, "scheme": _OURS},
    first_radius=0.05,
    radius=0.1,
)
LANGEVIN_PRESETS: Mapping[str, LangevinPreset] = MappingProxyType(
    {p.name: p for p in (_O_COLA, _overdamped("o-cola-od", _O_COLA), _C_COLA, _overdamped("c-cola-od", _C_COLA))}
)
"""Every preset of `langevin_preset` by name."""


def langevin_preset(
    preset: str,
    model: nn.Module,
    *,
    first_radius: Radius | None = None,
    radius: Radius | None = None,
    **options: Any,
) -> ConstrainedLangevin:
    """A `ConstrainedLangevin` for a model with the settings of a preset; see the table of the module for their origin.

    Args:
        preset: `"o-cola-ud"`, `"o-cola-od"`, `"c-cola-ud"` or `"c-cola-od"`.
        model: Its convolutions and linear layers are constrained.
        first_radius: Of circle presets: r of the first layer, a number or `"auto"`.
        radius: Of circle presets: r of other layers. The authors' suit wide layers; others may begin with larger
            numbers than that and are refused: pass `"auto"`.
        **options: Of `ConstrainedLangevin`, in place of the preset's; `friction` takes the place of `momentum` and the
            other way round. A temperature above 0 needs `num_data`.

    Raises:
        RuleError: There is no such preset, or an option is out of its range.
        SelectionError: The model has no such layers, or a number of a weight is beyond its radius.

    Example:
        >>> model = nn.Sequential(nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 10))
        >>> sampler = langevin_preset("c-cola-ud", model)
        >>> [(g["manifold"], g["lr"]) for g in sampler.param_groups[:2]]
        [('circle(entry, radius=0.05)', 0.09), ('circle(entry, radius=0.1)', 0.09)]
    """
    entry = LANGEVIN_PRESETS.get(preset) if isinstance(preset, str) else None
    if entry is None:
        hint = (
            nearest(preset, LANGEVIN_PRESETS, "; did you mean {!r}?") or f"; known are {', '.join(LANGEVIN_PRESETS)}."
        )
        raise RuleError(f"There is no preset {preset!r}{hint}")
    if entry.constraint != "circle" and (first_radius is not None or radius is not None):
        raise RuleError(f"{preset} has no radius: its constraint is orthogonality; leave out first_radius and radius.")
    settings = {**entry.options, **options}
    for given, other in (("friction", "momentum"), ("momentum", "friction")):
        if given in options and other not in options:
            settings.pop(other, None)
    return ConstrainedLangevin(preset_groups(entry, model, first_radius, radius), **settings)


def preset_groups(
    entry: LangevinPreset, model: nn.Module, first_radius: Radius | None = None, radius: Radius | None = None
) -> ParamGroups:
    """The parameter groups of a preset.

    Raises:
        SelectionError: The model has no convolution or linear layer, or for orthogonality only one.
    """
    first = _first_layer(model)
    others = (convs | linears) & ~first
    if entry.constraint == "orthogonality":
        return param_groups(model, {others: Stiefel()})
    chosen: dict[Selection, Manifold] = {first: _circle(first_radius, entry.first_radius)}
    if any(others(info) for info in describe(model)):
        chosen[others] = _circle(radius, entry.radius)
    return param_groups(model, chosen)


def _circle(given: Radius | None, preset: float | None) -> Circle:
    wanted = preset if given is None else given
    return Circle() if wanted is None else Circle(radius=wanted)


def _first_layer(model: nn.Module) -> Selection:
    """The first weight of a convolution or linear layer, in the order of registration."""
    for info in describe(model):
        if (convs | linears)(info):
            return name(glob.escape(info.name))
    raise SelectionError(f"{type(model).__name__} has no convolution and no linear layer for a preset to constrain.")
