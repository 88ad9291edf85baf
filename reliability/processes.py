"""Runs a function on some gloo processes of this machine and gives back what each of them returned.

Processes are forked from a server that has imported torch once and never computed: starting four takes a second.
"""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_PRELOADED = [
    "torch.distributed",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "weightspace",
    "weightspace.training.loop",
    "weightspace.chains",
]


def forking() -> ForkServerContext:
    """What starts processes by forking a server that has imported everything and never computed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def run_ranks(function: Callable[..., T], ranks: int, *arguments: Any, seconds: float = 300.0) -> list[T]:
    """`function(rank, *arguments)` on processes of one gloo group; the results by rank.

    Args:
        function: A function of a module (not a closure); it finds the process group ready.
        ranks: How many processes.
        arguments: Sent to each of them.
        seconds: After so many the processes are killed.

    Raises:
        RuntimeError: A process failed (its traceback is the message), died or took too long.
    """
    context = forking()
    with tempfile.TemporaryDirectory() as folder:
        ends = [context.Pipe(duplex=False) for _ in range(ranks)]
        workers = [
            context.Process(target=_work, args=(function, k, ranks, arguments, folder, ends[k][1]), daemon=True)
            for k in range(ranks)
        ]
        for worker in workers:
            worker.start()
        for _, end in ends:
            end.close()
        try:
            return _collect([end for end, _ in ends], seconds)
        finally:
            for worker in workers:
                worker.join(5 if worker.exitcode is None else None)
                if worker.is_alive():
                    worker.kill()
                    worker.join()


def _collect(ends: list[Connection], seconds: float) -> list[Any]:
    found: dict[int, Any] = {}
    while len(found) < len(ends):
        ready = wait([end for k, end in enumerate(ends) if k not in found], timeout=seconds)
        if not ready:
            raise RuntimeError(f"ranks {sorted(set(range(len(ends))) - set(found))} took more than {seconds:g} s")
        for k, end in enumerate(ends):
            if end in ready:
                try:
                    error, found[k] = pickle.loads(end.recv_bytes())  # of our own processes
                except EOFError:
                    raise RuntimeError(f"rank {k} died") from None
                if error:
                    raise RuntimeError(f"rank {k}:\n{error}")
    return [found[k] for k in range(len(ends))]


def _work(
    function: Callable[..., Any], rank: int, ranks: int, arguments: tuple[Any, ...], folder: str, end: Connection
) -> None:
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{Path(folder) / 'store'}", rank=rank, world_size=ranks
    )
    try:
        torch.manual_seed(0)
        result = function(rank, *arguments)
        torch.distributed.barrier()
        end.send_bytes(pickle.dumps(("", result)))  # not send(): tensors would stay in memory that ends with us
    except BaseException:  # noqa: BLE001 - it is raised in the parent
        end.send_bytes(pickle.dumps((traceback.format_exc(), None)))
    finally:
        end.close()
        torch.distributed.destroy_process_group()
