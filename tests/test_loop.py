from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import signal
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import weightspace
from shared_training import small_data
from weightspace.errors import DataError, RecipeError, RunError
from weightspace.files import read_json
from weightspace.training import session as session_module
from weightspace.training import steps as steps_module
from weightspace.training.data import Batches, ImageData
from weightspace.training.interrupt import Interrupted
from weightspace.training.json_lines import JsonLines, read_json_lines
from weightspace.training.loop import train_run
from weightspace.training.models import build_model
from weightspace.training.recipe import Recipe, run_fingerprint
from weightspace.training.reproducible import seed_stream
from weightspace.training.session import open_session
from weightspace.training.sparsity import sparsity_text

Metrics = list[dict[str, Any]]


@pytest.fixture(scope="module")
def data() -> ImageData:
    return small_data()


def make_recipe(rules: Sequence[dict[str, Any]] = ({"rule": "ChannelL2", "smoothing": 4.0},), **train: Any) -> Recipe:
    values = {
        "epochs": 3,
        "batch_size": 16,
        "optimizer": {"name": "SGD", "lr": 0.1, "options": {"momentum": 0.9, "weight_decay": 5e-4}},
        "schedule": {"name": "cosine"},
        "measure_every": 4,
    }
    return Recipe.from_dict(
        {
            "name": "test",
            "data": {"name": "digits", "augment": ["crop", "flip"]},
            "model": {"name": "vgg", "options": {"widths": [4, 8], "convs_per_stage": 1, "hidden": [], "dropout": 0.2}},
            "train": values | train,
            "rules": list(rules),
        }
    )


def without_times(path: Path) -> Metrics:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in read_json_lines(path)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal_runs(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert without_times(one / "metrics.jsonl") == without_times(other / "metrics.jsonl")
    results = [read_json(folder / "result.json") for folder in (one, other)]
    for result in results:
        del result["seconds"], result["seconds_per_step"]
    assert results[0] == results[1]


def stop_at(step: int, number: int = signal.SIGTERM) -> Any:
    """A progress callback that sends this process a signal once `step` steps are done."""

    def progress(done: int, total: int) -> None:
        if done >= step:
            os.kill(os.getpid(), number)

    return progress


@pytest.fixture(autouse=True)
def every_step_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_module, "_PROGRESS_SECONDS", -1.0)


def test_a_run_writes_what_it_promises(tmp_path: Path, data: ImageData) -> None:
    recipe = make_recipe()
    calls: list[tuple[int, int]] = []
    result = train_run(recipe, tmp_path, seed=3, data=data, progress=lambda *call: calls.append(call))
    assert result == read_json(tmp_path / "result.json")
    assert (result["status"], result["reason"], result["seed"], result["steps"], result["epochs"]) == (
        "done",
        None,
        3,
        18,
        3,
    )
    assert result["fingerprint"] == run_fingerprint(recipe, 3)
    assert result["parameters"] == 4 * 9 + 4 + 8 * 4 * 9 + 8 + 8 * 3 + 3
    assert 0 < result["seconds_per_step"] <= result["seconds"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "result.json"]
    records = read_json_lines(tmp_path / "metrics.jsonl")
    epochs = [record for record in records if record["kind"] == "epoch"]
    layers = [record for record in records if record["kind"] == "layer"]
    assert [(record["epoch"], record["step"]) for record in epochs] == [(1, 6), (2, 12), (3, 18)]
    assert epochs[-1]["test_accuracy"] == result["test_accuracy"]
    assert [record["seconds"] for record in epochs] == sorted(record["seconds"] for record in epochs)
    assert {record["step"] for record in layers} == {1, 5, 9, 13, 17}
    assert {record["name"] for record in layers} == {"features.0.weight", "features.3.weight"}
    assert all(0 <= record["rho"] <= 1 and record["shrinkage"] > 0 for record in layers)
    assert calls[-1] == (18, 18)
    assert epochs[-1]["lr"] == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi * 17 / 18)))  # of the last step


def test_it_learns(tmp_path: Path, data: ImageData) -> None:
    recipe = make_recipe(epochs=12).with_overrides(
        {"data.augment": [], "rules": [], "model": {"name": "mlp", "options": {"hidden": 32}}}
    )
    result = train_run(recipe, tmp_path, seed=0, data=data)
    assert result["test_accuracy"] > 0.9
    assert result["train_loss"] < 0.5


def test_it_equals_a_bare_loop(tmp_path: Path, data: ImageData) -> None:
    recipe = make_recipe(label_smoothing=0.1, clip_norm=0.5, deterministic=False)
    train_run(recipe, tmp_path, seed=5, data=data, checkpoint_every_epochs=1)
    seed_stream(5, "initialization")
    model = build_model("vgg", in_channels=1, image_size=8, num_classes=3, **recipe.model.options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    weightspace.attach(optimizer, model, *recipe.make_rules())
    batches = Batches(
        *(data.train_images, data.train_labels),
        batch_size=16,
        mean=data.mean,
        std=data.std,
        augment=("crop", "flip"),
        seed=5,
        device="cpu",
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=18)
    seed_stream(5, "training")
    for epoch in range(3):
        for images, labels in batches.epoch(epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels, label_smoothing=0.1).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
    for name, tensor in model.state_dict().items():
        # torch's own cosine is recursive, so learning rates differ in the last bits
        torch.testing.assert_close(weights(tmp_path)[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_every_arm_the_same_start(data: ImageData) -> None:
    torch.manual_seed(123)
    one = open_session(make_recipe(), data, seed=7, accelerator="cpu")
    first = {name: tensor.clone() for name, tensor in one.module.state_dict().items()}
    drawn = torch.rand(3)
    torch.manual_seed(456)
    other_arm = make_recipe().with_overrides({"rules": [], "train.optimizer": {"name": "Adam", "lr": 0.01}})
    other = open_session(other_arm, data, seed=7, accelerator="cpu")
    for name, tensor in other.module.state_dict().items():
        assert torch.equal(first[name], tensor)
    assert torch.equal(drawn, torch.rand(3))  # dropout
    for (images, labels), (images2, labels2) in zip(one.train.epoch(1), other.train.epoch(1), strict=True):
        assert torch.equal(images, images2)
        assert torch.equal(labels, labels2)
    third = open_session(make_recipe(), data, seed=8, accelerator="cpu")
    assert not torch.equal(first["features.0.weight"], third.module.state_dict()["features.0.weight"])


def test_the_callers_random_state_and_switches_come_back(tmp_path: Path, data: ImageData) -> None:
    torch.manual_seed(9)
    expected = torch.rand(4)
    torch.manual_seed(9)
    before = signal.getsignal(signal.SIGTERM)
    train_run(make_recipe(epochs=1), tmp_path, seed=0, data=data)
    assert torch.equal(torch.rand(4), expected)
    assert not torch.are_deterministic_algorithms_enabled()
    assert signal.getsignal(signal.SIGTERM) is before


VARIANTS: dict[str, dict[str, Any]] = {
    "momentum": {},
    "Adam, clipped": {"optimizer": {"name": "AdamW", "lr": 0.01}, "clip_norm": 1.0, "label_smoothing": 0.1},
    "channels_last": {"channels_last": True, "schedule": {"name": "step", "milestones": [1, 2], "warmup_epochs": 0.5}},
    "double": {"precision": "64-true"},
    "bf16": {"precision": "bf16-mixed"},
    "manifolds": {
        "optimizer": {"name": "SubmanifoldSGD", "lr": 0.2, "options": {"momentum": 0.9}, "manifold_lr_factor": 0.5},
        "schedule": {"name": "power", "rate": 0.1, "exponent": 0.75},
        "rules": [{"rule": "Stiefel", "on": "convs & ~head"}, {"rule": "ChannelL2", "smoothing": 4.0}],
    },
    "manifolds, Adam": {
        "optimizer": {"name": "SubmanifoldAdam", "lr": 0.02, "options": {"weight_decay": 1e-4}},
        "schedule": {"name": "constant"},
        "rules": [
            {
                "rule": "Product",
                "parts": ["sphere(slice)", "stiefel(slice)"],
                "over": "slice",
                "assignment": "random",
                "every": 4,
            }
        ],
    },
    "manifolds attached": {
        "optimizer": {"name": "AdamW", "lr": 0.01},
        "rules": [{"rule": "Oblique"}, {"rule": "LargestSingularValue", "bound": 0.5, "weight": 0.01}],
    },
    "penalties": {  # random frequencies, remembered vectors, an evaluation that is due every third step
        "rules": [
            {"rule": "ChannelL2", "smoothing": 4.0},
            {"rule": "LargestSingularValue", "bound": 0.5, "weight": 0.01},
            {"rule": "SingularValueBand", "frequencies": 2, "weight": 0.01},
            {"rule": "GramFrobenius", "every": 3, "weight": 0.01},
        ]
    },
    "gates": {  # what they remember, count and draw
        "rules": [
            {"rule": "L1", "weight": 0.003, "gate": {"gate": "Coherent", "against": "history"}},
            {"rule": "L2", "weight": 0.01, "gate": {"gate": "RandomGate", "duty": 0.5}},
            {"rule": "GroupL1", "weight": 0.01, "application": "proximal", "gate": {"gate": "Delayed", "steps": 8}},
        ]
    },
    "a gate that looks ahead": {  # a second backward pass of the same batch, with the same dropout
        "clip_norm": 0.5,
        "rules": [{"rule": "L1", "weight": 0.01, "gate": {"gate": "Coherent", "against": "lookahead"}}],
    },
}


@pytest.mark.parametrize("step", [6, 9, 18], ids=["epoch end", "mid-epoch", "last step"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path: Path, data: ImageData, variant: str, step: int) -> None:
    recipe = make_recipe(**VARIANTS[variant])
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train_run(recipe, straight, seed=1, data=data, checkpoint_every_epochs=1)
    with pytest.raises(Interrupted, match=f"stopped at step {step} of 18; the state is saved") as caught:
        train_run(recipe, resumed, seed=1, data=data, progress=stop_at(step))
    assert caught.value.exit_code == 143
    assert not (resumed / "result.json").exists()
    torch.manual_seed(99)  # nothing may depend on the state of the process
    train_run(recipe, resumed, seed=1, data=data, resume=True, checkpoint_every_epochs=1)
    assert_equal_runs(straight, resumed)


MANIFOLDS = {key: value for key, value in VARIANTS.items() if key.startswith("manifolds")}


@pytest.mark.parametrize("variant", MANIFOLDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_constraints_hold_after_training_and_are_in_the_result(
    tmp_path: Path, data: ImageData, variant: str, channels_last: bool
) -> None:
    result = train_run(make_recipe(**MANIFOLDS[variant], channels_last=channels_last), tmp_path, seed=0, data=data)
    found = result["constraints"]
    assert set(found) == {"number", "largest_violation", "bound", "verdict"}
    assert found["verdict"] == "hold"
    assert found["number"] == (4 if "Adam" in variant else 2)  # a product is two on each convolution
    assert 0 < found["largest_violation"] <= found["bound"] <= 1e-5


def test_without_manifolds_the_result_has_no_constraints(tmp_path: Path, data: ImageData) -> None:
    assert train_run(make_recipe(epochs=1), tmp_path, seed=0, data=data)["constraints"] is None


def test_a_gate_that_looks_ahead_trains_as_one_that_does_not(tmp_path: Path, data: ImageData) -> None:
    """Always open, it must leave weights, dropout, clipping and the logged loss as they are without a closure."""
    for name, gate in (("closure", {"gate": "Coherent", "against": "lookahead", "threshold": -1.0}), ("plain", None)):
        rule = {"rule": "L1", "weight": 0.01} | ({"gate": gate} if gate else {})
        recipe = make_recipe([rule], clip_norm=0.3, measure_every=None)
        assert open_session(recipe, data, seed=0).needs_closure == (gate is not None)
        train_run(recipe, tmp_path / name, seed=0, data=data, checkpoint_every_epochs=3)
    one, other = weights(tmp_path / "closure"), weights(tmp_path / "plain")
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert without_times(tmp_path / "closure/metrics.jsonl") == without_times(tmp_path / "plain/metrics.jsonl")
    duty = read_json(tmp_path / "closure/result.json")["duty"]
    assert [entry["duty"] for entry in duty.values()] == [1.0]
    assert read_json(tmp_path / "plain/result.json")["duty"] == {}


def test_the_logged_loss_is_that_of_the_first_call(data: ImageData) -> None:
    images, labels = data.train_images[:4].float(), data.train_labels[:4]
    losses = iter([torch.tensor(3.0), torch.tensor(9.0)])
    closure = steps_module._Closure(lambda *_: next(losses), images, labels)
    with pytest.raises(RunError, match="took a step without calling its closure"):
        _ = closure.loss
    assert closure() == 3.0
    assert closure() == 9.0
    assert closure.loss == 3.0


def test_a_closure_and_gradient_scaling_exclude_each_other(data: ImageData) -> None:
    rule = {"rule": "L1", "gate": {"gate": "Coherent", "against": "lookahead"}}
    with pytest.raises(RecipeError, match="use bf16-mixed, or another gate"):
        open_session(make_recipe([rule], precision="16-mixed"), data, seed=0)


def test_the_result_counts_zeros_open_gates_and_vanished_weights(tmp_path: Path, data: ImageData) -> None:
    rules = [
        {"rule": "L1", "weight": 50.0, "application": "proximal", "on": "name('features.0.weight')"},
        {"rule": "L2", "weight": 0.01, "gate": {"gate": "Delayed", "steps": 6}},
    ]
    recipe = make_recipe(rules, epochs=9)
    with pytest.warns(UserWarning, match="all weights of features.0"):
        result = train_run(recipe, tmp_path, seed=0, data=data, checkpoint_every_epochs=9)
    trained = {name: w for name, w in weights(tmp_path).items() if w.ndim > 1}
    zeros = {name: float((w == 0).double().mean()) for name, w in trained.items()}
    assert result["weights"]["layers"] == zeros
    assert zeros["features.0.weight"] == 1.0
    assert result["weights"]["numbers"] == sum(w.numel() for w in trained.values())
    assert result["weights"]["zeros"] == pytest.approx(
        sum(int((w == 0).sum()) for w in trained.values()) / sum(w.numel() for w in trained.values())
    )
    assert list(result["vanished"]) == ["features.0.weight"]
    [(name, duty)] = result["duty"].items()
    assert name.startswith("L2(")
    assert duty["duty"] == pytest.approx(48 / 54)
    assert set(duty["layers"]) == set(zeros)
    text = sparsity_text(result)
    assert "acted at 88.9 % of the steps" in text
    assert "all of features.0.weight zero since step" in text


def test_a_result_without_penalties_has_nothing_to_say() -> None:
    assert sparsity_text({"status": "done"}) == ""
    assert sparsity_text({"weights": {"zeros": 0.0}, "duty": {}, "vanished": {}}) == ""


def test_weights_on_manifolds_have_a_learning_rate_of_their_own(data: ImageData) -> None:
    optimizer = {"name": "SubmanifoldSGD", "lr": 0.2, "manifold_lr_factor": 10.0}
    rules = [{"rule": "Sphere"}]
    for schedule in ({"name": "constant"}, {"name": "power", "rate": 1.0}):
        session = open_session(make_recipe(rules, optimizer=optimizer, schedule=schedule), data, seed=0)
        if session.set_rate is not None:
            session.set_rate(1)
        rate = 0.2 if schedule["name"] == "constant" else 0.1
        rates = {group["manifold"]: group["lr"] for group in session.inner.param_groups}
        assert rates == {"sphere(filter)": pytest.approx(10 * rate), "euclidean(kernel)": pytest.approx(rate)}


def test_our_optimizers_without_manifolds_are_torchs(tmp_path: Path, data: ImageData) -> None:
    options = {"lr": 0.1, "options": {"momentum": 0.9, "weight_decay": 5e-4}}
    for name in ("SGD", "SubmanifoldSGD"):
        recipe = make_recipe([], optimizer={"name": name, **options})
        train_run(recipe, tmp_path / name, seed=0, data=data, checkpoint_every_epochs=3)
    one, other = weights(tmp_path / "SGD"), weights(tmp_path / "SubmanifoldSGD")
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_two_manifolds_on_one_weight_are_refused(data: ImageData) -> None:
    optimizer = {"name": "SubmanifoldSGD", "lr": 0.2}
    rules = [{"rule": "Sphere"}, {"rule": "Stiefel"}]
    with pytest.raises(RecipeError, match="two manifolds of the recipe's rules select the same parameters"):
        open_session(make_recipe(rules, optimizer=optimizer), data, seed=0)


def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path: Path, data: ImageData) -> None:
    recipe = make_recipe()
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train_run(recipe, straight, seed=1, data=data, checkpoint_every_epochs=1)

    def die(done: int, total: int) -> None:
        if done == 11:
            raise MemoryError

    with pytest.raises(MemoryError):
        train_run(recipe, killed, seed=1, data=data, progress=die, checkpoint_every_steps=4)
    with (killed / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "ep')  # half a line, as a power cut leaves it
    newest = max(killed.glob("checkpoint-*"))
    assert newest.name == "checkpoint-000000008.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    with pytest.warns(RuntimeWarning, match="is damaged"):
        train_run(recipe, killed, seed=1, data=data, resume=True, checkpoint_every_epochs=1)
    assert_equal_runs(straight, killed)


def test_ctrl_c_has_its_exit_code(tmp_path: Path, data: ImageData) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        train_run(make_recipe(), tmp_path, seed=1, data=data, progress=stop_at(2, signal.SIGINT))
    assert getattr(caught.value, "exit_code", None) == 130


def test_a_finished_run_is_not_trained_again(tmp_path: Path, data: ImageData) -> None:
    recipe = make_recipe(epochs=1)
    first = train_run(recipe, tmp_path, seed=1, data=data)
    assert train_run(recipe, tmp_path, seed=1, data=data, resume=True) == first  # equal times: not run again


def test_resuming_with_other_settings_is_refused_and_nothing_is_lost(tmp_path: Path, data: ImageData) -> None:
    with pytest.raises(Interrupted):
        train_run(make_recipe(), tmp_path, seed=1, data=data, progress=stop_at(7))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunError, match="other settings or another seed"):
        train_run(make_recipe(batch_size=32), tmp_path, seed=1, data=data, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("rules", [[], [{"rule": "ChannelL2"}]], ids=["loss", "gradient"])
def test_divergence_is_a_result(tmp_path: Path, data: ImageData, rules: list[dict[str, Any]]) -> None:
    recipe = make_recipe().with_overrides({"train.optimizer.lr": 1e30, "rules": rules, "model.options.dropout": 0.0})
    result = train_run(recipe, tmp_path, seed=0, data=data)
    assert result["status"] == "diverged"
    assert result["reason"]
    assert result["test_accuracy"] == pytest.approx(1 / 3)
    assert result["test_loss"] is None
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "diverged"
    assert result["steps"] < 6


@pytest.mark.parametrize(("measure_every", "asked"), [(None, [4, 6, 10, 12]), (5, [1, 5, 6, 10, 11, 12])])
def test_an_accelerator_is_asked_rarely(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch, measure_every: int | None, asked: list[int]
) -> None:
    """With an accelerator's check interval the loss is read at the interval, measured steps and epoch ends only."""
    checks: list[int] = []
    check = steps_module.TrainingLoop._check_loss

    def counted(loop: Any, checked: int) -> None:
        checks.append(loop.session.progress.step)
        check(loop, checked)

    def slow_start(loop: Any, *arguments: Any, **options: Any) -> None:
        start(loop, *arguments, **options)
        loop.check_every = 4

    start = steps_module.TrainingLoop.__init__
    monkeypatch.setattr(steps_module.TrainingLoop, "_check_loss", counted)
    monkeypatch.setattr(steps_module.TrainingLoop, "__init__", slow_start)
    recipe = make_recipe(epochs=2, measure_every=measure_every)
    train_run(recipe, tmp_path / "a", seed=0, data=data, checkpoint_every_epochs=1)
    assert checks == asked
    monkeypatch.undo()
    train_run(recipe, tmp_path / "b", seed=0, data=data, checkpoint_every_epochs=1)
    assert_equal_runs(tmp_path / "a", tmp_path / "b")


def test_bad_input_is_refused_before_training(tmp_path: Path, data: ImageData) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file"):
        train_run(make_recipe(), tmp_path / "file", seed=0, data=data)
    with pytest.raises(DataError, match="batch"):
        train_run(make_recipe(batch_size=1000), tmp_path / "a", seed=0, data=data)
    with pytest.raises(RecipeError, match="cannot use the accelerator 'gpuu'"):
        train_run(make_recipe(), tmp_path / "b", seed=0, data=data, accelerator="gpuu")
    assert all(not list(folder.iterdir()) for folder in tmp_path.iterdir() if folder.is_dir())


def test_an_optimizer_that_refuses_the_model_is_named(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    class Picky(torch.optim.SGD):
        def __init__(self, parameters: Any, lr: float) -> None:
            parameters = list(parameters)
            if len(parameters) > 1:
                raise ValueError("one parameter is enough")
            super().__init__(parameters, lr=lr)

    monkeypatch.setattr(torch.optim, "Picky", Picky, raising=False)
    with pytest.raises(RecipeError, match=r"train.optimizer: torch.optim.Picky refuses the model 'vgg': one parameter"):
        open_session(make_recipe(optimizer={"name": "Picky", "lr": 0.1}), data, seed=0, accelerator="cpu")


def test_a_run_whose_last_step_is_done_only_writes_its_result(tmp_path: Path, data: ImageData) -> None:
    recipe = make_recipe()
    first = train_run(recipe, tmp_path / "run", seed=1, data=data, checkpoint_every_epochs=1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "model.safetensors").unlink()
    begun: list[int] = []
    again = train_run(
        recipe, tmp_path / "run", seed=1, data=data, resume=True, checkpoint_every_epochs=1, started=begun.append
    )
    assert begun == [18]
    assert again == first  # times too: no step was taken
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_damaged_result_is_written_anew(tmp_path: Path, data: ImageData) -> None:
    recipe = make_recipe()
    first = train_run(recipe, tmp_path, seed=1, data=data, checkpoint_every_epochs=1)
    (tmp_path / "result.json").write_text('{"status": "do')
    with pytest.warns(RuntimeWarning, match=r"result.json is damaged .*; the run goes on from its last checkpoint"):
        assert train_run(recipe, tmp_path, seed=1, data=data, resume=True, checkpoint_every_epochs=1) == first


def interrupted(folder: Path, data: ImageData, step: int = 9, **train: Any) -> None:
    with pytest.raises(Interrupted):
        train_run(make_recipe(**train), folder, seed=1, data=data, progress=stop_at(step))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_resuming_with_other_images_is_refused_and_nothing_is_lost(tmp_path: Path, data: ImageData) -> None:
    interrupted(tmp_path, data)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "epoch"}\n')  # behind the checkpoint: to be cut, but only if it fits
    before = content(tmp_path)
    images = data.train_images.clone()
    images[0, 0, 0, 0] ^= 1
    other = dataclasses.replace(data, train_images=images, source="somewhere else")
    sentence = r"'stripes' found now \(somewhere else\) are not those that this run was started with \(drawn for this"
    with pytest.raises(RunError, match=sentence):
        train_run(make_recipe(), tmp_path, seed=1, data=other, resume=True)
    assert content(tmp_path) == before


def test_another_version_of_torch_is_a_warning(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0.0")
        interrupted(tmp_path, data)
    with pytest.warns(RuntimeWarning, match=r"started with torch 1.0.0, now .*: it goes on, but not bit for bit"):
        assert train_run(make_recipe(), tmp_path, seed=1, data=data, resume=True)["status"] == "done"


def test_a_checkpoint_of_another_model_changes_no_file(tmp_path: Path, data: ImageData) -> None:
    """Same settings, other layers: what another version of the library may build."""
    interrupted(tmp_path, data)
    before = content(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            session_module,
            "build_model",
            lambda *_, **__: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)),
        )
        patch.setattr(session_module, "_attach", lambda *_: None)
        with pytest.raises(RunError, match="the checkpoint does not fit this model"):
            train_run(make_recipe(), tmp_path, seed=1, data=data, resume=True)
    assert content(tmp_path) == before


def test_lost_records_do_not_stop_a_resumed_run(tmp_path: Path, data: ImageData) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train_run(make_recipe(), straight, seed=1, data=data, checkpoint_every_epochs=1)
    interrupted(resumed, data)
    lines = (resumed / "metrics.jsonl").read_text().splitlines(keepends=True)
    (resumed / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:5])
    with pytest.warns(RuntimeWarning, match=r"has lost 5 of 7 records; the run goes on"):
        train_run(make_recipe(), resumed, seed=1, data=data, resume=True, checkpoint_every_epochs=1)
    assert content(resumed)["model.safetensors"] == content(straight)["model.safetensors"]
    whole = without_times(straight / "metrics.jsonl")
    assert without_times(resumed / "metrics.jsonl") == whole[:2] + whole[7:]


def test_records_are_on_the_disk_before_a_checkpoint_counts_them(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, save = JsonLines.sync, steps_module.save_checkpoint
    monkeypatch.setattr(JsonLines, "sync", lambda lines: (order.append("sync"), sync(lines))[1])
    monkeypatch.setattr(steps_module, "save_checkpoint", lambda *a, **k: (order.append("save"), save(*a, **k))[1])
    train_run(make_recipe(), tmp_path, seed=0, data=data, checkpoint_every_epochs=1)
    assert order == ["sync", "save"] * 3 + ["sync"]  # and before the result


def test_a_full_disk_stops_the_run_at_its_last_checkpoint(tmp_path: Path, data: ImageData) -> None:
    straight, full = tmp_path / "straight", tmp_path / "full"
    train_run(make_recipe(), straight, seed=1, data=data, checkpoint_every_epochs=1)

    def fill(done: int, total: int) -> None:
        if done == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(
            RunError, match=r"cannot write .*: file too large; checkpoint-000000006\.\S+ stays, so --resume"
        ):
            train_run(make_recipe(), full, seed=1, data=data, progress=fill, checkpoint_every_epochs=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    train_run(make_recipe(), full, seed=1, data=data, resume=True, checkpoint_every_epochs=1)
    assert_equal_runs(straight, full)


def test_leftovers_of_a_killed_run_go(tmp_path: Path, data: ImageData) -> None:
    interrupted(tmp_path, data)
    (tmp_path / ".checkpoint-000000012.safetensors.7-0badcafe.tmp").touch()
    train_run(make_recipe(), tmp_path, seed=1, data=data, resume=True)
    assert not list(tmp_path.glob(".*.tmp"))
    (tmp_path / ".result.json.7-0badcafe.tmp").touch()
    train_run(make_recipe(), tmp_path, seed=1, data=data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "result.json"]


def test_the_result_of_other_settings_is_not_resumed_away(tmp_path: Path, data: ImageData) -> None:
    train_run(make_recipe(epochs=1), tmp_path, seed=1, data=data)
    before = content(tmp_path)
    with pytest.raises(RunError, match="holds the result of other settings"):
        train_run(make_recipe(epochs=2), tmp_path, seed=1, data=data, resume=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("check_every", [1, 4, 1000])
def test_time_is_that_of_the_steps(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch, check_every: int
) -> None:
    """By a clock that only training moves, with slow records, checkpoints and progress, every step takes its second.

    As on an accelerator, the time of a step passes where the loss is read: before anything else is done.
    """
    clock, pending = [0.0], [0]
    step, check = torch.optim.SGD.step, steps_module.TrainingLoop._check_loss

    def count(*arguments: Any, **options: Any) -> Any:
        pending[0] += 1
        return step(*arguments, **options)

    def wait(loop: Any, checked: int) -> None:
        clock[0] += pending[0]
        pending[0] = 0
        check(loop, checked)

    def slow(function: Any) -> Any:
        def slowed(*arguments: Any, **options: Any) -> Any:
            assert pending[0] == 0, "reading numbers here would wait for the device"
            clock[0] += 1000.0
            return function(*arguments, **options)

        return slowed

    monkeypatch.setattr(steps_module, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(torch.optim.SGD, "step", count)
    monkeypatch.setattr(steps_module.TrainingLoop, "_check_loss", wait)
    monkeypatch.setattr(steps_module, "save_checkpoint", slow(steps_module.save_checkpoint))
    monkeypatch.setattr(steps_module.RunLog, "layers", slow(steps_module.RunLog.layers))
    start = steps_module.TrainingLoop.__init__

    def with_interval(loop: Any, *arguments: Any, **options: Any) -> None:
        start(loop, *arguments, **options)
        loop.check_every = check_every

    monkeypatch.setattr(steps_module.TrainingLoop, "__init__", with_interval)
    report = slow(stop_at(11))
    with pytest.raises(Interrupted):
        train_run(make_recipe(), tmp_path, seed=0, data=data, progress=report, checkpoint_every_steps=4)
    result = train_run(make_recipe(), tmp_path, seed=0, data=data, resume=True, checkpoint_every_steps=5)
    assert result["seconds"] == 18.0
    assert result["seconds_per_step"] == 1.0


def events(folder: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder / "tensorboard"))
    reader.Reload()
    return [event.step for event in reader.Scalars("test_loss")]


def test_tensorboard_curves(tmp_path: Path, data: ImageData) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train_run(make_recipe(), straight, seed=0, data=data, tensorboard=True)
    assert events(straight) == [6, 12, 18]
    train_run(make_recipe(), straight, seed=1, data=data, tensorboard=True)  # anew: the curves too
    assert events(straight) == [6, 12, 18]

    def die(done: int, total: int) -> None:
        if done == 14:
            raise MemoryError

    with pytest.raises(MemoryError):
        train_run(make_recipe(), resumed, seed=0, data=data, tensorboard=True, progress=die, checkpoint_every_steps=8)
    assert events(resumed) == [6, 12]
    train_run(make_recipe(), resumed, seed=0, data=data, tensorboard=True, resume=True)
    assert events(resumed) == [6, 12, 18]
