"""Steps of orthogonal 2 x 2 and 3 x 3 matrices by closed forms: their tangent vectors are one or three numbers.

With rows x_i of X and d_i of D, the gradient is V = K X with K = skew(D X^T) (twice that in the canonical metric). The
entries K_jl = (d_j . x_l - d_l . x_j) / 2 are the coordinates b of an axis: K_12 = b_0, K_20 = b_1, K_01 = b_2. A step
turns X by K' = -a K, a = rate / r, of coordinates c = -a b and angle t = |c| [derived from Rodrigues' formula]:

    geodesic   X <- (cos t I + sin t / t K' + (1 - cos t) / t^2 c c^T) X
    polar      X <- (I + K' + c c^T / (1 + w)) X / w,             w = sqrt(1 + t^2):   turns by arctan t
    QR         Gram-Schmidt on the columns of X + K' X

The new rows 0 and 1 (columns for QR) are orthonormalized by Gram-Schmidt, which moves them by rounding only, and the
last one is their cross product with the sign of the old determinant: rounding of one step never enters the next.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, addcmul, mul

from weightspace.manifolds._moves import Motion
from weightspace.manifolds._slices import MANY, Block, SmallStep, root_

Update = Literal["polar", "qr", "geodesic"]
Vector = list[Tensor]  # its three components for C points
_NEXT = ((0, 1, 2), (1, 2, 0), (2, 0, 1))
_FAR = 0.25  # squared norms, relative to their size on the manifold, below which the reference projects properly


def closed_form(x: Tensor, update: Update, *, is_canonical: bool = False) -> SmallStep | None:
    """Closed forms for orthogonal points `(*lead, n, p)`, where there are some and enough points to pay."""
    n, p = x.shape[-2:]
    if n != p or p not in (2, 3) or x.numel() < MANY * p * p:
        return None
    return (Rotations2 if p == 2 else Rotations3)(update, is_canonical)


@dataclass
class Rotations3:
    """The step of orthogonal 3 x 3 points.

    Attributes:
        update: `"polar"`, `"qr"` or `"geodesic"`.
        is_canonical: The metric: `tr u^T v / 2`.
    """

    update: Update
    is_canonical: bool = False
    _scratch: Tensor = field(default_factory=lambda: torch.empty(0))

    def direction(self, block: Block, motion: Motion) -> None:
        """The coordinates 2b, in the first three vectors of the scratch."""
        self._scratch = block.scratch("rotations", 16, motion)
        x, d = _rows(block.x), _rows(block.d)
        for k, j, l in _NEXT:
            out = self._scratch[k]
            mul(d[j][0], x[l][0], out=out)
            addcmul(out, d[l][0], x[j][0], value=-1, out=out)
            for m in (1, 2):
                addcmul(out, d[j][m], x[l][m], out=out)
                addcmul(out, d[l][m], x[j][m], value=-1, out=out)

    def squared(self, block: Block, out: Tensor) -> None:
        """`|V|^2 = 2 |b|^2`; canonical: half of it, with b twice as large."""
        b = self._scratch.unbind(0)
        _dot(b[:3], b[:3], out)
        if not self.is_canonical:
            out.mul_(0.5)

    def advance(self, block: Block, motion: Motion, rate: float | Tensor) -> bool:
        """See the module. Temporary memory: 16 numbers a point."""
        work = self._scratch
        rows = work.unbind(0)
        axis, angle = list(rows[:3]), rows[3]
        work[:3].mul_(rate * (-1.0 if self.is_canonical else -0.5))
        _dot(axis, axis, angle)
        if not bool(angle.amax() < 0.5 / torch.finfo(angle.dtype).eps):  # also NaN
            return False
        x = _rows(block.x)
        first, second, last = (list(c) for c in (_columns(block.d) if self.update == "qr" else _rows(block.d)))
        old = _columns(block.x)[2] if self.update == "qr" else x[2]
        sign = rows[4]
        if self.update == "qr":
            _moved_columns(axis, block.x, block.d)
        else:
            if self.update == "geodesic":  # it may turn the last row so far that its side does not tell the determinant
                _cross(x[0], x[1], last)
                _dot(last, x[2], sign)
            _moved_rows(axis, angle, block.x, block.d, work[5:], is_geodesic=self.update == "geodesic")
        scales = work[13:16]
        if not _orthogonalize(first, second, scales, rows[5], angle):
            return False
        _cross(first, second, last)
        if self.update != "geodesic":
            _dot(last, old, sign)
        mul(scales[0], scales[1], out=scales[2]).mul_(_signs(sign))
        block.d.mul_(scales.view(*((1, 3) if self.update == "qr" else (3, 1)), -1))
        block.put(block.d)
        return True


@dataclass
class Rotations2:
    """The step of orthogonal 2 x 2 points; `update` and metric as for `Rotations3`. Polar and QR are the same here."""

    update: Update
    is_canonical: bool = False
    _scratch: Tensor = field(default_factory=lambda: torch.empty(0))

    def direction(self, block: Block, motion: Motion) -> None:
        """Twice the turn, `d_0 . x_1 - d_1 . x_0`, in the first vector of the scratch."""
        self._scratch = block.scratch("rotations", 4, motion)
        out = self._scratch[0]
        x, d = _rows(block.x), _rows(block.d)
        mul(d[0][0], x[1][0], out=out)
        addcmul(out, d[0][1], x[1][1], out=out)
        addcmul(out, d[1][0], x[0][0], value=-1, out=out)
        addcmul(out, d[1][1], x[0][1], value=-1, out=out)

    def squared(self, block: Block, out: Tensor) -> None:
        """As for 3 x 3."""
        mul(self._scratch[0], self._scratch[0], out=out)
        if not self.is_canonical:
            out.mul_(0.5)

    def advance(self, block: Block, motion: Motion, rate: float | Tensor) -> bool:
        """Row 0 is turned and normalized, row 1 is perpendicular to it on its old side."""
        turn, norm, sign, other = self._scratch.unbind(0)
        turn.mul_(rate * (-1.0 if self.is_canonical else -0.5))
        mul(turn, turn, out=norm)
        if not bool(norm.amax() < 0.5 / torch.finfo(norm.dtype).eps):
            return False
        x, new = _rows(block.x), _rows(block.d)
        mul(x[0][0], x[1][1], out=sign)
        addcmul(sign, x[0][1], x[1][0], value=-1, out=sign)
        if self.update == "geodesic":
            torch.cos(turn, out=other)
            mul(block.x[0], other, out=block.d[0])
            addcmul(block.d[0], block.x[1], turn.sin_(), out=block.d[0])
        else:
            addcmul(block.x[0], block.x[1], turn, out=block.d[0])
        mul(new[0][0], new[0][0], out=norm)
        addcmul(norm, new[0][1], new[0][1], out=norm)
        if not bool(norm.amin() > _FAR):
            return False
        block.d[0].mul_(norm.rsqrt_())
        mul(new[0][0], _signs(sign), out=new[1][1])
        torch.neg(mul(new[0][1], sign, out=new[1][0]), out=new[1][0])
        block.put(block.d)
        return True


def _moved_rows(axis: Vector, squared: Tensor, x: Tensor, out: Tensor, work: Tensor, *, is_geodesic: bool) -> None:
    """Rows 0 and 1 of the step, up to a common size; `squared` is the angle's square and is overwritten."""
    w = work.unbind(0)
    tensors, along, cosine = w[:6], w[6:8], w[8] if is_geodesic else None
    turn = axis
    if cosine is None:
        root_(squared.add_(1)).add_(1).reciprocal_()  # 1 / (1 + w)
    else:
        angle = root_(squared)
        torch.cos(angle, out=cosine)
        sine = torch.sinc(angle / torch.pi)
        turn = [a * sine for a in axis]
        squared.copy_(torch.sinc(angle / (2 * torch.pi)).square_().mul_(0.5))  # (1 - cos t) / t^2
    for i in (0, 1):
        mul(axis[i], squared, out=along[i])
    coefficients = (tensors[:3], tensors[3:])
    for i in (0, 1):
        k = 1 - i
        own, cross, last = coefficients[i][i], coefficients[i][k], coefficients[i][2]
        if cosine is None:
            mul(along[i], axis[i], out=own).add_(1)
        else:
            addcmul(cosine, along[i], axis[i], out=own)
        # K_01 = c_2, K_02 = -c_1, K_10 = -c_2, K_12 = c_0
        torch.add(torch.mul(along[i], axis[k], out=cross), turn[2], alpha=1 - 2 * i, out=cross)
        torch.add(torch.mul(along[i], axis[2], out=last), turn[k], alpha=2 * i - 1, out=last)
    for i in (0, 1):
        mul(x[0], coefficients[i][0], out=out[i])
        addcmul(out[i], x[1], coefficients[i][1], out=out[i])
        addcmul(out[i], x[2], coefficients[i][2], out=out[i])


def _moved_columns(axis: Vector, x: Tensor, out: Tensor) -> None:
    """Columns 0 and 1 of `X + K' X`."""
    for i, j, k in _NEXT:
        addcmul(x[i, :2], x[j, :2], axis[k], out=out[i, :2])
        addcmul(out[i, :2], x[k, :2], axis[j], value=-1, out=out[i, :2])


def _orthogonalize(a: Vector, b: Vector, scales: Tensor, product: Tensor, squared: Tensor) -> bool:
    """Makes b orthogonal to a; `1/|a|` and `1/|b|` go to `scales`. False if one is far too short for its direction."""
    _dot(a, a, squared)
    if not bool(squared.amin() > _FAR):  # also NaN
        return False
    _dot(a, b, product)
    torch.rsqrt(squared, out=scales[0])
    product.div_(squared)
    for of_a, of_b in zip(a, b, strict=True):
        addcmul(of_b, of_a, product, value=-1, out=of_b)
    _dot(b, b, squared)
    torch.rsqrt(squared, out=scales[1])
    return bool(squared.amin() > _FAR)


def _signs(values: Tensor) -> Tensor:
    """1 or -1, in place; 1 for zero."""
    return values.add_(torch.finfo(values.dtype).tiny).sign_()


def _rows(t: Tensor) -> list[tuple[Tensor, ...]]:
    return [row.unbind(0) for row in t.unbind(0)]


def _columns(t: Tensor) -> list[tuple[Tensor, ...]]:
    return [column.unbind(0) for column in t.unbind(1)]


def _dot(a: Vector | tuple[Tensor, ...], b: Vector | tuple[Tensor, ...], out: Tensor) -> None:
    mul(a[0], b[0], out=out)
    addcmul(out, a[1], b[1], out=out)
    addcmul(out, a[2], b[2], out=out)


def _cross(a: Vector | tuple[Tensor, ...], b: Vector | tuple[Tensor, ...], out: Vector) -> None:
    for k, j, l in _NEXT:
        mul(a[j], b[l], out=out[k])
        addcmul(out[k], a[l], b[j], value=-1, out=out[k])
