"""Penalties divided among the processes of DistributedDataParallel, beside every process evaluating all of them.

Both ways in one run, in turns, on processes of one thread each that gloo connects: once with layers like those of a
ResNet on images of 4x4 to 16x16, once with an eighth of the channels. What is timed is the optimizer's
step alone; gradients are there already.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from reliability.processes import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import weightspace as ws
from weightspace.operators import operator_of
from weightspace.optim._shared_work import RATE, owners_of
from weightspace.optim._work_costs import estimated_seconds
from weightspace.penalties import OperatorPenalty
from weightspace.registry import make_rule

EVERYWHERE = "every process evaluates all"
# Channels and sides of images, one convolution of 3x3 each.
NETWORKS: dict[str, list[tuple[int, int]]] = {
    "64 to 256 channels": [(64, 16), (64, 16), (64, 16), (64, 16), (128, 8), (128, 8), (256, 4)],
    "8 to 32 channels": [(8, 16), (8, 16), (16, 8), (16, 8), (32, 4)],
}
TERMS: dict[str, tuple[str, dict[str, object]]] = {
    "`SingularValueBand()`": ("SingularValueBand", {}),
    "`GramSpectralNorm()`": ("GramSpectralNorm", {}),
    "`SingularValueBand(frequencies=4)`": ("SingularValueBand", {"frequencies": 4}),
    "`GramFrobenius()`": ("GramFrobenius", {}),
    "`LargestSingularValue()`": ("LargestSingularValue", {}),
    "`SelfConvolution()`": ("SelfConvolution", {}),
    "`SoftOrthogonality()`": ("SoftOrthogonality", {}),
}


@dataclass(frozen=True)
class Row:
    """One term on one network.

    Attributes:
        everywhere: Median seconds of a step in which every process evaluates all.
        ratio: Median of divided over that, turn by turn, with the quartiles.
        divides: Whether `share_work="auto"` would divide.
        same: Whether all weights ended with the same bits, both ways and on all processes.
        sent: Bytes that a process sends a step, on average.
    """

    everywhere: float
    ratio: tuple[float, float, float]
    divides: bool
    same: bool
    sent: float


def penalty_of(term: str, side: int) -> OperatorPenalty:
    """The term for images of one size."""
    name, options = TERMS[term]
    if name not in {"SelfConvolution", "SoftOrthogonality"}:  # these look at no image
        options = {**options, "input_size": side}
    rule = make_rule(name, weight=1e-6, on=ws.on.name(f"{side}.*"), **options)
    if not isinstance(rule, OperatorPenalty):
        raise TypeError(f"{rule} is no penalty on a linear map.")
    return rule


def _network(layers: list[tuple[int, int]]) -> nn.ModuleDict:
    torch.manual_seed(0)
    grouped: dict[str, nn.ModuleList] = {}
    for channels, side in layers:
        convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        grouped.setdefault(str(side), nn.ModuleList()).append(convolution)
    return nn.ModuleDict(grouped)


def _time_on_rank(
    _: int, ranks: int, term: str, network: str, rounds: int
) -> tuple[list[tuple[float, float]], bool, float]:
    """Seconds of a step by turn (everywhere, divided); same bits both ways; bytes sent a step."""
    sides = sorted({side for _, side in NETWORKS[network]})
    opened = []
    for share in (False, True):
        model = DistributedDataParallel(_network(NETWORKS[network]))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rules = ws.attach(optimizer, model, *(penalty_of(term, side) for side in sides), share_work=share)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        opened.append((model, optimizer, rules))
    turns: list[tuple[float, float]] = []
    for _turn in range(rounds + 1):  # the first searches cold and tells shapes
        pair = []
        for _, optimizer, _ in opened:
            torch.distributed.barrier()
            begin = time.perf_counter()
            optimizer.step()
            torch.distributed.barrier()
            pair.append(time.perf_counter() - begin)
        turns.append((pair[0], pair[1]))
    everywhere, divided = (torch.cat([p.flatten() for p in model.parameters()]) for model, _, _ in opened)
    all_of = [torch.empty_like(divided) for _ in range(ranks)]
    torch.distributed.all_gather(all_of, divided.detach())
    same = all(torch.equal(one, everywhere) for one in all_of)
    penalties = opened[1][2]._plan.penalties  # noqa: SLF001 - counted for this page only
    sent = 0 if penalties is None else penalties.shared_work.broadcasts.sent
    return turns[1:], same, sent / (rounds + 1)


def _divides(term: str, network: str, ranks: int) -> bool:
    """What `share_work="auto"` decides."""
    geometries = [
        operator_of(nn.Conv2d(channels, channels, 3, padding=1, bias=False), side).geometry
        for channels, side in NETWORKS[network]
    ]
    costs = [estimated_seconds(penalty_of(term, g.input_size[0]), g) for g in geometries]
    transfers = [4 * torch.Size(g.weight_shape).numel() / RATE for g in geometries]
    return any(owner >= 0 for owner in owners_of(costs, transfers, ranks))


def measured(term: str, network: str, *, ranks: int = 2, rounds: int = 15) -> Row:
    """Both ways on so many processes."""
    by_rank = run_ranks(_time_on_rank, ranks, ranks, term, network, rounds)
    turns = by_rank[0][0]
    lower, middle, upper = statistics.quantiles([b / a for a, b in turns], n=4)
    return Row(
        everywhere=statistics.median(a for a, _ in turns),
        ratio=(lower, middle, upper),
        divides=_divides(term, network, ranks),
        same=all(same for _, same, _ in by_rank),
        sent=statistics.mean(sent for _, _, sent in by_rank),
    )


def section(*, quick: bool = False) -> str:
    """The benchmark as Markdown."""
    lines = [
        "## Work divided among processes",
        "",
        (
            "`optimizer.step()` of SGD with one penalty on every layer, in two processes of one thread each that gloo "
            "connects on one machine: divided among them (`share_work=True`), over every process evaluating all "
            "(`share_work=False`), in turns. Gradients are ready before."
        ),
    ]
    names = list(NETWORKS)[1:] if quick else list(NETWORKS)
    terms = list(TERMS)[:2] if quick else list(TERMS)
    wrong = 0
    for network in names:
        count = len(NETWORKS[network])
        lines += [
            "",
            f"{count} convolutions of 3x3, {network}, images of 4x4 to 16x16:",
            "",
            f'| term | ms, {EVERYWHERE} | divided, times that: median (quartiles) | KB sent a process | `"auto"` divides |',
            "|---|---|---|---|---|",
        ]
        for term in terms:
            row = measured(term, network, rounds=3 if quick else 15)
            low, middle, high = row.ratio
            wrong += not row.same
            answer = "yes" if row.divides else "no"
            lines.append(
                f"| {term} | {row.everywhere * 1e3:.3g} | {middle:.2f} ({low:.2f}–{high:.2f}) | {row.sent / 1024:.3g} | {answer} |"
            )
    verdict = "the same bits in every row" if not wrong else f"**other bits in {wrong} rows**"
    return "\n".join([*lines, "", f"Weights afterwards, both ways and on both processes: {verdict}.", ""])


if __name__ == "__main__":
    print(section())
