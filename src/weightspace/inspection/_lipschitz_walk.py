"""The walk of `lipschitz_bound` through a model: torch.fx names the pieces, each piece raises the bound.

Every value of the graph carries a bound of the Lipschitz constant of the map from the image to it. A piece with the
constant c makes `c L` of it, a sum of two values `L + L'`, a concatenation `sqrt(L^2 + L'^2)`. That is all: the pieces
are proved one by one, and so is their composition, for every network of them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from weightspace.errors import InspectionError, OperatorError
from weightspace.inspection import _lipschitz_constants as constants
from weightspace.operators import ConvOperator, norm_bound, operator_of

ROUNDING = 1.0 + 2.0**-40  # a piece: thousands of times what float64 loses in its constant

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVS, *TRANSPOSED, nn.Linear)
_SUMS = (operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, "add", "sub", "add_", "sub_")
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_QUOTIENTS = (operator.truediv, operator.itruediv, torch.div, "div", "div_")
_RESHAPES = (torch.flatten, torch.reshape, "flatten", "view", "reshape", "contiguous", "unflatten")
_MEANS = (torch.mean, "mean")
_SIZES = ("size", "dim", getattr)
_NUMBERS = (int, float, torch.Tensor)
_MOVES = "moves entries"


@dataclass(frozen=True)
class Piece:
    """One step of the network and what it does to distances.

    Attributes:
        name: Qualified name of the module, or that of the function.
        kind: Type of the module, or "function".
        constant: Its own Lipschitz constant, an upper bound.
        bound: Of the map from the image to what this piece writes.
        note: How the constant is known, where that is not by a layer's certified norm.
    """

    name: str
    kind: str
    constant: float
    bound: float
    note: str = ""


class Walk(fx.Interpreter):
    """Runs a traced model on an example and collects bounds; see the module's docstring.

    Attributes:
        pieces: In the order of execution.
        bounds: Of the values that depend on the image, by node.
        operators: The linear maps of layers, by node.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, given: Mapping[type[nn.Module], float]) -> None:
        super().__init__(fx.GraphModule(model, graph))
        self.extra_traceback = False  # our sentences stay as they are
        self.given = given
        self.pieces: list[Piece] = []
        self.bounds: dict[fx.Node, float] = {}
        self.operators: dict[fx.Node, ConvOperator] = {}
        self.images = 0

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The module without its hooks: one that matters makes the result differ from the model's."""
        return self.fetch_attr(str(target)).forward(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        """The value as the model computes it; its bound beside it."""
        versions = {node: self.env[node]._version for node in self.bounds if node in self.env}  # noqa: SLF001
        value: Any = super().run_node(n)
        sources = [source for source in n.all_input_nodes if source in self.bounds]
        if n.op == "placeholder":
            if self.bounds:
                raise InspectionError("The model reads several inputs; lipschitz_bound knows models of one tensor.")
            self.bounds[n], self.images = 1.0, len(value)
        elif sources and n.op != "output":
            self._step(n, sources, value)
            for node, version in versions.items():  # changed in place: whoever reads it later reads this value
                if n in self.bounds and self.env[node]._version != version:  # noqa: SLF001
                    self.bounds[node] = max(self.bounds[node], self.bounds[n])
        return value

    def _step(self, n: fx.Node, sources: list[fx.Node], value: Any) -> None:
        if n.target in _SIZES and not isinstance(value, torch.Tensor):
            return  # a number of places, the same for all images
        is_module = n.op == "call_module"
        name = str(n.target) if is_module else n.name
        kind = type(self.fetch_attr(name)).__name__ if is_module else "function"
        if not isinstance(value, torch.Tensor) or value.ndim == 0 or len(value) != self.images:
            raise InspectionError(
                f"{name} ({kind}) returns no tensor of one row an image; lipschitz_bound looks at each image alone."
            )
        before, constant, note = self._module(n, sources[0]) if is_module else self._function(n, sources, value)
        linear = self.operators.get(n)
        if linear is not None and linear.geometry.dimensions and linear.output_shape != tuple(value.shape[1:]):
            raise InspectionError(
                f"{name} ({kind}) writes images of shape {tuple(value.shape[1:])} where its own settings give "
                f"{linear.output_shape}; call it with one batch of images and nothing else."
            )
        if not math.isfinite(constant):
            raise InspectionError(f"The constant of {name} ({kind}) is {constant}; it divides by zero or holds NaN.")
        self.bounds[n] = before * constant * ROUNDING
        if note != _MOVES or is_module:
            self.pieces.append(Piece(name, kind, constant, self.bounds[n], note))

    # ------------------------------------------------------------------------------------------------------- modules

    def _module(self, n: fx.Node, source: fx.Node) -> tuple[float, float, str]:
        """The bound that the module starts from, its constant, and how that is known."""
        module, name = self.fetch_attr(str(n.target)), str(n.target)
        before, sizes = self.bounds[source], tuple(self.env[source].shape[2:])
        given = self.given.get(type(module))
        if given is not None:
            found = float(given), "given by you"
        elif isinstance(module, LAYERS):
            self.operators[n] = linear = _operator(module, sizes, name)
            found = _norm(linear), "certified norm"
        elif isinstance(module, constants.BATCH_NORMS):
            return self._batch_norm(module, n, source)
        elif isinstance(module, (*constants.AVERAGES, *constants.ADAPTIVE_AVERAGES)):
            found = constants.average_pool(module, sizes), "exact"
        elif isinstance(module, constants.MAXIMA):
            found = constants.maximum_pool(module, sizes), "root of the windows that read one entry"
        elif isinstance(module, constants.MOVES):
            found = 1.0, _MOVES
        elif isinstance(module, constants.DROPOUTS):
            if module.training:
                raise InspectionError(f"{name} drops entries at random; call model.eval() first.")
            found = 1.0, "off in evaluation"
        else:
            found = constants.slope(module), "largest slope"
        if found[0] is None:
            raise InspectionError(unknown(name, type(module).__name__))
        return before, found[0], found[1]

    def _batch_norm(self, norm: Any, n: fx.Node, source: fx.Node) -> tuple[float, float, str]:
        """The largest factor; or the norm of the layer before with these factors, where it feeds nothing else."""
        if norm.training or norm.running_var is None:
            raise InspectionError(
                f"{n.target} ({type(norm).__name__}) normalizes with the batch at hand, so that one image's output "
                "depends on the others; call model.eval() first (and keep running statistics)."
            )
        scale = constants.batch_norm_scale(norm)
        linear = self.operators.get(source)
        follows_rows = linear is not None and not linear.geometry.dimensions and self.env[source].ndim > 2
        if linear is None or linear.is_transposed or follows_rows or len(source.users) != 1:
            return self.bounds[source], float(scale.abs().max()), "largest factor"
        folded = linear.with_weight(linear.weight * scale.view(-1, *[1] * (linear.weight.ndim - 1)))
        self.operators[n] = folded
        return (
            self.bounds[source.all_input_nodes[0]],
            _norm(folded),
            f"{source.target} with these factors, in its place",
        )

    # ----------------------------------------------------------------------------------------------------- functions

    def _function(self, n: fx.Node, sources: list[fx.Node], value: torch.Tensor) -> tuple[float, float, str]:
        """The same of a function or method."""
        target: Any = n.target
        if target is torch.cat and len(n.args) > 0 and self._dimension(n, value) != 0:
            listed: Any = n.args[0]
            return math.sqrt(sum(self.bounds.get(a, 0.0) ** 2 for a in listed)), 1.0, "root of the sum of squares"
        known = not any(isinstance(argument, fx.Node) and argument in self.bounds for argument in n.kwargs.values())
        x, before = self.env[sources[0]], self.bounds[sources[0]]
        if target in _SUMS and known and "alpha" not in n.kwargs:
            terms = [a for a in n.args if isinstance(a, fx.Node) and a in self.bounds]
            if all(self.env[a].shape == value.shape for a in terms):  # broadcasting copies images
                return sum(self.bounds[a] for a in terms), 1.0, "sum" if len(terms) > 1 else "adds a constant"
        is_first = len(sources) == 1 and (n.args[:1] == (sources[0],) or target in _PRODUCTS)
        found = self._of_one(n, x, value) if known and is_first else None
        if found is None:
            raise InspectionError(unknown(n.name, f"the function {getattr(target, '__name__', target)}"))
        return before, *found

    def _of_one(self, n: fx.Node, x: torch.Tensor, value: torch.Tensor) -> tuple[float, str] | None:
        """Functions of one value that depends on the image, their first argument."""
        target: Any = n.target
        other = self._other(n)
        found = None
        if target in constants.SLOPES_OF_FUNCTIONS:
            found = constants.SLOPES_OF_FUNCTIONS[target], "largest slope"
        elif target in _RESHAPES and value.dtype == x.dtype:  # view(dtype) reads the bits as other numbers
            found = 1.0, _MOVES
        elif target is functional.dropout and n.kwargs.get("training") is False:
            found = 1.0, "off in evaluation"
        elif target in _PRODUCTS and other is not None and value.shape == x.shape:
            found = float(other.max()), "largest factor"
        elif target in _QUOTIENTS and other is not None and value.shape == x.shape and "rounding_mode" not in n.kwargs:
            found = 1.0 / float(other.min()) if other.all() else math.inf, "smallest divisor"
        elif target in _MEANS and self._dimension(n, x) != 0:
            found = math.sqrt(value.numel() / x.numel()), "mean of places"
        return found

    def _other(self, n: fx.Node) -> torch.Tensor | None:
        """Absolute values of the one of two arguments that does not depend on the image."""
        free = [a for a in n.args if not (isinstance(a, fx.Node) and a in self.bounds)]
        argument: Any = free[0] if len(free) == 1 and len(n.args) == 2 else None
        argument = self.env[argument] if isinstance(argument, fx.Node) else argument
        return torch.as_tensor(argument).detach().double().abs() if isinstance(argument, _NUMBERS) else None

    def _dimension(self, n: fx.Node, value: torch.Tensor) -> int:
        """0 if the batch is among the dimensions that a function works along."""
        found: Any = n.args[1] if len(n.args) > 1 else n.kwargs.get("dim", 0)
        listed = found if isinstance(found, tuple | list) else (found,)
        return min((int(d) % value.ndim for d in listed), default=0)


def unknown(name: str, kind: str) -> str:
    """The sentence for what has no known constant."""
    return (
        f"{name} ({kind}) has no Lipschitz constant that is known here; replace it, or name the constant of a module "
        "of your own: lipschitz_bound(model, x, given={MyModule: 1.0})."
    )


def _operator(module: nn.Module, sizes: tuple[int, ...], name: str) -> ConvOperator:
    base = next(kind for kind in LAYERS if isinstance(module, kind))
    own: Any = type(module)
    if own.forward is not base.forward or getattr(own, "_conv_forward", None) is not getattr(
        base, "_conv_forward", None
    ):
        raise InspectionError(
            f"{name} ({own.__name__}) is a {base.__name__} with a forward pass of its own; export it to a plain one."
        )
    try:
        linear = operator_of(module, sizes or None)
    except OperatorError as error:
        raise InspectionError(f"{name}: {error}") from error
    return linear.with_weight(linear.weight.detach().double())


def _norm(linear: ConvOperator) -> float:
    with torch.no_grad():
        return float(norm_bound(linear, tolerance=1e-3))
