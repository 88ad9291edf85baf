"""The sections of docs/benchmarks.md: metrics in an optimizer step, and the training loop."""

from __future__ import annotations

from pathlib import Path

from benchmarks import loop_overhead, metrics_step, sobolev_scaling
from benchmarks.timing import Timing, machine
from weightspace.kernels.stacking import STACK_BELOW_ON_CPU

STEP_TARGET = 1.3
SHARE_TARGET = 1.0  # percent
LOOP_TARGET = 3.0  # percent


def met(holds: bool) -> str:
    """A target's verdict."""
    return "met" if holds else "**not met**"


def table(rows: dict[str, Timing], reference: str) -> str:
    """A Markdown table of timings."""
    lines = [f"| contestant | ms (median) | ratio to {reference}: median (quartiles) |", "|---|---|---|"]
    return "\n".join(lines + [f"| {name} | {timing.cells()} |" for name, timing in rows.items()])


def step_section(*, quick: bool = False) -> str:
    """ChannelL2 with the optimizer step, its floor, its share of a training step."""
    rows = metrics_step.channel_l2_rows(rounds=5 if quick else 150)
    size, floor, bandwidth = metrics_step.floor_milliseconds()
    training = metrics_step.forward_backward_seconds(8 if quick else 128)
    foreach = rows["SGD(foreach=True) alone"].seconds
    rule_foreach = rows["ChannelL2 + SGD(foreach=True)"].seconds - foreach
    fused = rows["SGD(fused=True) alone"].seconds
    rule_fused = rows["ChannelL2 + SGD(fused=True)"].seconds - fused
    percent = 100 * rule_foreach / training
    together = [name for name in rows if name.startswith("ChannelL2 + ")]
    targets = ", ".join(
        f"{met(rows[name].ratio <= STEP_TARGET)} by {name} ({rows[name].ratio:.2f})" for name in together
    )
    return f"""## ChannelL2 in an optimizer step

ResNet-18's 20 convolution kernels, {size / 1e6:.1f} MB in float32, SGD with momentum.

{table(rows, "SGD(foreach=True) alone")}

Floor: the rule must read every gradient and write every buffer once, {2 * size / 1e6:.0f} MB; a plain copy of that size
runs at {bandwidth / 1e9:.0f} GB/s here, so {floor * 1e3:.2f} ms. The rule itself (difference of medians) takes {rule_foreach * 1e3:.2f} ms beside
the foreach step and {rule_fused * 1e3:.2f} ms beside the fused one: {rule_foreach / floor:.1f} and {rule_fused / floor:.1f} times the floor.
The mean over channels must be known before the first entry is written, so a kernel that outgrows the cache is read twice:
{1.5 * floor * 1e3:.2f} ms. That alone would put ChannelL2 + SGD(foreach=True) at {(foreach + 1.5 * floor) / foreach:.2f} and ChannelL2 + SGD(fused=True) at {(fused + 1.5 * floor) / foreach:.2f}.

Beside a forward and backward pass of ResNet-18 at batch 128, 32x32 images ({training:.2f} s) the rule takes {percent:.2f} %.

Targets: rule and step together at most {STEP_TARGET} times SGD(foreach=True) alone: {targets}. The rule below {SHARE_TARGET:g} % of a
forward and backward pass: {met(percent < SHARE_TARGET)}.
"""


def rules_section(*, quick: bool = False) -> str:
    """Every variant of the registry, and where stacking pays."""
    crossover = "\n".join(
        f"| {numel:,} | {middle:.2f} ({lower:.2f}–{upper:.2f}) |"
        for numel, middle, lower, upper in metrics_step.batching_rows(rounds=5 if quick else 200)
    )
    return f"""## Every rule of the registry

One step with the rule against the step alone, ResNet-18's kernels.

{table(metrics_step.all_rule_rows(rounds=2 if quick else 12), "SGD(foreach=True) alone")}

## One by one or stacked

16 equal 3x3 kernels under ChannelL2: time stacked over time one by one. `batching="auto"` stacks below
{STACK_BELOW_ON_CPU:,} elements a weight on a CPU.

| elements a kernel | ratio: median (quartiles) |
|---|---|
{crossover}
"""


def sobolev_section(pictures: Path, *, quick: bool = False) -> str:
    """Linear time in the number of channels, with a plot."""
    result = sobolev_scaling.measure(rounds=3 if quick else 15)
    sobolev_scaling.plot(result, pictures / "sobolev-scaling.png", machine())
    header = "| output channels | " + " | ".join(f"{name}, ms" for name in result) + " |"
    rows = "\n".join(
        f"| {c} | " + " | ".join(f"{seconds[k] * 1e3:.3g}" for seconds in result.values()) + " |"
        for k, c in enumerate(sobolev_scaling.CHANNELS)
    )
    slopes = ", ".join(f"{name} {sobolev_scaling.slope(seconds):.2f}" for name, seconds in result.items())
    return f"""## ChannelSobolev is linear in the channels

{sobolev_scaling.INNER} inputs a channel. Exponents of the power law from 256 channels on: {slopes}.

{header}
|---|{"---|" * len(result)}
{rows}

![time against output channels](benchmarks/sobolev-scaling.png)
"""


def loop_section(*, quick: bool = False) -> str:
    """The training loop against a bare loop."""
    rows = loop_overhead.measure(rounds=5 if quick else 200)
    ratio = rows["weightspace loop"].ratio
    return f"""## The training loop

An epoch of the quickstart recipe (digits, steps of a few milliseconds: the worst case), the library's loop with its
checks, timers and log against a loop written by hand that reads its loss.

{table(rows, "the bare loop")}

Target: below {LOOP_TARGET:g} % on top of the bare loop: {met(100 * (ratio - 1) < LOOP_TARGET)} ({100 * (ratio - 1):+.1f} %).
"""
