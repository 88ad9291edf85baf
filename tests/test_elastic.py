"""A killed process: those that take its place join one another, go on from the last checkpoint, and end with the same bits."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from reliability import elastic
from reliability.processes import forking, run_ranks

import shared_training as st
from weightspace.files import read_json
from weightspace.training import steps as steps_module
from weightspace.training.checkpoint import newest_checkpoint
from weightspace.training.distribution import is_lost_peer, start_processes

RECIPE = st.recipe(st.DROPOUT, [{"rule": "ChannelL2", "smoothing": 4.0}])
VICTIM, LAST = 1, 7


def trains(rank: int, ranks: int, folder: Path, dies: bool) -> str:
    """Trains, or goes on; with `dies` the victim is killed with signal 9 in its step number `LAST`."""
    processes = st.processes_of(rank, ranks, "ddp")
    original = steps_module.TrainingLoop._join

    def join(loop: steps_module.TrainingLoop, losses: torch.Tensor) -> None:
        if dies and rank == VICTIM and loop.session.progress.step == LAST:
            os.kill(os.getpid(), signal.SIGKILL)
        original(loop, losses)

    steps_module.TrainingLoop._join = join
    try:
        st.run(processes, folder, RECIPE, checkpoint_every_steps=2, resume=True)
    except RuntimeError as error:
        if dies and is_lost_peer(error):
            raise RuntimeError("has lost its peer") from error
        raise
    return "done"


def test_a_run_goes_on_from_its_last_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    assert run_ranks(trains, 2, 2, tmp_path / "calm", False, seconds=60) == ["done", "done"]
    with pytest.raises(RuntimeError, match=f"rank {VICTIM} died|rank 0:[^$]*has lost its peer"):
        run_ranks(trains, 2, 2, tmp_path / "killed", True, seconds=60)
    newest = newest_checkpoint(tmp_path / "killed")
    assert newest is not None
    assert newest.name == "checkpoint-000000006.safetensors"
    assert run_ranks(trains, 2, 2, tmp_path / "killed", False, seconds=60) == ["done", "done"]
    assert read_json(tmp_path / "killed" / "result.json")["steps"] == 10
    assert elastic.equal(tmp_path / "calm", tmp_path / "killed")
    (tmp_path / "calm" / "model.safetensors").write_bytes(b"other weights")
    assert not elastic.equal(tmp_path / "calm", tmp_path / "killed")


def joins(rank: int, port: int, restarts: int, end: Connection) -> None:
    """What a process does that torchrun has started: after the first start it is killed."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": str(restarts),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    processes = start_processes("ddp", accelerator="cpu")
    total = processes.together.sum(torch.tensor(rank + 1.0))
    if restarts == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    end.send((processes.text, float(total)))
    torch.distributed.barrier()


def test_processes_started_anew_find_each_other_and_not_the_dead(tmp_path: Path) -> None:
    # torchrun's store outlives its processes, and with it the addresses of the dead.
    store = torch.distributed.TCPStore("localhost", 0, None, is_master=True, wait_for_workers=False)
    for restarts in range(2):
        ends = [forking().Pipe(duplex=False) for _ in range(2)]
        workers = [
            forking().Process(target=joins, args=(rank, store.port, restarts, ends[rank][1]), daemon=True)
            for rank in range(2)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
            worker.kill()
            worker.join()
        assert [worker.exitcode for worker in workers] == ([-signal.SIGKILL] * 2 if restarts == 0 else [0, 0])
        if restarts:
            assert [receiver.recv() for receiver, _ in ends] == [("2 (ddp)", 3.0)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_torchrun_restarts_a_killed_run_without_anybody(strategy: str) -> None:
    survival = elastic.survive("gated penalties", strategy, kills=1, seed=5, epochs=8)
    assert survival.kills == 1
    assert len(survival.restarts) == 1
    assert survival.restarts[0] % elastic.CHECKPOINT_EVERY == 0
    assert survival.is_equal
