"""The runner: equal budget, nothing redone, refusals, failures, divergence, interruption. Training is faked."""

from __future__ import annotations

import errno
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
from weightspace.compare import Execution, comparison_table, directory, read_comparison, run_comparison
from weightspace.compare import runner as runner_module
from weightspace.compare.directory import delete_comparison
from weightspace.compare.opening import recipe_differences, same_spelling
from weightspace.compare.pool import Devices, find_devices, worker_count
from weightspace.compare.table import table_columns, table_row, table_values
from weightspace.compare.verdict import verdict, warnings
from weightspace.errors import DataError, RecipeError, RunError
from weightspace.training.environment import usable_cores
from weightspace.training.lock import locked
from weightspace.training.recipe import Recipe

ARMS = {
    "SGD": {"tune": False},
    "tuned SGD": {},
    "ChannelL2": {"rules": [{"rule": "ChannelL2", "smoothing": 4.0}]},
}


def recipe(arms: dict | None = None, **options) -> Recipe:
    return make_recipe(arms or ARMS, **({"seeds": 3, "grid": (0.01, 0.02, 0.05)} | options))


class InlineEngine:
    """Runs jobs at once in this process: most tests need no other one."""

    threads, shares_folders = 1, True

    def __init__(self, count):
        self.count = count
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
    engines = []

    def make(how, *, jobs):
        engines.append(InlineEngine(worker_count(how.workers, jobs, find_devices(how.accelerator))))
        return engines[-1]

    monkeypatch.setattr(runner_module, "open_engine", make)
    return engines


def run(run_dir: Path, settings: Recipe | None = None, *, train=fake_training.train, **options) -> Path:
    return run_comparison(settings or recipe(), run_dir, Execution(**options), train=train, load=fake_training.load)


def fail(recipe, run_dir, *, seed, data):
    raise ZeroDivisionError


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


def test_the_same_number_in_other_characters_is_the_same_recipe(tmp_path, inline):
    run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("arms/*/*/*/seen.json")}
    arms = {
        "ChannelL2": {"rules": [{"smoothing": 4, "rule": "ChannelL2"}]},
        **{n: ARMS[n] for n in ("SGD", "tuned SGD")},
    }
    run(tmp_path, recipe(arms))
    assert len(inline) == 1
    assert {path: path.read_bytes() for path in before} == before
    assert not (tmp_path / "superseded").exists()
    assert [arm.arm.name for arm in read_comparison(tmp_path).arms] == ["ChannelL2", "SGD", "tuned SGD"]
    assert read_comparison(tmp_path).missing == ()


def test_numbers_flags_and_the_order_of_tuned_paths():
    old = {"rules": [{"smoothing": 4.0, "keep_norm": True}], "grid": {"lr": [1.0], "batch": [2]}}
    new = {"rules": [{"smoothing": 4, "keep_norm": True}], "grid": {"batch": [2], "lr": [1]}}
    assert recipe_differences(old, new) == []
    assert json.dumps(same_spelling(old, new)) == json.dumps(old)
    assert recipe_differences(old, {**new, "rules": [{"smoothing": 4, "keep_norm": 1}]}) == [
        "rules.0.keep_norm: True -> 1"
    ]
    assert same_spelling([1.0], [1, 2]) == [1, 2]


def test_a_finished_run_of_other_settings_is_set_aside(tmp_path, inline):
    run(tmp_path)
    result = tmp_path / "arms/sgd/final/seed1/result.json"
    other = result.read_text().replace('"fingerprint": "', '"fingerprint": "0')
    for number, folder in enumerate(["seed1", "seed1-2"], start=1):
        result.write_text(other)
        run(tmp_path)
        assert len(inline) == 1 + number
        assert (tmp_path / "superseded/arms/sgd/final" / folder / "result.json").read_text() == other
    delete_comparison(tmp_path)
    assert not (tmp_path / "superseded").exists()


def test_arms_keep_their_folders_when_others_are_put_before_them(tmp_path, inline):
    rule = {"rules": [{"rule": "GradientCentralization"}]}
    run(tmp_path, recipe({"base": {}, "a b": rule}))
    for arms in ({"base": {}, "a-b": {}, "a b": rule}, {"a-b": {}, "base": {}, "a.b": {}, "a b": rule}):
        settings = recipe(arms).to_dict()
        settings["compare"]["baseline"] = "base"
        run(tmp_path, Recipe.from_dict(settings))
    assert [{job.arm for job in pool.jobs} for pool in inline] == [{"base", "a b"}, {"a-b"}, {"a.b"}]
    slugs = {arm.arm.name: arm.arm.slug for arm in read_comparison(tmp_path).arms}
    assert slugs == {"base": "base", "a b": "a-b", "a-b": "a-b-2", "a.b": "a-b-3"}
    assert read_comparison(tmp_path).missing == ()


def test_a_recipe_that_fails_at_once_does_not_block_the_corrected_one(tmp_path, inline):
    with pytest.raises(RunError, match="ZeroDivisionError"):
        run(tmp_path, recipe({"SGD": {"tune": False}, "oops": {"tune": False}}, seeds=2), train=fail)
    (tmp_path / "arms/oops/final/seed0").mkdir(parents=True)
    run(tmp_path, recipe({"SGD": {"tune": False}}, epochs=9))
    assert read_comparison(tmp_path).plan.recipe.train.epochs == 9
    assert not (tmp_path / "arms/oops").exists()


def test_an_added_arm_that_fails_at_once_can_be_corrected_or_taken_out(tmp_path, inline):
    run(tmp_path)
    for smoothing in (1.0, 2.0):
        rules = [{"rule": "LaplacianSmoothing", "smoothing": smoothing}]
        with pytest.raises(RunError, match="ZeroDivisionError"):
            run(tmp_path, recipe(ARMS | {"new": {"rules": rules}}), train=fail)
    run(tmp_path)
    assert {job.arm for pool in inline[1:] for job in pool.jobs} == {"new"}
    assert not (tmp_path / "arms/new").exists()
    assert len(read_comparison(tmp_path).arms) == 3


def test_missing_data_are_one_error_before_any_worker_starts(tmp_path, inline):
    def gone(_):
        raise DataError("the data set 'tiny' is not there; put it here")

    with pytest.raises(DataError, match="put it here"):
        run_comparison(recipe(), tmp_path, train=fake_training.train, load=gone)
    assert inline == []
    run(tmp_path)
    run_comparison(recipe(), tmp_path, train=fake_training.train, load=gone)  # all finished: nothing to load
    assert len(inline) == 1


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, inline, monkeypatch):
    def full(recipe, run_dir, *, seed, data):
        if seed == 1:
            raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
        return fake_training.train(recipe, run_dir, seed=seed, data=data)

    write = directory.write_text_atomically

    def fail_on_errors(path, text):
        if path.name == "errors.txt":
            raise RunError("cannot write errors.txt: no space left on device")
        write(path, text)

    monkeypatch.setattr(directory, "write_text_atomically", fail_on_errors)
    with pytest.raises(RunError) as caught:
        run(tmp_path, train=full)
    assert str(caught.value) == (
        "the run 'SGD, seed 1' failed: no space left on device (metrics.jsonl); finished runs are kept, and the same "
        "command continues"
    )
    run(tmp_path)
    assert {job.seed for job in inline[1].jobs} == {1, 2}


def test_what_a_killed_writer_left_is_cleared(tmp_path, inline):
    run(tmp_path)
    mine = [tmp_path / name for name in (".compare.json.77-0a0b0c0d.tmp", ".table.md.9-ffffffff.tmp")]
    others = [
        tmp_path / name for name in (".report.html.7-0a0b0c0d.tmp", ".notes.txt")
    ]  # a report may be in the making
    for path in (*mine, *others):
        path.touch()
    run(tmp_path)
    assert not any(path.exists() for path in mine)
    assert all(path.exists() for path in others)


def test_after_fresh_another_command_continues(tmp_path, inline):
    with pytest.raises(RunError, match="and the same command without --fresh continues"):
        run(tmp_path, train=fail, command="weightspace compare tiny --fresh")
    with pytest.raises(RunError, match="and the same command continues"):
        run(tmp_path, train=fail, command="weightspace compare tiny")


def test_the_accelerator_reaches_the_training_and_the_record(tmp_path, inline):
    used = []

    def train(recipe, run_dir, *, seed, data, accelerator):
        used.append(accelerator)
        return fake_training.train(recipe, run_dir, seed=seed, data=data)

    run(tmp_path, train=train, accelerator="cpu")
    assert set(used) == {"cpu"}
    assert json.loads((tmp_path / "compare.json").read_text())["accelerator"] == "cpu"
    run(tmp_path)
    assert any("different settings of --accelerator" in text for text in warnings(read_comparison(tmp_path)))


def test_accelerators_of_this_machine(monkeypatch):
    import torch

    def machine(*, cuda, mps):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3")
    machine(cuda=True, mps=False)
    assert find_devices("auto") == find_devices("gpu") == Devices(2, ("2", "3"))
    assert find_devices("cpu") == Devices(0)
    machine(cuda=False, mps=True)
    assert find_devices("auto") == find_devices("mps") == Devices(1)
    machine(cuda=False, mps=False)
    assert find_devices("auto") == Devices(0)
    for name in ("cuda", "gpu", "mps"):
        with pytest.raises(RecipeError, match=f"cannot use the accelerator '{name}'"):
            find_devices(name)
    with pytest.raises(RecipeError, match="'tpuu'; known are auto, cpu"):
        find_devices("tpuu")


def test_an_added_arm_is_trained_and_the_others_kept(tmp_path, inline):
    run(tmp_path)
    run(tmp_path, recipe(ARMS | {"centralized": {"rules": [{"rule": "GradientCentralization"}]}}))
    assert {job.arm for job in inline[1].jobs} == {"centralized"}
    assert len(read_comparison(tmp_path).arms) == 4


def test_what_decides_nothing_may_differ():
    old = recipe().to_dict()
    new = old | {"description": "other words", "data": old["data"] | {"root": "/elsewhere"}}
    assert recipe_differences(old, new) == []
    # the data set `folder` is known by its place alone, which then decides the runs' fingerprints
    old["data"], new["data"] = {"name": "folder", "root": "a"}, {"name": "folder", "root": "b"}
    assert recipe_differences(old, new) == ["data.root: a -> b"]


def test_a_folder_with_something_else_is_refused(tmp_path, inline):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"holds thesis\.tex but no compare\.json"):
        run(tmp_path)
    with pytest.raises(RunError, match="is a file"):
        run(tmp_path / "thesis.tex")


@pytest.mark.parametrize(
    "content",
    ['{"recipe": ', "[]", "{}", '{"recipe": {"name": "x"}}', "slugs that leave the folder", "a list for the data"],
)
def test_a_damaged_compare_file_is_refused_and_its_advice_works(tmp_path, inline, content):
    run(tmp_path)
    path = tmp_path / "compare.json"
    facts = json.loads(path.read_text())
    if content.startswith("slugs"):
        content = json.dumps(facts | {"slugs": {"SGD": "../.."}})
    elif content.startswith("a list"):
        content = json.dumps(facts | {"data": []})
    path.write_text(content)
    for refused in (lambda: run(tmp_path), lambda: read_comparison(tmp_path)):
        with pytest.raises(RunError, match="damaged.*delete it and run `compare` with its recipe again") as caught:
            refused()
        assert "\n" not in str(caught.value)
    path.unlink()
    run(tmp_path)
    assert len(inline) == 1  # every finished run was taken up
    comparison = read_comparison(tmp_path)
    assert comparison.missing == ()
    assert any("compare.json was lost and made anew" in warning for warning in warnings(comparison))


def test_a_folder_that_only_looks_like_a_comparison_is_not_taken_up(tmp_path, inline):
    for name in ("arms/sgd/final/seed0", "arms/left/final/seed0", "plots"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "arms/left/pose.png").touch()
    with pytest.raises(RunError, match=r"holds arms/left/pose\.png but no compare\.json"):
        run(tmp_path)
    with pytest.raises(RunError, match=r"arms/left/pose\.png.*--fresh deletes only comparisons"):
        delete_comparison(tmp_path)
    (tmp_path / "arms/left/pose.png").unlink()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"holds thesis\.tex"):
        run(tmp_path)
    delete_comparison(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["thesis.tex"]


def test_two_comparisons_in_one_folder_are_refused(tmp_path, inline):
    with locked(tmp_path, "running a comparison"), pytest.raises(RunError, match="another process"):
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


def with_own_range(ranges: dict | None = None) -> Recipe:
    """Random search; ChannelL2 tunes its smoothing too."""
    values = recipe().to_dict()
    values["compare"]["arms"]["ChannelL2"]["ranges"] = ranges or SMOOTHING
    values["compare"]["tune"] = {"random": {"trials": 6, "ranges": {"train.optimizer.lr": [0.01, 0.1]}}, "seeds": 1}
    return Recipe.from_dict(values)


SMOOTHING = {"rules.0.smoothing": [0.1, 10.0]}


def smooth_is_best(recipe, run_dir, *, seed, data):
    """More smoothing is always better."""
    result = fake_training.train(recipe, run_dir, seed=seed, data=data)
    for rule in recipe.rules:
        result["test_accuracy"] = 0.5 + rule["smoothing"] / 100
        (run_dir / "result.json").write_text(json.dumps(result))
    return result


def test_an_arm_that_tunes_a_setting_of_its_own(tmp_path, inline):
    run(tmp_path, with_own_range(), train=smooth_is_best)
    comparison = read_comparison(tmp_path)
    _, sgd, own = comparison.arms
    drawn = [trial.settings["rules.0.smoothing"] for trial in own.arm.trials]
    assert own.choice.edge == ("rules.0.smoothing",)
    assert own.settings == own.arm.trials[drawn.index(max(drawn))].settings
    assert {rule["smoothing"] for rule in own.recipe.rules} == {max(drawn)}
    assert set(sgd.settings) == {"train.optimizer.lr"}
    text = "\n".join(warnings(comparison))
    where = f"best smoothing the outermost of the draws ({max(drawn):g}, the largest of 6 between 0.1 and 10)"
    assert f"ChannelL2: {where}; a better value may lie beyond." in text
    assert table_columns(comparison)[:3] == ["arm", "learning rate", "smoothing"]
    rows = {arm.arm.name: table_row(arm, comparison) for arm in comparison.arms}
    assert rows["tuned SGD"][2] == rows["SGD"][2] == "–"
    assert rows["ChannelL2"][1:3] == [f"{own.settings['train.optimizer.lr']:g}", f"{max(drawn):g} *"]
    values = {arm["name"]: arm for arm in table_values(comparison)["arms"]}
    assert values["ChannelL2"]["own_paths"] == ["rules.0.smoothing"]
    assert values["ChannelL2"]["trials"][2]["settings"] == own.arm.trials[2].settings
    note = "Tuning: 6 trials (learning rate, for 1 arm also smoothing in a range of the arm's own; random draws"
    assert note in (tmp_path / "table.md").read_text()
    run(tmp_path, with_own_range(), train=smooth_is_best)
    assert len(inline) == 1  # known again, nothing is trained
    with pytest.raises(RunError, match=r"compare\.arms\.ChannelL2\.ranges\.rules\.0\.smoothing\.1: 10\.0 -> 20\.0"):
        run(tmp_path, with_own_range({"rules.0.smoothing": [0.1, 20.0]}))


def test_columns_of_several_own_settings_name_them(tmp_path, inline):
    clip = {"set": {"train.batch_size": 20}, "ranges": {"train.clip_norm": [0.1, 10.0]}}
    values = with_own_range().to_dict()
    values["compare"]["arms"]["clipped"] = clip
    run(tmp_path, Recipe.from_dict(values))
    comparison = read_comparison(tmp_path)
    assert table_columns(comparison)[2] == "own settings"
    cells = {arm.arm.name: table_row(arm, comparison)[2] for arm in comparison.arms}
    assert cells["SGD"] == "–"
    assert cells["ChannelL2"].startswith("smoothing=")
    assert cells["clipped"].startswith("clip_norm=")
    assert "for 2 arms also smoothing or clip norm in a range" in (tmp_path / "table.md").read_text()


def test_a_folder_from_before_own_ranges_is_opened(tmp_path, inline):
    run(tmp_path)
    facts = json.loads((tmp_path / "compare.json").read_text())
    for arm in facts["recipe"]["compare"]["arms"].values():
        assert arm.pop("ranges") == {}
    (tmp_path / "compare.json").write_text(json.dumps(facts))
    assert read_comparison(tmp_path).missing == ()
    run(tmp_path)
    assert len(inline) == 1


def test_the_verdict_follows_the_numbers(tmp_path, inline):
    # SGD at 0.05 is 0.03 worse on every seed: no spread, so no test; ChannelL2 is 0.01 better, likewise
    run(tmp_path)
    first, second = verdict(read_comparison(tmp_path))
    assert first == "Nothing can be said about a difference to tuned SGD: no arm could be tested."
    why = "points in each of the 3 pairs: there is no spread to compare it with"
    assert second == f"Not tested: SGD (the difference is -3.00 {why}); ChannelL2 (the difference is +1.00 {why})."


def test_one_seed_has_no_interval(tmp_path, inline):
    run(tmp_path, recipe(seeds=1))
    comparison = read_comparison(tmp_path)
    arm = comparison.arms[2]
    assert arm.estimate.low is None
    assert arm.difference.p_value is None
    assert comparison_table(tmp_path).row_count == 3
    assert verdict(comparison) == [
        "Nothing can be said about a difference to tuned SGD: no arm could be tested.",
        "Not tested: SGD, ChannelL2 (one seed shows no spread; a test takes `compare.seeds` of at least 2).",
    ]
    assert "Intervals: none" in (tmp_path / "table.md").read_text()


def noisy(recipe, run_dir, *, seed, data):
    """Seeds spread, but for arms that train as the baseline does, and those with a rule."""
    result = fake_training.train(recipe, run_dir, seed=seed, data=data)
    if recipe.train.batch_size == 32:
        result["test_accuracy"] += 0.01 * (-1) ** seed
        (run_dir / "result.json").write_text(json.dumps(result))
    return result


def test_the_verdict_names_what_was_not_tested_and_what_an_interval_could_show(tmp_path, inline):
    arms = {"base": {}, "same": {}, "small": {"set": {"train.batch_size": 32}}}
    run(tmp_path / "a", recipe(arms), train=noisy)
    (only,) = verdict(read_comparison(tmp_path / "a"))
    assert only.startswith("No arm differs from base after Holm's adjustment over 2 arms (adjusted p below 0.05). ")
    assert "The interval reaches 2.87 percentage points to either side; smaller differences would go unseen." in only
    arms |= {"smaller": arms["small"], "rule": ARMS["ChannelL2"]}
    run(tmp_path / "b", recipe(arms), train=noisy)
    first, second = verdict(read_comparison(tmp_path / "b"))
    assert first.startswith("No tested arm differs from base after Holm's adjustment over 3 arms")
    assert "The intervals reach 2.87 percentage points to either side" in first  # not "2.87 to 2.87"
    assert second.startswith("Not tested: rule (the difference is +1.00 points in each of the 3 pairs")
    run(tmp_path / "c", recipe({"base": {}, "same": {}}), train=noisy)
    assert "Every pair of results equals that of base" in verdict(read_comparison(tmp_path / "c"))[0]


def test_unequal_training_is_a_warning(tmp_path, inline):
    longer = {"set": {"train.epochs": 16, "train.batch_size": 10}}
    run(
        tmp_path,
        recipe({"base": {"set": {"train.batch_size": 20}}, "longer": longer, "same length": longer}),
    )
    (found,) = [text for text in warnings(read_comparison(tmp_path)) if text.startswith("Unequal training")]
    arms = "longer: 16 epochs of batches of 10 (64 steps); same length: 16 epochs of batches of 10 (64 steps)"
    assert f"{arms}; the baseline, base: 8 epochs of batches of 20 (16 steps). A difference may" in found


def test_no_two_columns_share_a_heading(tmp_path, inline):
    run(tmp_path)
    columns = table_columns(read_comparison(tmp_path))
    assert len(set(columns)) == len(columns)
    assert {"accuracy, 95% interval", "difference, 95% interval"} <= set(columns)


def test_the_number_of_workers():
    assert worker_count(None, 100, Devices(0)) == usable_cores()
    assert worker_count(None, 100, Devices(3, ("0", "1", "2"))) == 3
    assert worker_count(None, 100, Devices(1)) == 1  # one Apple GPU, which needs no CUDA_VISIBLE_DEVICES
    assert worker_count(7, 100, Devices(1, ("0",))) == 7
    assert worker_count(7, 2, Devices(0)) == 2
    with pytest.raises(RunError, match="at least one worker, got 0"):
        worker_count(0, 5, Devices(0))


def test_real_worker_processes_load_the_data_once_each(tmp_path, monkeypatch):
    monkeypatch.setenv("COUNT_LOADS", str(tmp_path / "loads"))
    run(tmp_path / "run", workers=2)
    first, *loads = (tmp_path / "loads").read_text().split()
    assert int(first) == os.getpid()  # once before any worker starts, to say at once what is wrong with the data
    assert len(loads) == len(set(loads)) <= 2
    runs = seen(tmp_path / "run", "*/*/*")
    assert {str(r["pid"]) for r in runs} == set(loads)
    assert os.getpid() not in {r["pid"] for r in runs}
    assert {r["threads"] for r in runs} == {max(1, usable_cores() // 2)}


SCRIPT = """
import sys
sys.path[:0] = {path!r}
import fake_training
from fabricated import make_recipe
from pathlib import Path
from weightspace.compare import ComparisonInterrupted, Execution, run_comparison
if __name__ == "__main__":
    recipe = make_recipe({{"tuned SGD": {{}}}}, seeds=2, grid=(0.01, 0.02))
    try:
        run_comparison(recipe, Path({run!r}), Execution(workers=2), train=fake_training.train_slowly, load=fake_training.load)
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
        deadline = time.monotonic() + 240  # a busy machine
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
