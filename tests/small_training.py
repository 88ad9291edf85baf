"""A small model, its batches, and the same training by hand: shared by the tests of attach."""

from __future__ import annotations

import torch
from torch import nn

from weightspace.metrics import transform_gradient


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(24, 3)
    )


def batch(step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(step)
    return torch.randn(4, 2, 8, 8, generator=g), torch.randint(3, (4,), generator=g)


def backward(model: nn.Module, step: int = 0) -> torch.Tensor:
    x, y = batch(step)
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def manual_steps(metric, make_optimizer, steps: int = 3) -> list[torch.Tensor]:
    """The same training by hand: the gradient is overwritten before each step."""
    model = make_model()
    optimizer = make_optimizer(model.parameters())
    for k in range(steps):
        optimizer.zero_grad()
        backward(model, k)
        for m in (model[0], model[2], model[4]):
            m.weight.grad = transform_gradient(metric, m.weight.grad)
        optimizer.step()
    return weights(model)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "SGD foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-2),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
}
