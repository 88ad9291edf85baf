"""A manifold on one weight: reads its points, moves them, writes them back, whatever the weight's layout and dtype.

Most manifolds are one piece: all points of the weight on one manifold. A `Product` has several, each a manifold on some
channels or slices. 16-bit weights are computed in float32 and rounded once, when they are written back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from weightspace.errors import SelectionError
from weightspace.kernels.points import Channels
from weightspace.kernels.stacking import Workspace
from weightspace.manifolds._free_steps import FreeStep
from weightspace.manifolds._moves import Motion, Moved, curvature_factor
from weightspace.manifolds.base import Manifold
from weightspace.manifolds.pieces import Piece


class Constraint:
    """A manifold bound to the layout of one weight.

    Args:
        manifold: The manifold.
        like: The weight, or a tensor of its shape and strides.
        channels: Where the weight keeps its channels.
        name: The weight's name: for messages, and for the random assignment of a product.

    Raises:
        SelectionError: The weight has no such points, or the manifold of such points is degenerate.
    """

    def __init__(self, manifold: Manifold, like: torch.Tensor, channels: Channels, name: str = "the weight") -> None:
        self.manifold = manifold
        self.name = name
        self._like = like.detach()
        self._channels = channels
        self._known: tuple[int, Sequence[Piece]] | None = None
        self.pieces(0)

    def pieces(self, step: int) -> Sequence[Piece]:
        """Which points live where at a step; it changes for products that are assigned anew."""
        epoch = self.manifold.epoch(step)
        if self._known is None or self._known[0] != epoch:
            pieces = self.manifold.pieces(self._like, self._channels, self.name, epoch)
            if not pieces:
                raise SelectionError(f"{self.name}: {self.manifold.text()} constrains nothing of it.")
            self._known = (epoch, pieces)
        return self._known[1]

    def is_new_at(self, step: int) -> bool:
        """True if the manifold at this step is another than at the step before."""
        return step > 0 and self.manifold.epoch(step) != self.manifold.epoch(step - 1)

    # ------------------------------------------------------------------ whole tensors

    def project_(self, tensor: torch.Tensor, step: int = 0) -> float:
        """Moves a weight onto the manifold if it is not there.

        Returns:
            How far it moved in the Frobenius norm, relative to its norm before; 0 if it was there, up to the bound.

        Raises:
            SelectionError: The weight holds NaN or infinity, so that nothing is nearest to it.
        """
        violation, bound = self.worst(tensor, step)
        if violation <= bound:
            return 0.0
        if not bool(tensor.isfinite().all()):
            raise SelectionError(
                f"{self.name} holds NaN or infinity, so it cannot be moved onto {self.manifold.text()}; initialize it."
            )
        before = tensor.detach().clone()
        for piece in self.pieces(step):
            try:
                piece.write(tensor, piece.manifold.shadow_project(piece.read(tensor)))
            except SelectionError as error:
                raise SelectionError(f"{self.name}: {error}") from error
        wide = torch.float64 if tensor.device.type != "mps" else torch.float32
        size = torch.linalg.vector_norm(before, dtype=wide)
        return float(torch.linalg.vector_norm(tensor - before, dtype=wide) / size.clamp(min=torch.finfo(wide).tiny))

    @property
    def keeps_tangent(self) -> bool:
        """True if `move` can keep the tangent part of a momentum: one manifold, in the surrounding space's metric."""
        return len(self.pieces(0)) == 1 and not self.manifold.has_own_metric

    @property
    def is_slack(self) -> bool:
        """True if weights may leave the manifold a little between corrections."""
        return self.manifold.is_slack

    def worst(self, tensor: torch.Tensor, step: int = 0) -> tuple[float, float]:
        """The largest violation of a point (see `Manifold.violation`; NaN if one holds NaN), and its bound.

        Pieces of a product differ in their bounds: of the piece whose violation is the largest multiple of its own.
        """
        found = [
            (_largest(p.manifold.shadow_violation(p.read(tensor))), p.manifold.bound(tensor.dtype, *p.view.shape[-2:]))
            for p in self.pieces(step)
        ]
        return max(found, key=lambda pair: float("inf") if math.isnan(pair[0]) else pair[0] / pair[1])

    def violation(self, tensor: torch.Tensor, step: int = 0) -> float:
        """The first number of `worst`."""
        return self.worst(tensor, step)[0]

    def gradient_(self, x: torch.Tensor, g: torch.Tensor, step: int = 0) -> None:
        """Turns a derivative into the Riemannian gradient, in place; both have the weight's layout."""
        self.gradient_into(x, g, g, Workspace(), step)

    def gradient_into(
        self, x: torch.Tensor, g: torch.Tensor, out: torch.Tensor, work: Workspace, step: int = 0
    ) -> None:
        """Writes the Riemannian gradient of a derivative into `out`, which may be `g`; all have the weight's layout."""
        pieces = self.pieces(step)
        if out is not g and (len(pieces) > 1 or pieces[0].index is not None):
            out.copy_(g)  # channels that no piece holds keep their derivative
            g = out
        for p in pieces:
            at, target = p.read(x), p.read(out)
            p.manifold.gradient_into(at, p.read(g), target, work)
            p.write(out, target)

    def project_tangent_(self, x: torch.Tensor, u: torch.Tensor, step: int = 0) -> None:
        """Makes `u` tangent at `x`, in place."""
        for p in self.pieces(step):
            p.write(u, p.manifold.project_tangent(p.read(x), p.read(u)))

    def follow_(self, x: torch.Tensor, y: torch.Tensor, free: FreeStep, step: int = 0) -> int:
        """Replaces `y`, where a free step from `x` led, by where the tangent part of `y - x` leads on the manifold.

        Args:
            x: Where the weight was.
            y: Where it is.
            free: What is known of the step, and momenta of the weight's layout and dtype to be carried along.
            step: The number of the step.

        Returns:
            How many points needed an exact retraction.
        """
        fallbacks = 0
        for p in self.pieces(step):
            start, end, momenta = p.read(x), p.read(y), [p.read(m) for m in free.momenta]
            fallbacks += p.manifold.follow(start, end, replace(free, momenta=momenta))
            p.write(y, end)
            for m, points in zip(free.momenta, momenta, strict=True):
                p.write(m, points)
        return fallbacks

    def move(self, x: torch.Tensor, d: torch.Tensor, motion: Motion, step: int = 0) -> Moved:
        """One step of the weight `x` against `d`, in place; momentum is accumulated into `d` if `motion.grad` is given.

        `motion` is used up: it ends with the views of this weight.

        One piece takes the manifold's own fast step; several share one step size, R over all of them.
        """
        pieces = self.pieces(step)
        if len(pieces) == 1 and pieces[0].index is None:
            return self._move_whole(pieces[0], x, d, motion)
        if motion.grad is not None:
            motion.accumulate(d)
            motion = replace(motion, grad=None)
        points = [(p, p.read(x), p.read(d)) for p in pieces]
        squared = factor = None
        if motion.step_size == "curvature":
            squared, factor = _shared_factor(points, motion)
        fallbacks = 0
        for p, at, against in points:
            moved = p.manifold.move(at, against, replace(motion, factor=factor, product=()))
            fallbacks += moved.fallbacks
            p.write(x, at)
        return Moved(squared, factor, fallbacks)

    def carry(self, x: torch.Tensor, m: torch.Tensor, motion: Motion, step: int = 0, *, keeps_norm: bool) -> Moved:
        """One step with momentum that stays tangent: `m` holds Riemannian gradients and is projected at every point.

        Args:
            x: The weight, moved in place.
            m: Its momentum, tangent at `x`; ends tangent at the new `x`, with the length it had if `keeps_norm`.
            motion: `motion.grad` is the derivative at `x`.
            step: The number of the step.
            keeps_norm: Give every point's momentum the length back that projection took.
        """
        points = [(p, p.read(x), p.read(m)) for p in self.pieces(step)]
        for p, at, v in points:
            if motion.grad is not None:
                v.mul_(motion.decay).add_(p.manifold.gradient(at, p.read(motion.grad)), alpha=motion.gain)
        squared = factor = None
        if motion.step_size == "curvature":
            one = len(points) == 1
            squared, factor = (
                _own_factor(*points[0], motion) if one else _shared_factor(points, motion, is_tangent=True)
            )
        fallbacks = 0
        for p, at, v in points:
            rate = motion.rate if factor is None else (motion.rate / factor)[..., None, None]
            if motion.geodesic:
                end = p.manifold.geodesic(at, -rate * v)
            else:
                end, exact = p.manifold.retract_counted(at, -rate * v)
                fallbacks += exact
            carried = p.manifold.project_tangent(end, v)
            if keeps_norm:
                before, after = (torch.linalg.vector_norm(u, dim=(-2, -1), keepdim=True) for u in (v, carried))
                carried = carried * torch.where(after > 0, before / after, torch.ones_like(after))
            p.write(x, end)
            p.write(m, carried)
        return Moved(squared, factor, fallbacks)

    def _move_whole(self, piece: Piece, x: torch.Tensor, d: torch.Tensor, motion: Motion) -> Moved:
        at, against = piece.read(x), piece.read(d)
        grad = None if motion.grad is None else piece.read(motion.grad)
        motion.grad, motion.product = grad, piece.view.product
        moved = piece.manifold.move(at, against, motion)
        piece.write(x, at)
        if grad is not None:
            piece.write(d, against)
        return moved


def _shared_factor(
    points: Sequence[tuple[Piece, torch.Tensor, torch.Tensor]], motion: Motion, *, is_tangent: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """R^2 over all pieces and its factor r, both of one element."""
    total = torch.zeros((), dtype=points[0][1].dtype, device=points[0][1].device)
    lowest = 0.0
    for p, x, d in points:
        v = d if is_tangent else p.manifold.gradient(x, d)
        total = total + p.manifold.inner(x, v, v).sum()
        lowest = min(lowest, p.manifold.lower_curvature(*p.view.shape[-2:]))
    return total, curvature_factor(total, motion.distance_bound, lowest)


def _own_factor(p: Piece, x: torch.Tensor, v: torch.Tensor, motion: Motion) -> tuple[torch.Tensor, torch.Tensor | None]:
    squared = p.manifold.inner(x, v, v)
    own = replace(motion, product=p.view.product)
    return squared, own.factors(squared, p.manifold.lower_curvature(*p.view.shape[-2:]))


def _largest(values: torch.Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0
