"""The processes of one run: started by torchrun or by Lightning Fabric, which shares the model among them.

Two strategies. `ddp`: every process has the whole model, gradients are averaged. `fsdp2`: every process holds a part of
each weight (`fully_shard`), which comes together when a block needs it. Either way a process computes on its part of
each batch, and the first process (rank 0) alone writes and prints.
"""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from weightspace.errors import RecipeError, RunError
from weightspace.sharding import ALONE, Together
from weightspace.training.environment import is_started_by_torchrun

if TYPE_CHECKING:
    from lightning_fabric.strategies.strategy import Strategy
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
STRATEGIES = ("ddp", "fsdp2")


@dataclass(frozen=True)
class Processes:
    """The processes that train one model together, seen from one of them.

    What is called a collective must be called by all of them, in the same order.

    Attributes:
        fabric: Launched: its process group is ready.
        strategy: `"ddp"`, `"fsdp2"`, or None for a process that trains alone.
        together: For common decisions.
    """

    fabric: Fabric
    strategy: str | None = None
    together: Together = ALONE

    @property
    def is_alone(self) -> bool:
        """Whether one process trains without a strategy. Then nothing here costs anything."""
        return self.strategy is None

    @property
    def is_sharded(self) -> bool:
        """Whether every process holds parts of the weights only."""
        return self.strategy == "fsdp2"

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.together.rank == 0

    @property
    def rank(self) -> int:
        """This process, counted from 0."""
        return self.together.rank

    @property
    def ranks(self) -> int:
        """How many there are."""
        return self.together.ranks

    @property
    def text(self) -> str:
        """How the work is shared, for records: `"1"`, `"2 (ddp)"`."""
        return "1" if self.is_alone else f"{self.ranks} ({self.strategy})"

    def agreed(self) -> AbstractContextManager[None]:
        """A block that all processes leave together: what one of them raises, all raise. Collective.

        Without it the others would wait for one that has failed for ever.
        """
        return self.together.agreeing()

    def from_first(self, value: T) -> T:
        """What the first process has; the other values count for nothing. Collective."""
        return value if self.is_alone else self.fabric.broadcast(value)

    def gathered(self, value: T) -> list[T]:
        """The values of all processes on the first one; an empty list on the others. Collective."""
        if self.is_alone:
            return [value]
        values: list[Any] | None = [None] * self.ranks if self.is_first else None
        torch.distributed.gather_object(value, values)
        return values or []

    def joined(self, loss: Tensor, signal_number: int) -> tuple[Tensor, int]:
        """The mean over processes of a 0-dimensional loss, and the largest number of a signal that asks to stop.

        The same bits everywhere, so that all decide alike. Collective.
        """
        mine = torch.stack([loss.double(), torch.full_like(loss, signal_number, dtype=torch.float64)])
        everyone = [torch.empty_like(mine) for _ in range(self.ranks)]
        torch.distributed.all_gather(everyone, mine)
        found = torch.stack(everyone)
        return found[:, 0].mean().to(loss.dtype), int(found[:, 1].max())

    def share_buffers(self, module: nn.Module) -> None:
        """Give all processes the buffers of the first: running statistics of batch norm, of its part of the batches.

        Collective.
        """
        if self.is_alone:
            return
        with torch.no_grad():
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)

    def check_alike(self, what: str, value: str) -> None:
        """See that all processes have found the same. Collective.

        Raises:
            RunError: They have not.
        """
        found = [str(facts["value"]) for facts in self.together.merged({"value": value})]
        if len(set(found)) > 1:
            raise RunError(
                f"the processes of this run found different {what} ({'; '.join(found)}); give all machines the same "
                "files, in folders that they share"
            )

    def check_shares(self, batch_size: int) -> None:
        """See that a batch can be shared out evenly.

        Raises:
            RecipeError: It cannot.
        """
        if batch_size % self.ranks:
            raise RecipeError(
                f"a batch of train.batch_size: {batch_size} cannot be shared out evenly among {self.ranks} processes; "
                f"choose a multiple of {self.ranks}, or another number of processes"
            )


def one_process(accelerator: str = "auto", precision: str = "32-true") -> Processes:
    """A process that trains alone.

    Args:
        accelerator: Lightning Fabric's name: "auto", "cpu", "cuda" (or "gpu"), "mps".
        precision: Likewise: "32-true", "bf16-mixed" and so on.

    Raises:
        RecipeError: The accelerator is not there, or does not know the precision.
    """
    return Processes(_fabric(accelerator, precision, devices=1))


def start_processes(
    strategy: str, *, accelerator: str = "auto", devices: int | None = None, precision: str = "32-true"
) -> Processes:
    """Join the processes that torchrun started, or start them: each runs this script from its beginning.

    Args:
        strategy: `"ddp"` or `"fsdp2"`.
        accelerator: As for `one_process`; "mps" has one device only.
        devices: Processes on this machine. None: as many as torchrun started, or one for each GPU.
        precision: As for `one_process`; fsdp2 has no "64-true" and no "16-mixed".

    Raises:
        RunError: The strategy is unknown, or the number of processes is not known or not that of torchrun.
        RecipeError: The accelerator is not there, or does not know the precision.
    """
    if strategy not in STRATEGIES:
        raise RunError(f"there is no strategy '{strategy}'; the strategies are {' and '.join(STRATEGIES)}")
    here, machines = _number_of_processes(strategy, accelerator, devices)
    plan = _strategy(strategy, here * machines)
    fabric = _fabric(accelerator, precision, devices=here, num_nodes=machines, strategy=plan)
    with _quiet():
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0 and machines == 1:
            _join_after_restart(fabric.device)
        fabric.launch()
    group = torch.distributed.group.WORLD
    return Processes(fabric, strategy, Together(group, fabric.global_rank, fabric.world_size, fabric.device))


def is_lost_peer(error: BaseException) -> bool:
    """Whether torch says that another process of the group is gone."""
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _join_after_restart(device: torch.device) -> None:
    """Make the process group in a part of torchrun's store of its own.

    torchrun keeps the store when it restarts processes, and in it the addresses of those that are gone: the new ones
    would wait for them (https://github.com/pytorch/pytorch/issues/135712). With several machines the number of restarts
    is not the same on all, and torchrun needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    count = os.environ["TORCHELASTIC_RESTART_COUNT"]
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or torch.distributed.is_initialized():
        return
    stores: Any = torch.distributed  # whose types do not know of them
    kept = stores.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), int(os.environ["WORLD_SIZE"]), is_master=False
    )
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=stores.PrefixStore(f"restart-{count}", kept),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        device_id=device if device.type == "cuda" else None,
    )


def _number_of_processes(strategy: str, accelerator: str, devices: int | None) -> tuple[int, int]:
    """Processes on this machine, and machines."""
    if is_started_by_torchrun():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        if devices is not None and devices != here:
            raise RunError(f"torchrun started {here} processes here and --devices asks for {devices}; leave it out")
        return here, int(os.environ["WORLD_SIZE"]) // here
    if devices is None and accelerator in {"auto", "cuda", "gpu"}:
        devices = torch.cuda.device_count() or None
    if devices is None:
        raise RunError(
            f"--strategy {strategy} has to know how many processes to start on a CPU; add --devices N, or start it "
            "with torchrun --nproc-per-node N -m weightspace"
        )
    return devices, 1


def _strategy(name: str, ranks: int) -> Strategy:
    if name == "fsdp2":
        from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

        return ModelParallelStrategy(_shard, data_parallel_size=ranks, tensor_parallel_size=1)
    from lightning_fabric.strategies.ddp import DDPStrategy

    # Buffers are shared when they are needed (`share_buffers`); torch 2.13 has a new name for the switch.
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {switch: False}
    return DDPStrategy(**options)


def _shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """`fully_shard` on every block, then on what is left."""
    from torch.distributed.fsdp import fully_shard

    for part in (*blocks(module), module):
        fully_shard(part, mesh=mesh["data_parallel"])
    return module


def blocks(module: nn.Module) -> list[nn.Module]:
    """The parts whose weights come together and go apart as one: outermost modules that are made of others.

    Containers are looked into. A plain stack of layers has no blocks.

    >>> stack = nn.Sequential(nn.Linear(2, 2), nn.TransformerEncoderLayer(4, 1))
    >>> [type(block).__name__ for block in blocks(stack)]
    ['TransformerEncoderLayer']
    """
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            found += blocks(child)
        elif next(child.children(), None) is not None and next(child.parameters(), None) is not None:
            found.append(child)
    return found


def _fabric(accelerator: str, precision: str, **options: Any) -> Fabric:
    try:
        with _quiet():
            return Fabric(accelerator=accelerator, precision=precision, **options)  # pyright: ignore[reportArgumentType] - a checked literal
    except (ValueError, RuntimeError, ModuleNotFoundError) as error:
        text = " ".join(str(error).split())
        raise RecipeError(
            f"cannot use the accelerator '{accelerator}' with precision {precision} here: {text}"
        ) from error


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Without Fabric's announcements, and its advice for multi-process and 16-bit use on machines that have neither."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning_fabric")
            yield
    finally:
        logger.setLevel(level)
