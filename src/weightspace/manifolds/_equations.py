"""Equations `g(q) = 0` given as functions: their names, their values and Jacobians, and Newton's method on them.

Points come flattened, `(B, d)`; `g` has m values, its Jacobian `J` is `(B, m, d)`. All algebra is m x m.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.func import vmap

from weightspace.errors import RuleError, nearest
from weightspace.kernels._identity import identity

Equation = Callable[..., torch.Tensor]
_KNOWN: dict[str, Equation] = {}
_COUNTS: dict[tuple[str, int, int, int], int] = {}


def enter(name: str, function: Equation) -> None:
    """Enters a function under a name; a function that was defined anew takes the place of its older self.

    Raises:
        RuleError: The name is no word, or another function has it.
    """
    if not name.isidentifier():
        raise RuleError(
            f"LevelSet got a function called {name!r}; pass name= with a word, by which a state_dict can name it."
        )
    known = _KNOWN.get(name)
    if known is not None and known is not function and identity(known) != identity(function):
        raise RuleError(
            f"LevelSet got a function called {name!r}, but {identity(known)} has that name; pass another one as name=."
        )
    _KNOWN[name] = function
    for key in [key for key in _COUNTS if key[0] == name]:
        del _COUNTS[key]


def function_of(name: str) -> Equation:
    """The function that this program entered under a name; names are never imported.

    Raises:
        RuleError: There is none.
    """
    try:
        return _KNOWN[name]
    except KeyError:
        raise RuleError(
            f"levelset({name}) names a function that this program has not defined{nearest(name, _KNOWN)}; define it, "
            f"and call ws.manifolds.LevelSet({name}) before the name is read."
        ) from None


@dataclass(frozen=True)
class Equations:
    """The equations of points of one shape.

    Attributes:
        name: Of the function.
        shape: `(n, p)` of the matrices that it takes; with slack variables it takes `n * p` numbers, and the slack.
        slack: How many slack variables follow the numbers of a point.
    """

    name: str
    shape: tuple[int, int]
    slack: int

    def _values(self, row: torch.Tensor) -> torch.Tensor:
        n, p = self.shape
        function = function_of(self.name)
        given: object = function(row[: n * p], row[n * p :]) if self.slack else function(row.view(n, p))
        if not (isinstance(given, torch.Tensor) and given.is_floating_point()):
            raise RuleError(
                f"levelset({self.name}): the function returned {_kind(given)}; it must return a tensor of residuals, "
                "one real number for each equation."
            )
        return given.reshape(-1)

    def at(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values `(B, m)` and Jacobian `(B, m, d)`.

        Raises:
            RuleError: The function fails, or returns no residuals.
        """
        if not len(rows):
            m = self.count()
            return rows.new_empty(0, m), rows.new_empty(0, m, rows.shape[1])

        try:
            with torch.enable_grad():
                given = rows.detach().requires_grad_(True)
                values: torch.Tensor = vmap(self._values)(given)
                jacobian = _jacobian(values, given)
        except RuleError:
            raise
        except Exception as error:  # whatever a user's function may raise
            told = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            what = f"{self.shape[0]} x {self.shape[1]} points"
            if self.slack:
                what = f"{self.shape[0] * self.shape[1]} numbers and {self.slack} slack variables"
            raise RuleError(
                f"levelset({self.name}): the function cannot be computed and differentiated on {what} in {rows.dtype} "
                f"({told}); write it in torch operations, without item() or numpy."
            ) from error
        return values.detach(), jacobian

    def count(self) -> int:
        """m."""
        key = (self.name, *self.shape, self.slack)
        if key not in _COUNTS:
            _COUNTS[key] = int(self.at(_probe(self.shape[0] * self.shape[1] + self.slack))[0].shape[1])
        return _COUNTS[key]

    def rank(self) -> int:
        """Of the Jacobian at a point without special place."""
        values, jacobian = self.at(_probe(self.shape[0] * self.shape[1] + self.slack))
        if not bool(values.isfinite().all() and jacobian.isfinite().all()):
            raise RuleError(f"levelset({self.name}): the function's values or derivatives are NaN or infinite.")
        return int(torch.linalg.matrix_rank(jacobian[0])) if jacobian.numel() else 0


def _jacobian(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`(B, m, d)` by one backward pass for each equation, which serves all points."""
    if not values.requires_grad:
        return torch.zeros(*values.shape, rows.shape[1], dtype=rows.dtype, device=rows.device)
    m = values.shape[1]
    derivatives = [
        torch.autograd.grad(values[:, k].sum(), rows, retain_graph=k < m - 1, materialize_grads=True)[0]
        for k in range(m)
    ]
    return torch.stack(derivatives, 1) if m else rows.new_zeros(len(rows), 0, rows.shape[1])


def _probe(d: int) -> torch.Tensor:
    return 0.5 + torch.rand(1, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _kind(given: object) -> str:
    return f"a tensor of {given.dtype}" if isinstance(given, torch.Tensor) else f"{type(given).__name__}"


# ---------------------------------------------------------------------------------------------------------- algebra


def solve(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`matrix^-1 right` for `(B, m, m)` and `(B, m)`; infinite or NaN where the matrix has no inverse."""
    if matrix.shape[-1] == 1:
        return right / matrix[..., 0]
    return torch.linalg.solve_ex(matrix, right.unsqueeze(-1))[0].squeeze(-1)


def normal_part(jacobian: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`J^T (J J^T)^-1 values`: the shortest vector `(B, d)` that J maps to them."""
    return lead(jacobian, solve(jacobian @ jacobian.mT, values))


def tangent_part(jacobian: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """What J maps to zero of `u` `(B, d)`; projected twice, so that it is zero to rounding."""
    for _ in range(2):
        u = u - normal_part(jacobian, apply(jacobian, u))
    return u


def apply(jacobian: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """J u."""
    return (jacobian @ u.unsqueeze(-1)).squeeze(-1)


def lead(jacobian: torch.Tensor, multiplier: torch.Tensor) -> torch.Tensor:
    """J^T multiplier."""
    return (jacobian.mT @ multiplier.unsqueeze(-1)).squeeze(-1)


def length(u: torch.Tensor) -> torch.Tensor:
    """Norms `(B,)`."""
    return torch.linalg.vector_norm(u, dim=-1)


def along_normals(
    equations: Equations, start: torch.Tensor, normals: torch.Tensor, tolerance: float, iterations: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`y = start - normals^T mu` with `g(y) = 0`, by Newton on mu, and which of them were found.

    The system of a step is `J(y) normals^T delta = g(y)`. A root farther away than the normals are meant for is none:
    the caller compares lengths.
    """
    y = start
    solved = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    size = length(start)
    for _ in range(iterations):
        values, jacobian = equations.at(y)
        step = lead(normals, solve(jacobian @ normals.mT, values))
        # One more step than the tolerance asks for costs nothing: it is at hand.
        solved = length(step) <= tolerance * size
        y = torch.where(step.isfinite().all(-1, keepdim=True), y - step, y)
        if bool(solved.all()):
            break
    return y, solved


def nearest_points(
    equations: Equations, x: torch.Tensor, tolerance: float, iterations: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points with `g(y) = 0` and `x - y` normal, by Gauss-Newton from x, and which of them satisfy the equations.

        y <- y - J^+ g(y) + a (I - J^+ J)(x - y),     a = 1, halved where the tangent part does not shrink

    a = 1 is the multiplier form `y <- x - J^T lambda`, `J J^T lambda = g(y) + J (x - y)`.
    """
    y, size = x, length(x)
    damping = torch.ones(len(x), dtype=x.dtype, device=x.device)
    before = torch.full_like(damping, torch.inf)
    feasible = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for _ in range(iterations):
        values, jacobian = equations.at(y)
        off = normal_part(jacobian, values)
        aside = tangent_part(jacobian, x - y)
        wrong = length(off) + length(aside)
        damping = torch.where(wrong > 0.9 * before, damping / 2, damping).clamp_(min=2.0**-10)
        before = wrong
        feasible = length(off) <= tolerance * size
        step = damping.unsqueeze(-1) * aside - off
        y = torch.where(step.isfinite().all(-1, keepdim=True), y + step, y)
        if bool((feasible & (length(aside) <= tolerance * size)).all()):
            break
    # Whatever the last sideways step left: back to the equations from there.
    y, solved = along_normals(equations, y, equations.at(y)[1], tolerance, iterations)
    return y, solved


def completed(equations: Equations, rows: torch.Tensor, iterations: int = 200) -> torch.Tensor:
    """Slack variables `(B, k)` for numbers `(B, d)`, which solve the equations as well as it goes.

    By Levenberg's and Marquardt's method from 1: a bound that is met exactly has slack 0, where Newton's is singular.
    """
    d, k = rows.shape[1], equations.slack
    slack = rows.new_ones(len(rows), k)
    damping = rows.new_full((len(rows), 1, 1), 1e-3)
    eye = torch.eye(k, dtype=rows.dtype, device=rows.device)
    values, jacobian = equations.at(torch.cat([rows, slack], -1))
    for _ in range(iterations):
        j = jacobian[..., d:]
        scale = (j.mT @ j).diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] + torch.finfo(rows.dtype).tiny
        trial = slack - solve(j.mT @ j + damping * scale * eye, lead(j, values))
        new_values, new_jacobian = equations.at(torch.cat([rows, trial], -1))
        better = length(new_values) < length(values)
        slack = torch.where(better[:, None], trial, slack)
        values = torch.where(better[:, None], new_values, values)
        jacobian = torch.where(better[:, None, None], new_jacobian, jacobian)
        damping = torch.where(better[:, None, None], damping * 0.1, damping * 10).clamp(1e-12, 1e6)
        is_stuck = not bool(better.any()) and float(damping.min()) >= 1e6
        if is_stuck or not bool((values.abs() > 1e-15).any()):
            break
    return slack
