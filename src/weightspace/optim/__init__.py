"""Rules on optimizers: `attach` puts metrics in force on a torch optimizer."""

from weightspace.optim.attach import Rules, attach
from weightspace.optim.verify import PropertyCheck

__all__ = ["PropertyCheck", "Rules", "attach"]
