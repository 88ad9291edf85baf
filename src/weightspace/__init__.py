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

from weightspace import errors, kernels, metrics, on, optim, penalties, registry
from weightspace.optim import Rules, attach

__version__ = version("weightspace")
__all__ = ["Rules", "__version__", "attach", "errors", "kernels", "metrics", "on", "optim", "penalties", "registry"]
