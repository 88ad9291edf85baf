"""Manifolds: where the weights of a layer may live. Each is a rule for `attach` and a constraint for `param_groups`."""

from weightspace.manifolds.base import Manifold
from weightspace.manifolds.circle import Circle
from weightspace.manifolds.constraint import Constraint
from weightspace.manifolds.euclidean import Euclidean
from weightspace.manifolds.level_set import LevelSet
from weightspace.manifolds.oblique import Oblique
from weightspace.manifolds.orthogonal import Orthogonal
from weightspace.manifolds.product import Product
from weightspace.manifolds.sphere import Sphere
from weightspace.manifolds.stiefel import Stiefel
from weightspace.manifolds.text import know, parse
from weightspace.manifolds.zero_mean_sphere import ZeroMeanSphere

know((Euclidean, Circle, Sphere, ZeroMeanSphere, Oblique, Stiefel, Orthogonal, Product, LevelSet))

__all__ = [
    "Circle",
    "Constraint",
    "Euclidean",
    "LevelSet",
    "Manifold",
    "Oblique",
    "Orthogonal",
    "Product",
    "Sphere",
    "Stiefel",
    "ZeroMeanSphere",
    "parse",
]
