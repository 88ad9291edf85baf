"""What a model's parameters are: owner module, role, channel axes, and the facts that decide which rules fit them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
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
    """

    name: str
    parameter: nn.Parameter
    aliases: tuple[str, ...]
    kind: Kind
    role: str
    groups: int
    is_head: bool
    is_parametrized: bool

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
    """The user's own module inside `torch.compile`, `DataParallel` or `DistributedDataParallel`."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def describe(model: nn.Module) -> list[ParameterInfo]:
    """Lists every parameter of `model` once, in registration order, with its owner and role.

    A tied parameter is listed under its first name and keeps the others as aliases. Cost: one walk over the modules.

    Raises:
        AttachError: A parameter of a lazy module has no shape yet.

    Example:
        >>> [info.kind for info in describe(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)))]
        ['conv', 'norm', 'norm']
    """
    owners: dict[int, tuple[nn.Parameter, str, nn.Module, str]] = {}
    aliases: dict[int, list[str]] = {}
    root = unwrap(model)
    for prefix, module in root.named_modules(remove_duplicate=True):
        for role, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{role}" if prefix else role
            name = name.replace("_orig_mod.", "")
            if isinstance(parameter, UninitializedParameter):
                raise AttachError(
                    f"{name} has no shape yet because it belongs to a lazy module; "
                    "run one forward pass before attaching rules."
                )
            if id(parameter) in owners:
                aliases[id(parameter)].append(name)
            else:
                owners[id(parameter)] = (parameter, name, module, role)
                aliases[id(parameter)] = []
            if ".parametrizations." in f".{name}":
                # Seen as what it parametrizes, so that selections find it and can say why it is refused.
                path, _, rest = f".{name}".partition(".parametrizations.")
                owners[id(parameter)] = (parameter, name, root.get_submodule(path[1:]), rest.partition(".")[0])
    head = _head(owners)
    return [
        ParameterInfo(
            name=name,
            parameter=parameter,
            aliases=tuple(aliases[key]),
            kind=_kind(module),
            role=role,
            groups=_groups(module, role),
            is_head=key == head,
            is_parametrized=".parametrizations." in f".{name}",
        )
        for key, (parameter, name, module, role) in owners.items()
    ]


def _groups(module: nn.Module, role: str) -> int:
    has_groups = role == "weight" and isinstance(module, _CONVS + _TRANSPOSED)
    return int(getattr(module, "groups", 1)) if has_groups else 1


def _head(owners: dict[int, tuple[nn.Parameter, str, nn.Module, str]]) -> int | None:
    layers = [
        key
        for key, (_, _, module, role) in owners.items()
        if role == "weight" and _kind(module) in ("conv", "transposed conv", "linear")
    ]
    return layers[-1] if layers else None


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
    return tensor.shape == other.shape and all(
        a == b or n == 1 for a, b, n in zip(tensor.stride(), other.stride(), tensor.shape, strict=True)
    )
