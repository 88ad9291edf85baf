"""What penalties behind gates cost in an optimizer step: ResNet-18 and a narrow VGG, one and two threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import weightspace as ws
from benchmarks.metrics_page import met, table
from benchmarks.metrics_step import forward_backward_seconds
from benchmarks.timing import Timing, copy_bandwidth, device, interleave, threads
from weightspace.gates import Coherent, Gate, Products, RandomGate
from weightspace.optim import _gates
from weightspace.penalties import L1, L2, GroupL1, Penalty, SingularValueBand
from weightspace.training.models import build_model

TARGET = 1.25
DEFAULT = "SGD alone"
FUSED = "SGD(fused=True) alone"
_STRENGTH, _PROXIMAL = 1e-4, "proximal"


@dataclass(frozen=True, repr=False)
class Never(Coherent):
    """Compares as `Coherent` does and stays closed: gradients that never change have a cosine of 1 with their past."""

    def judge(self, products: Products) -> torch.Tensor:
        """No."""
        return products.cosine > 2.0


# A gate's work is the same whatever it decides, what follows is not: these decide beforehand.
OPEN: dict[str, Gate] = {"total, open": Coherent(threshold=-1.0), "history, open": Coherent("history", threshold=-1.0)}
CLOSED: dict[str, Gate] = {"total, closed": Never(), "history, closed": Never("history")}


def network(name: str) -> nn.Module:
    """The model with random gradients in place."""
    torch.manual_seed(0)
    options = {"widths": [16, 32, 64], "convs_per_stage": 3} if name == "vgg" else {}
    model = build_model(name, in_channels=3, image_size=32, num_classes=10, **options).to(device())
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    return model


def step_of(name: str, rule: Penalty | None = None, **options: object) -> Callable[[], object]:
    """A step of SGD with momentum; the learning rate is 0, so that nothing drifts."""
    model = network(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, **options)
    if rule is not None:
        ws.attach(optimizer, model, rule)
    return optimizer.step


def by_hand(name: str, *, is_gated: bool) -> Callable[[], object]:
    """What a user writes without a library: the sign added to `p.grad`, if the cosine of the two says so."""
    model = network(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    weights = [p for p in model.parameters() if p.ndim > 1]
    # Signs alternate: added again and again to gradients that no backward() renews, they would grow.
    strength = [_STRENGTH]

    @torch.no_grad()
    def step() -> None:
        strength[0] = -strength[0]
        for p in weights:
            grad = p.grad
            if grad is None:
                continue
            if is_gated:
                total = grad + strength[0] * p.sign()
                if nn.functional.cosine_similarity(grad.flatten(), total.flatten(), dim=0).item() < 0.5:
                    continue
            grad.add_(p.sign(), alpha=strength[0])
        optimizer.step()

    return step


def contestants(name: str, *, is_short: bool) -> dict[str, Callable[[], object]]:
    """Steps by name; the short list is for the small network."""
    steps: dict[str, Callable[[], object]] = {
        DEFAULT: step_of(name),
        FUSED: step_of(name, fused=True),
        "SGD(foreach=True) alone": step_of(name, foreach=True),
        "L1": step_of(name, L1(_STRENGTH)),
        "L1 proximal": step_of(name, L1(_STRENGTH, application=_PROXIMAL)),
        "L1, random 0.3": step_of(name, L1(_STRENGTH, gate=RandomGate(0.3))),
    }
    for label, gate in {**OPEN, **CLOSED}.items():
        steps[f"L1, {label}"] = step_of(name, L1(_STRENGTH, gate=gate))
    for label in ("total, open", "total, closed"):
        gate = {**OPEN, **CLOSED}[label]
        steps[f"L1, {label}, with SGD(fused=True)"] = step_of(name, L1(_STRENGTH, gate=gate), fused=True)
        steps[f"L1 proximal, {label}"] = step_of(name, L1(_STRENGTH, gate=gate, application=_PROXIMAL))
    steps["by hand: p.grad.add_(p.sign())"] = by_hand(name, is_gated=False)
    steps["by hand: cosine_similarity, .item() a layer"] = by_hand(name, is_gated=True)
    if not is_short:
        steps["L2"] = step_of(name, L2(_STRENGTH))
        steps["torch's own weight_decay"] = step_of(name, weight_decay=_STRENGTH)
        steps["L2, total, open"] = step_of(name, L2(_STRENGTH, gate=OPEN["total, open"]))
        steps["GroupL1"] = step_of(name, GroupL1(_STRENGTH))
        steps["GroupL1, total, open"] = step_of(name, GroupL1(_STRENGTH, gate=OPEN["total, open"]))
    return steps


class Reads(TorchDispatchMode):
    """Counts numbers that leave a tensor: on an accelerator each of them waits for the device.

    The count of steps, the one int64 that is read, lives on the CPU wherever the weights are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(  # torch's name for it
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operation."""
        del types
        is_read = func is torch.ops.aten._local_scalar_dense.default  # noqa: SLF001
        self.count += is_read and args[0].dtype != torch.int64
        return func(*args, **(kwargs or {}))


def synchronizations() -> dict[str, int]:
    """A step each, in the way of accelerators: on a CPU that way is taken by order, for the count."""
    original = _gates.is_read_at_once
    _gates.is_read_at_once = lambda _: False
    try:
        result: dict[str, int] = {}
        for label, step in {
            "L1, total": step_of("vgg", L1(_STRENGTH, gate=Coherent())),
            "L1, history": step_of("vgg", L1(_STRENGTH, gate=Coherent("history"))),
            "L1 proximal, total": step_of("vgg", L1(_STRENGTH, gate=Coherent(), application=_PROXIMAL)),
            "by hand: cosine_similarity": by_hand("vgg", is_gated=True),
        }.items():
            step()
            with Reads() as reads:
                step()
            result[label] = reads.count
    finally:
        _gates.is_read_at_once = original
    return result


def band_rows(rounds: int) -> dict[str, Timing]:
    """The singular-value penalty, which a schedule keeps from being computed and a comparison does not."""
    band = {"weight": 1e-3, "input_size": 8}
    return interleave(
        {
            DEFAULT: step_of("vgg"),
            "SingularValueBand": step_of("vgg", SingularValueBand(**band)),
            "SingularValueBand, random 0.3": step_of("vgg", SingularValueBand(**band, gate=RandomGate(0.3))),
            "SingularValueBand, total": step_of("vgg", SingularValueBand(**band, gate=Coherent())),
        },
        DEFAULT,
        rounds=rounds,
        seconds=20,
    )


def rows(name: str, count: int, rounds: int, seconds: float) -> dict[str, Timing]:
    """All contestants against the default step with so many threads."""
    with threads(count):
        return interleave(contestants(name, is_short=name == "vgg"), DEFAULT, rounds=rounds, warm_up=3, seconds=seconds)


def floor() -> tuple[float, float]:
    """Bytes of ResNet-18's weights under the penalty, and the bandwidth of a copy."""
    size = sum(p.numel() * p.element_size() for p in network("resnet18").parameters() if p.ndim > 1)
    return float(size), copy_bandwidth()


def verdict(result: dict[str, Timing]) -> str:
    """The target, for each of the steps that it can mean."""
    named = [name for name in result if name.startswith("L1, ")]
    return "; ".join(f"{name} {met(result[name].ratio <= TARGET)} ({result[name].ratio:.2f})" for name in named)


def step_section(*, quick: bool = False) -> str:
    """ResNet-18 and a narrow VGG, one and two threads, with the floor and the share of a training step."""
    rounds, seconds = (2, 5.0) if quick else (40, 45.0)
    parts: list[str] = []
    large: dict[str, Timing] = {}
    for name, title in (("resnet18", "ResNet-18 (64 wide, CIFAR stem)"), ("vgg", "A narrow VGG (16, 32, 64)")):
        for count in (1, 2):
            result = rows(name, count, rounds, seconds)
            parts.append(f"### {title}, {count} thread{'s'[: count - 1]}\n\n{table(result, DEFAULT)}\n")
            if name == "resnet18":
                large = result
                parts.append(f"Target, at most {TARGET} times {DEFAULT}: {verdict(result)}.\n\n{_floor(result)}\n")
    batch = 8
    training, plain = forward_backward_seconds(batch), large[DEFAULT].seconds
    whole = {
        label: (training + large[label].seconds) / (training + plain)
        for label in ("L1, total, open", "L1, history, open")
    }
    shares = " and ".join(f"{ratio:.3f} ({label})" for label, ratio in whole.items())
    return (
        """## Penalties behind gates in an optimizer step

Weights of all convolutions and linear layers, SGD with momentum, random gradients. "open" and "closed" are gates that have
decided beforehand; their work is that of any other.

"""
        + "\n".join(parts)
        + f"""
A forward and backward pass of ResNet-18 takes {training:.2f} s at batch {batch}. So a whole training step at this small
batch is {shares} times as long with the gated penalty; with the batch the pass grows, and the optimizer's step does not.
"""
    )


def _floor(result: dict[str, Timing]) -> str:
    size, bandwidth = floor()
    step = result[DEFAULT].seconds
    closed, opened = 2 * size / bandwidth, 3 * size / bandwidth
    return (
        f"Floor: the weights are {size / 1e6:.1f} MB; SGD with momentum moves 8 times that in its default loop, 5 times "
        f"fused. To decide, gradient and weight must be read (2 times), to act the sum must be written as well (3 times)"
        f": at a copy's {bandwidth / 1e9:.0f} GB/s {closed * 1e3:.2f} and {opened * 1e3:.2f} ms, ratios of "
        f"{1 + closed / step:.2f} and {1 + opened / step:.2f} if nothing else cost time."
    )


def synchronizations_section(*, quick: bool = False) -> str:
    """How often a step waits for an accelerator; and the penalty on singular values."""
    lines = "\n".join(f"| {label} | {count} |" for label, count in synchronizations().items())
    return f"""## Synchronizations

Numbers read by the host in one step of the narrow VGG, counted in the way of accelerators, taken on a CPU by order. The
rules' one is the look for NaN (`check_finite=False` leaves it out). On a CPU itself reading waits for nothing.

| step | reads |
|---|---|
{lines}

## A singular-value penalty behind a gate

Narrow VGG. What a schedule keeps closed is not computed; what is compared has to be.

{table(band_rows(2 if quick else 15), DEFAULT)}
"""
