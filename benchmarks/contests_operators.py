"""Contests of layers as linear maps: all singular values, the largest one and its bounds, orthogonality penalties."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.contests import Contest, Entrant, Floor, Kind, Running
from benchmarks.moments import moments_backward, svdvals_backward
from benchmarks.network import Layers, convolutions, moment_flops, spectrum_flops
from benchmarks.penalties import svdvals_autograd
from benchmarks.timing import device
from weightspace.operators import operator_of
from weightspace.operators.bounds import norm_bound
from weightspace.operators.extremes import extreme_singular_values
from weightspace.operators.spectrum import singular_values
from weightspace.penalties import SelfConvolution, SoftOrthogonality
from weightspace.training.models import build_model

CHANNELS, IMAGE = 64, 32
PENALIZED = 10  # layers: two stages; the rest would take minutes
EXACT_STEPS = 120  # of Lanczos in float64: the top value to ten digits
TORCHLIP_STEPS = 10  # what the package takes where it is not told otherwise
Values = Callable[[nn.Conv2d, int], Any]


def sizes(quick: bool) -> tuple[int, int]:
    """Channels and side of the image."""
    return (8, 8) if quick else (CHANNELS, IMAGE)


def layer(channels: int, padding_mode: str = "circular") -> nn.Conv2d:
    """A 3x3 layer as torch makes it, scaled so that its gains are about 1."""
    torch.manual_seed(0)
    made = nn.Conv2d(channels, channels, 3, padding=1, bias=False, padding_mode=padding_mode)
    nn.init.normal_(made.weight, std=1 / (3 * channels**0.5))
    return made.to(device())


# --------------------------------------------------------------------------- all singular values


def numpy_values(conv: nn.Conv2d, size: int) -> Any:
    """From the definition, on the whole grid of frequencies."""
    transform = np.fft.fft2(conv.weight.detach().cpu().numpy(), s=(size, size))
    return np.linalg.svd(transform.transpose(2, 3, 0, 1), compute_uv=False)


def torch_values(conv: nn.Conv2d, size: int) -> torch.Tensor:
    """The same with torch."""
    symbols = torch.fft.fft2(conv.weight.detach(), s=(size, size)).permute(2, 3, 0, 1)
    return torch.linalg.svdvals(symbols)


def torch_half_grid(conv: nn.Conv2d, size: int) -> torch.Tensor:
    """Real kernels: half of the frequencies, whose values are repeated."""
    symbols = torch.fft.rfft2(conv.weight.detach(), s=(size, size)).permute(2, 3, 0, 1)
    values = torch.linalg.svdvals(symbols)
    inner = slice(1, (size + 1) // 2)
    return torch.cat([values, values[:, inner]], dim=1)


def torch_eigenvalues(conv: nn.Conv2d, size: int) -> torch.Tensor:
    """Roots of the eigenvalues of Gram matrices: quicker, and small values lose their digits."""
    symbols = torch.fft.rfft2(conv.weight.detach(), s=(size, size)).permute(2, 3, 0, 1)
    values = torch.linalg.eigvalsh(symbols.mH @ symbols).clamp(min=0).sqrt()
    inner = slice(1, (size + 1) // 2)
    return torch.cat([values, values[:, inner]], dim=1)


def our_values(conv: nn.Conv2d, size: int, *, fast: bool = False) -> torch.Tensor:
    """Ours."""
    return singular_values(conv, size, fast=fast)


def all_values(function: Values, channels: int, size: int) -> Running:
    """Beside float64 values from the definition."""
    conv = layer(channels)

    def error() -> float:
        kernel = conv.weight.detach().double().cpu()
        symbols = torch.fft.fft2(kernel, s=(size, size)).permute(2, 3, 0, 1)
        exact = torch.linalg.svdvals(symbols).flatten().sort().values
        found = torch.as_tensor(function(conv, size)).double().cpu().flatten().sort().values
        return float((found - exact).abs().max() / exact[-1])

    return Running(lambda: function(conv, size), error)


def values_entrants(quick: bool, channels: int = CHANNELS, size: int = IMAGE) -> list[Entrant]:
    """orthogonium and deel-torchlip have no function for all values."""
    if quick:
        channels, size = sizes(quick)

    def one(name: str, kind: Kind, function: Values) -> Entrant:
        return Entrant(name, kind, partial(all_values, function, channels, size))

    return [
        one("`singular_values`", "ours", our_values),
        one("`singular_values(fast=True)`", "ours", partial(our_values, fast=True)),
        one("numpy `fft2`, `svd`", "by hand", numpy_values),
        one("torch `fft2`, `svdvals`", "by hand", torch_values),
        one("torch `rfft2`, `svdvals` of half the grid", "by hand", torch_half_grid),
        one("torch `rfft2`, `eigvalsh` of Gram matrices", "by hand", torch_eigenvalues),
    ]


def values_floor(quick: bool) -> Floor:
    """The reductions."""
    channels, size = sizes(quick)
    words = "reduction of one Hermitian matrix a frequency of the half grid to tridiagonal form"
    return Floor(words, flops=spectrum_flops(operator_of(layer(channels), size).geometry))


# --------------------------------------------------------------------------- the largest one


@cache
def largest(channels: int, size: int, padding_mode: str) -> float:
    """In float64, by Lanczos steps with all vectors kept."""
    conv = layer(channels, padding_mode).cpu().double()
    return extreme_singular_values(conv, size, steps=EXACT_STEPS, exact=False).sigma_max


def bounding(function: Values, padding_mode: str, channels: int, size: int) -> Running:
    """Error: how far the number is above sigma_max, as a share of it; below zero it bounds nothing."""
    conv = layer(channels, padding_mode)

    def error() -> float:
        return float(function(conv, size)) / largest(channels, size, padding_mode) - 1

    return Running(lambda: float(function(conv, size)), error)


def our_bound(conv: nn.Conv2d, size: int) -> torch.Tensor:
    """`norm_bound` without a gradient."""
    with torch.no_grad():
        return norm_bound(conv, size)


def our_interval(conv: nn.Conv2d, size: int) -> float:
    """The upper end of the interval, from nothing."""
    return extreme_singular_values(conv, size, exact=False).sigma_max_bound


def torch_spectral_norm(conv: nn.Conv2d, size: int) -> torch.Tensor:
    """What torch's `spectral_norm` divides by, exactly: the norm of the kernel as a matrix."""
    del size
    return torch.linalg.matrix_norm(conv.weight.detach().flatten(1), ord=2)


def torchlip_bound(conv: nn.Conv2d, size: int) -> float:
    """What deel-torchlip's `SpectralConv2d` divides by: the kernel's matrix norm by power iteration, and its factor."""
    del size
    normalizers = importlib.import_module("deel.torchlip.normalizers")
    coefficient = importlib.import_module("deel.torchlip.utils.lconv_norm").compute_lconv_coef
    *_, sigma = normalizers.spectral_normalization(conv.weight.detach().flatten(1), maxiter=TORCHLIP_STEPS)
    return float(sigma) / coefficient(conv.kernel_size, None, conv.stride)


def orthogonium_bound(conv: nn.Conv2d, size: int, *, iterations: int) -> torch.Tensor:
    """orthogonium's Gram iteration, for the layer's padding."""
    function = importlib.import_module("orthogonium.layers.conv.singular_values").get_conv_sv
    with torch.no_grad():
        return function(conv, n_iter=iterations, return_stab_rank=False, imsize=size)


def power_iteration(conv: nn.Conv2d, size: int) -> torch.Tensor:
    """What one writes: 30 steps forward and back; a lower bound."""
    weight, pad = conv.weight.detach(), conv.padding_mode == "circular"
    v = torch.randn(1, conv.in_channels, size, size, device=weight.device, generator=None)
    for _ in range(30):
        u = functional.conv2d(functional.pad(v, (1, 1, 1, 1), mode="circular"), weight) if pad else conv(v).detach()
        if pad:
            v = functional.conv2d(functional.pad(u, (1, 1, 1, 1), mode="circular"), weight.flip(2, 3).transpose(0, 1))
        else:
            v = functional.conv_transpose2d(u, weight, padding=1)
        v = v / v.norm()
    return u.norm() if pad else conv(v).detach().norm()


def bound_entrants(padding_mode: str, quick: bool, channels: int = CHANNELS, size: int = IMAGE) -> list[Entrant]:
    """Ours, and what other packages divide by or report."""
    if quick:
        channels, size = sizes(quick)

    def one(name: str, kind: Kind, function: Values, package: str = "") -> Entrant:
        return Entrant(name, kind, partial(bounding, function, padding_mode, channels, size), package)

    iterations = (3, 6, 10) if padding_mode == "circular" else (2, 3, 4)
    return [
        one("`norm_bound`", "ours", our_bound),
        one("`extreme_singular_values`, upper end", "ours", our_interval),
        *(
            one(
                f"orthogonium `get_conv_sv(n_iter={n})`",
                "peer",
                partial(orthogonium_bound, iterations=n),
                "orthogonium",
            )
            for n in iterations
        ),
        one("deel-torchlip `SpectralConv2d`'s factor", "peer", torchlip_bound, "deel.torchlip"),
        one("torch `spectral_norm`'s, converged", "peer", torch_spectral_norm),
        one("torch: 30 power iterations", "by hand", power_iteration),
    ]


# --------------------------------------------------------------------------- penalties


@cache
def network(*, quick: bool) -> Layers:
    """ResNet-18's first convolutions with the CIFAR stem and what they read."""
    torch.manual_seed(0)
    model = build_model("resnet18", in_channels=3, image_size=32, num_classes=10, width=4 if quick else 64)
    return convolutions(model.eval(), torch.zeros(1, 3, 32, 32))[:PENALIZED]


Gradient = Callable[[nn.Conv2d, tuple[int, int]], torch.Tensor]


def penalizing(function: Gradient, exact: Gradient, *, quick: bool) -> Running:
    """The gradient of a penalty for every convolution, beside autograd in float64."""
    layers = [(conv.to(device()), size) for conv, size in network(quick=quick)]

    def run() -> list[torch.Tensor]:
        return [function(*one) for one in layers]

    def error() -> float:
        worst = 0.0
        for conv, size in layers:
            double = nn.Conv2d(
                conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False
            )
            double.weight = nn.Parameter(conv.weight.detach().double())
            wanted, found = exact(double.to(conv.weight.device), size), function(conv, size).double()
            worst = max(worst, float((found - wanted).abs().max() / wanted.abs().max()))
        return worst

    return Running(run, error)


def by_autograd(value: Callable[[torch.Tensor, int], torch.Tensor]) -> Gradient:
    """As one writes it: the value, and autograd."""

    def gradient(conv: nn.Conv2d, size: tuple[int, int]) -> torch.Tensor:
        del size
        leaf = conv.weight.detach().requires_grad_()
        return torch.autograd.grad(value(leaf, conv.stride[0]), leaf)[0]

    return gradient


def self_convolution(kernel: torch.Tensor, stride: int) -> torch.Tensor:
    """OCNN's term as its equation says; padding `floor((k - 1) / s) s`."""
    padding = (kernel.shape[-1] - 1) // stride * stride
    product = functional.conv2d(kernel, kernel, stride=stride, padding=padding)
    target = torch.zeros_like(product)
    middle = product.shape[-1] // 2
    target[:, :, middle, middle] = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    return (product - target).square().sum()


def soft_orthogonality(kernel: torch.Tensor, stride: int) -> torch.Tensor:
    """`||K K^T - I||^2`."""
    del stride
    flat = kernel.flatten(1)
    return (flat @ flat.mT - torch.eye(len(flat), dtype=flat.dtype, device=flat.device)).square().sum()


def ours(penalty: Any) -> Gradient:
    """In closed form."""
    return lambda conv, size: penalty.evaluate(operator_of(conv, size))[1]


def penalty_contest(
    name: str, title: str, question: str, penalty: Any, *, value: Any, floor: Callable[[bool], Floor]
) -> Contest:
    """Ours beside autograd; no package offers the term."""
    exact, label = by_autograd(value), type(penalty).__name__

    def entrants(quick: bool) -> list[Entrant]:
        return [
            Entrant(f"`{label}().evaluate`", "ours", partial(penalizing, ours(penalty), exact, quick=quick)),
            Entrant("torch: its equation, autograd", "by hand", partial(penalizing, exact, exact, quick=quick)),
        ]

    size = f"the first {PENALIZED} convolutions of ResNet-18 (CIFAR stem)"
    return Contest(
        name,
        title,
        question,
        size,
        "largest error of a gradient, over its largest number",
        1e-4,
        entrants,
        floor,
    )


def pairs_of_taps(taps: int, stride: int) -> int:
    """Pairs of taps on one axis that some shift of the window by whole strides brings together."""
    return sum((a - b) % stride == 0 for a in range(taps) for b in range(taps))


def self_convolution_floor(quick: bool) -> Floor:
    """Products of channel matrices: half of the pairs for the value, all for the gradient."""
    flops = 0.0
    for conv, _ in network(quick=quick):
        pairs = math.prod(pairs_of_taps(k, s) for k, s in zip(conv.kernel_size, conv.stride, strict=True))
        flops += 2.0 * conv.out_channels**2 * conv.in_channels * ((pairs + 1) / 2 + pairs)
    return Floor(
        "products of channel matrices: half of the pairs of taps for the value, all for the gradient", flops=flops
    )


def soft_floor(quick: bool) -> Floor:
    """Half of a Gram matrix, and a product."""
    flops = sum(3.0 * c.out_channels**2 * c.weight[0].numel() for c, _ in network(quick=quick))
    return Floor("half of a Gram matrix for the value, one product for the gradient", flops=flops)


def isometry(function: Callable[[nn.Conv2d, tuple[int, int]], object], *, quick: bool) -> Running:
    """`mean (sigma^2 - 1)^2` of one layer on a torus, forward and backward."""
    channels, size = sizes(quick)
    conv = layer(channels)

    def gradient(of: nn.Conv2d, how: Callable[[nn.Conv2d, tuple[int, int]], object]) -> torch.Tensor:
        of.weight.grad = None
        how(of, (size, size))
        if of.weight.grad is None:
            raise RuntimeError("no gradient")
        return of.weight.grad.double() / of.weight.grad.double().norm()

    def error() -> float:
        exact = layer(channels).double()
        wanted = gradient(exact, svdvals_backward)
        return float((gradient(conv, function) - wanted).abs().max() / wanted.abs().max())

    return Running(lambda: function(conv, (size, size)), error)


def isometry_entrants(quick: bool) -> list[Entrant]:
    """The sum of both moments beside autograd through all values."""
    return [
        Entrant("`singular_value_moments`", "ours", partial(isometry, moments_backward, quick=quick)),
        Entrant("torch: `fft2`, `svdvals`, autograd", "by hand", partial(isometry, svdvals_backward, quick=quick)),
        Entrant(
            "torch: `svdvals` of half the grid, autograd", "by hand", partial(isometry, svdvals_autograd, quick=quick)
        ),
        Entrant(
            "torch: Gram matrices of half the grid, autograd", "by hand", partial(isometry, gram_autograd, quick=quick)
        ),
    ]


def gram_autograd(conv: nn.Conv2d, size: tuple[int, int]) -> None:
    """`||S^H S - I||^2` needs no singular values at all."""
    symbols = torch.fft.rfft2(conv.weight, s=size).permute(2, 3, 0, 1)
    share = torch.full((symbols.shape[1],), 2.0, dtype=conv.weight.dtype, device=symbols.device)
    share[0] = 1.0
    if size[1] % 2 == 0:
        share[-1] = 1.0
    defect = symbols.mH @ symbols - torch.eye(symbols.shape[-1], dtype=symbols.dtype, device=symbols.device)
    squares = (defect.real.square() + defect.imag.square()).sum((-2, -1))
    ((squares * share).sum() / (size[0] * size[1] * symbols.shape[-1])).backward()


def isometry_floor(quick: bool) -> Floor:
    """Of the moments."""
    channels, size = sizes(quick)
    flops = moment_flops(operator_of(layer(channels), size).geometry)
    return Floor("products of channel matrices for both moments and their gradient", flops=flops)


def bound_contest(padding_mode: str, title: str) -> Contest:
    """A certified number near the largest singular value."""
    return Contest(
        f"largest-{padding_mode}",
        title,
        "A number that the layer's largest singular value provably does not exceed, within 5 % of it.",
        f"one {CHANNELS}x{CHANNELS}x3x3 layer at {IMAGE}x{IMAGE}, padding mode `{padding_mode}`",
        "how far the number is above the true one, as a share of it; below zero it bounds nothing",
        0.05,
        partial(bound_entrants, padding_mode),
    )


ONE = f"one {CHANNELS}x{CHANNELS}x3x3 layer at {IMAGE}x{IMAGE}, circular padding"
CONTESTS = [
    Contest(
        "all-values",
        "All singular values",
        "All singular values of a convolution.",
        ONE,
        "largest error over the largest value, beside float64",
        1e-5,
        values_entrants,
        values_floor,
    ),
    bound_contest("zeros", "Bound of the largest, zero padding"),
    bound_contest("circular", "Bound of the largest, circular padding"),
    Contest(
        "isometry",
        "Distance from an isometry",
        "The mean of (sigma² - 1)² over all singular values, and its gradient.",
        ONE,
        "largest error of the gradient's direction, beside float64",
        1e-4,
        isometry_entrants,
        isometry_floor,
    ),
    penalty_contest(
        "self-convolution",
        "OCNN's penalty",
        "Value and gradient of the distance of a layer's self-convolution from the identity.",
        SelfConvolution(),
        value=self_convolution,
        floor=self_convolution_floor,
    ),
    penalty_contest(
        "soft-orthogonality",
        "Soft orthogonality",
        "Value and gradient of ||KKᵀ - I||² of the kernel as a matrix.",
        SoftOrthogonality(),
        value=soft_orthogonality,
        floor=soft_floor,
    ),
]
