"""The sizes of what layers read, noted at their forward passes: penalties need them, rules see weights only."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from weightspace.kernels.parameters import ParameterInfo


class SizeRecorder:
    """A forward pre-hook that notes the spatial sizes of the latest input. A copy of it notes nothing.

    A plain attribute is written and nothing is decided, so that `torch.compile` can trace it.
    """

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.sizes: tuple[int, ...] | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        image = args[0] if args else kwargs["input"]
        self.sizes = tuple(image.shape[-self.dimensions :])

    def __deepcopy__(self, memo: dict[int, Any]) -> object:
        # The copy of a model goes its own way; rules that are copied with it put recorders of their own on it.
        return ignore_input

    def __reduce__(self) -> tuple[Any, ...]:
        return _ignoring, ()


def ignore_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What stands in copies of a model where a recorder stood."""


def _ignoring() -> object:
    return ignore_input


class InputSizes:
    """Recorders on the layers of some weights, and what they saw.

    The recorders are taken off with `clear`, or when this object is freed.
    """

    def __init__(self) -> None:
        self._recorders: dict[str, tuple[nn.Module, SizeRecorder]] = {}
        self._handles: dict[str, RemovableHandle] = {}
        weakref.finalize(self, _remove, self._handles).atexit = False

    def watch(self, infos: Iterable[ParameterInfo]) -> None:
        """Puts recorders on the layers of these weights, and takes those of others off."""
        wanted = {info.name: info for info in infos if info.owner is not None and info.spatial_axes}
        for name in set(self._recorders) - set(wanted):
            self._handles.pop(name).remove()
            del self._recorders[name]
        for name, info in wanted.items():
            known = self._recorders.get(name)
            owner = info.owner
            if owner is None or (known is not None and known[0] is owner):
                continue
            if known is not None:  # a layer that took another's place
                self._handles.pop(name).remove()
            recorder = SizeRecorder(len(info.spatial_axes))
            self._recorders[name] = (owner, recorder)
            self._handles[name] = owner.register_forward_pre_hook(recorder, with_kwargs=True)

    def of(self, name: str) -> tuple[int, ...] | None:
        """The sizes of the latest forward pass; None before the first."""
        known = self._recorders.get(name)
        sizes = None if known is None else known[1].sizes
        return None if sizes is None else tuple(int(n) for n in sizes)

    def copy_from(self, other: InputSizes) -> None:
        """Takes over what another model's recorders saw."""
        for name, (_, recorder) in self._recorders.items():
            recorder.sizes = other.of(name)

    def clear(self) -> None:
        """Takes all recorders off."""
        _remove(self._handles)
        self._recorders.clear()


def _remove(handles: dict[str, RemovableHandle]) -> None:
    for handle in handles.values():
        handle.remove()
    handles.clear()
