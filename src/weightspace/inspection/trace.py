"""One forward and one backward pass through a model, watched: what every layer reads, writes and passes back.

Nothing of the model or the process is changed: buffers (running statistics, power iterations), `requires_grad` flags,
`p.grad` and the random number generators are as before afterwards, also when a pass fails.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from weightspace.errors import InspectionError, OperatorError
from weightspace.inspection.signals import Signal, signal_of
from weightspace.operators import ConvOperator, operator_of

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Loss = Callable[[Any], torch.Tensor]

LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    nn.Linear,
)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(eq=False)
class Call:
    """One pass through one layer.

    Attributes:
        name: Qualified name of the layer.
        module: The layer.
        operator: Its linear map at the size of this call, detached; None if it has none, see `problem`.
        problem: Why it has no linear map.
        signal: Mean, mean square and what images have in common of what the layer read.
        input_rms: Root mean square of what the layer read.
        output_rms: That of what it wrote, without the bias.
        activation_rms: That of what it wrote, with the bias.
        gradient_rms: Root mean square of the gradient that came back to its output; None if none came.
        returned_rms: That of what the layer passed back to its input.
        dead_inputs: How many input channels were zero for every image and place.
        bias_square: Mean square of the bias.
        images: Rows of the batch.
        norm: Name of the batch norm that reads the output alone, and its factor for each channel.
        input_node: Where the input came from in the autograd graph.
        output_node: The same of the output.
    """

    name: str
    module: nn.Module
    operator: ConvOperator | None
    problem: str = ""
    signal: Signal = field(default_factory=Signal)
    input_rms: float = math.nan
    output_rms: float = math.nan
    activation_rms: float = math.nan
    gradient_rms: float | None = None
    returned_rms: float | None = None
    dead_inputs: int = 0
    bias_square: float = 0.0
    images: int = 1
    norm: tuple[str, torch.Tensor] | None = None
    input_node: Any = None
    output_node: Any = None


@dataclass(eq=False)
class Trace:
    """What was seen in one forward and backward pass.

    Attributes:
        calls: In the order of execution.
        input_rms: Root mean square of all floating-point inputs.
        output_rms: That of all outputs.
        input_gradient_norm: That of the gradient at the inputs; None where no input has a gradient.
        output_gradient_norm: That of the gradient at the outputs.
        outputs: Autograd node and gradient RMS of every output.
        gradients: Gradient of every parameter that has one, by name.
        loss: Value of the loss, if one was given.
    """

    calls: list[Call] = field(default_factory=list[Call])
    input_rms: float = math.nan
    output_rms: float = math.nan
    input_gradient_norm: float | None = None
    output_gradient_norm: float = math.nan
    inputs: list[torch.Tensor] = field(default_factory=list[torch.Tensor])
    outputs: list[tuple[Any, float]] = field(default_factory=list[tuple[Any, float]])
    gradients: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    loss: float | None = None


def as_inputs(example: Any) -> Inputs:
    """Positional and keyword arguments: a tuple or list is positional, a mapping is by keyword, else one argument."""
    if isinstance(example, Mapping):
        mapping = cast("Mapping[Any, Any]", example)
        return (), {str(key): value for key, value in mapping.items()}
    if isinstance(example, tuple | list) and not hasattr(example, "_fields"):
        return tuple(cast("tuple[Any, ...]", example)), {}
    return (example,), {}


@contextmanager
def untouched(model: nn.Module, seed: int) -> Generator[None, None, None]:
    """Runs what it holds with a seeded generator and gradients on, and puts the model and the generators back."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(seed)
        try:
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.requires_grad_()
            yield
        finally:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(flags[name])
            for name, buffer in model.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])


def trace(model: nn.Module, example: Any, loss: Loss | None, *, seed: int = 0) -> Trace:
    """Runs the model forward and backward once; call it inside `untouched`.

    Args:
        model: In the mode (training, evaluation) in which it is to be seen.
        example: One tensor, a tuple of positional or a mapping of keyword arguments.
        loss: What the gradient is of, a function of the model's output; left out: a random direction, of entries of
            mean square one, in place of the gradient at the output.
        seed: Decides dropout and the random direction.

    Raises:
        InspectionError: The forward pass, the loss or the backward pass fails, or there is nothing to differentiate.
    """
    result = Trace()
    args, kwargs = differentiable(as_inputs(example))
    result.inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.requires_grad]
    recorder = _Recorder(model, result)
    try:
        output = run(model, (args, kwargs))
    finally:
        recorder.stop()
    outputs = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t.requires_grad]
    if not outputs:
        raise InspectionError(
            "No output of the model depends on an input or a parameter in a way that can be differentiated; pass a "
            "model that returns floating-point tensors computed outside torch.no_grad()."
        )
    result.input_rms, result.output_rms = _joint_rms(result.inputs), _joint_rms(outputs)
    _backward(model, result, output, outputs, loss=loss, seed=seed)
    return result


def run(model: nn.Module, inputs: Inputs) -> Any:
    """The forward pass, whose errors become a sentence.

    Raises:
        InspectionError: It fails.
    """
    try:
        return model(*inputs[0], **inputs[1])
    except Exception as error:  # whatever a user's forward() raises
        given = ", ".join([_words(a) for a in inputs[0]] + [f"{k}={_words(v)}" for k, v in inputs[1].items()])
        raise InspectionError(
            f"The forward pass of {type(model).__name__} failed on the example input ({given}): "
            f"{type(error).__name__}: {error}. Pass what the model takes: one tensor, a tuple of positional arguments "
            "or a dict of keyword arguments, on its device and in its dtype."
        ) from error


def differentiable(inputs: Inputs) -> Inputs:
    """Copies of the arguments that gradients can flow to."""

    def leaf(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            value = value.detach().clone()
            return value.requires_grad_() if value.is_floating_point() else value
        return value

    return cast("Inputs", tree_map(leaf, inputs))


class _Recorder:
    """Hooks on every layer of a model, for the time of one forward pass and the backward pass through it."""

    def __init__(self, model: nn.Module, result: Trace) -> None:
        self.result = result
        self.operators: dict[tuple[int, tuple[int, ...]], ConvOperator | str] = {}
        self.handles = [
            module.register_forward_hook(self._hook(name), with_kwargs=True)
            for name, module in model.named_modules()
            if isinstance(module, LAYERS)
        ] + [
            module.register_forward_pre_hook(self._norm_hook(name))
            for name, module in model.named_modules()
            if isinstance(module, _BATCH_NORMS)
        ]
        self.latest: dict[Any, Call] = {}

    def stop(self) -> None:
        """Before the backward pass, in which checkpointed parts run forward again."""
        for handle in self.handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            x = args[0] if args else kwargs.get("input")
            if isinstance(x, torch.Tensor) and isinstance(output, torch.Tensor):
                self.result.calls.append(self._call(name, module, x, output))

        return hook

    def _norm_hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            call = self.latest.get(args[0].grad_fn) if args and isinstance(args[0], torch.Tensor) else None
            if call is not None:
                call.norm = (name, _batch_norm_factor(module, args[0]))

        return hook

    def _call(self, name: str, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Call:
        dimensions = 0 if isinstance(module, nn.Linear) else len(cast("Any", module).kernel_size)
        operator = self._operator(module, tuple(x.shape[x.ndim - dimensions :]))
        call = Call(name, module, None) if isinstance(operator, str) else Call(name, module, operator)
        call.problem = operator if isinstance(operator, str) else ""
        call.input_node, call.output_node = origin(x), y.grad_fn
        with torch.no_grad():
            bias = getattr(module, "bias", None)
            plain = y
            if isinstance(bias, torch.Tensor):
                plain = y - bias.view(-1, *[1] * dimensions)
                call.bias_square = rms(bias) ** 2
            call.signal = signal_of(x)
            call.input_rms, call.output_rms, call.activation_rms = rms(x), rms(plain), rms(y)
            channels = x.movedim(x.ndim - dimensions - 1, 0)
            call.dead_inputs = int((channels.flatten(1) == 0).all(dim=1).sum())
            call.images = x.numel() // max(1, math.prod(x.shape[x.ndim - dimensions - 1 :]))
        if y.requires_grad:
            self.latest[y.grad_fn] = call
            y.register_hook(lambda gradient, call=call: _note_gradient(call, gradient))
        return call

    def _operator(self, module: nn.Module, size: tuple[int, ...]) -> ConvOperator | str:
        key = (id(module), size)
        if key not in self.operators:
            try:
                operator = operator_of(module, size or None)
                self.operators[key] = operator.with_weight(operator.weight.detach())
            except OperatorError as error:
                self.operators[key] = str(error)
        return self.operators[key]


def _batch_norm_factor(module: Any, x: torch.Tensor) -> torch.Tensor:
    """What a batch norm multiplies each channel with: by the batch in training mode, else by its running variance."""
    with torch.no_grad():
        variance = module.running_var
        if module.training or variance is None:
            variance = x.detach().transpose(0, 1).flatten(1).var(dim=1, correction=0)
        factor = (variance + module.eps).rsqrt()
        return factor if module.weight is None else factor * module.weight.detach()


def _note_gradient(call: Call, gradient: torch.Tensor) -> None:
    """What came back to a layer's output, and what its adjoint makes of it."""
    call.gradient_rms = rms(gradient)
    if call.operator is not None:
        with torch.no_grad():
            block = gradient.detach().reshape(-1, *call.operator.output_shape)
            call.returned_rms = rms(call.operator.adjoint(block.to(call.operator.weight.dtype)))


def origin(tensor: torch.Tensor) -> Any:
    """The autograd node that a tensor comes from; for a leaf the tensor itself, if it has a gradient."""
    return tensor.grad_fn if tensor.grad_fn is not None else (tensor if tensor.requires_grad else None)


def rms(tensor: torch.Tensor) -> float:
    """Root mean square, in float32 at least; 0 for an empty tensor."""
    if not tensor.numel():
        return 0.0
    wide = tensor.detach().to(torch.float32) if tensor.element_size() < 4 else tensor.detach()
    return float(torch.linalg.vector_norm(wide)) / math.sqrt(tensor.numel())


def _norm(tensors: list[torch.Tensor]) -> float:
    return math.hypot(*(rms(t) * math.sqrt(t.numel()) for t in tensors)) if tensors else math.nan


def _joint_rms(tensors: list[torch.Tensor]) -> float:
    entries = sum(t.numel() for t in tensors)
    return _norm(tensors) / math.sqrt(entries) if entries else math.nan


def _backward(
    model: nn.Module, result: Trace, output: Any, outputs: list[torch.Tensor], *, loss: Loss | None, seed: int
) -> None:
    """Gradients of the loss, or of a random combination of the outputs, to all parameters and inputs."""
    seen: dict[int, torch.Tensor] = {}
    for i, tensor in enumerate(outputs):
        tensor.register_hook(lambda gradient, i=i: seen.__setitem__(i, gradient.detach()))
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    leaves = [*wanted.values(), *result.inputs]
    try:
        heads, directions = _heads(output, outputs, loss, seed)
        # The graph is read afterwards, with what its nodes saved.
        gradients = torch.autograd.grad(heads, leaves, directions, allow_unused=True, retain_graph=True)
    except InspectionError:
        raise
    except Exception as error:  # a user's loss, or an operation without a derivative
        raise InspectionError(
            f"The backward pass of {type(model).__name__} failed: {type(error).__name__}: {error}. Check loss=, which "
            "gets the model's output and returns one number."
        ) from error
    result.loss = None if loss is None else float(heads[0].detach())
    result.gradients = {name: g.detach() for name, g in zip(wanted, gradients, strict=False) if g is not None}
    to_inputs = [g for g in gradients[len(wanted) :] if g is not None]
    result.input_gradient_norm = _norm(to_inputs) if to_inputs else None
    result.output_gradient_norm = _norm(list(seen.values()))
    result.outputs = [(tensor.grad_fn, rms(seen[i])) for i, tensor in enumerate(outputs) if i in seen]


def _heads(
    output: Any, outputs: list[torch.Tensor], loss: Loss | None, seed: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What is differentiated, and the gradients to start from."""
    if loss is not None:
        value = loss(output)
        if value.numel() != 1:
            raise InspectionError(f"loss() gave a tensor of shape {tuple(value.shape)}; return one number.")
        return [value], [torch.ones_like(value)]
    generator = torch.Generator("cpu").manual_seed(seed)
    draws = [torch.randn(t.shape, generator=generator, dtype=torch.float32, device="cpu") for t in outputs]
    return outputs, [(d / max(rms(d), 1e-30)).to(t) for d, t in zip(draws, outputs, strict=True)]


def update_ratios(
    model: nn.Module, optimizer: torch.optim.Optimizer, gradients: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """`||step|| / ||weight||` of the optimizer's next step, taken by a copy of model and optimizer.

    Raises:
        InspectionError: They cannot be copied, or the step fails.
    """
    try:
        twin, stepper = copy.deepcopy((model, optimizer))
        parameters = dict(twin.named_parameters())
        before: dict[str, torch.Tensor] = {}
        for name, parameter in parameters.items():
            parameter.grad = gradients[name].clone() if name in gradients and parameter.requires_grad else None
            before[name] = parameter.detach().clone()
        stepper.step()
    except Exception as error:
        raise InspectionError(
            f"The ratio of update to weight takes a step of a copy of the optimizer, which failed: "
            f"{type(error).__name__}: {error}. Leave optimizer= out."
        ) from error
    return {name: rms(p.detach() - before[name]) / max(rms(before[name]), 1e-30) for name, p in parameters.items()}


def _words(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)} on {value.device}"
    return type(value).__name__
