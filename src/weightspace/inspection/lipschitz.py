"""A certified upper bound of a network's Lipschitz constant, and the radii within which its predictions cannot change.

The bound is the product of the pieces' constants along a path, sums where paths meet (`_lipschitz_walk`). Layers count
with their certified operator norm under their own padding (`operators.norm_bound`), in float64; pools and activations
with their exact constants. The radius of an image whose largest score is `z_i` follows from

    |(z_i - z_j)(x) - (z_i - z_j)(y)| <= sqrt(2) L ||x - y||,      and, if the last piece is linear with rows w,
                                      <= L_body ||w_i - w_j|| ||x - y||,

L_body being the bound of what the last layer reads: `Lipschitz-margin training`, Tsuzuku et al., arXiv 1802.04034.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import fx, nn

from weightspace.errors import InspectionError
from weightspace.inspection import _lipschitz_constants as constants
from weightspace.inspection._lipschitz_walk import LAYERS, Piece, Walk
from weightspace.precision import full_precision


@dataclass(frozen=True, eq=False)
class LipschitzBound:
    """A bound and where it comes from; `float(bound)` is the number, `print(bound)` the table.

    Attributes:
        value: No two images are mapped further apart than `value` times their Euclidean distance.
        pieces: Every step of the network in the order of execution.
        body: The bound of what the last linear layer reads; None if the network does not end in one.
        head: The weight of that layer, `(classes, features)`, float64; None likewise.
    """

    value: float
    pieces: tuple[Piece, ...]
    body: float | None = None
    head: torch.Tensor | None = None

    def __float__(self) -> float:
        """The bound."""
        return self.value

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, for `rich.print`."""
        table = Table(box=None, header_style="bold", padding=(0, 1))
        for title in ("piece", "kind", "constant", "bound so far", "why"):
            table.add_column(title, justify="right" if title in ("constant", "bound so far") else "left")
        for p in self.pieces:
            table.add_row(p.name, p.kind, _rounded_up(p.constant), _rounded_up(p.bound), p.note)
        yield table
        yield f"Lipschitz constant, L2: at most {_rounded_up(self.value)}"

    def __str__(self) -> str:
        """The same as plain text."""
        stream = io.StringIO()
        Console(file=stream, width=120, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def lipschitz_bound(
    model: nn.Module, example_input: torch.Tensor, *, given: Mapping[type[nn.Module], float] | None = None
) -> LipschitzBound:
    """An upper bound of the L2 Lipschitz constant of a feed-forward network, as a map of one image.

    Known are convolutions (transposed ones too, any padding), linear layers, activations with a bounded slope, average
    and maximum pools, batch normalization and dropout in evaluation, rearrangements, sums and concatenations of
    branches, means over places, products with constants. Anything else is refused by name.

    The bound holds for exact arithmetic and for images of the example's size; float32 forward passes add their
    rounding, some 1e-6 of the scores. The model is not changed.

    Args:
        model: In evaluation mode, if it has batch normalization or dropout.
        example_input: A batch `(images, ...)`; its values do not matter.
        given: Constants of modules of your own, by type. They are believed.

    Raises:
        InspectionError: A piece has no known constant, couples images of a batch, or has weights that are not finite.

    Cost: one forward pass, and `norm_bound` in float64 of every layer.

    Example:
        >>> average = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        >>> _ = nn.init.constant_(average.weight, 1 / 9)
        >>> model = nn.Sequential(average, nn.ReLU(), nn.MaxPool2d(3, stride=1), nn.Flatten())
        >>> round(float(lipschitz_bound(model, torch.zeros(1, 1, 8, 8))), 3)  # an entry is read by 9 windows: sqrt(9)
        3.0
    """
    types = dict(given or {})
    for kind, constant in types.items():
        if not (math.isfinite(constant) and constant >= 0):
            raise InspectionError(f"given[{kind.__name__}] is {constant}; a constant is a number >= 0.")
    if example_input.ndim < 2 or not len(example_input) or not example_input.is_floating_point():
        raise InspectionError(
            f"example_input has shape {tuple(example_input.shape)} and dtype {example_input.dtype}; pass a batch of "
            "floating-point images, (images, ...)."
        )
    tracer = _Tracer(tuple(types))
    try:
        graph = tracer.trace(nn.Sequential(model) if tracer.is_leaf_module(model, "") else model)
    except Exception as error:  # torch.fx raises many kinds, and the model's own code may raise any
        raise InspectionError(
            f"{type(model).__name__} cannot be traced by torch.fx ({str(error).splitlines()[0]}); write its forward "
            "pass without conditions on values, or bound its parts one by one."
        ) from error
    walk = Walk(tracer.root, graph, types)
    images = torch.cat([example_input[:1], example_input[-1:]]).detach()  # two, so that what couples images is seen
    with torch.no_grad(), full_precision():
        try:
            meant = model(images.clone())
        except Exception as error:  # the model's own code may raise any kind
            raise InspectionError(
                f"The forward pass of {type(model).__name__} fails on the example ({str(error).splitlines()[0]}); pass "
                "a batch that the model accepts."
            ) from error
        traced = walk.run(images)
    if not isinstance(meant, torch.Tensor):
        raise InspectionError(
            f"{type(model).__name__} returns a {type(meant).__name__}, no tensor; bound the part that writes scores."
        )
    if not torch.allclose(traced, meant, rtol=1e-3, atol=1e-5 * float(traced.abs().max())):
        raise InspectionError(
            f"{type(model).__name__} computes something else than its layers in order: a forward hook changes an "
            "output, or it draws random numbers; remove that first."
        )
    return _result(graph, walk)


def certified_radius(
    logits: torch.Tensor, bound: LipschitzBound | float, *, labels: torch.Tensor | None = None
) -> torch.Tensor:
    """How far an image may move, in the Euclidean norm, before its prediction can change: `(images,)`, float64.

    With a `LipschitzBound` of a network that ends in a linear layer, each pair of classes has its own constant
    `L_body ||w_i - w_j||`; otherwise all have `sqrt(2) L`.

    Args:
        logits: `(images, classes)`, what the bounded network wrote.
        bound: Of the network, in the units of the images that may move: if they are normalized before the network, put
            that into the network.
        labels: `(images,)`; an image that is classified otherwise gets radius 0.

    Raises:
        InspectionError: Shapes do not fit, or the bound is not a number >= 0.

    Example:
        >>> radius = certified_radius(torch.tensor([[3.0, 1.0, 0.0]]), 2.0)  # margin / (sqrt(2) L)
        >>> round(radius.item() * 2 ** 0.5, 6)
        1.0
    """
    value = float(bound)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise InspectionError(f"logits have shape {tuple(logits.shape)}; pass (images, classes), two classes or more.")
    if not (math.isfinite(value) and value >= 0):
        raise InspectionError(f"The bound is {value}; pass a LipschitzBound or a number >= 0.")
    scores = logits.detach().double()
    classes = scores.shape[1]
    predicted = scores.argmax(1)
    pairs = torch.full((classes, classes), math.sqrt(2) * value, dtype=torch.float64, device=scores.device)
    if isinstance(bound, LipschitzBound) and bound.head is not None and bound.body is not None:
        if len(bound.head) != classes:
            raise InspectionError(
                f"logits have {classes} classes, the bounded network {len(bound.head)}; pass what that network wrote."
            )
        head = bound.head.to(scores.device)
        pairs = bound.body * (head[:, None] - head[None]).norm(dim=2)
    margins = scores.gather(1, predicted[:, None]) - scores
    # Down by far more than float64 rounds. Equal scores have radius 0 even where the constant is 0.
    radii = torch.where(margins > 0, margins / pairs[predicted], 0.0) * (1 - 2.0**-40)
    radii = radii.scatter(1, predicted[:, None], math.inf).min(dim=1).values
    radii = torch.where(scores.isfinite().all(1), radii, 0.0)
    return radii if labels is None else torch.where(predicted == labels.to(predicted.device), radii, 0.0)


class _Tracer(fx.Tracer):
    """Stops at layers and at modules whose constant is given; looks into everything else."""

    def __init__(self, given: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.given = given

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """A type that is given, a layer (parametrized or not), or a module of torch's own, containers excepted."""
        if type(m) in self.given or isinstance(m, LAYERS):
            return True
        if isinstance(m, constants.BATCH_NORMS) and type(m).forward is not nn.BatchNorm1d.forward:
            return False  # a forward pass of its own is looked into
        return super().is_leaf_module(m, module_qualified_name)


def _result(graph: fx.Graph, walk: Walk) -> LipschitzBound:
    output = next(n for n in graph.nodes if n.op == "output").args[0]
    if not isinstance(output, fx.Node):  # a constant
        return LipschitzBound(0.0, ())
    value = walk.bounds.get(output, 0.0)
    linear = walk.operators.get(output)
    if linear is None or linear.geometry.dimensions or not isinstance(walk.fetch_attr(str(output.target)), nn.Linear):
        return LipschitzBound(value, tuple(walk.pieces))
    source = output.all_input_nodes[0]
    return LipschitzBound(value, tuple(walk.pieces), walk.bounds[source], linear.weight)


def _rounded_up(value: float) -> str:
    """Four digits, never less than the value."""
    if value in (0.0, 1.0) or not math.isfinite(value):
        return f"{value:g}"
    digits = 3 - math.floor(math.log10(value))
    return f"{math.ceil(value * 10.0**digits * (1 - 2.0**-30)) / 10.0**digits:.4g}"
