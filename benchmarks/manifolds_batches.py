"""What other packages make of a 4-D kernel: a batch of slices, or of rows, without saying so."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn.utils import parametrizations

from benchmarks.manifolds_peers import package
from weightspace.manifolds import Sphere, Stiefel

Call = tuple[str, Callable[[nn.Conv2d], torch.Tensor]]


def _calls() -> list[Call]:
    """(what one writes, how the weight is got)."""

    def parametrized(register: Callable[[nn.Module], object], layer: nn.Conv2d) -> torch.Tensor:
        register(layer)
        return layer.weight

    calls: list[Call] = []
    geoopt, geotorch = package("geoopt"), package("geotorch")
    if geoopt is not None:

        def projected(kind: str, layer: nn.Conv2d) -> torch.Tensor:
            manifold = getattr(geoopt, kind)()
            parameter = geoopt.ManifoldParameter(layer.weight.detach().clone(), manifold=manifold)
            with torch.no_grad():
                parameter.proj_()
            parameter.grad = torch.randn_like(parameter)
            geoopt.optim.RiemannianSGD([parameter], lr=0.1).step()
            return parameter

        calls += [
            (f"`geoopt.ManifoldParameter(conv.weight, manifold=geoopt.{kind}())`", partial(projected, kind))
            for kind in ("Stiefel", "Sphere")
        ]
    if geotorch is not None:
        register = partial(geotorch.orthogonal, tensor_name="weight")
        calls.append(('`geotorch.orthogonal(conv, "weight")`', partial(parametrized, register)))
    calls.append(
        ("`torch.nn.utils.parametrizations.orthogonal(conv)`", partial(parametrized, parametrizations.orthogonal))
    )
    return calls


def _row(call: Call) -> str:
    name, make = call
    torch.manual_seed(0)
    weight = make(nn.Conv2d(64, 64, 3, bias=False)).detach()
    errors = (
        Stiefel("slice").violation(weight[None]).max(),
        (torch.linalg.vector_norm(weight.double(), dim=-1) - 1).abs().max(),
        Sphere("filter").violation(weight.flatten(1)[None, :, None]).max(),
        Stiefel().violation(weight.flatten(1)[None]).max(),
    )
    cells = " | ".join(f"{float(e):.1e}" for e in errors)
    return f"| {name} | {cells} | {_single(make)} |"


def _single(make: Callable[[nn.Conv2d], torch.Tensor]) -> str:
    """What a 1x1 kernel becomes."""
    try:
        weight = make(nn.Conv2d(64, 64, 1, bias=False)).detach()
    except ValueError:
        return "refused"
    return "every weight +1 or -1, for ever" if ((weight.abs() - 1).abs() < 1e-5).all() else "weights of any size"


def table() -> str:
    """The errors of every reading of the constraint, in a 64x64x3x3 kernel; and what a 64x64x1x1 kernel becomes."""
    head = (
        "| written for a `nn.Conv2d(64, 64, 3)` | slices orthogonal | rows of slices of norm 1 | filters of norm 1 "
        "| filters orthonormal | a 1x1 kernel |"
    )
    return "\n".join([head, "|---|---|---|---|---|---|", *map(_row, _calls())])


if __name__ == "__main__":
    print(table())
