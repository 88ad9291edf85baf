"""Samples put into a copy of a model, one at a time, and batches that can be served again for each of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from weightspace.errors import SamplingError
from weightspace.sampling._index import Sample

AnySample = Sample | Mapping[str, Tensor] | nn.Module
Batches = Iterable[Any] | Callable[[], Iterable[Any]]
IGNORED = -100  # the label that torch's losses leave out


def plain_module(model: nn.Module) -> nn.Module:
    """The model itself, where `torch.compile` or `DistributedDataParallel` is wrapped around it."""
    inner = getattr(model, "_orig_mod", model)
    inner = inner.module if isinstance(inner, nn.parallel.DistributedDataParallel) else inner
    return inner if inner is model else plain_module(inner)


def working_copy(model: nn.Module, device: torch.device | str | None) -> nn.Module:
    """A copy of the model in evaluation mode, on a device (None: its own); the user's model stays as it is."""
    duplicate = copy.deepcopy(plain_module(model)).eval()
    return duplicate if device is None else duplicate.to(device)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lies; the CPU if it has none."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def flattened(samples: AnySample | Iterable[Any]) -> Iterator[AnySample]:
    """The samples of stores, lists of stores, lists of samples, state_dicts and models, one after the other."""
    if isinstance(samples, Sample | Mapping | nn.Module):
        yield cast("AnySample", samples)
        return
    if isinstance(samples, str | bytes) or not isinstance(samples, Iterable):
        raise SamplingError(
            f"samples holds {samples!r}; give a SampleStore, or a list of stores, samples, models or state_dicts"
        )
    for entry in samples:
        yield from flattened(entry)


def name_of(sample: AnySample, number: int) -> str:
    """How a sample is called in a sentence."""
    return f"the sample of step {sample.step}" if isinstance(sample, Sample) else f"sample {number}"


def put_into(model: nn.Module, sample: AnySample, name: str) -> None:
    """Load a sample's parameters and buffers.

    Raises:
        SamplingError: It is damaged, or belongs to another model.
    """
    state = sample.load() if isinstance(sample, Sample) else sample
    state = plain_module(state).state_dict() if isinstance(state, nn.Module) else state
    try:
        model.load_state_dict(dict(state))
    except (RuntimeError, TypeError) as error:
        raise SamplingError(f"{name} belongs to another model: {' '.join(str(error).split())}") from error


def served(batches: Batches) -> Iterable[Any]:
    """One pass over the batches.

    Raises:
        SamplingError: They are an iterator, which can be passed over once only.
    """
    if isinstance(batches, Iterator):
        raise SamplingError("batches can be read once only; give a list, a DataLoader, or a function that returns them")
    return batches() if callable(batches) and not isinstance(batches, Iterable) else cast("Iterable[Any]", batches)


def moved(inputs: Any, device: torch.device) -> Any:
    """Tensors of a batch on a device, in tuples, lists and dicts too."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {name: moved(value, device) for name, value in cast("Mapping[Any, Any]", inputs).items()}
    if isinstance(inputs, list | tuple):
        return tuple(moved(value, device) for value in cast("list[Any]", inputs))
    return inputs


def called(model: nn.Module, inputs: Any) -> Any:
    """The model's output: a tensor is the one argument, a tuple the arguments, a dict the named ones."""
    if isinstance(inputs, Mapping):
        return model(**cast("Mapping[str, Any]", inputs))
    return model(*inputs) if isinstance(inputs, list | tuple) else model(inputs)


def labelled(
    model: nn.Module, batch: Any, device: torch.device, logits: Callable[[Any], Tensor] | None, name: str
) -> tuple[Tensor, Tensor]:
    """Log-probabilities `(n, C)` and labels `(n,)` of one batch; tokens are flattened, those labelled -100 left out.

    Raises:
        SamplingError: The batch is no pair, or outputs and labels do not fit, or the outputs are not finite.
    """
    if not isinstance(batch, list | tuple) or len(cast("list[Any]", batch)) != 2:
        raise SamplingError(f"a batch is a {type(batch).__name__}; give pairs of inputs and labels")
    inputs, labels = cast("tuple[Any, Tensor]", batch)
    output = called(model, moved(inputs, device))
    scores = output if logits is None else logits(output)
    if not isinstance(scores, Tensor) or scores.ndim < 2 or scores.shape[-1] < 2:
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise SamplingError(f"the model gives {shape}; class scores (..., classes) are needed: say how with logits=")
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != scores.shape[:-1]:
        shape = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise SamplingError(f"labels are {shape} for class scores {tuple(scores.shape)}; give a whole number for each")
    flat, scores = labels.reshape(-1).to("cpu", torch.int64), scores.reshape(-1, scores.shape[-1])
    kept = flat != IGNORED
    if not bool(kept.all()):
        flat, scores = flat[kept], scores[kept.to(scores.device)]
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < scores.shape[-1]:
        worst = int(flat.min()) if int(flat.min()) < 0 else int(flat.max())
        raise SamplingError(
            f"a label is {worst}, but the model knows classes 0 to {scores.shape[-1] - 1}; "
            "give the data that it was trained on "
            f"({IGNORED} marks labels to pass over)"
        )
    # in float64, so that the likelihood of many tokens adds up; one device type has none
    log_probabilities = torch.log_softmax(scores.double() if scores.device.type != "mps" else scores.float(), dim=-1)
    log_probabilities = log_probabilities.to("cpu", torch.float64)
    if bool(log_probabilities.isnan().any()):
        raise SamplingError(f"{name} predicts scores that are NaN or infinite: it has diverged; leave it out")
    return log_probabilities, flat
