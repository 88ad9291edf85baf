"""Tensors that each process made, sent to all: bit for bit, with their strides, in one broadcast for each process.

Before them come three integers from everyone, by which processes notice that one of them failed, or that they are not
at the same work; shapes and names are sent only when they change.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, cast

import torch

from weightspace.errors import AttachError, WeightspaceError
from weightspace.kernels.parameters import is_dense_layout
from weightspace.sharding import Together

Named = tuple[str, torch.Tensor]
# Bytes at whose multiples tensors start, as torch's own do: a sum over numbers that lie otherwise can round otherwise.
_ALIGNED = 64
_Piece = tuple[str, torch.dtype, tuple[int, ...], tuple[int, ...]]  # name, dtype, shape, strides


class Broadcasts:
    """What every process tells the others, again and again.

    Attributes:
        sent: Bytes of tensors that this process has sent so far.
    """

    def __init__(self) -> None:
        self.sent = 0
        self._known: list[tuple[int, list[_Piece]]] = []  # of each process: a checksum of its pieces, and these

    def tell(
        self, mine: Sequence[Named], *, work: object, error: Exception | None, together: Together
    ) -> list[dict[str, torch.Tensor]]:
        """Sends tensors to all processes and receives theirs.

        Args:
            mine: Tensors by name; names of different processes differ.
            work: What this process believes that all are doing, compared by its representation.
            error: What kept this process from making its tensors.
            together: The processes.

        Returns:
            By process the tensors that it sent, views of one buffer each.

        Raises:
            Exception: The process's own error; on the others one that names the process.
            AttachError: The processes are not at the same work.
        """
        pieces = [_piece(name, tensor) for name, tensor in mine]
        facts = torch.tensor([int(error is not None), _checksum(work), _checksum(pieces)], device=together.device)
        everyone = [torch.empty_like(facts) for _ in range(together.ranks)]
        torch.distributed.all_gather(everyone, facts, group=together.group)
        failed, works, looks = (column.tolist() for column in torch.stack(everyone).unbind(1))
        if any(failed):
            _raise_everywhere(error, together)
        if len(set(works)) > 1:
            raise AttachError(
                "The processes of DistributedDataParallel are not at the same step of the same rules, so they cannot "
                "divide the penalties; load the same state in all of them, and step all of them equally often."
            )
        if [look for look, _ in self._known] != looks:  # so for all of them
            known: list[list[_Piece]] = [[] for _ in range(together.ranks)]
            torch.distributed.all_gather_object(known, pieces, group=together.group)
            self._known = list(zip(looks, known, strict=True))
        return self._send(mine, together)

    def _send(self, mine: Sequence[Named], together: Together) -> list[dict[str, torch.Tensor]]:
        buffers = [
            torch.empty(sum(map(_room, pieces)), dtype=torch.uint8, device=together.device) for _, pieces in self._known
        ]
        own = buffers[together.rank]
        start = 0
        for (_, tensor), piece in zip(mine, self._known[together.rank][1], strict=True):
            own[start : start + _size(piece)].copy_(_bytes(tensor))
            start += _room(piece)
        waiting = [
            torch.distributed.broadcast(
                buffer,
                torch.distributed.get_global_rank(together.group, rank),
                group=together.group,
                async_op=True,
            )
            for rank, buffer in enumerate(buffers)
            if len(buffer)
        ]
        for work in waiting:
            cast("Any", work).wait()
        self.sent += len(own)
        return [_unpacked(buffer, pieces) for buffer, (_, pieces) in zip(buffers, self._known, strict=True)]


def _piece(name: str, tensor: torch.Tensor) -> _Piece:
    strides = tensor.stride() if is_dense_layout(tensor) else tensor.contiguous().stride()
    return name, tensor.dtype, tuple(tensor.shape), tuple(strides)


def _size(piece: _Piece) -> int:
    return piece[1].itemsize * torch.Size(piece[2]).numel()


def _room(piece: _Piece) -> int:
    return -(-_size(piece) // _ALIGNED) * _ALIGNED


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers in the order in which they lie in memory."""
    dense = tensor.detach() if is_dense_layout(tensor) else tensor.detach().contiguous()
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)


def _unpacked(buffer: torch.Tensor, pieces: Sequence[_Piece]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    start = 0
    for piece in pieces:
        name, dtype, shape, strides = piece
        found[name] = buffer[start : start + _size(piece)].view(dtype).as_strided(shape, strides)
        start += _room(piece)
    return found


def _checksum(facts: object) -> int:
    return zlib.crc32(repr(facts).encode())


def _raise_everywhere(error: Exception | None, together: Together) -> None:
    """This process's own error; where there is none that of another, as an error that is made of a sentence."""
    told = error
    if error is not None and not isinstance(error, WeightspaceError):
        told = AttachError(f"A penalty could not be evaluated: {type(error).__name__}: {error}")
    try:
        together.agree(told)
    except WeightspaceError:
        if error is None:
            raise
        raise error from None
