"""Selections of parameters for a rule's `on=`: `ws.on.convs & ~ws.on.name("stem.*")`.

| selection | parameters |
|---|---|
| `convs` | weights of convolutions, transposed and grouped ones included |
| `dense_convs`, `grouped_convs` | those with `groups == 1`, those with more |
| `linears` | weights of `nn.Linear` |
| `head` | weight of the last convolution or linear layer in registration order |
| `norms`, `biases`, `embeddings`, `everything` | as they say |
| `name(glob)` | by qualified parameter or module name |
| `where(predicate)` | by a function of `weightspace.kernels.ParameterInfo` |
"""

from weightspace.kernels.selection import (
    Selection,
    biases,
    convs,
    dense_convs,
    embeddings,
    everything,
    grouped_convs,
    head,
    linears,
    name,
    norms,
    parse,
    where,
)

__all__ = [
    "Selection",
    "biases",
    "convs",
    "dense_convs",
    "embeddings",
    "everything",
    "grouped_convs",
    "head",
    "linears",
    "name",
    "norms",
    "parse",
    "where",
]
