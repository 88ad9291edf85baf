"""A small decoder-only transformer: predicts every token of a text from those before it.

Pre-norm blocks (Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture") of causal attention
(Vaswani et al. 2017) and a GELU layer, as in GPT-2; positions by rotation (Su et al. 2021, "RoFormer") or learned.
Query, key, value and output of attention are linear layers of their own, so that a rule or a manifold can select them
by name, and no linear layer but the head has a neighbor that could undo its constraint: the gains of the layer norms
carry the scale.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.errors import DataError, RecipeError
from weightspace.training.models.checks import choice, count_of_layers, flag, positive_int, probability

_NAME = "transformer"
_POSITIONS = ("rotary", "learned")
_LONGEST_WAVE = 10_000.0  # of rotary positions, in tokens over 2 pi: Su et al., equation 15
_INTEGERS = (torch.int64, torch.int32)


class Transformer(nn.Module):
    """Token embedding, `layers` blocks, layer norm, linear head.

    Module names: `embedding`, `positions` (if learned), `blocks.0.attention.query`, `.key`, `.value`, `.out`,
    `blocks.0.mlp.up`, `.down`, `blocks.0.norm1`, `.norm2`, `norm`, `head`.

    Parameters: `layers * (4 + 2 * expansion) * width^2`, and `vocabulary * width` each for embedding and head. Cost per
    token: as many multiplications without the embedding, and `layers * context * width` for attention.

    Args:
        vocabulary: Number of different tokens V.
        context: Tokens in a window T; shorter ones are read too.
        layers: Number of blocks.
        width: Numbers that stand for a token between blocks.
        heads: Attention heads; they divide the width, into even parts with rotary positions.
        expansion: Width of the hidden layer of a block, in widths.
        dropout: Probability, on embeddings, attention weights and the output of each branch.
        positions: `"rotary"`: queries and keys are turned by angles that grow with the position, no parameters.
            `"learned"`: a vector for each position is added.
        tie_weights: Whether head and embedding are one matrix.

    Raises:
        RecipeError: A value out of range.

    >>> net = Transformer(vocabulary=10, context=8, layers=2, width=16, heads=2)
    >>> sum(p.numel() for p in net.parameters()), net(torch.zeros(3, 8, dtype=torch.int64)).shape
    (6624, torch.Size([3, 8, 10]))
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        context: int,
        layers: int = 4,
        width: int = 128,
        heads: int = 4,
        expansion: int = 4,
        dropout: float = 0.0,
        positions: str = "rotary",
        tie_weights: bool = False,
    ) -> None:
        super().__init__()
        size = positive_int(_NAME, "vocabulary", vocabulary)
        self.context: int = positive_int(_NAME, "context", context)
        self.width: int = positive_int(_NAME, "width", width)
        choice(_NAME, "positions", positions, _POSITIONS)
        flag(_NAME, "tie_weights", tie_weights)
        _check_heads(self.width, positive_int(_NAME, "heads", heads), rotary=positions == "rotary")
        rate = probability(_NAME, "dropout", dropout)
        hidden = self.width * positive_int(_NAME, "expansion", expansion)
        count = count_of_layers(_NAME, "layers", layers)
        self.embedding = nn.Embedding(size, self.width)
        self.positions: nn.Embedding | None = nn.Embedding(self.context, self.width) if positions == "learned" else None
        self.dropout = nn.Dropout(rate)
        self.blocks = nn.ModuleList(Block(self.width, hidden, heads, rate) for _ in range(count))
        self.norm = nn.LayerNorm(self.width)
        self.head = nn.Linear(self.width, size, bias=False)
        turns = rotations(self.context, self.width // heads) if positions == "rotary" else None
        self.register_buffer("rotations", turns, persistent=False)
        self.rotations: Tensor | None
        self._initialize(count, tie_weights=tie_weights)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens (N, t), t at most the context, to logits (N, t, V) of the tokens that follow.

        Raises:
            DataError: Another rank or type, or a longer window.
        """
        if tokens.dim() != 2 or tokens.dtype not in _INTEGERS or not 0 < tokens.shape[1] <= self.context:
            raise DataError(
                f'Model "{_NAME}" takes int64 tokens of shape (N, 1 to {self.context}), got {tokens.dtype} of '
                f"{tuple(tokens.shape)}; build the model for this text and context."
            )
        length = tokens.shape[1]
        x = self.embedding(tokens) * self._scale
        if self.positions is not None:
            x = x + self.positions.weight[:length]
        turns = None if self.rotations is None else self.rotations[:, :length]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, turns)
        return self.head(self.norm(x))

    def _initialize(self, layers: int, *, tie_weights: bool) -> None:
        """Weights from N(0, 1 / fan_in), so that layers keep the size of what layer norms give them.

        The last layer of each branch is divided by the root of the number of branches (Radford et al. 2019, section
        2.3), so that depth does not let the sum of all branches grow. Embeddings are N(0, 1); tied ones are N(0, 1 /
        width), as a head's are, and multiplied by the root of the width where they are read (Vaswani et al., 3.4).
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1.0 / math.sqrt(module.in_features))
        for block in self.blocks:
            if isinstance(block, Block):
                with torch.no_grad():
                    block.attention.out.weight.div_(math.sqrt(2 * layers))
                    block.mlp.down.weight.div_(math.sqrt(2 * layers))
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.5)
        self._scale = 1.0
        nn.init.normal_(self.embedding.weight)
        if tie_weights:
            self._scale = math.sqrt(self.width)
            self.embedding.weight = self.head.weight


class Block(nn.Module):
    """Two branches, each of a layer norm, a layer and dropout, added to what they read."""

    def __init__(self, width: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLPBranch(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rotations: Tensor | None) -> Tensor:
        """Maps (N, t, width) to the same shape."""
        x = x + self.dropout(self.attention(self.norm1(x), rotations))
        return x + self.dropout(self.mlp(self.norm2(x)))


class MLPBranch(nn.Module):
    """Linear, GELU, linear: token by token."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, t, width) to the same shape."""
        return self.down(F.gelu(self.up(x)))


class Attention(nn.Module):
    """Causal attention with several heads; a token sees itself and those before it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rotations: Tensor | None) -> Tensor:
        """Maps (N, t, width) to the same shape."""
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        if rotations is not None:
            query, key = rotate(query, rotations), rotate(key, rotations)
        rate = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=rate, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """(N, t, width) to (N, heads, t, width / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def rotations(context: int, size: int) -> Tensor:
    """Cosines and sines by which a head of `size` numbers is turned at each position, `(2, context, size)`.

    Pair i, which is entries i and i + size / 2, turns by `10000^(-2i / size)` radians a token. The second half of the
    cosines repeats the first; the first half of the sines is negative.
    """
    speeds = _LONGEST_WAVE ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(context, dtype=torch.float64).unsqueeze(1) * speeds
    cosine, sine = angles.cos(), angles.sin()
    table = torch.stack([torch.cat([cosine, cosine], 1), torch.cat([-sine, sine], 1)])
    return table.to(torch.get_default_dtype())


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Turn each pair of entries of `(..., t, size)` by its angle; products of two then depend on distance only."""
    cosine, sine = rotations.to(x.dtype).unbind(0)
    return x * cosine + torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1) * sine


def _check_heads(width: int, heads: int, *, rotary: bool) -> None:
    if width % heads or (rotary and width // heads % 2):
        needed = "into even parts (positions: rotary turns pairs)" if rotary else "evenly"
        raise RecipeError(
            f'Model "{_NAME}" needs heads to divide the width {needed}, got {heads} heads and width {width}; give for '
            "example heads: 4 and width: 128."
        )
