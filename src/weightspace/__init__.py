"""weightspace: train networks whose weights keep a shape.

>>> import torch, weightspace as ws
>>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.LazyLinear(10))
>>> _ = model(torch.zeros(1, 3, 8, 8))
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
>>> rules = ws.attach(optimizer, model, ws.metrics.ChannelL2(smoothing=4.0))
>>> rules
<Rules ChannelL2() on 1 of 4 parameters>
"""

from importlib.metadata import version

from weightspace import (
    compress,
    errors,
    gates,
    inspection,
    kernels,
    manifolds,
    metrics,
    on,
    operators,
    optim,
    penalties,
    registry,
    sampling,
)
from weightspace.inspection import certified_radius, inspect, jacobian_singular_values, lipschitz_bound
from weightspace.operators import extreme_singular_values, norm_bound, singular_value_moments, singular_values
from weightspace.optim import Rules, attach, param_groups

__version__ = version("weightspace")
"""The version that is installed."""
__all__ = [
    "Rules",
    "__version__",
    "attach",
    "certified_radius",
    "compress",
    "errors",
    "extreme_singular_values",
    "gates",
    "inspect",
    "inspection",
    "jacobian_singular_values",
    "kernels",
    "lipschitz_bound",
    "manifolds",
    "metrics",
    "norm_bound",
    "on",
    "operators",
    "optim",
    "param_groups",
    "penalties",
    "registry",
    "sampling",
    "singular_value_moments",
    "singular_values",
]
