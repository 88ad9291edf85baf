"""Where the numbers of a sharded weight are, and how whole weights come together on one process at a time."""

from weightspace.sharding.exchange import Exchange, Item
from weightspace.sharding.layout import (
    ShardLayout,
    follow_memory,
    is_sharded,
    layout_of,
    local_gradient,
    local_part,
    sharded_like,
)
from weightspace.sharding.owners import matrix_cost, share_out
from weightspace.sharding.together import ALONE, Together

__all__ = [
    "ALONE",
    "Exchange",
    "Item",
    "ShardLayout",
    "Together",
    "follow_memory",
    "is_sharded",
    "layout_of",
    "local_gradient",
    "local_part",
    "matrix_cost",
    "sharded_like",
    "share_out",
]
