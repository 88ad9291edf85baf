"""What a metric costs in an optimizer step on ResNet-18's kernels, and next to a forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

import weightspace as ws
from benchmarks.timing import Timing, copy_bandwidth, device, interleave
from weightspace.registry import REGISTRY, make_rule
from weightspace.training.models import build_model


def resnet18() -> nn.Module:
    """ResNet-18 with its ImageNet stem, 11.7 million parameters."""
    torch.manual_seed(0)
    model = build_model("resnet18", in_channels=3, image_size=224, num_classes=1000, stem="imagenet")
    return model.to(device())


def kernels_only(model: nn.Module) -> nn.Module:
    """The model with its convolutions alone requiring gradients, as the speed target is stated for kernels."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim == 4)
        if parameter.ndim == 4:
            parameter.grad = 1e-3 * torch.randn_like(parameter)
    return model


def step_of(
    rule: ws.kernels.Rule | None, *, inplace: bool = False, batching: str = "auto", **options: object
) -> Callable[[], object]:
    """An SGD step with momentum on ResNet-18's kernels, with or without a rule; the learning rate is 0 so that nothing drifts."""
    model = kernels_only(resnet18())
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9, **options)
    if rule is not None:
        ws.attach(optimizer, model, rule, inplace=inplace, batching=batching)
    return optimizer.step


def channel_l2_rows(rounds: int = 150) -> dict[str, Timing]:
    """The speed target: ChannelL2 with the step against SGD(foreach=True, momentum) alone."""
    rule = ws.metrics.ChannelL2(smoothing=4.0)
    kept = ws.metrics.ChannelL2(smoothing=4.0, keep_norm=True)
    mild = ws.metrics.ChannelL2(
        smoothing=1.000001
    )  # in place the same gradient is damped again and again: to subnormals
    return interleave(
        {
            "SGD(foreach=True) alone": step_of(None, foreach=True),
            "SGD(fused=True) alone": step_of(None, fused=True),
            "ChannelL2 + SGD(foreach=True)": step_of(rule, foreach=True),
            "ChannelL2 + SGD(fused=True)": step_of(rule, fused=True),
            "ChannelL2 + SGD(fused=True), inplace=True": step_of(mild, inplace=True, fused=True),
            "ChannelL2(keep_norm) + SGD(fused=True)": step_of(kept, fused=True),
        },
        "SGD(foreach=True) alone",
        rounds=rounds,
    )


def all_rule_rows(rounds: int = 12) -> dict[str, Timing]:
    """Every metric and variant of the registry with SGD(foreach=True), against that step alone."""
    steps: dict[str, Callable[[], object]] = {"SGD(foreach=True) alone": step_of(None, foreach=True)}
    for entry in REGISTRY.values():
        if entry.stage != ws.kernels.Stage.METRIC:
            continue
        for label, options in entry.variants.items():
            steps[f"{entry.name} [{label}]"] = step_of(make_rule(entry.name, **options), foreach=True)
    return interleave(steps, "SGD(foreach=True) alone", rounds=rounds, warm_up=2, seconds=150)


def forward_backward_seconds(batch_size: int = 128, image_size: int = 32) -> float:
    """Median seconds of a forward and backward pass of ResNet-18."""
    model = build_model("resnet18", in_channels=3, image_size=image_size, num_classes=10).to(device())
    images = torch.randn(batch_size, 3, image_size, image_size, device=device())
    labels = torch.randint(10, (batch_size,), device=device())

    def forward_backward() -> None:
        model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), labels).backward()

    return interleave({"pass": forward_backward}, "pass", rounds=6, warm_up=1, seconds=90)["pass"].seconds


def floor_milliseconds() -> tuple[float, float, float]:
    """(bytes of the kernels, seconds of the floor, bandwidth): read each gradient once, write each buffer once."""
    size = sum(p.numel() * p.element_size() for p in resnet18().parameters() if p.ndim == 4)
    bandwidth = copy_bandwidth()
    return float(size), 2 * size / bandwidth, bandwidth


def batching_rows(rounds: int = 200) -> list[tuple[int, float, float, float]]:
    """(elements a weight, ratio stacked/single, quartiles) for 16 equal weights: where stacking begins to pay."""
    rows: list[tuple[int, float, float, float]] = []
    for channels in (4, 8, 16, 32, 64, 128):
        steps: dict[str, Callable[[], object]] = {}
        for batching in ("single", "stacked"):
            model = nn.Sequential(*[nn.Conv2d(channels, channels, 3, bias=False) for _ in range(16)]).to(device())
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
            rules = ws.attach(optimizer, model, ws.metrics.ChannelL2(on=ws.on.convs), batching=batching)

            def call(rules: ws.Rules = rules, optimizer: torch.optim.Optimizer = optimizer) -> None:
                with torch.no_grad():
                    rules._swap(optimizer)  # noqa: SLF001  # the rule alone, without the optimizer's arithmetic
                    rules.restore_gradients()

            steps[batching] = call
        timing = interleave(steps, "single", rounds=rounds, seconds=20)["stacked"]
        rows.append((channels * channels * 9, timing.ratio, timing.lower, timing.upper))
    return rows
