"""The runner: equal budget, nothing redone, refusals, failures, divergence, interruption. Training is faked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fake_training
from fabricated import make_recipe
from weightspace.compare import comparison_table, read_comparison, run_comparison
from weightspace.compare import runner as runner_module
from weightspace.compare.directory import locked, recipe_differences
from weightspace.compare.pool import worker_count
from weightspace.compare.verdict import verdict, warnings
from weightspace.compare.worker import start_worker
from weightspace.errors import RunError
from weightspace.training.environment import usable_cores
from weightspace.training.recipe import Recipe

ARMS = {
    "SGD": {"tune": False},
    "tuned SGD": {},
    "ChannelL2": {"rules": [{"rule": "ChannelL2", "smoothing": 4.0}]},
}


def recipe(arms: dict | None = None, **options) -> Recipe:
    return make_recipe(arms or ARMS, **({"seeds": 3, "grid": (0.01, 0.02, 0.05)} | options))


class InlinePool:
    """Runs jobs at once in this process: most tests need no other one."""

    def __init__(self, *_):
        self.jobs = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    def submit(self, function, order):
        from concurrent.futures import Future

        future = Future()
        self.jobs.append(order.job)
        future.set_result(function(order))
        return future


@pytest.fixture
def inline(monkeypatch):
    pools = []

    def make(*arguments):
        pools.append(InlinePool(*arguments))
        return pools[-1]

    monkeypatch.setattr(runner_module, "workers_of", make)
    return pools


def run(run_dir: Path, settings: Recipe | None = None, *, train=fake_training.train, **options) -> Path:
    return run_comparison(settings or recipe(), run_dir, train=train, load=fake_training.load, **options)


def seen(run_dir: Path, pattern: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(run_dir.glob(f"arms/{pattern}/seen.json"))]


def test_a_whole_comparison(tmp_path, inline):
    told = []
    assert run(tmp_path, progress=lambda *event: told.append(event)) == tmp_path
    comparison = read_comparison(tmp_path)
    assert comparison.missing == ()
    assert [arm.settings["train.optimizer.lr"] for arm in comparison.arms] == [0.05, 0.02, 0.02]
    assert comparison.arms[2].difference.mean == pytest.approx(0.01)
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["arms"][0]["mean"]["n"] == 3
    assert "| ChannelL2 |" in (tmp_path / "table.md").read_text()
    assert told[-1][1:] == (15, 15)
    facts = json.loads((tmp_path / "compare.json").read_text())
    assert facts["data"]["source"] == "made up"
    assert facts["finished"]


def test_tuning_sees_held_out_training_data_and_every_arm_the_same_budget(tmp_path, inline):
    run(tmp_path)
    tuned = {slug: seen(tmp_path, f"{slug}/tune/*") for slug in ("tuned-sgd", "channell2")}
    for runs in tuned.values():
        assert [(r["lr"], r["train"], r["test"]) for r in runs] == [(0.01, 32, 8), (0.02, 32, 8), (0.05, 32, 8)]
    assert not (tmp_path / "arms/sgd/tune").exists()
    assert {(r["train"], r["test"]) for r in seen(tmp_path, "*/final/*")} == {(40, 10)}


def test_final_runs_start_as_soon_as_their_own_tuning_is_done_and_interleave(tmp_path, inline):
    run(tmp_path, workers=1)
    names = [(job.stage, job.arm, job.seed) for job in inline[0].jobs]
    finals = [name[1:] for name in names if name[0] == "final"]
    assert finals == [(arm, seed) for seed in range(3) for arm in ARMS]
    assert names[:2] == [("tune", "tuned SGD", 1000), ("tune", "ChannelL2", 1000)]


def test_finished_runs_are_never_redone(tmp_path, inline):
    run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("arms/*/*/*/seen.json")}
    run(tmp_path)
    assert len(inline) == 1  # no worker was started the second time
    assert {path: path.read_bytes() for path in tmp_path.glob("arms/*/*/*/seen.json")} == before


@pytest.mark.parametrize("damage", ["torn", "missing", "other settings", "not an object"])
def test_a_half_written_run_is_redone_from_scratch(tmp_path, inline, damage):
    run(tmp_path)
    result = tmp_path / "arms/sgd/final/seed1/result.json"
    whole = result.read_text()
    other = whole.replace('"fingerprint": "', '"fingerprint": "0')
    damaged = {"torn": whole[:40], "other settings": other, "missing": ""}
    result.write_text(damaged.get(damage, "[]"))
    if damage == "missing":
        result.unlink()
    (result.parent / "metrics.jsonl").write_text('{"kind": "ep')
    assert read_comparison(tmp_path).missing == ("SGD, seed 1",)
    run(tmp_path)
    assert [job.name for job in inline[1].jobs] == ["SGD, seed 1"]
    assert not (result.parent / "metrics.jsonl").exists()
    assert json.loads(result.read_text()) == json.loads(whole)


def test_another_recipe_is_refused_naming_what_differs(tmp_path, inline):
    run(tmp_path)
    with pytest.raises(RunError, match=r"another recipe \(train\.epochs: 8 -> 9\)"):
        run(tmp_path, recipe(epochs=9))
    with pytest.raises(RunError, match=r"compare\.seeds: 3 -> 4"):
        run(tmp_path, recipe(seeds=4))
    with pytest.raises(RunError, match=r"compare\.arms\.ChannelL2\.rules\.0\.smoothing: 4\.0 -> 2\.0"):
        run(tmp_path, recipe(ARMS | {"ChannelL2": {"rules": [{"rule": "ChannelL2", "smoothing": 2.0}]}}))
    with pytest.raises(RunError, match=r"compare\.arms\.SGD"):
        run(tmp_path, recipe({name: ARMS[name] for name in ("tuned SGD", "ChannelL2")}))


def test_an_added_arm_is_trained_and_the_others_kept(tmp_path, inline):
    run(tmp_path)
    run(tmp_path, recipe(ARMS | {"centralized": {"rules": [{"rule": "GradientCentralization"}]}}))
    assert {job.arm for job in inline[1].jobs} == {"centralized"}
    assert len(read_comparison(tmp_path).arms) == 4


def test_what_decides_nothing_may_differ():
    old = recipe().to_dict()
    new = old | {"description": "other words", "data": old["data"] | {"root": "/elsewhere"}}
    assert recipe_differences(old, new) == []


def test_a_folder_with_something_else_is_refused(tmp_path, inline):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"holds thesis\.tex but no compare\.json"):
        run(tmp_path)
    with pytest.raises(RunError, match="is a file"):
        run(tmp_path / "thesis.tex")


def test_a_damaged_compare_file_is_refused(tmp_path, inline):
    (tmp_path / "compare.json").write_text('{"recipe": ')
    with pytest.raises(RunError, match="damaged"):
        run(tmp_path)


def test_two_comparisons_in_one_folder_are_refused(tmp_path, inline):
    with locked(tmp_path), pytest.raises(RunError, match="another process"):
        run(tmp_path)
    run(tmp_path)  # the lock went with its holder


def test_changed_data_are_refused(tmp_path, inline):
    run(tmp_path)
    facts = json.loads((tmp_path / "compare.json").read_text())
    facts["data"]["checksum"] = "sha256:other"
    (tmp_path / "compare.json").write_text(json.dumps(facts))
    (tmp_path / "arms/sgd/final/seed0/result.json").unlink()
    with pytest.raises(RunError, match="not those that this comparison was started with"):
        run(tmp_path)


def test_a_bug_fails_the_comparison_with_its_name_and_traceback(tmp_path, inline):
    with pytest.raises(RunError, match=r"'SGD, seed 2' failed.*ZeroDivisionError: a bug"):
        run(tmp_path, train=fake_training.train_with_bug)
    text = (tmp_path / "errors.txt").read_text()
    assert "SGD, seed 2" in text
    assert "in train_with_bug" in text
    run(tmp_path)
    assert not (tmp_path / "errors.txt").exists()
    assert all(job.seed == 2 for job in inline[1].jobs)


def test_a_diverged_run_is_a_result_that_counts_as_chance(tmp_path, inline):
    run(tmp_path, train=fake_training.train_diverging)
    arm = read_comparison(tmp_path).arms[2]
    assert (arm.diverged, arm.diverged_seeds) == (1, (1,))
    assert arm.accuracy[1] == 0.5  # two classes; not the 0.99 that the file says
    assert any("1 of 3 final runs diverged" in warning for warning in warnings(read_comparison(tmp_path)))
    run(tmp_path)
    assert len(inline) == 1  # not trained again


def test_the_edge_of_the_grid_is_recorded_and_shown(tmp_path, inline):
    run(tmp_path, recipe(grid=(0.02, 0.05)))
    comparison = read_comparison(tmp_path)
    assert comparison.arms[1].choice.edge == ("train.optimizer.lr",)
    text = "\n".join(warnings(comparison))
    assert "tuned SGD: best learning rate at the edge of the grid (0.02, the smallest tried)" in text
    assert "0.02 *" in (tmp_path / "table.md").read_text().replace("\\", "")


def test_the_verdict_follows_the_numbers(tmp_path, inline):
    # SGD at 0.05 is 0.03 worse on every seed: no spread, so no test; ChannelL2 is 0.01 better, likewise
    run(tmp_path)
    assert "Nothing can be said yet" in verdict(read_comparison(tmp_path))[0]


def test_one_seed_has_no_interval(tmp_path, inline):
    run(tmp_path, recipe(seeds=1))
    arm = read_comparison(tmp_path).arms[2]
    assert arm.estimate.low is None
    assert arm.difference.p_value is None
    assert comparison_table(tmp_path).row_count == 3


def test_the_number_of_workers():
    assert worker_count(None, 100, ()) == usable_cores()
    assert worker_count(None, 100, ("0", "1", "2")) == 3
    assert worker_count(7, 100, ("0",)) == 7
    assert worker_count(7, 2, ()) == 2
    with pytest.raises(RunError, match="at least one worker, got 0"):
        worker_count(0, 5, ())


def test_workers_take_one_gpu_each_in_turn(monkeypatch):
    import multiprocessing

    import torch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "before")
    monkeypatch.setattr("weightspace.compare.worker.signal.signal", lambda *_: None)
    counter = multiprocessing.get_context("spawn").Value("i", 0)
    given = []
    threads = torch.get_num_threads()
    for _ in range(3):
        start_worker(threads, counter, ("4", "7"))
        given.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert given == ["4", "7", "4"]


def test_real_worker_processes_load_the_data_once_each(tmp_path, monkeypatch):
    monkeypatch.setenv("COUNT_LOADS", str(tmp_path / "loads"))
    run(tmp_path / "run", workers=2)
    loads = (tmp_path / "loads").read_text().split()
    assert len(loads) == len(set(loads)) <= 2
    runs = seen(tmp_path / "run", "*/*/*")
    assert {str(r["pid"]) for r in runs} == set(loads)
    assert os.getpid() not in {r["pid"] for r in runs}
    assert {r["threads"] for r in runs} == {max(1, usable_cores() // 2)}


def test_a_worker_that_dies_is_reported(tmp_path):
    with pytest.raises(RunError, match=r"worker process was killed while training \(SGD, seed 0.*same command again"):
        run(tmp_path, recipe({"SGD": {"tune": False}}), train=fake_training.die, workers=1)


SCRIPT = """
import sys
sys.path[:0] = {path!r}
import fake_training
from fabricated import make_recipe
from pathlib import Path
from weightspace.compare import ComparisonInterrupted, run_comparison
if __name__ == "__main__":
    recipe = make_recipe({{"tuned SGD": {{}}}}, seeds=2, grid=(0.01, 0.02))
    try:
        run_comparison(recipe, Path({run!r}), workers=2, train=fake_training.train_slowly, load=fake_training.load)
    except ComparisonInterrupted as error:
        print(error)
        sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_interrupt_kills_the_workers_and_keeps_what_is_finished(tmp_path, number):
    script, folder = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SCRIPT.format(path=[str(Path(__file__).parent)], run=str(folder)))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while len(workers := list(folder.glob("arms/*/final/*/pid-*"))) < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        began = time.monotonic()
        process.send_signal(number)
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert time.monotonic() - began < 5
    assert process.returncode == 128 + number
    assert "the same command continues" in output
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(int(worker.name.partition("-")[2]), 0)
    assert len(list(folder.glob("arms/*/tune/*/result.json"))) == 2
    assert read_comparison(folder).missing == ("tuned SGD, seed 0", "tuned SGD, seed 1")
