"""Export: a file for other runtimes, read back and compared before it counts as written.

`export_program` writes a `torch.export` program, `export_onnx` an ONNX model. Both take batches of any size. The file
gets its name only after it was loaded again and gave the model's outputs on several inputs of several batch sizes.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.compress._equality import Inputs, as_inputs, outputs, probes, relative_difference
from weightspace.compress._extras import package
from weightspace.errors import CompressError
from weightspace.files import replacing

TOLERANCE = 1e-4  # relative to the largest output: another runtime sums in another order
_BATCHES = (1, 3)  # beside the example's own


@dataclass(frozen=True)
class Exported:
    """An exported file.

    Attributes:
        path: Where it is.
        bytes: Its size.
        difference: Largest difference of outputs, relative to the largest output.
        batch_sizes: Batch sizes on which it was compared.
    """

    path: Path
    bytes: int
    difference: float
    batch_sizes: tuple[int, ...]


def export_program(model: nn.Module, example_input: Any, path: str | Path, *, tolerance: float = TOLERANCE) -> Exported:
    """Write a `torch.export` program (`.pt2`), which runs where the model's code is not installed.

    Args:
        model: Exported as it is in evaluation mode; left as it is.
        example_input: A tensor `(N, ...)`, or a tuple of the model's arguments, all with the batch first.
        path: The file; it is written whole, or not at all.
        tolerance: Largest allowed difference of an output, relative to the largest output.

    Raises:
        CompressError: Torch cannot export the model, or the file gives other outputs.
        RunError: The file cannot be written.
    """
    ready, inputs = _ready(model), as_inputs(example_input)

    def write(target: Path) -> None:
        with _quiet():
            program = torch.export.export(ready, _at_least_two(inputs), dynamic_shapes=_dynamic(inputs))
            with target.open("wb") as stream:
                torch.export.save(program, stream)

    def read(target: Path) -> Callable[..., Any]:
        with _quiet(), target.open("rb") as stream:
            return torch.export.load(stream).module()

    return _checked(ready, inputs, Path(path), tolerance=tolerance, write=write, read=read)


def export_onnx(model: nn.Module, example_input: Any, path: str | Path, *, tolerance: float = TOLERANCE) -> Exported:
    """Write an ONNX model, one file with its weights, and compare it as onnxruntime runs it.

    Args:
        model: Exported as it is in evaluation mode; left as it is.
        example_input: A tensor `(N, ...)`, or a tuple of the model's arguments, all with the batch first.
        path: The file; it is written whole, or not at all.
        tolerance: Largest allowed difference of an output, relative to the largest output.

    Raises:
        CompressError: Torch cannot export the model, the file gives other outputs, or a package is missing:
            `pip install "weightspace[export]"`.
        RunError: The file cannot be written.
    """
    purpose = "ONNX"
    for name in ("onnx", "onnxscript"):
        package(name, purpose, extra="export")
    runtime = package("onnxruntime", purpose, extra="export")
    ready, inputs = _ready(model), as_inputs(example_input)

    def write(target: Path) -> None:
        with _quiet():
            program: Any = torch.onnx.export(
                ready, _at_least_two(inputs), dynamo=True, dynamic_shapes=_dynamic(inputs), verbose=False
            )
            program.save(target, external_data=False)

    def read(target: Path) -> Callable[..., Any]:
        session = runtime.InferenceSession(target.read_bytes(), providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]

        def run(*given: Any) -> list[Tensor]:
            feed = {name: entry.cpu().numpy() for name, entry in zip(names, given, strict=True)}
            return [torch.from_numpy(array) for array in session.run(None, feed)]

        return run

    return _checked(ready, inputs, Path(path), tolerance=tolerance, write=write, read=read)


def _checked(
    model: nn.Module,
    inputs: Inputs,
    path: Path,
    *,
    tolerance: float,
    write: Callable[[Path], None],
    read: Callable[[Path], Callable[..., Any]],
) -> Exported:
    """Write beside `path`, read back, compare, and only then give the file its name."""
    given = [resized for batch in (None, *_BATCHES) for resized in probes(_with_batch(inputs, batch), 1)]
    wanted = outputs(model, given, double=False)
    with replacing(path) as temporary:
        try:
            write(temporary)
        except OSError:
            raise
        except Exception as error:  # torch's exporters raise whatever their passes raise
            reason = " ".join(str(error).split())[:300]
            raise CompressError(
                f"torch cannot export {type(model).__name__} to {path.name} ({type(error).__name__}: {reason}); "
                "control flow that depends on the data is the usual cause"
            ) from error
        loaded = read(temporary)
        with torch.no_grad():
            found = [_flat(loaded(*entry)) for entry in given]
        difference = relative_difference(wanted, found)
        if not difference <= tolerance:
            raise CompressError(
                f"{path.name} was not written: its outputs differ from the model's by {difference:.1e} of the largest, "
                f"where {tolerance:.1e} is allowed"
            )
        size = temporary.stat().st_size
    return Exported(path, size, difference, tuple(dict.fromkeys(_batch(entry) for entry in given)))


def _ready(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode without gradients: exporting must change nothing of the user's."""
    return copy.deepcopy(model).eval().requires_grad_(requires_grad=False)


def _at_least_two(inputs: Inputs) -> Inputs:
    """A batch of one is taken for a constant by the exporter."""
    return inputs if _batch(inputs) > 1 else _with_batch(inputs, 2)


def _with_batch(inputs: Inputs, size: int | None) -> Inputs:
    """The inputs with another batch size, by repetition."""
    if size is None:
        return inputs
    return tuple(
        entry[torch.arange(size, device=entry.device) % len(entry)]
        if isinstance(entry, Tensor) and entry.dim()
        else entry
        for entry in inputs
    )


def _batch(inputs: Inputs) -> int:
    return next((len(entry) for entry in inputs if isinstance(entry, Tensor) and entry.dim()), 1)


def _dynamic(inputs: Inputs) -> tuple[Any, ...]:
    """The first dimension of every tensor is the batch."""
    batch = torch.export.Dim("batch", min=1, max=65_536)
    return tuple({0: batch} if isinstance(entry, Tensor) and entry.dim() else None for entry in inputs)


def _flat(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for entry in values for tensor in _flat(entry)]


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """The exporters print and warn about their own passes."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
