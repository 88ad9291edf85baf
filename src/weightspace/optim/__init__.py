"""Optimizers: `attach` puts rules in force on those of torch; `SubmanifoldSGD` and `SubmanifoldAdam` are our own."""

from weightspace.optim.attach import Rules, attach
from weightspace.optim.groups import ParamGroups, param_groups
from weightspace.optim.schedules import Conditions, PowerDecayLR, convergence_conditions
from weightspace.optim.submanifold_adam import SubmanifoldAdam
from weightspace.optim.submanifold_sgd import SubmanifoldSGD
from weightspace.optim.verify import PropertyCheck

__all__ = [
    "Conditions",
    "ParamGroups",
    "PowerDecayLR",
    "PropertyCheck",
    "Rules",
    "SubmanifoldAdam",
    "SubmanifoldSGD",
    "attach",
    "convergence_conditions",
    "param_groups",
]
