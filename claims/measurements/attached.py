"""Rules on the user's own optimizer and network: every optimizer of torch, and networks that stay what they were."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

import weightspace as ws

STEPS = 5
# What attach refuses by name, with its reason in docs/attach.md.
REFUSED = ("LBFGS", "SparseAdam")


def small_network(seed: int) -> nn.Sequential:
    """Two convolutions and a linear head for images (n, 2, 6, 6)."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(96, 3)
    ).double()


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of a step."""
    g = torch.Generator().manual_seed(step)
    return torch.randn(8, 2, 6, 6, generator=g, dtype=torch.float64), torch.randint(3, (8,), generator=g)


def optimizers(*, is_quick: bool) -> dict[str, Any]:
    """Each torch optimizer with ChannelL2 attached, against the bare one fed with gradients transformed by hand.

    After five steps the weights must be equal: the metric came before the optimizer, whatever it does.
    """
    cases = []
    for name in sorted(set(optimizer_names()) - set(REFUSED))[: 3 if is_quick else None]:
        cases += [
            {"optimizer": name, "seed": seed, "largest_difference": difference(name, seed)}
            for seed in range(1 if is_quick else 3)
        ]
    return {"refused": list(REFUSED), "cases": cases}


def difference(name: str, seed: int, smoothing: float = 4.0) -> float:
    """Largest difference of a weight between `attach` and the transform done by hand."""
    kernels = ws.on.linears if name == "Muon" else ws.on.convs
    ends = []
    for is_attached in (True, False):
        model = small_network(seed)
        if name == "Muon":  # takes matrices only
            torch.manual_seed(seed)
            model = nn.Sequential(
                nn.Flatten(), nn.Linear(72, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False)
            ).double()
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01)
        if is_attached:
            ws.attach(optimizer, model, ws.metrics.ChannelL2(smoothing, on=kernels))
        for step in range(STEPS):
            images, labels = batch(step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            if not is_attached:
                for parameter in model.parameters():
                    if parameter.ndim == (2 if name == "Muon" else 4):
                        mean = parameter.grad.mean(0, keepdim=True)
                        parameter.grad.copy_(mean + (parameter.grad - mean) / smoothing)
            optimizer.step()
        ends.append([p.detach() for p in model.parameters()])
    return max(float((a - b).abs().max()) for a, b in zip(*ends, strict=True))


def rules(*, is_quick: bool) -> dict[str, Any]:
    """Every rule of the registry on every torch optimizer: works, is refused with a sentence, or breaks."""
    from weightspace.registry import REGISTRY, make_rule

    cases = []
    for entry in list(REGISTRY.values())[: 3 if is_quick else None]:
        if entry.name == "Circle":
            continue  # belongs to ConstrainedLangevin, which keeps its slack variables
        options = next(iter(entry.variants.values()))
        for name in optimizer_names():
            status, sentence = attempt(name, make_rule(entry.name, **options))
            cases.append({"rule": entry.name, "optimizer": name, "status": status, "sentence": sentence})
    return {"cases": cases}


def optimizer_names() -> list[str]:
    """All of torch.optim."""
    base = torch.optim.Optimizer
    return sorted(
        n for n, c in vars(torch.optim).items() if inspect.isclass(c) and issubclass(c, base) and c is not base
    )


def attempt(name: str, rule: Any) -> tuple[str, str]:
    """Five steps with the rule attached; what came of it, and the reason where it did not work."""
    from weightspace.errors import WeightspaceError

    model = small_network(0)
    weights = [p for p in model.parameters() if p.ndim == 2] if name == "Muon" else model.parameters()
    try:
        optimizer = getattr(torch.optim, name)(weights, lr=0.01)
        attached = ws.attach(optimizer, model, rule)
        for step in range(STEPS):
            images, labels = batch(step)

            def closure(images: torch.Tensor = images, labels: torch.Tensor = labels) -> torch.Tensor:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(images), labels)
                loss.backward()
                return loss

            closure()
            optimizer.step(closure if attached.needs_closure else None)
        kept = all(check.holds for check in attached.verify())
    except WeightspaceError as error:
        return "refused", str(error)
    except Exception as error:  # noqa: BLE001 - whatever else happens is what this is looking for
        return "broken", f"{type(error).__name__}: {error}"
    is_finite = all(bool(p.isfinite().all()) for p in model.parameters())
    return ("works", "") if kept and is_finite else ("broken", "its own check failed")


def unchanged(*, is_quick: bool) -> dict[str, Any]:
    """Networks before and after constraints: module types, parameter names and shapes, hooks, and the loss of equal weights."""
    settings = {
        "Circle": lambda m: ws.optim.ConstrainedLangevin(ws.param_groups(m, {ws.on.convs: ws.manifolds.Circle(radius=2.0)}), lr=1e-3, temperature=1.0, num_data=100, friction=1.0, seed=0),
        "Stiefel": lambda m: ws.optim.ConstrainedLangevin(ws.param_groups(m, {ws.on.convs: ws.manifolds.Stiefel()}), lr=1e-3, temperature=1.0, num_data=100, friction=1.0, seed=0),
        "an equation of the user's": lambda m: ws.optim.ConstrainedLangevin(ws.param_groups(m, {ws.on.convs: ws.manifolds.LevelSet(_column_sums)}), lr=1e-3, temperature=1.0, num_data=100, friction=1.0, seed=0),
    }  # fmt: skip
    cases = []
    for name, make in settings.items():
        for seed in range(1 if is_quick else 3):
            model = small_network(seed)
            before = fingerprint(model)
            optimizer = make(model)
            for step in range(STEPS):
                images, labels = batch(step)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
            plain = small_network(seed + 100)
            plain.load_state_dict(model.state_dict())
            images, labels = batch(99)
            losses = [float(nn.functional.cross_entropy(net(images), labels).detach()) for net in (model, plain)]
            holds = all(check.holds for check in optimizer.verify())
            cases.append(
                {
                    "constraint": name,
                    "seed": seed,
                    "is_unchanged": fingerprint(model) == before,
                    "loss_difference": losses[0] - losses[1],
                    "constraint_holds": holds,
                }
            )
    return {"cases": cases}


def fingerprint(model: nn.Module) -> list[str]:
    """Modules with their types and hooks, parameters with names and shapes."""
    found = []
    for name, module in model.named_modules():
        hooks = [
            len(vars(module)[kind]) for kind in ("_forward_hooks", "_forward_pre_hooks")
        ]  # torch has no other way to ask
        found.append(f"{name}: {type(module).__name__}, hooks {hooks}")
    return found + [f"{name}: {tuple(tensor.shape)}" for name, tensor in model.state_dict().items()]


def _column_sums(q: torch.Tensor) -> torch.Tensor:
    return q.sum(0) - 1.0
