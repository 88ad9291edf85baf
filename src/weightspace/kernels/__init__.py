"""Ground floor: what a weight is, how it is viewed, which rules act on it, and how equal weights run together."""

from weightspace.kernels.parameters import ParameterInfo, describe, unwrap
from weightspace.kernels.points import GROUPINGS, Channels, Grouping, PointView, point_view
from weightspace.kernels.routing import Route, RoutingTable, route
from weightspace.kernels.rule import Rule, Stage
from weightspace.kernels.selection import Selection
from weightspace.kernels.stacking import Batch, Workspace, make_batches
from weightspace.kernels.views import VIEWS, View, ViewName, view_of

__all__ = [
    "GROUPINGS",
    "VIEWS",
    "Batch",
    "Channels",
    "Grouping",
    "ParameterInfo",
    "PointView",
    "Route",
    "RoutingTable",
    "Rule",
    "Selection",
    "Stage",
    "View",
    "ViewName",
    "Workspace",
    "describe",
    "make_batches",
    "point_view",
    "route",
    "unwrap",
    "view_of",
]
