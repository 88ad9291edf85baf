"""Column "elastic restart": torchrun starts two processes, one of them is killed with signal 9 at a random moment.

torchrun starts both anew and the run goes on from its last checkpoint; nobody does anything. Afterwards weights and
records are compared, bit for bit, with those of a run that nothing happened to.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reliability.findings import METHODS, Finding
from weightspace.files import read_json
from weightspace.training.json_lines import read_json_lines

RANKS, CHECKPOINT_EVERY = 2, 5
_PATIENCE = 300.0  # seconds for a start, which imports much, on a busy machine
_LANGEVIN = {"name": "ConstrainedLangevin", "lr": 0.02, "options": {"momentum": 0.9, "temperature": 1.0}}
_ARMS: Mapping[str, Mapping[str, Any]] = {
    "singular values": {"rules": [{"rule": "SingularValueBand", "low": 0.5, "high": 1.5, "frequencies": 2}]},
    "channel gradients": {"rules": [{"rule": "ChannelL2", "smoothing": 4.0}]},
    "gated penalties": {"rules": [{"rule": "L1", "weight": 1e-3, "gate": {"gate": "RandomGate", "duty": 0.5}}]},
    "submanifolds": {"rules": [{"rule": "Stiefel", "on": "convs & ~head"}]},
    "constrained Langevin": {"rules": [{"rule": "Oblique", "on": "convs & ~head"}], "optimizer": _LANGEVIN},
}


@dataclass(frozen=True)
class Survival:
    """What became of a run whose processes were killed.

    Attributes:
        kills: How often a process was killed.
        restarts: Steps from which the run went on, as `run.json` tells them.
        is_equal: Whether weights and records are those of a run that nothing happened to.
        seconds: From the start to the end.
    """

    kills: int
    restarts: tuple[int, ...]
    is_equal: bool
    seconds: float


def measure(*, quick: bool) -> list[Finding]:
    """Kills runs of every method under both strategies.

    Args:
        quick: One kill of one run with `ddp`, instead of two of every method with `ddp` and one with `fsdp2`.
    """
    plan = {"ddp": 1} if quick else {"ddp": 2, "fsdp2": 1}
    findings: list[Finding] = []
    for seed, method in enumerate(METHODS[1:2] if quick else METHODS):
        survivals = {strategy: survive(method, strategy, kills=kills, seed=seed) for strategy, kills in plan.items()}
        kills = sum(survival.kills for survival in survivals.values())
        holds = all(survival.is_equal and survival.kills for survival in survivals.values())
        details = {
            strategy: {"kills": found.kills, "went on from steps": list(found.restarts), "seconds": found.seconds}
            for strategy, found in survivals.items()
        }
        text = f"{kills} kills in {len(survivals)} runs, {'bit-equal' if holds else 'not equal'}"
        findings.append(Finding(method, text, holds, details))
    return findings


def survive(method: str, strategy: str, *, kills: int, seed: int, epochs: int = 12) -> Survival:
    """A run of a method whose processes are killed so many times, against one that is left alone.

    Args:
        method: One of `METHODS`.
        strategy: `"ddp"` or `"fsdp2"`.
        kills: At most; a run that ends before the last of them has had fewer. Three restarts are allowed.
        seed: Decides the moments and the victims.
        epochs: Of twenty steps.
    """
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = folder / "recipe.yaml"
        recipe.write_text(json.dumps(_recipe(method, epochs)), encoding="utf-8")  # JSON is YAML
        calm, killed = folder / "calm", folder / "killed"
        with _torchrun(recipe, calm, strategy) as process:
            _finish(process, calm)
        length = float(read_json(calm / "result.json")["seconds"])
        started, done = time.perf_counter(), 0
        with _torchrun(recipe, killed, strategy) as process:
            for _ in range(kills):
                if not _wait_for_steps(process, killed):
                    break
                time.sleep(draw.uniform(0.0, length / (kills + 1)))
                done += _kill(process.pid, draw)
            _finish(process, killed)
        resumed = read_json(killed / "run.json").get("resumed", [])
        return Survival(done, tuple(entry["step"] for entry in resumed), equal(calm, killed), _since(started))


def equal(one: Path, other: Path) -> bool:
    """Whether two runs have the same weights, bit for bit, and the same records but for the time."""
    same = (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    return same and _records(one) == _records(other)


def _recipe(method: str, epochs: int) -> dict[str, Any]:
    arm = dict(_ARMS[method])
    optimizer = arm.pop("optimizer", {"name": "SGD", "lr": 0.05, "options": {"momentum": 0.9}})
    options = {"widths": [8, 16], "convs_per_stage": 1, "hidden": [], "dropout": 0.1}
    return {
        "name": "elastic",
        "data": {"name": "digits", "augment": ["crop"]},
        "model": {"name": "vgg", "options": options},
        "train": {"epochs": epochs, "batch_size": 64, "optimizer": optimizer, "measure_every": 7},
        **arm,
    }


def _torchrun(recipe: Path, folder: Path, strategy: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS), "--max-restarts", "3"]
    words += ["-m", "weightspace", "train", str(recipe), "--strategy", strategy, "--accelerator", "cpu", "--resume"]
    words += ["--checkpoint-every", str(CHECKPOINT_EVERY), "--out", str(folder)]
    log = folder.with_suffix(".log").open("wb")
    with log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment)  # noqa: S603 - our own


def _finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for the end.

    Raises:
        RuntimeError: It failed; its output is the message.
    """
    try:
        code = process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.terminate()
        code = process.wait()
    if code:
        raise RuntimeError(folder.with_suffix(".log").read_text(encoding="utf-8", errors="replace"))


def _wait_for_steps(process: subprocess.Popen[bytes], folder: Path) -> bool:
    """Wait until the run has saved something since it last went on; whether it still runs then."""
    before = _newest(folder)
    deadline = time.perf_counter() + _PATIENCE
    while process.poll() is None and time.perf_counter() < deadline:
        if _newest(folder) != before and len(_children(process.pid)) == RANKS:
            return True
        time.sleep(0.02)
    return False


def _newest(folder: Path) -> str:
    return max((path.name for path in folder.glob("checkpoint-*")), default="")


def _kill(parent: int, draw: random.Random) -> int:
    """Kill one of the processes with signal 9; how many were killed."""
    workers = _children(parent)
    if not workers:
        return 0
    os.kill(draw.choice(workers), signal.SIGKILL)
    return 1


def _children(parent: int) -> list[int]:
    """The processes that a process has started (Linux)."""
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii")
    return [int(word) for word in text.split()]


def _records(folder: Path) -> Sequence[Mapping[str, Any]]:
    found = read_json_lines(folder / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key != "seconds"} for record in found]


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 1)
