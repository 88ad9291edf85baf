"""Chains as they run: what is stored, bit-exact resuming, thermometers, warnings, and the numbers of the evaluation."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from weightspace.chains import keeper, run_sampling
from weightspace.chains.scores import Prediction, Scorer, average_of
from weightspace.chains.text import concerns, table_rows, temperature_line, verdict
from weightspace.compare import Execution
from weightspace.errors import RunError, SamplingError, TemperatureWarning
from weightspace.files import read_json
from weightspace.optim import Temperature
from weightspace.sampling import SampleStore, measure_calibration, open_chains
from weightspace.training.interrupt import Interrupted
from weightspace.training.json_lines import read_json_lines
from weightspace.training.models import build_model
from weightspace.training.recipe import Recipe
from weightspace.training.session import load_recipe_data
from weightspace.training.thermometers import complaints

pytestmark = pytest.mark.filterwarnings("ignore::weightspace.errors.TemperatureWarning")


def recipe(
    optimizer: dict[str, Any] | None = None, sample: dict[str, Any] | None = None, epochs: int = 6, **train: Any
) -> Recipe:
    langevin = {"name": "ConstrainedLangevin", "lr": 0.02, "options": {"temperature": 1.0, "weight_decay": 0.02}}
    return Recipe.from_dict(
        {
            "name": "tiny",
            "data": {"name": "digits", "train_size": 96, "test_size": 60},
            "model": {"name": "mlp", "options": {"hidden": 8}},
            "train": {
                "epochs": epochs,
                "batch_size": 32,
                "optimizer": optimizer or langevin,
                "measure_every": 1,
                "evaluate_every": 3,
                **train,
            },
            "sample": {"chains": 2, "burn_in_epochs": 2, "max_samples": 6, **(sample or {})},
        }
    )


def sampled(folder: Path, settings: Recipe, **options: Any) -> dict[str, Any]:
    return run_sampling(settings, folder, Execution(workers=1, accelerator="cpu", **options))


def contents(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {f"{s.chain}-{s.step}": s.load() for store in open_chains(folder) for s in store}


def assert_equal_samples(one: Path, other: Path) -> None:
    first, second = contents(one), contents(other)
    assert first.keys() == second.keys()
    for name, state in first.items():
        assert all(torch.equal(tensor, second[name][key]) for key, tensor in state.items()), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampled(folder, recipe())
    return folder


def test_chains_store_the_steps_of_the_plan_and_differ(whole: Path) -> None:
    stores = open_chains(whole)
    assert [[sample.step for sample in store] for store in stores] == [[8, 10, 12, 14, 16, 18]] * 2
    first, second = (next(iter(store)).load() for store in stores)
    assert not torch.equal(first["fc.weight"], second["fc.weight"])
    last = list(stores[0])[-1].load()
    from safetensors.torch import load_file

    weights = load_file(whole / "chain-0" / "model.safetensors")  # the last sample is the last point
    assert all(torch.equal(last[key], weights[key]) for key in weights)


class Stop:
    """Stops a run at a sample: gently with a signal, or like a power cut with an exception that saves nothing."""

    def __init__(self, after: int, gentle: bool) -> None:
        self.after, self.gentle, self.count = after, gentle, 0
        self.original = keeper.StoreKeeper.keep

    def method(self) -> Callable[[keeper.StoreKeeper, int, torch.nn.Module], None]:
        def keep(own: keeper.StoreKeeper, step: int, module: torch.nn.Module) -> None:
            self.original(own, step, module)
            self.count += 1
            if self.count == self.after:
                if not self.gentle:
                    raise MemoryError("cut")
                os.kill(os.getpid(), signal.SIGINT)

        return keep


@pytest.mark.parametrize(("after", "gentle"), [(3, True), (2, False), (9, True), (7, False)])
def test_a_stopped_sampling_goes_on_bit_for_bit(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, gentle: bool
) -> None:
    stop = Stop(after, gentle)
    with monkeypatch.context() as patched:
        patched.setattr(keeper.StoreKeeper, "keep", stop.method())
        with pytest.raises(Interrupted if gentle else MemoryError) as error:
            sampled(tmp_path, recipe(), command="weightspace sample tiny")
    if gentle:
        assert "the state is saved in" in str(error.value)
        assert "the same command continues" in str(error.value)
    assert "results" not in read_json(tmp_path / "sample.json")
    facts = sampled(tmp_path, recipe())
    assert_equal_samples(tmp_path, whole)
    assert facts["results"]["rows"] == read_json(whole / "sample.json")["results"]["rows"]
    assert len(facts["resumed"]) == 1
    for chain in ("chain-0", "chain-1"):
        records = [
            [r for r in read_json_lines(folder / chain / "metrics.jsonl") if r["kind"] == "temperature"]
            for folder in (tmp_path, whole)
        ]
        assert records[0] == records[1]


def test_more_chains_join_those_that_are_there(whole: Path, tmp_path: Path) -> None:
    sampled(tmp_path, recipe(sample={"chains": 1}))
    times = (tmp_path / "chain-0" / "result.json").stat().st_mtime_ns
    facts = sampled(tmp_path, recipe())
    assert (tmp_path / "chain-0" / "result.json").stat().st_mtime_ns == times
    assert_equal_samples(tmp_path, whole)
    assert [chain["chain"] for chain in facts["results"]["chains"]] == [0, 1]


def test_another_recipe_is_refused_and_named(whole: Path) -> None:
    for changed, sentence in (
        (recipe(epochs=7), "train.epochs: 6 -> 7"),
        (recipe(sample={"max_samples": 3}), "sample.max_samples: 6 -> 3"),
    ):
        with pytest.raises(RunError) as error:
            sampled(whole, changed)
        assert f"holds chains of another recipe ({sentence})" in str(error.value)


def test_the_scores_are_those_of_a_slow_reference(whole: Path) -> None:
    """Every prediction anew, in float64, one sample after the other."""
    settings = recipe()
    data = load_recipe_data(settings)
    batches = list(data.test_batches(device="cpu").epoch(0))
    images, labels = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    model = build_model("mlp", **data.model_arguments, hidden=8).eval()
    tables: dict[int, list[torch.Tensor]] = {}
    for store in open_chains(whole):
        for sample in store:
            model.load_state_dict(sample.load())
            with torch.no_grad():
                tables.setdefault(sample.chain, []).append(model(images).double().softmax(-1))
    results = read_json(whole / "sample.json")["results"]

    def scores(table: torch.Tensor) -> list[float]:
        found = measure_calibration(table, labels, resamples=1)
        return [found.accuracy.value, found.nll.value, found.brier.value, found.ece.value]

    lasts = [tables[chain][-1] for chain in (0, 1)]
    means = [torch.stack(tables[chain]).mean(0) for chain in (0, 1)]
    expected = {
        "last point": torch.tensor([scores(table) for table in lasts]).mean(0),
        "all last points": scores(torch.stack(lasts).mean(0)),
        "one chain": torch.tensor([scores(table) for table in means]).mean(0),
        "all chains": scores(torch.stack(means).mean(0)),
    }
    for row in results["rows"]:
        found = [row[key]["value"] for key in ("accuracy", "nll", "brier", "ece")]
        torch.testing.assert_close(torch.tensor(found), torch.as_tensor(expected[row["name"]]), atol=1e-6, rtol=1e-5)
    gain = results["rows"][3]["nll"]["value"] - results["rows"][0]["nll"]["value"]
    assert results["gain"]["nll"]["value"] == pytest.approx(gain)
    assert results["gain"]["nll"]["low"] <= gain <= results["gain"]["nll"]["high"]


def test_temperatures_are_logged_and_start_anew_after_burn_in(whole: Path) -> None:
    records = [r for r in read_json_lines(whole / "chain-0" / "metrics.jsonl") if r["kind"] == "temperature"]
    assert [r["step"] for r in records] == list(range(1, 19))
    counts = [r["measurements"] for r in records]
    assert counts[6] == 1 < counts[5]  # burn-in is over after step 6
    assert all(r["target"] == 1.0 for r in records)
    results = read_json(whole / "sample.json")["results"]
    assert results["chains"][0]["temperatures"][0] == {
        k: v for k, v in records[-1].items() if k not in {"kind", "step"}
    }
    assert "asked 1, velocities" in temperature_line(results)


def test_a_much_too_large_lr_warns_once_with_advice(tmp_path: Path) -> None:
    hot = {
        "name": "ConstrainedLangevin",
        "lr": 4.0,
        "options": {"temperature": 1.0, "weight_decay": 0.3, "momentum": 0.9},
    }
    with pytest.warns(TemperatureWarning) as caught:
        facts = sampled(tmp_path, recipe(hot, {"chains": 1}, epochs=16))
    kinetic = [str(entry.message) for entry in caught if "kinetic temperature" in str(entry.message)]
    assert len(kinetic) == 1
    assert "of the free weights is" in kinetic[0]
    assert "not 1 as asked for" in kinetic[0]
    assert "take a smaller lr or a larger batch_size" in kinetic[0]
    assert any("The temperature is off what was asked for" in line for line in concerns(facts["results"]))


def test_a_fine_temperature_is_silent_and_a_bad_one_says_what_to_do() -> None:
    def found(kinetic: float, configurational: float, measurements: int = 100, name: str = "sphere") -> list[str]:
        values = Temperature(name, 2.0, kinetic, 0.01, configurational, 50, measurements)
        return [sentence for _, sentence in complaints(values)]

    assert found(2.1, 1.5) == []
    assert found(9.0, 9.0, measurements=10) == []
    assert found(9.0, float("nan"))[0].startswith(
        "the kinetic temperature of the weights on sphere is 9, not 2 as asked"
    )
    assert "larger friction" in found(1.0, 2.0)[0]
    assert "longer burn-in" in found(2.0, 0.5)[0]
    assert "smaller lr" in found(2.0, 3.5, name="euclidean(kernel)")[0]
    assert "of the free weights" in found(2.0, 3.5, name="euclidean(kernel)")[0]


def test_without_noise_snapshots_are_averaged_and_one_each_is_an_ensemble(tmp_path: Path) -> None:
    sgd = {"name": "SGD", "lr": 0.1, "options": {"momentum": 0.9}}
    facts = sampled(tmp_path / "snapshots", recipe(sgd, {"max_samples": 3}))
    assert facts["results"]["samples"] == [3, 3]
    assert temperature_line(facts["results"]) == ""
    facts = sampled(tmp_path / "ensemble", recipe(sgd, {"max_samples": 1}))
    rows = {row["name"]: row for row in facts["results"]["rows"]}
    assert facts["results"]["samples"] == [1, 1]
    assert rows["all chains"]["nll"] == rows["all last points"]["nll"]
    assert rows["one chain"]["nll"] == rows["last point"]["nll"]
    assert "chains of under 4 samples cannot be diagnosed" in facts["results"]["diagnosis"]


def test_a_diverged_chain_is_left_out_and_all_of_them_are_an_error(tmp_path: Path) -> None:
    wild = {"name": "SGD", "lr": 1e12}
    with pytest.raises(SamplingError, match=r"every chain diverged, the first because .*; take a smaller lr"):
        sampled(tmp_path, recipe(wild))


def test_a_burn_in_that_leaves_nothing_touches_nothing(tmp_path: Path) -> None:
    short = recipe(sample={"burn_in_epochs": 0, "max_samples": 1, "max_megabytes": 1e-6})
    with pytest.raises(SamplingError, match="above max_bytes"):
        sampled(tmp_path, short)


def test_cycles_reset_the_thermometers_and_sample_at_their_ends(tmp_path: Path) -> None:
    facts = sampled(
        tmp_path,
        recipe(
            sample={"chains": 1, "burn_in_epochs": 0}, schedule={"name": "cyclical", "cycles": 2, "exploration": 0.5}
        ),
    )
    assert facts["results"]["chains"][0]["steps"] == [7, 8, 9, 16, 17, 18]
    records = [r for r in read_json_lines(tmp_path / "chain-0" / "metrics.jsonl") if r["kind"] == "temperature"]
    assert [r["step"] for r in records] == [5, 6, 7, 8, 9, 14, 15, 16, 17, 18]  # none while a cycle explores
    assert [r["measurements"] for r in records] == [1, 2, 3, 3, 4] * 2  # the latest half counts


def test_rounded_samples_take_half_the_disk(whole: Path, tmp_path: Path) -> None:
    facts = sampled(tmp_path, recipe(sample={"dtype": "bfloat16", "chains": 1}))
    assert SampleStore.open(tmp_path / "chain-0").bytes < 0.7 * SampleStore.open(whole / "chain-0").bytes
    kept = read_json(whole / "sample.json")["results"]["chains"][0]["average"]["nll"]["value"]
    assert facts["results"]["chains"][0]["average"]["nll"]["value"] == pytest.approx(kept, abs=0.02)


def test_words_say_gain_loss_or_neither(whole: Path) -> None:
    results = read_json(whole / "sample.json")["results"]
    assert len(table_rows(results)) == 5
    for low, high, phrase in ((-0.2, -0.1, "a gain that"), (0.1, 0.2, ": a loss."), (-0.1, 0.1, "no difference that")):
        changed = {**results, "gain": {**results["gain"], "nll": {"value": (low + high) / 2, "low": low, "high": high}}}
        assert phrase in verdict(changed)[0]


def test_differences_are_paired() -> None:
    """Two equal predictions differ by exactly nothing, and a prediction that is always 0.1 nats better by 0.1."""
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(40, 5, generator=generator, dtype=torch.float64)
    table /= table.sum(-1, keepdim=True)
    labels = torch.randint(5, (40,), generator=generator)
    likelihood = table.gather(-1, labels[:, None])[:, 0].log()
    one = Prediction(table, likelihood, labels, 1)
    better = Prediction(table, likelihood + 0.1, labels, 1)
    scorer = Scorer(labels, 0.95)
    first, second = scorer.row("one", [one]), scorer.row("better", [better])
    assert first.minus(first, "ece").low == first.minus(first, "ece").high == 0.0
    gain = second.minus(first, "nll")
    assert (gain.low, gain.high) == pytest.approx((-0.1, -0.1))
    assert first.estimate("nll").low < first.estimate("nll").value < first.estimate("nll").high
    assert scorer.row("both", [one, better]).values[1] == pytest.approx(float(first.values[1]) - 0.05)
    with pytest.raises(SamplingError, match="predicts other points"):
        scorer.row("other", [Prediction(table, likelihood, labels.flip(0), 1)])
    pair = average_of([one, Prediction(table.flip(-1), likelihood, labels, 3)])
    torch.testing.assert_close(pair.probabilities, 0.25 * table + 0.75 * table.flip(-1))
    assert pair.samples == 4
