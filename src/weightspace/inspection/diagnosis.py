"""`inspect`: one call that looks at the weights, runs a batch through the network and says what is wrong with it."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.utils._pytree import tree_leaves, tree_map

from weightspace.errors import InspectionError
from weightspace.inspection.advice import Network, find_alerts, make_advice, verdict
from weightspace.inspection.jacobian import STEPS, JacobianSpectrum, jacobian_singular_values
from weightspace.inspection.layers import DETAILS, Detail
from weightspace.inspection.limits import Limits
from weightspace.inspection.report import Inspection, Unsupported
from weightspace.inspection.survey import Progress, Survey
from weightspace.inspection.trace import Loss, Trace, trace, untouched, update_ratios
from weightspace.inspection.unsupported import find_unsupported
from weightspace.kernels.parameters import describe, unwrap

JACOBIAN_IMAGES = 2
QUICK_STEPS = 10


def inspect(
    model: nn.Module,
    example_input: Any,
    *,
    loss: Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    detail: Detail = "spectra",
    limits: Limits | None = None,
    jacobian: bool | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Inspection:
    """Diagnoses a network: its layers as linear maps, and what a batch does on its way through it and back.

    Nothing is changed: weights, `p.grad`, buffers, flags and random number generators are as before. The model runs in
    the mode that it is in: batch norm uses the batch in training mode and running statistics in evaluation mode.

    Args:
        model: Any module; wrappers of torch.compile, DataParallel and Lightning Fabric are looked through.
        example_input: What `model` takes: one tensor, a tuple of positional or a mapping of keyword arguments. A real
            batch, normalized as in training, shows more than noise; 8 to 64 images are enough.
        loss: Function of the model's output that gives one number: `lambda out: F.cross_entropy(out, labels)`. Left
            out, the gradient at the output is a random direction with entries of mean square one.
        optimizer: Also measure how far its next step moves each weight, by a step of a copy; needs `loss`.
        detail: How much to compute. "moments": closed forms (well under a second a layer); "extremes": the interval of
            sigma_max and a bound of sigma_min (0.1 to 1 s a layer); "spectra": all singular values, for large layers
            those of the circular counterpart, and the Jacobian's largest; "exact": sigma_min and all values under the
            true padding wherever a dense matrix is possible, the Jacobian with more steps.
        limits: Thresholds of the alerts.
        jacobian: Whether to compute singular values of the whole map, at the first two images; left out: from
            "spectra" on.
        seed: Decides dropout and the random direction.
        progress: Called with the name of the layer at hand, its number and how many there are.

    Returns:
        An `Inspection`: print it, or use `.table()`, `.advice`, `.to_html(path)`, `.to_json(path)`, `.scalars()`.

    Raises:
        InspectionError: The model has lazy or meta weights, its forward pass or the loss fails, or it has no layer that
            could be looked at.

    Example:
        A linear network that doubles what it sees, twice:

        >>> double = nn.Linear(3, 3, bias=False)
        >>> _ = double.weight.data.copy_(2 * torch.eye(3))
        >>> report = inspect(nn.Sequential(double, double), torch.randn(8, 3))
        >>> round(report.forward_gain, 4), round(report.backward_gain, 4), len(report.layers), report.layers[0].notes
        (4.0, 4.0, 1, ('called 2 times, figures of the first at each size',))
    """
    begin = time.perf_counter()
    _refuse_arguments(model, detail, loss, optimizer)
    root = unwrap(model)
    _refuse_unborn(root)
    frozen = frozenset(id(p) for p in root.parameters() if not p.requires_grad)
    with untouched(root, seed):
        seen = trace(root, example_input, loss, seed=seed)
        ratios = {} if optimizer is None else update_ratios(root, optimizer, seen.gradients)
        survey = Survey(root, seen, detail, frozen=frozen, ratios=ratios, progress=progress)
    if not survey.layers and not survey.refused:
        raise InspectionError(
            f"{type(root).__name__} has no convolution, transposed convolution or linear layer that could be looked at"
            "; give a model that has."
        )
    problems: list[str] = []
    whole = None
    if jacobian or (jacobian is None and DETAILS.index(detail) >= DETAILS.index("spectra")):
        whole = _jacobian(root, example_input, STEPS if detail == "exact" else QUICK_STEPS, seed, problems)
    network = _network(root, seen, survey, whole)
    alerts = find_alerts(network, limits or Limits())
    refused = [Unsupported(name, type(m).__name__, reason) for m, (name, reason) in survey.refused.items()]
    return Inspection(
        model=type(root).__name__,
        mode="training" if root.training else "evaluation",
        detail=detail,
        gradient_of="random direction" if loss is None else "loss",
        loss=seen.loss,
        forward_gain=network.forward_gain,
        backward_gain=network.backward_gain,
        layers=survey.layers,
        unsupported=(*refused, *find_unsupported(root, survey.shown)),
        jacobian=whole,
        verdict=verdict(network, alerts),
        alerts=alerts,
        advice=make_advice(alerts),
        problems=tuple(problems),
        seconds=time.perf_counter() - begin,
    )


def _refuse_arguments(model: object, detail: str, loss: Loss | None, optimizer: object) -> None:
    if not isinstance(model, nn.Module):
        raise InspectionError(f"inspect() got a {type(model).__name__}; pass a torch.nn.Module.")
    if detail not in DETAILS:
        raise InspectionError(f"detail is {detail!r}; choose one of {', '.join(DETAILS)}.")
    if optimizer is not None and loss is None:
        raise InspectionError("optimizer= needs loss=: the next step along a random direction says nothing; pass both.")


def _network(root: nn.Module, seen: Trace, survey: Survey, whole: JacobianSpectrum | None) -> Network:
    """What alerts are looked for in."""
    forward = seen.output_rms / seen.input_rms if seen.inputs and seen.input_rms else float("nan")
    head = next((i.name.removesuffix(".weight") for i in describe(root) if i.is_head), None)
    broken = [name for module, (name, _) in survey.refused.items() if not _is_finite(module)]
    return Network(forward, _backward_gain(seen), survey.layers, head, whole, broken)


def _refuse_unborn(model: nn.Module) -> None:
    """Lazy and meta weights have no values to look at."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise InspectionError(f"{name} is lazy and has no values yet; run one forward pass, then inspect.")
        if parameter.device.type == "meta":
            raise InspectionError(f"{name} is on the meta device and has no values; load the weights, then inspect.")


def _is_finite(module: nn.Module) -> bool:
    return all(bool(p.isfinite().all()) for p in module.parameters())


def _backward_gain(seen: Trace) -> float | None:
    """Norm of the gradient at the inputs, or at the first layer that has one, over that at the outputs."""
    if not seen.output_gradient_norm:
        return None
    if seen.input_gradient_norm is not None:
        return seen.input_gradient_norm / seen.output_gradient_norm
    first = next((call for call in seen.calls if call.gradient_rms is not None and call.operator is not None), None)
    if first is None or first.gradient_rms is None or first.operator is None:
        return None
    return first.gradient_rms * (first.images * first.operator.shape[0]) ** 0.5 / seen.output_gradient_norm


def _jacobian(model: nn.Module, example: Any, steps: int, seed: int, problems: list[str]) -> JacobianSpectrum | None:
    """At the first images of the batch if the model takes them alone, else at all of them."""
    for part in (_first_images(example), example):
        try:
            return jacobian_singular_values(model, part, steps=steps, seed=seed)
        except InspectionError as error:
            problem = f"no singular values of the whole map: {error}"
    problems.append(problem)
    return None


def _first_images(example: Any) -> Any:
    """The example cut to two rows, where all its tensors have the same number of rows."""
    tensors = [t for t in tree_leaves(example) if isinstance(t, torch.Tensor)]
    rows = {t.shape[0] if t.ndim else 0 for t in tensors}
    if len(rows) != 1 or max(rows) <= JACOBIAN_IMAGES:
        return example
    return tree_map(lambda t: t[:JACOBIAN_IMAGES] if isinstance(t, torch.Tensor) else t, example)
