"""Masks: which numbers of a model's weights are zero and stay so, also while it is fine-tuned.

Zeros are kept by a hook after every optimizer step: the pruned numbers are set to zero, and so is the momentum that
would move them. The forward pass, the gradients and the optimizer stay as they are, so accumulation, closures, gradient
scaling, DDP and compiled models work; nothing waits for the device.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from weightspace.compress._mask_state import State, read_state, write_state
from weightspace.compress._mask_table import MaskRow, MaskTable
from weightspace.compress._optimizers import check_optimizer, refuse_constraints, stepping
from weightspace.compress._selected import selected
from weightspace.errors import CompressError
from weightspace.kernels import ParameterInfo, Selection, describe, unwrap

if TYPE_CHECKING:
    from weightspace.compress.search import Search

# Statistics of the gradient's size. Zeroed, they would make the first steps after `remove()` too long; as they are,
# they move nothing. Everything else of a weight's shape is a direction, or a copy of the weight, and is zeroed with it.
_SIZES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "exp_inf", "step_size"})


@dataclass
class _Masked:
    """One weight: what is dropped of it (bool, True for a zero), and how many that are."""

    info: ParameterInfo
    dropped: Tensor
    zeros: int

    def on(self, tensor: Tensor) -> Tensor:
        """The mask on the tensor's device; a model may have moved."""
        if self.dropped.device != tensor.device:
            self.dropped = self.dropped.to(tensor.device)
        return self.dropped


class Masks:
    """Which numbers of some weights are kept and which are zero. Made by `prune`, `prune_to` and `masks_of`.

    `masks["features.0.weight"]` is a bool tensor, True for what is kept; `in`, `len` and iteration go over the names.

    Attributes:
        search: How `prune_to` found the ratio; None for all others.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
        >>> masks = masks_of(layer)
        >>> masks.zeros, masks["weight"].tolist()
        (0.5, [[False, True], [True, False]])
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        >>> masks = masks.attach(optimizer)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> layer.weight.tolist()
        [[0.0, 0.0], [1.0, 0.0]]
    """

    def __init__(self, model: nn.Module, dropped: Mapping[str, Tensor]) -> None:
        self.search: Search | None = None
        self._model = model
        self._masked: dict[str, _Masked] = {}
        self._by_parameter: dict[int, _Masked] = {}
        self._attached: dict[int, tuple[weakref.ref[Optimizer], list[Any]]] = {}
        self._take(dropped)

    # ------------------------------------------------------------------ what the user sees

    @property
    def zeros(self) -> float:
        """The share of zeros among all numbers of the weights looked at, in [0, 1]."""
        total = sum(entry.dropped.numel() for entry in self._masked.values())
        return sum(entry.zeros for entry in self._masked.values()) / max(total, 1)

    def table(self) -> MaskTable:
        """Every weight with its shape, numbers kept, share of zeros, and output channels that are all zero."""
        return MaskTable(tuple(MaskRow.of(entry.info, entry.dropped) for entry in self._masked.values()))

    def __getitem__(self, name: str) -> Tensor:
        return ~self._masked[name].dropped

    def __contains__(self, name: object) -> bool:
        return name in self._masked

    def __iter__(self) -> Iterator[str]:
        return iter(self._masked)

    def __len__(self) -> int:
        return len(self._masked)

    @torch.no_grad()
    def apply(self) -> None:
        """Sets the pruned numbers of the model to zero (never to minus zero), whatever they are now.

        Raises:
            CompressError: A weight is not the model's any more, or has another shape.
        """
        for entry in self._masked.values():
            _check_place(entry)
            entry.info.parameter.masked_fill_(entry.on(entry.info.parameter), 0)

    def attach(self, optimizer: Optimizer) -> Masks:
        """Keeps the zeros while `optimizer` trains the model: after every step they are exactly zero.

        Applies the masks at once, then after every step (behind the user's and the rules' work, whichever was attached
        first), and after `model.load_state_dict`. Momentum of pruned numbers is zeroed too, so that nothing drifts when
        the masks are taken off; averages of squared gradients stay. Several optimizers may be attached to.

        Args:
            optimizer: A `torch.optim.Optimizer` that holds at least one of the weights, wrapped by Lightning Fabric or
                not. LBFGS is refused.

        Returns:
            These masks. The optimizer keeps them; you need not.

        Raises:
            CompressError: The optimizer holds none of the weights, cannot keep zeros, or has these masks already; or a
                weight with zeros is on a manifold, which the zeros would leave.

        Cost: a step sets each pruned weight and its momentum once in place; no synchronization.
        """
        inner = stepping(optimizer)
        if id(inner) in self._attached and self._attached[id(inner)][0]() is inner:
            raise CompressError("This optimizer keeps the zeros of these masks already; call remove() first.")
        check_optimizer(inner, [entry.info for entry in self._masked.values()])
        refuse_constraints(inner, {id(e.info.parameter): e.info.name for e in self._masked.values() if e.zeros})
        self.apply()
        # A compiled optimizer runs the hook as it is and compiles its own arithmetic.
        handles: list[Any] = [
            inner.register_step_post_hook(cast("Any", torch.compiler.disable(self._after_step))),
            unwrap(self._model).register_load_state_dict_post_hook(_Reapply(self)),
        ]
        self._attached[id(inner)] = (weakref.ref(inner), handles)
        return self

    @property
    def is_attached(self) -> bool:
        """Whether an optimizer that is still there keeps these zeros."""
        return any(reference() is not None for reference, _ in self._attached.values())

    def remove(self) -> None:
        """Takes the masks off all optimizers. The weights stay as they are; the next step may move them."""
        for _, handles in self._attached.values():
            for handle in handles:
                handle.remove()
        self._attached.clear()

    def state_dict(self) -> State:
        """Version, and for each weight its shape and one bit a number: tensors, numbers, strings, lists and dicts."""
        return write_state({name: entry.dropped for name, entry in self._masked.items()})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over masks that `state_dict` gave, in place of the present ones, and applies them.

        Raises:
            CompressError: It is no such state, of a newer version, or of another model; nothing was changed.
        """
        shapes = {info.name: info.shape for info in describe(self._model)}
        self._take(read_state(state, shapes))
        self.apply()

    def __repr__(self) -> str:
        attached = ", attached" if self.is_attached else ""
        return f"<Masks of {len(self)} weights, {100 * self.zeros:.4g} % zeros{attached}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Masks:
        """Masks of the copy of the model, attached to nothing."""
        twin = Masks(copy.deepcopy(self._model, memo), {n: e.dropped.clone() for n, e in self._masked.items()})
        twin.search = self.search
        return twin

    def __reduce__(self) -> NoReturn:
        raise CompressError(
            "Masks cannot be pickled, since they hang on a model; save masks.state_dict(), or take masks_of(model) on "
            "the other side: the zeros are in its weights."
        )

    # ------------------------------------------------------------------ the step

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                entry = self._by_parameter.get(id(parameter))
                if entry is None or not entry.zeros:
                    continue
                _check_place(entry)
                dropped = entry.on(parameter)
                parameter.masked_fill_(dropped, 0)
                state = cast("dict[str, Any]", optimizer.state.get(parameter, {}))
                for key, value in state.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape and key not in _SIZES:
                        value.masked_fill_(dropped, 0)

    def _take(self, dropped: Mapping[str, Tensor]) -> None:
        infos = {info.name: info for info in describe(self._model)}
        masked = {
            name: _Masked(infos[name], mask.to(infos[name].parameter.device), int(mask.count_nonzero()))
            for name, mask in dropped.items()
        }
        self._masked = masked
        self._by_parameter = {id(entry.info.parameter): entry for entry in masked.values()}


def masks_of(model: nn.Module, *, on: Selection | None = None) -> Masks:
    """Masks from the zeros that are there: of a model pruned elsewhere, trained with a proximal penalty, or loaded.

    Args:
        model: The model; nothing in it changes. Minus zero counts as zero.
        on: Which weights; None takes those of convolutions and linear layers.

    Raises:
        SelectionError: Nothing is selected, or something that cannot be pruned.

    Example:
        >>> layer = nn.Linear(4, 1)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> print(masks_of(layer).table())
        weight ┃ shape ┃ kept ┃ zeros   ┃ empty outputs
        ━━━━━━━╇━━━━━━━╇━━━━━━╇━━━━━━━━━╇━━━━━━━━━━━━━━
        weight │ 1 × 4 │ 0    │ 100.00% │ 1 of 1
    """
    with torch.no_grad():
        return Masks(model, {info.name: info.parameter == 0 for info in selected(model, on)})


def _check_place(entry: _Masked) -> None:
    info = entry.info
    if not info.is_in_place:
        raise CompressError(
            f"{info.name} was replaced by another tensor since its mask was made; take masks_of(model) again."
        )
    if info.parameter.shape != entry.dropped.shape:
        raise CompressError(
            f"{info.name} has shape {info.shape} now, its mask {tuple(entry.dropped.shape)}; "
            "take masks_of(model) again."
        )


class _Reapply:
    """A hook on a model: weights that `load_state_dict` wrote are masked again. A copy of the model has none."""

    def __init__(self, masks: Masks) -> None:
        self._masks = weakref.ref(masks)

    def __call__(self, module: nn.Module, incompatible: Any) -> None:
        masks = self._masks()
        if masks is not None and masks.is_attached:
            masks.apply()

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _nothing_again, ()


def _nothing(module: nn.Module, incompatible: Any) -> None:
    """What stands in copies of a model where a `_Reapply` stood."""


def _nothing_again() -> Callable[..., None]:
    return _nothing
