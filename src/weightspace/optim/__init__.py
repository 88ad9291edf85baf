"""Optimizers: `attach` puts rules in force on those of torch; others are our own, a sampler among them."""

from weightspace.optim._langevin_pace import LangevinUnits, langevin_units
from weightspace.optim._thermometer import Temperature
from weightspace.optim.attach import Rules, attach
from weightspace.optim.constrained_langevin import ConstrainedLangevin
from weightspace.optim.groups import ParamGroups, param_groups
from weightspace.optim.langevin_schedules import CyclicalSchedule, LangevinSchedule
from weightspace.optim.presets import LANGEVIN_PRESETS, langevin_preset
from weightspace.optim.schedules import Conditions, PowerDecayLR, convergence_conditions
from weightspace.optim.submanifold_adam import SubmanifoldAdam
from weightspace.optim.submanifold_sgd import SubmanifoldSGD
from weightspace.optim.verify import PropertyCheck

__all__ = [
    "LANGEVIN_PRESETS",
    "Conditions",
    "ConstrainedLangevin",
    "CyclicalSchedule",
    "LangevinSchedule",
    "LangevinUnits",
    "ParamGroups",
    "PowerDecayLR",
    "PropertyCheck",
    "Rules",
    "SubmanifoldAdam",
    "SubmanifoldSGD",
    "Temperature",
    "attach",
    "convergence_conditions",
    "langevin_preset",
    "langevin_units",
    "param_groups",
]
