"""The gradient of the same batch at the weights that a penalty alone would make: what `Coherent("lookahead")` looks at.

The closure of `optimizer.step(closure)` runs a second time, with the random numbers of the first (dropout drops the
same units); afterwards weights, buffers (statistics of batch norm), gradients and torch's generators are as the first
run left them, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from weightspace.kernels.parameters import ParameterInfo
from weightspace.optim._parts import Parts
from weightspace.sharding import local_part

Rate = float | torch.Tensor
Move = tuple[ParameterInfo, Callable[[Rate], None]]  # a weight, and what moves it in place at a learning rate


class RandomState:
    """The states of torch's generators on the CPU and on the devices of some weights."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = {d: torch.cuda.get_rng_state(d) for d in set(devices) if d.type == "cuda"}

    def restore(self) -> None:
        """Puts the generators back."""
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)


Again = tuple[Callable[[], Any], RandomState]  # a closure, and the generators before it ran


def look_ahead(
    again: Again, model: nn.Module, optimizer: torch.optim.Optimizer, moves: Sequence[Move], parts: Parts
) -> dict[int, torch.Tensor]:
    """The second gradients of the moved weights, by the identity of the parameter.

    Args:
        again: The closure, which has just run, and the generators before it did.
        model: Its buffers are put back.
        optimizer: Knows the learning rates.
        moves: What the penalties would do; all of them move their weights together.
        parts: What this process holds of sharded weights.

    Cost: one forward and backward pass, copies of all gradients, buffers and moved weights.
    """
    closure, before = again
    held = [p for group in optimizer.param_groups for p in group["params"]]
    # Those of other optimizers too: the closure's backward pass writes to them as well.
    parameters = list(dict.fromkeys((*held, *model.parameters())))
    after = RandomState([p.device for p in parameters])
    gradients = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in parameters]
    buffers = [(m, name, b, b.clone()) for m in model.modules() for name, b in m.named_buffers(recurse=False)]
    infos = {id(info.parameter): info for info, _ in moves}
    tensors = [t for info in infos.values() for t in dict.fromkeys((info.parameter, info.held))]
    moved = [(t, local_part(t.detach()).clone()) for t in tensors]
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    try:
        for info, move in moves:
            if info.parameter.numel():  # other processes move the rest
                move(rates[id(info.held)])
        parts.scatter_weights(infos.values())
        for parameter in parameters:
            parameter.grad = None  # a closure that leaves zeroing to the caller would add to the first gradient
        before.restore()
        with torch.enable_grad():
            closure()
        plain = [info.parameter for info in infos.values() if info.origin is None]
        second = {id(w): torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in plain}
        return {**second, **parts.gradients(infos.values())}
    finally:
        for parameter, gradient, copy in gradients:
            parameter.grad = gradient
            if gradient is not None and copy is not None:
                gradient.copy_(copy)
        for module, name, buffer, copy in buffers:
            buffer.copy_(copy)
            setattr(module, name, buffer)  # a layer may have put another tensor in its place
        for weight, copy in moved:
            local_part(weight.detach()).copy_(copy)
        after.restore()
