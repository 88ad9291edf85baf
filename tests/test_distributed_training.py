"""Training on several processes: equal to one process, resumed bit for bit, and all of them end alike.

Every launch does many things: starting processes is what takes time.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from reliability.processes import run_ranks
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import shared_training as st
from weightspace.cli.app import app
from weightspace.cli.options import command_words
from weightspace.errors import RecipeError, RunError
from weightspace.files import read_json
from weightspace.training import steps as steps_module
from weightspace.training.checkpoint import newest_checkpoint, read_checkpoint
from weightspace.training.data import Batches, TextBatches
from weightspace.training.data.batches import part_of
from weightspace.training.distribution import Processes, _number_of_processes, blocks, one_process
from weightspace.training.json_lines import read_json_lines
from weightspace.training.loop import train_run
from weightspace.training.models import build_model
from weightspace.training.session import open_session
from weightspace.training.whole_state import whole

RULES = [{"rule": "ChannelL2", "smoothing": 4.0}]
RECIPES = {
    "plain": st.recipe(),
    "clipped": st.recipe(clip_norm=0.5),
    "adamw": st.recipe(rules=RULES, optimizer={"name": "AdamW", "lr": 0.01}),
    "text": st.recipe(st.TRANSFORMER, clip_norm=0.5),
}
STIEFEL = {"rule": "Stiefel", "on": "convs & ~head"}
SUBMANIFOLD = {"name": "SubmanifoldSGD", "lr": 0.1, "options": {"momentum": 0.9}}
SAMPLER = {"name": "ConstrainedLangevin", "lr": 0.02, "options": {"momentum": 0.9, "temperature": 1.0}}
COHERENT = {"gate": "Coherent", "against": "history"}
PENALTIES = [
    {"rule": "LargestSingularValue", "bound": 0.5, "weight": 0.01},  # remembers a direction
    {"rule": "SingularValueBand", "low": 0.5, "high": 1.5, "frequencies": 2},  # draws frequencies
    {"rule": "L1", "weight": 1e-3, "gate": COHERENT},  # remembers gradients
]
CUT = {
    "dropout": st.recipe(st.DROPOUT, RULES),
    "resnet": st.recipe(st.RESNET, RULES, epochs=1),
    "penalties": st.recipe(st.DROPOUT, PENALTIES),
    "submanifold": st.recipe(st.DROPOUT, [*RULES, STIEFEL], optimizer=SUBMANIFOLD),
    "sampler": st.recipe(st.DROPOUT, [{"rule": "Circle", "on": "convs & ~head"}], optimizer=SAMPLER),
}
MOVING = CUT["submanifold"]
STOPPED = 4


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def difference(one: Path, other: Path) -> float:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def records(folder: Path) -> list[dict[str, Any]]:
    found = [
        {k: v for k, v in record.items() if k != "seconds"} for record in read_json_lines(folder / "metrics.jsonl")
    ]
    # Sharded weights are measured by their owners, so that layers come in another order.
    return sorted(found, key=lambda record: (record["step"], record["kind"], record.get("name", "")))


def assert_close_records(one: Path, other: Path, relative: float) -> None:
    for first, second in zip(records(one), records(other), strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert second[key] == (pytest.approx(value, rel=relative) if isinstance(value, float) else value), key


# --------------------------------------------------------------------------- what every process does


def many_runs(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """All kinds of runs of two processes, one after the other; what became of each."""
    found: dict[str, Any] = {}
    for strategy in ("ddp", "fsdp2"):
        processes = st.processes_of(rank, ranks, strategy)
        for name, recipe in RECIPES.items():
            found[f"{strategy}-{name}"] = st.run(processes, folder / f"{strategy}-{name}", recipe)
        for name, recipe in CUT.items():
            st.run(processes, folder / f"{strategy}-{name}", recipe)
            go_on = functools.partial(st.run, processes, folder / f"{strategy}-{name}-cut", recipe)
            with st.signal_at(STOPPED, here=rank == 1):
                found[f"{strategy}-{name}-cut"] = st.outcome(go_on)
            found[f"{strategy}-{name}-warnings"] = st.warnings_of(functools.partial(go_on, resume=True))
            found[f"{strategy}-{name}-again"] = go_on(resume=True)
    exact = st.processes_of(rank, ranks, "ddp", "64-true")
    st.run(exact, folder / "ddp-exact", st.recipe(precision="64-true"))
    return found


def moving_runs(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """Runs that begin with one number of processes, or strategy, and go on with another."""
    found: dict[str, Any] = {}
    for first, second in (("ddp", "fsdp2"), ("fsdp2", "ddp")):
        begun, going_on = st.processes_of(rank, ranks, first), st.processes_of(rank, ranks, second)
        for name in (f"{first}-{second}", f"{first}-1"):
            with st.signal_at(STOPPED, here=rank == 0):
                st.outcome(functools.partial(st.run, begun, folder / name, MOVING))
        for name, processes in {f"{first}-{second}": going_on, f"1-{first}": begun}.items():
            found[name] = st.warnings_of(functools.partial(st.run, processes, folder / name, MOVING, resume=True))
    return found


def failing_runs(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """What goes wrong on one process is an error on all."""
    processes = st.processes_of(rank, ranks, "ddp")
    found: dict[str, Any] = {}

    def go(name: str, recipe: Any, **options: Any) -> None:
        found[name] = st.outcome(lambda: st.run(processes, folder / name, recipe, **options))

    go("uneven", st.recipe(batch_size=11))
    go("diverged", st.recipe(optimizer={"name": "SGD", "lr": 1e12}))
    save = steps_module.save_checkpoint
    steps_module.save_checkpoint = full_disk
    go("full", st.recipe())
    steps_module.save_checkpoint = save
    if rank == 0:
        (folder / "file").write_text("here")
    found["file"] = st.outcome(lambda: st.run(processes, folder / "file", st.recipe()))
    found["keeper"] = st.outcome(lambda: st.run(processes, folder / "keeper", st.recipe(), keeper=object()))
    found["data"] = st.outcome(
        lambda: train_run(st.recipe(), folder / "data", seed=0, data=st.images().take(60 + rank), processes=processes)
    )
    found["alike"] = st.outcome(lambda: processes.check_alike("checkpoints", f"step {rank}"))
    go("after all", st.recipe(epochs=1))
    sharded = st.processes_of(rank, ranks, "fsdp2")
    found["strides"] = st.outcome(lambda: st.run(sharded, folder / "strides", st.recipe(channels_last=True)))
    found["state"] = whole({"a": [torch.ones(1), "text"], "b": (1,)}, keep=False)["b"]
    return found


def full_disk(*_: Any, **__: Any) -> None:
    raise RunError("cannot write the checkpoint: no space left on device")


def resumed_runs(rank: int, ranks: int, folder: Path) -> None:
    for strategy in ("ddp", "fsdp2"):
        processes, recipe = st.processes_of(rank, ranks, strategy), st.recipe(st.DROPOUT)
        st.run(processes, folder / strategy, recipe)
        with st.signal_at(STOPPED, here=rank == 2):
            st.outcome(functools.partial(st.run, processes, folder / f"{strategy}-cut", recipe))
        st.run(processes, folder / f"{strategy}-cut", recipe, resume=True)


# --------------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("many")
    return folder, run_ranks(many_runs, 2, 2, folder, seconds=120)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    for name, recipe in RECIPES.items():
        st.run(None, folder / name, recipe)
    st.run(None, folder / "exact", st.recipe(precision="64-true"))
    return folder


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_give_what_one_gives(runs: Any, alone: Path, strategy: str, name: str) -> None:
    folder = runs[0]
    assert difference(folder / f"{strategy}-{name}", alone / name) < 1e-5
    assert_close_records(folder / f"{strategy}-{name}", alone / name, 1e-4)
    shared, single = (read_json(path / "result.json") for path in (folder / f"{strategy}-{name}", alone / name))
    for key in ("test_loss", "train_loss"):
        assert shared[key] == pytest.approx(single[key], rel=1e-5)
    for key in ("test_accuracy", "steps", "parameters", "weights", "fingerprint", "constraints"):
        assert shared[key] == single[key], key


def test_in_float64_they_are_equal_to_ten_digits(runs: Any, alone: Path) -> None:
    assert 0 < difference(runs[0] / "ddp-exact", alone / "exact") < 1e-12


def test_all_processes_get_the_result_that_the_first_one_writes(runs: Any) -> None:
    folder, (first, second) = runs
    for strategy in ("ddp", "fsdp2"):
        for name in RECIPES:
            result = first[f"{strategy}-{name}"]
            mine = {key: value for key, value in result.items() if not key.startswith("seconds")}
            assert mine == {k: v for k, v in second[f"{strategy}-{name}"].items() if not k.startswith("seconds")}
            assert read_json(folder / f"{strategy}-{name}" / "result.json") == json.loads(json.dumps(result))


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_signal_to_one_stops_all_and_the_resumed_run_is_the_same_to_the_last_bit(
    runs: Any, strategy: str, name: str
) -> None:
    folder, results = runs
    for result in results:
        kind, sentence = result[f"{strategy}-{name}-cut"]
        assert kind == "Interrupted"
        assert f"stopped at step {STOPPED} of {5 * CUT[name].train.epochs};" in sentence
        assert result[f"{strategy}-{name}-warnings"] == []
        assert result[f"{strategy}-{name}-again"]["status"] == "done"  # what is finished is given back to all
    whole_run, cut = folder / f"{strategy}-{name}", folder / f"{strategy}-{name}-cut"
    assert difference(whole_run, cut) == 0.0
    assert records(whole_run) == records(cut)
    assert difference(whole_run, folder / f"ddp-{name}") < 1e-5


def test_each_process_has_its_own_dropout(runs: Any) -> None:
    for strategy in ("ddp", "fsdp2"):
        newest = newest_checkpoint(runs[0] / f"{strategy}-dropout")
        assert newest is not None
        state = read_checkpoint(newest)
        first, (second,) = state["random"]["cpu"], state["random_of_others"]
        assert first.shape == second["cpu"].shape
        assert not torch.equal(first, second["cpu"])
        assert state["origin"]["processes"] == f"2 ({strategy})"


# --------------------------------------------------------------------------- other numbers of processes


def test_a_run_goes_on_with_another_strategy_or_number_of_processes(tmp_path: Path) -> None:
    for name in ("1-ddp", "1-fsdp2"):
        stop_alone(tmp_path / name, MOVING)
    results = run_ranks(moving_runs, 2, 2, tmp_path, seconds=120)
    for name, change in {
        "ddp-fsdp2": "processes 2 (ddp), now 2 (fsdp2)",
        "fsdp2-ddp": "processes 2 (fsdp2), now 2 (ddp)",
        "1-ddp": "processes 1, now 2 (ddp)",
        "1-fsdp2": "processes 1, now 2 (fsdp2)",
    }.items():
        for result in results:
            assert [text for text in result[name] if change in text and "not bit for bit" in text], result[name]
    # Every process has gone on with its dropout where the strategy alone has changed.
    assert difference(tmp_path / "ddp-fsdp2", tmp_path / "fsdp2-ddp") < 1e-5
    for name in ("ddp-1", "fsdp2-1"):
        found = st.warnings_of(lambda name=name: st.run(None, tmp_path / name, MOVING, resume=True))
        assert any("now 1: it goes on, but not bit for bit" in text for text in found)
        assert read_json(tmp_path / name / "result.json")["steps"] == 10
    assert difference(tmp_path / "ddp-1", tmp_path / "fsdp2-1") < 1e-5


def stop_alone(folder: Path, recipe: Any) -> None:
    def progress(done: int, _: int) -> None:
        if done > STOPPED:
            raise OSError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps_module, "_PROGRESS_SECONDS", -1.0)
        with pytest.raises(OSError, match="killed"):
            st.run(None, folder, recipe, progress=progress, checkpoint_every_steps=STOPPED)


def test_three_processes_resume_to_the_last_bit(tmp_path: Path) -> None:
    # The sum of three numbers depends on their order, and DDP's order on how often it has run before.
    run_ranks(resumed_runs, 3, 3, tmp_path, seconds=120)
    for strategy in ("ddp", "fsdp2"):
        assert difference(tmp_path / strategy, tmp_path / f"{strategy}-cut") == 0.0
        assert records(tmp_path / strategy) == records(tmp_path / f"{strategy}-cut")


# --------------------------------------------------------------------------- errors


def test_what_one_process_finds_wrong_all_report(tmp_path: Path) -> None:
    first, second = run_ranks(failing_runs, 2, 2, tmp_path, seconds=60)
    sentences = {
        "uneven": "RecipeError a batch of train.batch_size: 11 cannot be shared out evenly among 2 processes; choose a "
        "multiple of 2, or another number of processes",
        "full": "RunError cannot write the checkpoint: no space left on device",
        "file": f"RunError {tmp_path / 'file'} is a file, but a folder is needed there",
        "keeper": "RunError samples of weights are kept by runs of one process",
        "data": "RunError the processes of this run found different data",
        "alike": "RunError the processes of this run found different checkpoints (step 0; step 1)",
        "strides": "RecipeError train.channels_last: true does not go with fsdp2",
    }
    for name, sentence in sentences.items():
        assert " ".join(first[name]).startswith(sentence)
        assert " ".join(second[name]).replace("rank 0: ", "").startswith(sentence)
    for result in (first, second):
        kind, text = result["diverged"]
        assert kind == ""
        assert "'status': 'diverged'" in text
        assert "became non-finite" in text
        assert result["after all"][0] == ""  # they are still in step
        assert result["state"] == (1,)


def test_torchrun_and_devices_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(RunError, match="has to know how many processes to start on a CPU; add --devices N"):
        _number_of_processes("ddp", "auto", None)
    assert _number_of_processes("ddp", "auto", 3) == (3, 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert _number_of_processes("ddp", "auto", None) == (8, 1)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6"}.items():
        monkeypatch.setenv(name, value)
    assert _number_of_processes("ddp", "cpu", None) == (2, 3)
    assert _number_of_processes("ddp", "cpu", 2) == (2, 3)
    with pytest.raises(RunError, match="torchrun started 2 processes here and --devices asks for 4; leave it out"):
        _number_of_processes("ddp", "cpu", 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--strategy", "dp", "--devices", "2"], "there is no strategy 'dp'; the strategies are ddp and fsdp2"),
        (["--devices", "2"], "--devices 2 needs --strategy ddp or --strategy fsdp2"),
    ],
)
def test_the_command_line_refuses_what_it_cannot_share(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, ["train", "quickstart", "--out", str(tmp_path / "run"), *arguments])
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_under_torchrun_the_command_asks_for_a_strategy_and_one_process_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["train", "quickstart", "--out", str(tmp_path / "run")]
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "torchrun started 2 processes; say how they share the work" in " ".join(result.output.split())
    assert command_words()[:5] == ["torchrun", "--nproc-per-node", "2", "-m", "weightspace"]
    monkeypatch.setenv("RANK", "1")
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.output) == (2, "")


# --------------------------------------------------------------------------- parts


def test_the_parts_of_all_processes_are_the_batch() -> None:
    for count in range(9):
        for ranks in range(1, 5):
            parts = [list(range(count))[part_of(count, rank, ranks)] for rank in range(ranks)]
            assert list(itertools.chain(*parts)) == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_batches_are_drawn_whole_and_cut() -> None:
    data = st.images()
    options: dict[str, Any] = {"batch_size": 12, "mean": (0.3,), "std": (0.2,), "augment": ("crop", "flip"), "seed": 1}
    sources = [Batches(data.train_images, data.train_labels, device="cpu", **options) for _ in range(4)]
    for rank in range(3):
        sources[rank].share(rank, 3)
    for *parts, everything in zip(*(source.epoch(2) for source in sources), strict=True):
        for k in range(2):
            assert torch.equal(torch.cat([part[k] for part in parts]), everything[k])


def test_windows_of_text_are_cut_too_and_a_short_last_one_goes_to_one_process() -> None:
    sources = [
        TextBatches(torch.arange(22), context=4, batch_size=2, seed=0, device="cpu", shuffle=False, drop_last=False)
        for _ in range(3)
    ]
    for rank in range(2):
        sources[rank].share(rank, 2)
    last = None
    for *parts, everything in zip(*(source.epoch(0) for source in sources), strict=True):
        for k in range(2):
            assert torch.equal(torch.cat([part[k] for part in parts]), everything[k])
        last = [len(part[1]) for part in parts]
    assert last == [0, 1]


def test_blocks_are_what_a_model_repeats() -> None:
    resnet = build_model("resnet20", in_channels=1, image_size=8, num_classes=3, width=4)
    assert {type(block).__name__ for block in blocks(resnet)} == {"BasicBlock"}
    assert len(blocks(resnet)) == 9
    transformer = build_model("transformer", vocabulary=7, context=8, layers=3, width=16, heads=2)
    assert len(blocks(transformer)) == 3
    assert blocks(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2))) == []


def test_a_process_alone_pays_nothing() -> None:
    processes = one_process("cpu")
    assert isinstance(processes, Processes)
    assert (processes.rank, processes.ranks, processes.text, processes.is_first) == (0, 1, "1", True)
    assert processes.gathered("state") == ["state"]
    assert processes.from_first(3) == 3
    with pytest.raises(RecipeError, match="x"), processes.agreed():
        raise RecipeError("x")
    session = open_session(st.recipe(), st.images(), seed=0, processes=processes)
    assert session.is_plain
    assert session.forward is session.module
    assert not math.isnan(float(session.progress.loss_sum))
