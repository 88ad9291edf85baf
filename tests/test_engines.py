"""Engines: equal results whoever trains, runs of lost workers done again, refusals. Training is real and tiny."""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

import engine_jobs
from fabricated import make_recipe
from here_engine import HereEngine, run_here
from weightspace.chains import run_sampling
from weightspace.chains.keeper import ChainOrder
from weightspace.chains.worker import do_chain_elsewhere
from weightspace.compare import engines_ray, read_comparison, run_comparison
from weightspace.compare.directory import has_finished_runs, remove_leftovers
from weightspace.compare.engines import Losses, WorkerLost, relay
from weightspace.compare.engines_local import LocalEngine, local_engine
from weightspace.compare.engines_ray import share_out
from weightspace.compare.execution import EngineChoice, Execution
from weightspace.compare.plan import final_jobs, make_plan
from weightspace.compare.worker import Order, Outcome, deliver, do_job_elsewhere
from weightspace.errors import RecipeError, RunError
from weightspace.training.loop import train_run
from weightspace.training.recipe import Recipe

TIMES = {"seconds", "seconds_per_step"}


def recipe(*, seeds: int = 2) -> Recipe:
    """Two arms on 60 digits; a fraction of a second a run."""
    values = make_recipe({"SGD": {"tune": False}, "tuned": {}}, seeds=seeds, epochs=2, grid=(0.01, 0.1)).to_dict()
    values["data"] |= {"train_size": 60, "test_size": 20}
    values["train"] |= {"batch_size": 10}
    values["compare"]["baseline"] = "SGD"
    return Recipe.from_dict(values)


def contents(folder: Path) -> dict[str, object]:
    """Every file of every run, without times."""
    found: dict[str, object] = {}
    for path in sorted(folder.glob("arms/**/*")):
        name = path.relative_to(folder).as_posix()
        if path.name == "result.json":
            found[name] = {key: value for key, value in json.loads(path.read_text()).items() if key not in TIMES}
        elif path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


@pytest.fixture
def here(monkeypatch):
    def use(**options):
        return run_here(monkeypatch, HereEngine(**options))

    return use


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The comparison, run in this process by an engine that loses nothing."""
    with pytest.MonkeyPatch.context() as patch:
        run_here(patch)
        return contents(run_comparison(recipe(), tmp_path_factory.mktemp("reference")))


# ------------------------------------------------------------------------------------------- what the runner does


def test_a_run_whose_worker_is_lost_is_done_again_and_before_all_others(tmp_path, here, reference):
    engine = here(losses=["SGD, seed 0", "SGD, seed 0"])
    told = []
    run_comparison(recipe(), tmp_path, Execution(progress=lambda text, *_: told.append(text)))
    finals = [name for _, name in engine.jobs if "trial" not in name]
    assert finals[:4] == ["SGD, seed 0"] * 3 + ["tuned, seed 0"]
    assert told.count("SGD, seed 0: its worker was lost (its process was killed); the run is done again") == 2
    assert contents(tmp_path) == reference
    assert json.loads((tmp_path / "compare.json").read_text())["lost_workers"] == {"SGD, seed 0": 2}


def test_a_run_that_loses_three_workers_ends_the_comparison_and_the_same_command_continues(tmp_path, here, reference):
    here(losses=["tuned, seed 1"] * 3)
    with pytest.raises(RunError) as caught:
        run_comparison(recipe(), tmp_path)
    assert str(caught.value) == (
        "the run 'tuned, seed 1' failed: its worker was lost 3 times (its process was killed), perhaps for lack of "
        f"memory; use fewer --workers if it happens again; the traceback is in {tmp_path / 'errors.txt'}, finished runs "
        "are kept, and the same command continues"
    )
    assert read_comparison(tmp_path).missing == ("tuned, seed 1",)
    engine = here()
    run_comparison(recipe(), tmp_path)
    assert [name for _, name in engine.jobs] == ["tuned, seed 1"]
    assert contents(tmp_path) == reference


def test_runs_that_were_trained_elsewhere_arrive_whole(tmp_path, here, reference):
    engine = here(shares_folders=False)
    run_comparison(recipe(), tmp_path)
    assert {name for name, _ in engine.jobs} == {"do_job_elsewhere"}
    assert contents(tmp_path) == reference
    assert not (tmp_path / ".incoming").exists()


def an_order(folder: Path) -> Order:
    from weightspace.compare.worker import describe_data
    from weightspace.training.session import load_recipe_data

    settings = recipe()
    plan = make_plan(settings)
    job = final_jobs(plan, plan.arms[0], None)[0]
    return Order(job, folder, 0.2, describe_data(load_recipe_data(settings))["checksum"], train_run, load_recipe_data)


def test_a_delivery_replaces_what_was_half_written_and_sets_aside_what_was_finished(tmp_path):
    order = an_order(tmp_path / "does not exist here")
    outcome = do_job_elsewhere(order)
    assert {"result.json", "metrics.jsonl"} <= {name for name, _ in outcome.files}
    folder = tmp_path / order.job.directory
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("half")
    (folder / "left over").touch()
    deliver(outcome, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == sorted(name for name, _ in outcome.files)
    deliver(outcome, tmp_path)
    assert (tmp_path / "superseded" / order.job.directory / "result.json").exists()


def test_a_delivery_writes_nothing_outside_of_its_folder(tmp_path):
    job = an_order(tmp_path).job
    for name in ("../../evil", "/evil", "a/../../evil"):
        with pytest.raises(RunError, match="which is none of its own"):
            deliver(Outcome(job, files=((name, b"x"),)), tmp_path / "run")
    assert not list(tmp_path.rglob("evil"))
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write the files of 'SGD, seed 0'"):
        deliver(Outcome(job, files=(("a", b"x"),)), tmp_path / "file")


def test_half_a_delivery_counts_for_nothing(tmp_path):
    (tmp_path / ".incoming").mkdir()
    (tmp_path / ".incoming/result.json").write_text("{}")
    assert not has_finished_runs(tmp_path, "sgd")
    remove_leftovers(tmp_path)
    assert not (tmp_path / ".incoming").exists()


def test_an_error_elsewhere_brings_no_files(tmp_path):
    import dataclasses

    outcome = do_job_elsewhere(dataclasses.replace(an_order(tmp_path), data_checksum="sha256:other"))
    assert "not those that this comparison was started with" in outcome.error
    assert outcome.files == ()


def test_losses_are_counted_by_run():
    losses = Losses()
    assert [losses.again("a"), losses.again("b"), losses.again("a"), losses.again("a")] == [True, True, True, False]
    assert losses.counts == {"a": 3, "b": 1}


def test_a_relayed_future_translates_exceptions_and_nothing_else():
    def translate(error):
        return error if isinstance(error, WorkerLost) else KeyError(str(error))

    good, bad, gone = Future(), Future(), Future()
    relayed = [relay(future, translate) for future in (good, bad, gone)]
    good.set_result(3)
    bad.set_exception(ValueError("x"))
    gone.cancel()
    assert relayed[0].result() == 3
    assert isinstance(relayed[1].exception(), KeyError)
    gone.set_running_or_notify_cancel()
    assert isinstance(relayed[2].exception(timeout=1), WorkerLost)


def test_what_kills_jobs_at_once_is_not_met_again_at_once():
    source = Future()
    kept_back = relay(source, lambda error: WorkerLost(str(error)), lambda _: 0.3)
    began = time.monotonic()
    source.set_exception(ValueError("a machine is gone"))
    assert not kept_back.done()
    with pytest.raises(WorkerLost, match="a machine is gone"):
        kept_back.result(timeout=60)
    assert time.monotonic() - began > 0.29


# ------------------------------------------------------------------------------------------------------------ chains


def chains_recipe() -> Recipe:
    values = recipe().to_dict()
    values["train"] |= {"epochs": 3}
    values["sample"] = {"chains": 2, "burn_in_epochs": 1}
    return Recipe.from_dict({key: value for key, value in values.items() if key != "compare"})


def test_a_chain_whose_worker_is_lost_goes_on_wherever_it_is_sampled(tmp_path, here):
    engine = here(shares_folders=False, losses=["chain 1"])
    with pytest.warns(RuntimeWarning, match=r"chain 1: its worker was lost \(its process was killed\); it goes on"):
        found = run_sampling(chains_recipe(), tmp_path / "a", Execution(workers=2))
    assert engine.jobs.count(("do_chain_elsewhere", "chain 1")) == 2
    plain = run_sampling(chains_recipe(), tmp_path / "b", Execution(workers=1))
    weights = [tmp_path / place / "chain-1/model.safetensors" for place in "ab"]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    one, other = ([chain | {"seconds": 0} for chain in facts["results"]["chains"]] for facts in (found, plain))
    assert one == other
    here(losses=["chain 0"] * 3)
    with (
        pytest.warns(RuntimeWarning, match="it goes on"),
        pytest.raises(RunError, match="chain 0 failed: its worker was"),
    ):
        run_sampling(chains_recipe(), tmp_path / "c", Execution(workers=2))


def test_a_machine_that_does_not_see_the_folder_of_the_chains_says_so(tmp_path):
    ended = do_chain_elsewhere(ChainOrder(chains_recipe(), tmp_path / "gone", 0), "sha256:any")
    assert f"does not see {tmp_path / 'gone'}; chains save their samples" in ended.error


# ---------------------------------------------------------------------------------------------------------- choosing


def test_what_engine_is_there(monkeypatch):
    EngineChoice().checked("auto")
    with pytest.raises(RecipeError, match=r"there is no engine 'rai'; did you mean 'ray'\?"):
        EngineChoice("rai").checked("auto")
    with pytest.raises(RecipeError, match="there is no engine 'slurm'; known are local, ray"):
        EngineChoice("slurm").checked("auto")
    with pytest.raises(RecipeError, match="'local' has no address, got 'head:1'; say --engine ray with it"):
        EngineChoice("local", "head:1").checked("auto")
    monkeypatch.setattr(engines_ray.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        RunError, match=r"needs the package ray: install weightspace with its extra, \"\.\[train,ray\]\""
    ):
        EngineChoice("ray").checked("auto")


def test_an_unknown_engine_touches_no_folder(tmp_path):
    with pytest.raises(RecipeError, match="there is no engine 'dask'"):
        run_comparison(recipe(), tmp_path / "run", Execution(engine=EngineChoice("dask")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("nodes", "workers", "accelerator", "expected"),
    [
        ([8], None, "auto", (8, 1, 0.0)),
        ([8], 3, "auto", (3, 2, 0.0)),
        ([8, 8], 3, "auto", (3, 4, 0.0)),  # five threads each would leave room for two runs only
        ([2, 1], 2, "auto", (2, 1, 0.0)),
        ([1], 4, "auto", (4, 1, 0.0)),
        ([(8, 2)], None, "auto", (2, 4, 1.0)),
        ([(8, 2)], 3, "cuda", (3, 2, 0.6666)),
        ([(8, 2)], None, "cpu", (8, 1, 0.0)),
        ([(8, 4), 8], 100, "auto", (10, 1, 0.4)),  # ten runs in all
        ([0], None, "auto", (1, 1, 0.0)),
    ],
)
def test_shares_of_a_cluster(nodes, workers, accelerator, expected):
    machines = [{"CPU": float(n[0]), "GPU": float(n[1])} if isinstance(n, tuple) else {"CPU": float(n)} for n in nodes]
    assert share_out(machines, workers=workers, jobs=10, accelerator=accelerator) == expected


def test_a_cluster_without_the_accelerator_is_refused():
    with pytest.raises(RecipeError, match="cannot use the accelerator 'cuda': the Ray cluster has none"):
        share_out([{"CPU": 2.0}], workers=None, jobs=1, accelerator="cuda")


# ------------------------------------------------------------------------------------- processes of this machine


def test_a_worker_killed_in_the_middle_of_a_run_changes_nothing(tmp_path, reference):
    told = []
    run_comparison(
        recipe(),
        tmp_path / "run",
        Execution(workers=2, progress=lambda text, *_: told.append(text)),
        train=functools.partial(engine_jobs.train_and_be_killed_once, mark=tmp_path / "mark"),
    )
    assert (tmp_path / "mark").exists()
    lost = [text for text in told if "its worker was lost (its process was killed); the run is done again" in text]
    assert len(lost) == 1
    assert contents(tmp_path / "run") == reference
    facts = json.loads((tmp_path / "run/compare.json").read_text())
    assert (facts["engine"], facts["workers"], list(facts["lost_workers"].values())) == ("local", 2, [1])


@pytest.mark.slow
def test_a_run_that_kills_every_worker_is_given_up_after_three(tmp_path):
    with pytest.raises(RunError, match=r"'SGD, seed 1' failed.*its worker was lost 3 times \(its process was killed\)"):
        run_comparison(recipe(), tmp_path, Execution(workers=1), train=engine_jobs.train_and_always_be_killed)
    assert "SGD, seed 1" in read_comparison(tmp_path).missing


@pytest.mark.slow
def test_a_lost_worker_takes_no_other_and_its_successor_gets_its_gpu(tmp_path):
    with local_engine(2, 1, ("4", "7")) as engine:
        long = engine.submit(engine_jobs.wait_for, tmp_path / "go")
        lost = engine.submit(engine_jobs.die)
        with pytest.raises(WorkerLost, match="its process was killed"):
            lost.result()
        gpu, first = engine.submit(engine_jobs.environment, "CUDA_VISIBLE_DEVICES").result()
        _, second = engine.submit(engine_jobs.environment, "CUDA_VISIBLE_DEVICES").result()
        assert gpu == "7"
        assert first == second  # a worker stays for the next job
        (tmp_path / "go").touch()
        assert long.result() is None
        assert engine.submit(engine_jobs.threads).result() == 1
        with pytest.raises(ZeroDivisionError, match="a bug"):
            engine.submit(engine_jobs.fail).result()


@pytest.mark.slow
def test_local_workers_stop_when_they_are_asked_to(tmp_path):
    engine = LocalEngine(1, 1)
    future = engine.submit(engine_jobs.stop_when_asked, tmp_path / "signal")
    while not (tmp_path / "signal.begun").exists():
        time.sleep(0.1)
    engine.interrupt()
    assert future.result(timeout=100) is None
    engine.close()
    assert (tmp_path / "signal").read_text() == str(int(signal.SIGTERM))


# --------------------------------------------------------------------------------------------------- a Ray cluster


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine: two cores, and two GPUs that it is told of."""
    ray = pytest.importorskip("ray", reason="needs the extra `ray`")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's workers import the jobs by name, and do not have pytest's path.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_ray_gives_the_same_results_though_a_worker_is_killed(tmp_path, reference):
    told = []
    run_comparison(
        recipe(),
        tmp_path / "run",
        Execution(2, "cpu", EngineChoice("ray"), progress=lambda text, *_: told.append(text)),
        train=functools.partial(engine_jobs.train_and_be_killed_once, mark=tmp_path / "mark"),
    )
    assert (tmp_path / "mark").exists()
    assert len([text for text in told if "its worker was lost (The worker died unexpectedly" in text]) == 1
    assert contents(tmp_path / "run") == reference
    facts = json.loads((tmp_path / "run/compare.json").read_text())
    assert (facts["engine"], facts["workers"], facts["threads"]) == ("ray", 2, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_ray_gives_up_a_run_that_kills_every_worker(tmp_path):
    train = engine_jobs.train_and_always_be_killed
    with pytest.raises(RunError, match=r"'SGD, seed 1' failed.*its worker was lost 3 times \(The worker died"):
        run_comparison(recipe(), tmp_path, Execution(1, "cpu", EngineChoice("ray")), train=train)
    assert "SGD, seed 1" in read_comparison(tmp_path).missing


@pytest.mark.slow
def test_ray_workers_get_cores_gpus_and_the_versions_of_the_caller(cluster, tmp_path, monkeypatch):
    with engines_ray.ray_engine(None, workers=None, jobs=9, accelerator="auto") as engine:
        assert (engine.count, engine.threads, engine.shares_folders) == (2, 1, False)
        seen = [engine.submit(engine_jobs.environment, "CUDA_VISIBLE_DEVICES") for _ in range(2)]
        assert {future.result()[0] for future in seen} <= {"0", "1"}
    with engines_ray.ray_engine(None, workers=None, jobs=9, accelerator="cpu") as engine:
        assert engine.submit(engine_jobs.threads).result() == 1
        assert engine.submit(Path.cwd).result() == Path.cwd()
        with pytest.raises(ZeroDivisionError, match="a bug"):
            engine.submit(engine_jobs.fail).result()
        future = engine.submit(engine_jobs.stop_when_asked, tmp_path / "signal")
        while not (tmp_path / "signal.begun").exists():
            time.sleep(0.1)
        engine.interrupt()
        assert future.result(timeout=100) is None
        assert (tmp_path / "signal").read_text() == str(int(signal.SIGINT))
    assert cluster.is_initialized()  # it was there before, and stays
    monkeypatch.setattr(engines_ray, "versions", lambda: {"torch": "0.1", "weightspace": "9"})
    started = pytest.raises(RunError, match=r"has torch .*, the comparison was started with 0\.1; install the same")
    with engines_ray.ray_engine(None, workers=1, jobs=9, accelerator="cpu") as engine, started:
        engine.submit(engine_jobs.threads).result()


def test_what_an_error_of_ray_means():
    exceptions = pytest.importorskip("ray.exceptions", reason="needs the extra `ray`")
    meaning = engines_ray._lost_or_error
    for lost in (
        exceptions.WorkerCrashedError(),
        exceptions.NodeDiedError("gone"),
        exceptions.OutOfMemoryError("full"),
    ):
        assert isinstance(meaning(lost), WorkerLost)
    assert engines_ray._seconds_until_noticed(exceptions.NodeDiedError("gone")) > 15
    assert engines_ray._seconds_until_noticed(exceptions.WorkerCrashedError()) == 0
    ended = meaning(exceptions.LocalRayletDiedError())
    assert isinstance(ended, RunError)
    assert "Ray has ended on this machine" in str(ended)
    assert isinstance(meaning(KeyError("x")), KeyError)


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_one_sentence(monkeypatch):
    ray = pytest.importorskip("ray", reason="needs the extra `ray`")
    if ray.is_initialized():
        ray.shutdown()
    refused = pytest.raises(RunError, match=r"cannot reach a Ray cluster at 'auto' \(.*`ray start --head` starts one")
    with refused, engines_ray.ray_engine("auto", workers=1, jobs=1, accelerator="cpu"):
        pass
