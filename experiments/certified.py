"""A certified classifier of Fashion-MNIST: `python -m experiments.certified [--out DIR]`.

One narrow network (`network`), trained in several ways for the same number of steps, then certified by
`weightspace.lipschitz_bound` and attacked. Every arm has the same budget: `TRIALS` settings, the same points of the
unit cube, judged by the certified accuracy at radius `TUNED_RADIUS` on validation images; then `SEEDS` runs on all
test images. Radii are Euclidean, pixels in [0, 1]; the normalization of the data is part of the network, and counts.

The arms "torchlip" and "orthogonium" need these packages (`pip install deel-torchlip orthogonium`) and are left out
without them. Every arm ends in the same plain network: their layers' weights are copied into it, and its scores must be
theirs. What is finished is kept in `--out`/runs and not done again.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import weightspace as ws
from experiments import certified_report
from experiments.certified_attack import largest_stretch, smallest_change
from weightspace.files import read_json, write_json_atomically
from weightspace.inspection import LipschitzBound, certified_radius, lipschitz_bound
from weightspace.training.data import load_data
from weightspace.training.environment import machine, versions

STEPS, TUNING_STEPS, BATCH, WARMUP = 400, 200, 128, 30
TRIALS, TUNED_RADIUS, TUNING_SEED = 6, 0.25, 1000
SEEDS = tuple(range(5))
RADII = (0.1, 0.25, 0.5, 1.0)  # attacked
CURVE = tuple(round(0.025 * i, 3) for i in range(81))  # certified
VALIDATION, ATTACKED = 5000, 300
# On the two 3x3 convolutions: all singular values to 1, or only the largest one. Weights from pilot runs, not tuned.
PENALTY = ws.penalties.GramFrobenius(weight=2.0, padding_mode="circular", on=ws.on.name("conv?.*"))
CAP = ws.penalties.LargestSingularValue(weight=5.0, on=ws.on.name("conv?.*"))

RANGES = {"lr": (2e-3, 3e-2), "temperature": (0.2, 4.0), "weight_decay": (0.1, 10.0)}
ARMS: Mapping[str, tuple[str, ...]] = {
    "Adam": ("lr",),
    "AdamW": ("lr", "weight_decay"),
    "spectral_norm": ("lr", "temperature"),
    "torchlip": ("lr", "temperature"),
    "orthogonium": ("lr", "temperature"),
    "weightspace, ReLU": ("lr", "temperature"),
    "weightspace": ("lr", "temperature"),
    "weightspace, cap": ("lr", "temperature"),
    "weightspace, no 3x3": ("lr", "temperature"),
}
PACKAGES = {"torchlip": "deel", "orthogonium": "orthogonium"}


@dataclass(frozen=True)
class Settings:
    """What an arm tunes.

    Attributes:
        lr: Of Adam.
        temperature: Scores are multiplied with it in the loss.
        weight_decay: Decoupled.
    """

    lr: float
    temperature: float = 1.0
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Data:
    """Images in [0, 1] with labels, and the factors of the normalization."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    mean: float
    std: float


@dataclass(frozen=True)
class Size:
    """How large everything is; the defaults fit one core."""

    channels: int = 16
    hidden: int = 64
    steps: int = STEPS
    device: str = "cpu"


class Normalize(nn.Module):
    """`(x - mean) / std`: part of the network, so that radii are those of pixels."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> Tensor:
        """Images in [0, 1]."""
        return (x - self.mean) / self.std


class MaxMin(nn.Module):
    """The larger and the smaller of two channels (GroupSort of two, arXiv 1811.05381): it moves entries."""

    def forward(self, x: Tensor) -> Tensor:
        """`(N, 2 c, ...)`: channel i is compared with channel i + c."""
        a, b = x.chunk(2, dim=1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1)


GIVEN: dict[type[nn.Module], float] = {MaxMin: 1.0}  # sorting pairs never moves two images apart


def network(
    data: Data, size: Size, *, conv: Any = nn.Conv2d, linear: Any = nn.Linear, act: Any = MaxMin, is_short: bool = False
) -> Any:
    """28x28 in patches of 4x4, two 3x3 convolutions with ordinary zero padding (none if short), two linear layers."""
    c, h = size.channels, size.hidden
    layers = {
        "normalize": Normalize(data.mean, data.std),
        "patches": conv(1, c, 4, stride=4, padding=0),
        "act1": act(),
        "conv1": conv(c, c, 3, padding=1),
        "act2": act(),
        "conv2": conv(c, c, 3, padding=1),
        "act3": act(),
        "flatten": nn.Flatten(),
        "hidden": linear(49 * c, h),
        "act4": act(),
        "head": linear(h, 10),
    }
    left_out = ("conv1", "act2", "conv2", "act3") if is_short else ()
    return nn.Sequential(OrderedDict((name, layer) for name, layer in layers.items() if name not in left_out))


def plain(arm: str, data: Data, size: Size) -> Any:
    """The network of torch's own layers that an arm ends in."""
    act = nn.ReLU if arm.endswith("ReLU") else MaxMin
    return network(data, size, act=act, is_short=arm.endswith("no 3x3"))


# ---------------------------------------------------------------- arms


def build(arm: str, data: Data, size: Size) -> nn.Module:
    """The network that an arm trains."""
    if arm == "torchlip":
        from deel import torchlip  # pyright: ignore[reportMissingImports]

        return network(data, size, conv=torchlip.SpectralConv2d, linear=torchlip.SpectralLinear)
    if arm == "orthogonium":
        from orthogonium.layers import AdaptiveOrthoConv2d, OrthoLinear  # pyright: ignore[reportMissingImports]

        def conv(*shape: int, **options: int) -> nn.Module:
            return AdaptiveOrthoConv2d(*shape, **options, padding_mode="zeros")

        return network(data, size, conv=conv, linear=OrthoLinear)
    model = plain(arm, data, size)
    if arm.startswith("weightspace"):
        for name, layer in weighted(model).items():
            if name.startswith("conv"):  # the identity: a singular value of zero would feel no penalty
                nn.init.dirac_(layer.weight)
    if arm == "spectral_norm":
        for layer in weighted(model).values():
            spectral_norm(layer)
    return model


def constrain(arm: str, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """The lines of weightspace, for its arms."""
    if arm.startswith("weightspace"):
        rules: list[Any] = [ws.manifolds.Stiefel(on=ws.on.linears | ws.on.name("patches.*"))]
        if not arm.endswith("no 3x3"):
            rules.append(CAP if arm.endswith("cap") else PENALTY)
        ws.attach(optimizer, model, *rules)


def weighted(model: nn.Module) -> dict[str, Any]:
    """The layers that have weights."""
    return {name: layer for name, layer in model.named_children() if getattr(layer, "weight", None) is not None}


def exported(arm: str, trained: nn.Module, data: Data, size: Size) -> nn.Module:
    """The plain network with the weights that the trained one works with.

    Raises:
        RuntimeError: Its scores are not those of the trained network.
    """
    images = data.validation[0][:256]
    if arm == "spectral_norm":
        with torch.no_grad():  # its power iteration goes on where training stopped, until it has converged
            for _ in range(100):
                trained(images[:1])
    trained.eval()
    copy = plain(arm, data, size).to(size.device).eval()
    with torch.no_grad():
        wanted = trained(images)
        for name, layer in weighted(copy).items():
            source = getattr(trained, name)
            layer.weight.copy_(source.weight)
            layer.bias.copy_(source.bias)
        if not torch.allclose(copy(images), wanted, atol=1e-4 * float(wanted.abs().max())):
            raise RuntimeError(f"The export of the arm {arm} computes other scores than what was trained.")
    return copy


def train(arm: str, settings: Settings, data: Data, size: Size, *, seed: int, steps: int) -> tuple[nn.Module, float]:
    """Trains and exports; also the milliseconds a step, of this process's time."""
    torch.manual_seed(seed)
    model = build(arm, data, size).to(size.device).train()
    kind = torch.optim.AdamW if settings.weight_decay else torch.optim.Adam
    optimizer = kind(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min(1.0, (t + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * t / steps))
    )
    constrain(arm, optimizer, model)
    images, labels = data.train
    generator = torch.Generator().manual_seed(seed)
    order, batches = torch.empty(0), len(images) // BATCH
    begin = time.process_time()
    for step in range(steps):
        if step % batches == 0:
            order = torch.randperm(len(images), generator=generator)
        chosen = order[step % batches * BATCH :][:BATCH]
        loss = nn.functional.cross_entropy(settings.temperature * model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    milliseconds = 1000 * (time.process_time() - begin) / steps
    return exported(arm, model, data, size), milliseconds


# ---------------------------------------------------------------- measures


def scores(model: nn.Module, images: Tensor) -> Tensor:
    """Of all images, in float64."""
    with torch.no_grad():
        return torch.cat([model(part) for part in images.split(1000)]).double()


def radii_of(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[LipschitzBound, Tensor]:
    """The bound and the certified radius of every image, 0 where it is wrong."""
    bound = lipschitz_bound(model, images[:1], given=GIVEN)
    return bound, certified_radius(scores(model, images), bound, labels=labels)


def measure(arm: str, model: nn.Module, data: Data, radii: tuple[float, ...] = RADII) -> dict[str, Any]:
    """Clean, certified and attacked accuracy, bounds, and whether any attack got below a certificate."""
    images, labels = data.test
    bound, certified = radii_of(model, images, labels)
    few, their_labels = images[:ATTACKED], labels[:ATTACKED]
    found, _ = smallest_change(model, few, their_labels, radii)
    stretch, *_ = largest_stretch(model, few[:32])
    record: dict[str, Any] = {
        "accuracy": float((scores(model, images).argmax(1) == labels).double().mean()),
        "certified": [float((certified > r).double().mean()) for r in CURVE],
        "certified_on_attacked": [float((certified[:ATTACKED] > r).double().mean()) for r in radii],
        "attacked": [float((found > r).double().mean()) for r in radii],
        "violations": int((found < certified[:ATTACKED]).sum()),
        "bound": bound.value,
        "constants": {p.name: p.constant for p in bound.pieces},
        "center": {name: center(layer.weight) for name, layer in weighted(model).items() if name.startswith("conv")},
        "stretch": stretch,
    }
    if arm == "spectral_norm":  # what it would mean if every layer had the norm that it is called
        implied = LipschitzBound(1 / data.std, (), 1 / data.std, bound.head)
        claimed = certified_radius(scores(model, images), implied, labels=labels)
        record["implied_bound"] = implied.value
        record["implied_certified"] = [float((claimed > r).double().mean()) for r in CURVE]
        record["implied_violations"] = int((found < claimed[:ATTACKED]).sum())
    return record


def center(kernel: Tensor) -> float:
    """Share of a 3x3 kernel's squares that its central tap holds."""
    return float(kernel.detach()[:, :, 1, 1].square().sum() / kernel.detach().square().sum())


def trials(arm: str) -> list[Settings]:
    """The settings that an arm tries: log-uniform, the same points for every arm."""
    points = torch.quasirandom.SobolEngine(len(RANGES), scramble=True, seed=0).draw(TRIALS, dtype=torch.float64)
    found: list[Settings] = []
    for row in points.tolist():
        values = {k: low * (high / low) ** u for (k, (low, high)), u in zip(RANGES.items(), row, strict=True)}
        found.append(Settings(**{k: float(f"{values[k]:.3g}") for k in ARMS[arm]}))
    return found


def tune(arm: str, data: Data, size: Size) -> dict[str, Any]:
    """All trials of an arm, and the settings that certify most validation images."""
    rows: list[dict[str, Any]] = []
    for settings in trials(arm):
        model, _ = train(arm, settings, data, size, seed=TUNING_SEED, steps=size.steps * TUNING_STEPS // STEPS)
        _, certified = radii_of(model, *data.validation)
        rows.append(
            {
                "settings": asdict(settings),
                "certified": float((certified > TUNED_RADIUS).double().mean()),
                "accuracy": float((certified > 0).double().mean()),
            }
        )
    best = max(rows, key=lambda row: (row["certified"], row["accuracy"]))
    return {"trials": rows, "settings": best["settings"]}


def run(arm: str, settings: Settings, data: Data, size: Size, *, seed: int, weights: Path) -> dict[str, Any]:
    """One final run; its weights are kept for the pictures."""
    model, milliseconds = train(arm, settings, data, size, seed=seed, steps=size.steps)
    if seed == 0:
        path = weights / f"{slug(arm)}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.cpu() for k, v in model.state_dict().items()}, path)
    return {"arm": arm, "seed": seed, "milliseconds": milliseconds, **measure(arm, model, data)}


def slug(arm: str) -> str:
    """A name for files."""
    return arm.lower().replace(", ", "-").replace(" ", "-")


def load(device: str) -> Data:
    """Fashion-MNIST; the last training images are for validation."""
    found = load_data("fashion-mnist")
    images, test = (x.float().div(255).to(device) for x in (found.train_images, found.test_images))
    labels, test_labels = found.train_labels.to(device), found.test_labels.to(device)
    cut = len(images) - VALIDATION
    return Data(
        (images[:cut], labels[:cut]), (images[cut:], labels[cut:]), (test, test_labels), found.mean[0], found.std[0]
    )


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds; made and written where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(path, make())
    return read_json(path)


def main(arguments: list[str] | None = None) -> None:
    """Tunes all arms, trains and measures all seeds, writes results.json, tables and pictures."""
    parser = argparse.ArgumentParser(prog="python -m experiments.certified", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("certified"), help="default: %(default)s")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--channels", type=int, default=Size.channels)
    parser.add_argument("--hidden", type=int, default=Size.hidden)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    size = Size(options.channels, options.hidden, options.steps, options.device)
    data = load(size.device)
    arms = [a for a in options.arms if a not in PACKAGES or importlib.util.find_spec(PACKAGES[a])]
    tuned = {
        arm: kept(options.out / "runs" / f"{slug(arm)}-tuning.json", lambda a=arm: tune(a, data, size)) for arm in arms
    }
    runs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for arm in arms:
            settings = Settings(**tuned[arm]["settings"])
            path = options.out / "runs" / f"{slug(arm)}-{seed}.json"
            record = kept(
                path, lambda a=arm, s=settings, n=seed: run(a, s, data, size, seed=n, weights=options.out / "weights")
            )
            runs.append(record)
            print(certified_report.line(record), flush=True)
    results = {
        "size": asdict(size), "radii": RADII, "curve": CURVE, "attacked_images": ATTACKED, "tuning": tuned,
        "ranges": RANGES, "tuning_steps": size.steps * TUNING_STEPS // STEPS,
        "runs": runs, "versions": versions(), "machine": machine(),
    }  # fmt: skip
    write_json_atomically(options.out / "results.json", results)
    certified_report.write(results, options.out)


if __name__ == "__main__":
    main()
