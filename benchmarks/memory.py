"""Peak memory of the functions on operators, each in a fresh process.

The peak is the growth of the largest resident size over one call, after the imports, the layer and one call on a tiny
layer, which loads the libraries. What the call returns is counted too.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from benchmarks.moments import moments_backward, svdvals_backward
from weightspace.operators.bounds import norm_bound
from weightspace.operators.extremes import extreme_singular_values
from weightspace.operators.moments import stochastic_moments
from weightspace.operators.spectrum import singular_values

Call = Callable[[nn.Conv2d, int], object]


def numpy_full_grid(layer: nn.Conv2d, size: int) -> object:
    """`fft2` over the whole grid and `svd`, from the definition."""
    transform = np.fft.fft2(layer.weight.detach().numpy(), s=(size, size))
    return np.linalg.svd(transform.transpose(2, 3, 0, 1), compute_uv=False)


def torch_full_grid(layer: nn.Conv2d, size: int) -> object:
    """The same with torch, without autograd."""
    with torch.no_grad():
        return torch.linalg.svdvals(torch.fft.fft2(layer.weight, s=(size, size)).permute(2, 3, 0, 1))


CONTESTANTS: dict[str, Call] = {
    "numpy `fft2` + `svd`": numpy_full_grid,
    "torch `fft2` + `svdvals`": torch_full_grid,
    "the same through autograd, forward + backward": lambda layer, n: svdvals_backward(layer, (n, n)),
    "`singular_values`": lambda layer, n: singular_values(layer, n, padding_mode="circular"),
    "`singular_value_moments`, forward + backward": lambda layer, n: moments_backward(layer, (n, n)),
    "`stochastic_moments(probes=1)`, forward + backward": lambda layer, n: (
        stochastic_moments(layer, n, probes=1).gram_distance(1.0).backward()
    ),
    "`extreme_singular_values`, cold": lambda layer, n: extreme_singular_values(layer, n, exact=False),
    "`norm_bound`, forward + backward": lambda layer, n: norm_bound(layer, n).backward(),
}


def peak_mebibytes(name: str, channels: int, size: int) -> float:
    """Growth of the largest resident size over one call, in this process."""
    torch.set_num_threads(1)
    call = CONTESTANTS[name]
    call(nn.Conv2d(4, 4, 3, padding=1, bias=False), 6)
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    layer.weight.grad = torch.zeros_like(layer.weight)
    before = largest_resident_mebibytes()
    with threadpool_limits(1, user_api="blas"):
        call(layer, size)
    return largest_resident_mebibytes() - before


def largest_resident_mebibytes() -> float:
    """Of this process since it started. On Linux a child's ru_maxrss begins with its parent's, VmHWM does not."""
    status = Path("/proc/self/status")
    if status.exists():
        return float(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def in_fresh_process(name: str, channels: int, size: int) -> float:
    """`peak_mebibytes` of a process that does nothing else."""
    command = [sys.executable, "-m", "benchmarks.memory", name, str(channels), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])  # noqa: S603
    return float(done.stdout.split()[-1])


def section(*, quick: bool = False) -> str:
    """The benchmark as Markdown."""
    points = ((4, 8),) if quick else ((64, 32), (64, 96), (256, 8))
    names = list(CONTESTANTS)[3:5] if quick else list(CONTESTANTS)
    rows = [f"| {name} | " + " | ".join(f"{in_fresh_process(name, *p):.0f}" for p in points) + " |" for name in names]
    values = [f"{c * n * n * 4 / 2**20:.1f}" for c, n in points]
    lines = [
        "## Peak memory",
        "",
        (
            "One 3x3 layer, float32, one thread. Each call in a fresh process: growth of its largest resident size over the "
            "call, after the imports and a call on a tiny layer. Smaller growth than a mebibyte or two is noise of the allocator."
        ),
        "",
        "| MiB | " + " | ".join(f"{c} channels at {n}x{n}" for c, n in points) + " |",
        "|---|" + "---|" * len(points),
        *rows,
        "| all singular values themselves | " + " | ".join(values) + " |",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(peak_mebibytes(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
