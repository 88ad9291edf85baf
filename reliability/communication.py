"""What steps on sharded matrices cost: `python -m reliability.communication` prints bytes and seconds.

Two ways to step matrices that `fully_shard` shares out: ours, in which each matrix has one owner, and the obvious one,
in which every process keeps all weights and momenta whole, gathers every gradient and steps every matrix. (To gather
weights and momenta as well, so that nothing is kept whole, would send three times as much.) Processes are gloo's, on
one machine: bytes are exact anywhere, seconds depend on it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import weightspace as ws
from reliability.processes import run_ranks
from weightspace.sharding import local_part, sharded_like


@dataclass(frozen=True)
class Cost:
    """Of one step of one process.

    Attributes:
        sent: Bytes to other processes.
        seconds: Median over the steps.
    """

    sent: int
    seconds: float


def measure(_: int, ranks: int, count: int, size: int, steps: int, way: str) -> Cost:
    """Steps `count` matrices of `size` x `size` on Stiefel; `way` is "owners" or "everywhere"."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(size, size, bias=False) for _ in range(count)))
    fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
    weights = list(model.parameters())
    whole = [nn.Parameter(w.full_tensor().detach()) for w in weights]  # type: ignore[attr-defined]
    group = {"params": weights if way == "owners" else whole, "manifold": "stiefel(matrix)"}
    optimizer = ws.optim.SubmanifoldSGD([group], lr=0.01, momentum=0.9)
    gradients = [sharded_like(torch.randn_like(local_part(w.detach())), w) for w in weights]
    twin = optimizer._twin  # noqa: SLF001
    seconds: list[float] = []
    sent = 0
    for _ in range(steps):
        torch.distributed.barrier()
        before = 0 if twin is None else twin.exchange.sent
        start = time.perf_counter()
        if way == "owners":
            for w, g in zip(weights, gradients, strict=True):
                w.grad = g
            optimizer.step()
            sent = 0 if twin is None else twin.exchange.sent - before
        else:
            sent = _everywhere(optimizer, whole, weights, gradients)
        seconds.append(time.perf_counter() - start)
    return Cost(sent, sorted(seconds)[steps // 2])


def _everywhere(
    optimizer: torch.optim.Optimizer,
    whole: list[nn.Parameter],
    weights: list[nn.Parameter],
    gradients: list[torch.Tensor],
) -> int:
    """Gathers gradients and steps all matrices; each process sends its rows to all others."""
    sent = 0
    for copy, gradient in zip(whole, gradients, strict=True):
        copy.grad = gradient.full_tensor()  # type: ignore[attr-defined]
        mine = local_part(gradient)
        sent += mine.numel() * mine.element_size() * (torch.distributed.get_world_size() - 1)
    optimizer.step()
    for copy, weight in zip(whole, weights, strict=True):
        mine = local_part(weight.detach())
        rows = -(-copy.shape[0] // torch.distributed.get_world_size())
        mine.copy_(copy.detach().narrow(0, rows * torch.distributed.get_rank(), mine.shape[0]))
    return sent


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--matrices", type=int, default=8)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    options = parser.parse_args()
    print(f"{options.matrices} matrices of {options.size} x {options.size}, float32, SubmanifoldSGD on Stiefel")
    print("| processes | way | MiB sent by a process and step | ms a step |\n|---|---|---|---|")
    for ranks in options.ranks:
        for way in ("owners", "everywhere"):
            found = run_ranks(measure, ranks, ranks, options.matrices, options.size, options.steps, way)
            sent, seconds = max(c.sent for c in found), max(c.seconds for c in found)
            print(f"| {ranks} | {way} | {sent / 2**20:.3f} | {seconds * 1e3:.1f} |")


if __name__ == "__main__":
    main()
