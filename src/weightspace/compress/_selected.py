"""The weights that pruning looks at: selected, checked, tied ones once."""

from __future__ import annotations

from torch import nn

from weightspace.errors import CompressError, SelectionError
from weightspace.kernels import ParameterInfo, Selection, describe
from weightspace.kernels.selection import convs, linears

DEFAULT = convs | linears


def selected(model: nn.Module, on: Selection | None, default: Selection = DEFAULT) -> list[ParameterInfo]:
    """The selected weights in registration order, each once, empty ones left out.

    Raises:
        SelectionError: Nothing is selected, or something that cannot be pruned.
        CompressError: `model` is none.
    """
    if not isinstance(model, nn.Module):
        raise CompressError(f"A model is needed to prune; got a {type(model).__name__}.")
    selection = default if on is None else on
    if not isinstance(selection, Selection):
        raise SelectionError(f"Pruning got on={on!r}; pass a selection such as ws.on.convs.")
    every = describe(model)
    chosen = [info for info in every if selection(info) and info.parameter.numel()]
    for info in chosen:
        reason = _refusal(info)
        if reason is not None:
            raise SelectionError(f"{info.name} {reason}.")
    if not chosen:
        names = ", ".join(info.name for info in every[:4])
        raise SelectionError(
            f"Pruning selects nothing: on={selection} matches none of the {len(every)} parameters ({names}, ...); "
            "pass on= with a selection such as ws.on.linears or ws.on.name('glob')."
        )
    return chosen


def _refusal(info: ParameterInfo) -> str | None:
    weight = info.parameter
    if info.is_parametrized:
        return (
            "is the inner tensor of a parametrization, so zeros in it are no zeros of the weight; call "
            "torch.nn.utils.parametrize.remove_parametrizations() first, or leave it out with on="
        )
    if not weight.is_floating_point():
        return f"is {weight.dtype}; only floating-point weights are pruned, so leave it out with on="
    if hasattr(weight, "device_mesh"):
        return "is a sharded DTensor; prune the whole model before fully_shard, or after gathering it"
    if weight.is_meta:
        return "is on the meta device and has no numbers; load the weights first"
    return None
