"""`TextBatches`: a whole text on the device, served as windows of consecutive tokens.

Which windows batch b of epoch e holds is a pure function of (seed, e, b). A run resumed at batch b therefore needs no
generator state: `epoch(e, start=b)` yields bit for bit what an uninterrupted run would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from weightspace.errors import DataError
from weightspace.training.data.batches import derived_seed, part_of


class TextBatches:
    """Batches of token windows, each with the tokens that follow as labels.

    Shuffled, an epoch cuts the text into neighboring windows that begin at an offset of its own, so that other tokens
    are first in their window every time, and serves them in an order of its own. All but the tokens at the two ends
    (less than two windows) are served once an epoch. In order, windows begin at the first token and every token but the
    first is a label exactly once; a shorter last window makes a batch of its own.

    Cost of a batch: one gather of `batch_size * (context + 1)` tokens and one conversion to int64.

    Args:
        tokens: Integers `(N,)`, the text.
        context: Tokens in a window.
        batch_size: Windows in a batch.
        seed: Decides offsets and order.
        device: Where the text is put and the batches appear.
        shuffle: Whether each epoch has an offset and order of its own; otherwise the order of the text.
        drop_last: Whether to leave out windows and batches that are smaller than the others.

    Raises:
        DataError: Wrong tokens, or no batch in an epoch.

    >>> batches = TextBatches(torch.arange(6), context=2, batch_size=2, seed=0, device="cpu", shuffle=False,
    ...                       drop_last=False)
    >>> [(inputs.tolist(), labels.tolist()) for inputs, labels in batches.epoch(0)]
    [([[0, 1], [2, 3]], [[1, 2], [3, 4]]), ([[4]], [[5]])]
    """

    def __init__(
        self,
        tokens: Tensor,
        *,
        context: int,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        _check(tokens, context, batch_size)
        self.context = context
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self._share = (0, 1)
        self.windows: int = window_count(len(tokens), context, shuffle=shuffle)
        self._rest = 0 if drop_last or shuffle else len(tokens) - 1 - self.windows * context
        if len(self) == 0:
            raise DataError(
                f"A batch of {batch_size:,} windows of {context:,} tokens was asked for, but {len(tokens):,} tokens "
                f"give {self.windows:,} windows: choose a smaller batch size or context, or a longer text."
            )
        self._tokens = tokens.to(self.device)
        self._reach = torch.arange(context + 1, device=self.device)

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(self.windows, self.batch_size)
        return full + (1 if rest and not self.drop_last else 0) + (1 if self._rest else 0)

    def share(self, rank: int, ranks: int) -> None:
        """Serve only one process's windows of every batch from now on.

        Args:
            rank: The process, counted from 0.
            ranks: Processes; the parts of all of them are the batch that one process would see.
        """
        self._share = (rank, ranks)

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Serve the batches of one epoch.

        Args:
            number: Which epoch; it decides offset and order.
            start: First batch to serve: those before it are skipped at no cost.

        Yields:
            `(inputs, labels)`: int64 `(B, context)`, labels one token later, both on the device.

        Raises:
            DataError: `start` is not between 0 and `len(self)`. Raised at the call, not at the first batch.
        """
        if not 0 <= start <= len(self):
            raise DataError(f"An epoch has {len(self)} batches, so it cannot start at batch {start}.")
        return self._serve(number, start)

    def _serve(self, number: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        begins = self._begins(number)
        whole = len(self) - (1 if self._rest else 0)
        for batch in range(start, whole):
            first = begins[batch * self.batch_size : (batch + 1) * self.batch_size]
            first = first[part_of(len(first), *self._share)]
            window = self._tokens[first.unsqueeze(1) + self._reach].long()
            yield window[:, :-1], window[:, 1:]
        if self._rest and start <= whole:
            window = self._tokens[-self._rest - 1 :].long().unsqueeze(0)[part_of(1, *self._share)]
            yield window[:, :-1], window[:, 1:]

    def _begins(self, number: int) -> Tensor:
        """Where the windows of an epoch begin, in the order they are served."""
        if not self.shuffle:
            return torch.arange(self.windows, device=self.device) * self.context
        slack = min(self.context, len(self._tokens) - self.windows * self.context)
        offset = derived_seed("offset", self.seed, number) % slack
        generator = torch.Generator().manual_seed(derived_seed("order", self.seed, number))
        order = torch.randperm(self.windows, generator=generator)
        return (order * self.context + offset).to(self.device)


def window_count(tokens: int, context: int, *, shuffle: bool) -> int:
    """Whole windows of a text: with `shuffle` as many as there are at every offset.

    >>> window_count(100, 10, shuffle=False), window_count(100, 10, shuffle=True), window_count(15, 10, shuffle=True)
    (9, 9, 1)
    """
    if tokens <= context:
        return 0
    return max(1, (tokens - context) // context) if shuffle else (tokens - 1) // context


def _check(tokens: Tensor, context: int, batch_size: int) -> None:
    if tokens.ndim != 1 or tokens.is_floating_point() or tokens.is_complex() or tokens.dtype is torch.bool:
        raise DataError(f"Tokens must be integers of shape (N,), not {tokens.dtype} of {tuple(tokens.shape)}.")
    for name, value in (("context", context), ("batch_size", batch_size)):
        if value < 1:
            raise DataError(f"{name} must be at least 1, not {value}.")
