"""Motion on level sets: back along the normals, RATTLE, geodesics. Points are rows `(B, d)`, see `_equations`."""

from __future__ import annotations

import torch

from weightspace.manifolds._equations import Equations, along_normals, length, tangent_part

TOLERANCE = 1e-13  # of steps of Newton's method, relative to the point; they are in float64
_HALVINGS = 6  # of a geodesic's step


def back(
    equations: Equations, x: torch.Tensor, step: torch.Tensor, tolerance: float, iterations: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x + step - J(x)^T mu` on the manifold, and where it was found near enough.

    A correction longer than the step leads to another sheet (on a sphere to its far side): the way back would not be
    the way there.
    """
    normals = equations.at(x)[1]
    y, solved = along_normals(equations, x + step, normals, tolerance, iterations)
    reach = length(step) + 1e-6 * length(x)
    return y, solved & (length(y - x - step) <= reach)


def rattle(  # noqa: PLR0917  # of one step, in the order of every other function here
    equations: Equations, x: torch.Tensor, v: torch.Tensor, t: float, tolerance: float, iterations: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """RATTLE: where v leads in time t, the velocity there, and for which points it was found."""
    y, solved = back(equations, x, t * v, tolerance, iterations)
    return y, tangent_part(equations.at(y)[1], (y - x) / t), solved


def follow(
    equations: Equations, x: torch.Tensor, v: torch.Tensor, t: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The geodesic and its velocity at time t, and for which points two estimates agreed.

    t is not 0. RATTLE's error is even in its step: two runs, one of half the other's step, give an estimate of fourth
    order, three of sixth (Richardson). It is brought back to the manifold, and its velocity to the speed it had.
    """
    size = length(x) + abs(t) * length(v)
    table: list[torch.Tensor] = []
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    best = torch.cat([x, v], -1)
    for level in range(_HALVINGS):
        y, w, solved = x, v, torch.ones_like(found)
        steps = 8 * 2**level
        for _ in range(steps):
            y, w, ok = rattle(equations, y, w, t / steps, TOLERANCE, 30)
            solved &= ok
        row = [torch.cat([y, w], -1)]
        for k, older in enumerate(table, 1):
            row.append(row[-1] + (row[-1] - older) / (4**k - 1))
        if table:
            # Two coarse runs may agree by chance on garbage: only solved ones count.
            agree = solved & (length((row[-1] - table[-1])[:, : x.shape[1]]) <= 1e-10 * size)
            best = torch.where((agree & ~found).unsqueeze(-1), row[-1], best)
            found = found | agree
        if bool(found.all()):
            break
        table = row
    y, w = best.split(x.shape[1], -1)
    y, on = along_normals(equations, y, equations.at(y)[1], TOLERANCE, 30)
    w = tangent_part(equations.at(y)[1], w)
    speed = length(w)
    w = w * (length(v) / speed.masked_fill(speed == 0, 1.0)).unsqueeze(-1)
    return y, w, found & on
