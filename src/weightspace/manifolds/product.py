"""Product: different manifolds for different channels or slices of one weight, fixed or assigned anew while training.

    M = M_1 x M_2 x ... over the groups of one kernel;   R^2 = sum of the R^2 of all factors,   one step size for all

The follow-ups of the paper (1701.06123, 1905.09054) use products and ensembles of submanifolds over input channels,
output channels or both; how they draw an ensemble is not on hand, so the assignments here are **derived**: equal shares
(or `shares`) of the channels, in order or in an order drawn from `seed`, the weight's name and the number of the draw.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NoReturn

import torch

from weightspace.errors import RuleError, SelectionError
from weightspace.kernels.options import choice, positive_number, whole_number
from weightspace.kernels.parameters import ParameterInfo
from weightspace.kernels.points import Channels, Grouping, PointView
from weightspace.manifolds.base import Manifold
from weightspace.manifolds.pieces import Piece

Over = Literal["input", "output", "slice"]
OVERS: tuple[Over, ...] = ("input", "output", "slice")


@dataclass(frozen=True)
class Product(Manifold):
    """Shares the channels (or slices) of a weight out among several manifolds.

    Each part sees the sub-kernel of its channels as a kernel of its own, with its own grouping:
    `Product((Sphere("slice"), Stiefel("slice")))` puts the slices that read one half of the input channels on spheres
    and makes the others orthogonal; `Product((Stiefel(), Sphere()), over="output")` makes one half of the filters
    orthonormal and normalizes the rest.

    Args:
        parts: Manifolds, or their texts (`"sphere(slice)"`).
        over: What is shared out: `"input"` channels, `"output"` channels, or every `"slice"` for itself.
        shares: Relative sizes of the parts; equal by default. A part never gets nothing.
        assignment: `"fixed"`: in order; `"random"`: drawn for each weight.
        seed: Of the random assignment.
        every: Draw anew after so many steps (weights are then moved onto their new manifolds); never by default.
        on: Which parameters; convolutions without the head by default.

    Raises:
        RuleError: Fewer than two parts, a part that is itself a product, shares that do not fit, or `every` with a
            fixed assignment.

    Cost: that of the parts, and two copies of the weight.

    Example:
        >>> from weightspace.manifolds import Sphere, Stiefel
        >>> Product((Sphere("slice"), Stiefel("slice")), assignment="random").text()
        'product(sphere(slice), stiefel(slice), assignment=random)'
    """

    grouping: Grouping = field(default="both", init=False, repr=False)
    parts: tuple[Manifold, ...] = ()
    over: Over = "input"
    shares: tuple[float, ...] | None = None
    assignment: Literal["fixed", "random"] = "fixed"
    seed: int = 0
    every: int | None = None

    def __post_init__(self) -> None:
        self._settle(
            parts=_parts(self.parts),
            over=choice("Product", "over", self.over, OVERS),
            assignment=choice("Product", "assignment", self.assignment, ("fixed", "random")),
            seed=whole_number("Product", "seed", self.seed, least=0),
            every=None if self.every is None else whole_number("Product", "every", self.every),
        )
        self._settle(shares=self._checked_shares())
        if self.every is not None and self.assignment == "fixed":
            raise RuleError(
                f"Product got every={self.every} with assignment='fixed', which never changes; take 'random'."
            )

    def _checked_shares(self) -> tuple[float, ...] | None:
        if self.shares is None:
            return None
        if not isinstance(self.shares, Sequence) or isinstance(self.shares, str):
            raise RuleError(f"Product got shares={self.shares!r}; pass one positive number for each part.")
        shares = tuple(positive_number("Product", "shares", s) for s in self.shares)
        if len(shares) != len(self.parts):
            raise RuleError(f"Product got {len(shares)} shares for {len(self.parts)} parts; pass one for each.")
        return shares

    # ------------------------------------------------------------------ who lives where

    @property
    def is_changing(self) -> bool:
        """True with `every`."""
        return self.every is not None

    def epoch(self, step: int) -> int:
        """The number of draws before this step."""
        return 0 if self.every is None else step // self.every

    def pieces(self, like: torch.Tensor, channels: Channels, name: str, epoch: int) -> Sequence[Piece]:
        """The parts with their channels.

        Raises:
            SelectionError: There are fewer channels than parts, the convolution is grouped, a part does not fit, or
                slices of chains are asked for.
        """
        if channels.groups > 1 and self.over != "slice":
            raise SelectionError(
                f"{name} is a grouped kernel ({channels.groups} groups), whose channels do not share inputs: "
                "take over='slice'."
            )
        if channels.chains and self.over == "slice":
            raise SelectionError(f"{name} holds chains, and {self.text()} shares out slices: take over='input'.")
        dim = {"output": channels.out_axis, "input": 1 - channels.out_axis, "slice": -1}[self.over]
        dim += channels.chains  # the channels' dimensions follow that of the chains
        count = like.shape[0] * like.shape[1] if dim == -1 else like.shape[dim]
        part_channels = Channels(0) if dim == -1 else Channels(channels.out_axis, chains=channels.chains)
        pieces: list[Piece] = []
        for part, index in zip(self.parts, self.assign(count, name, epoch), strict=True):
            index = index.to(like.device)  # noqa: PLW2901  # the same channels
            sub = like.flatten(0, 1)[index].unsqueeze(1) if dim == -1 else like.index_select(dim, index)
            pieces.append(Piece(part, part.points_of(sub, part_channels, name), dim, index))
        return pieces

    def assign(self, count: int, name: str = "", epoch: int = 0) -> list[torch.Tensor]:
        """Which of `count` channels each part gets: a function of seed, name and epoch, alike on every rank.

        Raises:
            SelectionError: There are fewer channels than parts.

        Example:
            >>> from weightspace.manifolds import Sphere
            >>> [i.tolist() for i in Product((Sphere("slice"), Sphere("slice", radius=2.0)), shares=(1, 3)).assign(4)]
            [[0], [1, 2, 3]]
        """
        if count < len(self.parts):
            raise SelectionError(
                f"{name or 'The weight'} has {count} {self.over} channels or slices for {len(self.parts)} parts of "
                f"{self.text()}; there must be at least one for each."
            )
        sizes = _sizes(count, self.shares or (1.0,) * len(self.parts))
        order = torch.arange(count)
        if self.assignment == "random":
            seed = (self.seed * 1_000_003 + zlib.crc32(name.encode()) * 8191 + epoch) % 2**63
            order = torch.randperm(count, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
        return [part.sort().values for part in order.split(sizes)]

    def acts_on_rows(self, channels: Channels) -> bool:
        """False: which channels live where is decided over all of them."""
        del channels
        return False

    # ------------------------------------------------------------------ as a rule

    def view_for(self, info: ParameterInfo) -> PointView:
        """The whole weight, after all parts were found to fit."""
        channels = Channels(info.out_axis, info.groups)
        pieces = self.pieces(info.parameter.detach(), channels, info.name, 0)
        count = sum(math.prod(p.view.shape[:-2]) for p in pieces)
        shape = (count, *pieces[0].view.shape[-2:]) if len({p.view.shape[-2:] for p in pieces}) == 1 else (count,)
        return PointView(self.over if self.over != "slice" else "slice", shape, (), False, channels)

    def text(self) -> str:
        """The parts, then what differs from the defaults."""
        options = [p.text() for p in self.parts]
        options += [
            f"{f.name}={getattr(self, f.name)}"
            for f in fields(self)
            if f.name not in ("grouping", "parts", "on") and getattr(self, f.name) != f.default
        ]
        return f"product({', '.join(options)})"

    def __str__(self) -> str:
        on = "" if self.on is None else f", on={self.on}"
        return self.text().replace("product(", "Product(", 1)[:-1] + f"{on})"

    @classmethod
    def from_text(cls, arguments: list[Any], options: dict[str, Any]) -> Product:
        """The parts come as arguments."""
        return cls(tuple(arguments), **options)

    # ------------------------------------------------------------------ no points of its own

    def _no_points(self, *_: object, **__: object) -> NoReturn:
        raise RuleError(
            "A Product has no points of one kind: ask its parts, or bind it to a weight with "
            "weightspace.manifolds.Constraint."
        )

    project = project_tangent = retract = geodesic = random_uniform = dim = violation = degenerate = _no_points
    flow = stein_field = _no_points


def _parts(given: object) -> tuple[Manifold, ...]:
    from weightspace.manifolds.text import parse

    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) < 2:
        raise RuleError(f"Product got parts={given!r}; pass at least two manifolds, such as (Sphere('slice'), ...).")
    parts = tuple(parse(part) if isinstance(part, str) else part for part in given)
    for part in parts:
        if not isinstance(part, Manifold) or isinstance(part, Product):
            raise RuleError(f"Product got the part {part!r}; pass manifolds that are no products themselves.")
        if part.on is not None:
            raise RuleError(f"Product got the part {part!r} with on=; give on= to the product instead.")
    return parts


def _sizes(count: int, shares: Sequence[float]) -> list[int]:
    """`count` in whole shares, none of them zero: the nearest to the exact ones, the first of equally near ones."""
    exact = [count * s / sum(shares) for s in shares]
    sizes = [max(1, int(e)) for e in exact]
    while sum(sizes) < count:
        sizes[max(range(len(sizes)), key=lambda k: exact[k] - sizes[k])] += 1
    while sum(sizes) > count:
        sizes[max((k for k in range(len(sizes)) if sizes[k] > 1), key=lambda k: sizes[k] - exact[k])] -= 1
    return sizes
