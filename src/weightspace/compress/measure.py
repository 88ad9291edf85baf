"""What compression brought: zeros, bytes on disk, multiplications, latency. All measured, nothing estimated."""

from __future__ import annotations

import statistics
import tempfile
import time
import zipfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from weightspace.compress._equality import Inputs, as_inputs
from weightspace.compress._extras import package
from weightspace.errors import CompressError


@dataclass(frozen=True)
class Sizes:
    """Bytes of real files with the same tensors.

    Attributes:
        plain: A safetensors file.
        sparse: A file of `save_sparse`.
        zipped: The plain file, deflated (zip, level 9): what sparsity brings without a format of its own.
    """

    plain: int
    sparse: int
    zipped: int


@dataclass(frozen=True)
class Latency:
    """Time of a forward pass, and how it compares with the first model's.

    Attributes:
        seconds: The median.
        ratio: The median of (the first model's time) / (this model's), taken side by side: 2 is twice as fast.
        low: The lower quartile of that ratio.
        high: The upper quartile.
        threads: Threads that torch used.
    """

    seconds: float
    ratio: float
    low: float
    high: float
    threads: int


def zeros(model: nn.Module) -> tuple[int, int]:
    """How many numbers in a model's parameters are zero, and how many there are.

    >>> layer = nn.Linear(3, 2, bias=False)
    >>> with torch.no_grad(): _ = layer.weight[0].zero_()
    >>> zeros(layer)
    (3, 6)
    """
    found = [(int(parameter.eq(0).sum()), parameter.numel()) for parameter in model.parameters()]
    return sum(zero for zero, _ in found), sum(total for _, total in found)


def count_macs(model: nn.Module, example_input: Any) -> int:
    """Multiply-adds of a forward pass of the whole example, as torch's `FlopCounterMode` counts them, halved.

    Convolutions and matrix products count; everything else is small beside them. Zeros among the weights count as
    well: dense code multiplies by them.

    Args:
        model: Run in evaluation mode, and put back.
        example_input: A tensor, or a tuple of the model's arguments; divide by its size for one image.

    Raises:
        CompressError: The example is no input.

    >>> count_macs(nn.Linear(10, 4), torch.zeros(2, 10))
    80
    """
    counter = FlopCounterMode(display=False)
    with _evaluating([model]), torch.no_grad(), counter:
        model(*as_inputs(example_input))
    return counter.get_total_flops() // 2


def file_sizes(state: Mapping[str, Tensor] | nn.Module, *, bits: Literal[8] | None = None) -> Sizes:
    """Write a model's tensors in three ways and look at the files.

    Args:
        state: Tensors by name, or a model.
        bits: For the sparse file: 8 stores values in 8 bits.

    Raises:
        CompressError: Safetensors is not installed.
        RunError: The temporary folder cannot be written to.
    """
    from weightspace.compress.sparse_files import save_sparse

    safetensors = package("safetensors.torch", "writing a model", extra="train")
    tensors = state.state_dict() if isinstance(state, nn.Module) else state
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory(prefix="weightspace-") as folder:
        plain, sparse, zipped = (Path(folder) / name for name in ("plain", "sparse", "zipped"))
        safetensors.save_file(tensors, plain)
        save_sparse(tensors, sparse, bits=bits)
        with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            archive.write(plain, "model.safetensors")
        return Sizes(plain.stat().st_size, sparse.stat().st_size, zipped.stat().st_size)


def latency(
    models: Sequence[nn.Module],
    example_input: Any,
    *,
    repeats: int = 30,
    seconds: float = 2.0,
    threads: int | None = 1,
) -> list[Latency]:
    """Time forward passes of several models side by side.

    The models take turns, so that a busy or throttled machine slows them alike, and ratios are taken within a turn.
    Each model runs in evaluation mode without gradients. Accelerators are waited for.

    Args:
        models: The first is what the others are compared with.
        example_input: A tensor, or a tuple of the models' arguments.
        repeats: Turns, at least 3.
        seconds: Stop after about this long, if there were three turns.
        threads: Threads for torch on the CPU; None leaves them as they are.

    Raises:
        CompressError: No model, or fewer than three turns.
    """
    if not models or repeats < 3:
        raise CompressError(f"latency needs at least one model and three turns, not {len(models)} and {repeats}")
    inputs = as_inputs(example_input)
    with _evaluating(models), _threads(threads), torch.inference_mode():
        for model in [*models, *models]:  # warm: allocators, kernels, caches
            _timed(model, inputs)
        turns: list[list[float]] = []
        end = time.perf_counter() + seconds
        while len(turns) < repeats and (len(turns) < 3 or time.perf_counter() < end):
            turns.append([_timed(model, inputs) for model in models])
        used = torch.get_num_threads()
    return [_latency([turn[0] for turn in turns], list(column), used) for column in zip(*turns, strict=True)]


def _latency(first: Sequence[float], own: Sequence[float], threads: int) -> Latency:
    ratios = [a / b for a, b in zip(first, own, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Latency(statistics.median(own), middle, low, high, threads)


def _timed(model: nn.Module, inputs: Inputs) -> float:
    _wait(inputs)
    begin = time.perf_counter()
    model(*inputs)
    _wait(inputs)
    return time.perf_counter() - begin


def _wait(inputs: Inputs) -> None:
    """An accelerator runs behind Python."""
    if any(isinstance(entry, Tensor) and entry.device.type != "cpu" for entry in inputs):
        torch.accelerator.synchronize()


@contextmanager
def _evaluating(models: Sequence[nn.Module]) -> Generator[None, None, None]:
    """Evaluation mode for all modules, and back to what each was in."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _threads(count: int | None) -> Generator[None, None, None]:
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
