"""What a model's parameters are: owner module, role, channel axes, and the facts that decide which rules fit them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import UninitializedParameter

from weightspace.errors import AttachError

Kind = Literal["conv", "transposed conv", "linear", "norm", "embedding", "other"]
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (
    nn.modules.batchnorm._NormBase,  # noqa: SLF001  # the common base of batch and instance norms
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)

# Names that wrappers of a submodule put into the qualified names of its parameters.
_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


@dataclass(frozen=True, eq=False)
class ParameterInfo:
    """One parameter of a model and what it is there for.

    Attributes:
        name: Qualified name, wrappers such as `DistributedDataParallel` and `torch.compile` taken off.
        parameter: The parameter itself.
        aliases: Other names of the same (tied) parameter.
        kind: What the owning module is.
        role: Attribute name on the owner: `"weight"`, `"bias"`, ...
        groups: `groups` of a convolution, else 1.
        is_head: True for the last convolution or linear layer in registration order.
        is_parametrized: True for the inner tensor of a `torch.nn.utils.parametrize` parametrization.
        owner: The module that `role` is an attribute of; None for a tensor that belongs to no model.
        origin: The DTensor of which `parameter` is what this process computes on; None where nothing is sharded.
        is_split: Whether other processes compute on other parts of the same weight.
    """

    name: str
    parameter: nn.Parameter
    aliases: tuple[str, ...]
    kind: Kind
    role: str
    groups: int
    is_head: bool
    is_parametrized: bool
    owner: nn.Module | None = None
    origin: nn.Parameter | None = None
    is_split: bool = False

    @property
    def held(self) -> nn.Parameter:
        """The parameter as model and optimizer hold it."""
        return self.parameter if self.origin is None else self.origin

    @property
    def is_in_place(self) -> bool:
        """True while the owner holds this very parameter as a plain attribute, as it did when it was described."""
        if self.owner is None or hasattr(
            self.held, "device_mesh"
        ):  # a sharded layer holds whole weights while it computes
            return True
        # The table itself: attribute access would run a parametrization.
        return self.owner._parameters.get(self.role) is self.parameter  # noqa: SLF001

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return tuple(self.parameter.shape)

    @property
    def is_kernel(self) -> bool:
        """True for the weight of a convolution, transposed ones included."""
        return self.kind in ("conv", "transposed conv") and self.role == "weight"

    @property
    def out_axis(self) -> int:
        """Dimension of the output channels: 0, but 1 for transposed convolutions, `(c_in, c_out/groups, ...)`."""
        return 1 if self.kind == "transposed conv" else 0

    @property
    def in_axis(self) -> int:
        """Dimension of the input channels."""
        return 1 - self.out_axis

    @property
    def spatial_axes(self) -> tuple[int, ...]:
        """Dimensions of the spatial taps; empty for linear layers."""
        return tuple(range(2, self.parameter.ndim)) if self.is_kernel else ()


def _kind(module: nn.Module) -> Kind:
    if isinstance(module, _CONVS):
        return "conv"
    if isinstance(module, _TRANSPOSED):
        return "transposed conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, _NORMS):
        return "norm"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    return "other"


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside `torch.compile`, (`Distributed`)`DataParallel` or Lightning Fabric's wrapper."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and (isinstance(model, nn.DataParallel | DistributedDataParallel) or _is_fabric(model)):
            inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner


def _is_fabric(model: nn.Module) -> bool:
    # Known by its attributes: Lightning is an extra, and importing it costs seconds.
    # The table itself: both names may hold one module, which named_children() lists once.
    return {"_forward_module", "_original_module"} <= model._modules.keys()  # noqa: SLF001


def describe(model: nn.Module) -> list[ParameterInfo]:
    """Lists every parameter of `model` once, in registration order, with its owner and role.

    A parameter that has several names (tied weights, a module registered twice) is listed under the first and keeps
    the others as aliases. Cost: one walk over the modules.

    Raises:
        AttachError: A parameter of a lazy module has no shape yet.

    Example:
        >>> [info.kind for info in describe(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)))]
        ['conv', 'norm', 'norm']
    """
    places: dict[int, list[_Place]] = {}
    root = unwrap(model)
    for prefix, module in root.named_modules(remove_duplicate=False):
        for role, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            place = _place(root, prefix, module, role, parameter)
            if isinstance(parameter, UninitializedParameter):
                raise AttachError(
                    f"{place.name} has no shape yet because it belongs to a lazy module; "
                    "run one forward pass before attaching rules."
                )
            places.setdefault(id(parameter), []).append(place)
    head = _head(places)
    return [
        ParameterInfo(
            name=first.name,
            parameter=first.parameter,
            aliases=tuple(place.name for place in others),
            kind=_kind(first.owner),
            role=first.role,
            groups=_groups(first.owner, first.role),
            is_head=key == head,
            is_parametrized=any(place.is_parametrized for place in (first, *others)),
            owner=first.owner,
        )
        for key, (first, *others) in places.items()
    ]


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a parameter stands in a model."""

    name: str
    parameter: nn.Parameter
    owner: nn.Module
    role: str
    is_parametrized: bool


def _place(root: nn.Module, prefix: str, module: nn.Module, role: str, parameter: nn.Parameter) -> _Place:
    path = f"{prefix}.{role}" if prefix else role
    name = ".".join(part for part in path.split(".") if part not in _WRAPPERS)
    outer, inner, rest = f".{prefix}.".partition(".parametrizations.")
    if inner:
        # Seen as what it parametrizes, so that selections find it and can say why it is refused.
        return _Place(name, parameter, root.get_submodule(outer[1:]), rest.partition(".")[0], True)
    return _Place(name, parameter, module, role, False)


def _groups(module: nn.Module, role: str) -> int:
    has_groups = role == "weight" and isinstance(module, _CONVS + _TRANSPOSED)
    return int(getattr(module, "groups", 1)) if has_groups else 1


def _head(places: dict[int, list[_Place]]) -> int | None:
    layers = [
        key
        for key, (first, *_) in places.items()
        if first.role == "weight" and _kind(first.owner) in ("conv", "transposed conv", "linear")
    ]
    return layers[-1] if layers else None


def gradient_dtype(parameter: torch.Tensor) -> torch.dtype:
    """The dtype that `parameter.grad` has: the parameter's own unless `grad_dtype` (torch 2.10 and later) says more."""
    return getattr(parameter, "grad_dtype", None) or parameter.dtype


def is_dense_layout(tensor: torch.Tensor) -> bool:
    """True if the elements fill one block of memory without gaps or overlap, in any order of dimensions."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def has_same_layout(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """True if both place equal indices at equal offsets; strides of dimensions of size one do not count."""
    if tensor.shape != other.shape:
        return False
    mine, theirs = tensor.stride(), other.stride()
    return mine == theirs or all(a == b or n == 1 for a, b, n in zip(mine, theirs, tensor.shape, strict=True))
