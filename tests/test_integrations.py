"""Rules in Lightning and in Hugging Face's Trainer: the weights of a plain loop, bit for bit; exact resume; refusals."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import weightspace as ws
from weightspace.errors import AttachError, RunError

lightning = pytest.importorskip("lightning.pytorch", reason="needs the extra `lightning`")
transformers = pytest.importorskip("transformers", reason="needs the extra `transformers`")
pytest.importorskip("accelerate", reason="needs the extra `transformers`")

from lightning.pytorch.loggers.logger import DummyLogger  # noqa: E402

from weightspace.integrations import huggingface  # noqa: E402
from weightspace.integrations import lightning as integration  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"
STEPS = 6  # of an epoch
GATED = (
    ws.metrics.ChannelL2(smoothing=4.0, on=ws.on.name("*0.weight")),
    ws.penalties.L1(1e-3, gate=ws.gates.Coherent("history"), application="proximal", on=ws.on.linears),
    ws.manifolds.Stiefel(on=ws.on.name("*2.weight")),
)


def make_model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5))


def make_data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    count = 8 * STEPS
    return TensorDataset(
        torch.randn(count, 1, 8, 8, generator=generator), torch.randint(5, (count,), generator=generator)
    )


def batches() -> DataLoader:
    return DataLoader(make_data(), batch_size=8)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def submanifold(model: nn.Module) -> torch.optim.Optimizer:
    return ws.optim.SubmanifoldSGD(
        ws.param_groups(model, {ws.on.convs: ws.manifolds.Oblique()}), lr=0.1, momentum=0.9, step_size="curvature"
    )


def langevin(model: nn.Module) -> torch.optim.Optimizer:
    groups = ws.param_groups(model, {ws.on.convs: ws.manifolds.Stiefel()})
    return ws.optim.ConstrainedLangevin(groups, lr=1e-2, friction=1.0, temperature=1e-3, num_data=48, seed=5)


MAKE = {"SGD": (sgd, GATED), "SubmanifoldSGD": (submanifold, ()), "ConstrainedLangevin": (langevin, ())}


def by_hand(make=sgd, rules=GATED, *, epochs=2, clip=None, accumulate=1, autocast=False, closures=False) -> nn.Module:
    model = make_model()
    optimizer = make(model)
    if rules:
        ws.attach(optimizer, model, *rules)
    for _ in range(epochs):
        for number, (images, labels) in enumerate(batches()):

            def loss_of_batch(images=images, labels=labels):
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    return F.cross_entropy(model(images), labels)

            def closure(compute=loss_of_batch):
                optimizer.zero_grad()
                loss = compute()
                loss.backward()
                return loss

            if closures:
                optimizer.step(closure)
                continue
            (loss_of_batch() / accumulate).backward()
            if (number + 1) % accumulate == 0:
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    return model


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


# ---------------------------------------------------------------------------------------------------- the examples


@pytest.fixture
def _examples(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("plain_loop", None)


@pytest.mark.usefixtures("_examples")
def test_the_three_examples_print_the_same_check_sum():
    printed = {}
    for path in sorted(EXAMPLES.glob("*.py")):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            runpy.run_path(str(path), run_name="__main__")
        printed[path.stem] = out.getvalue().split()[-1]
    assert set(printed) == {"plain_loop", "lightning_callback", "huggingface_trainer"}
    assert len(set(printed.values())) == 1, printed


@pytest.mark.usefixtures("_examples")
def test_the_rules_of_the_examples_do_something(monkeypatch):
    import plain_loop

    with_rules = plain_loop.train()
    monkeypatch.setattr(plain_loop.ws, "attach", lambda *_: None)
    without = plain_loop.train()
    assert plain_loop.checksum(with_rules.state_dict()) != plain_loop.checksum(without.state_dict())


# ------------------------------------------------------------------------------------------------------- Lightning


class Module(lightning.LightningModule):
    def __init__(self, make=sgd):
        super().__init__()
        self.model, self.make = make_model(), make

    def training_step(self, batch):
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.make(self.model)


class Manual(Module):
    """Two optimizers, stepped by hand: the convolutions' and the head's."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch):
        optimizers = self.optimizers()
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self):
        return two(self.model)


def two(model):
    body, head = [*model[0].parameters(), *model[2].parameters()], model[5].parameters()
    return torch.optim.SGD(body, lr=0.1, momentum=0.9), torch.optim.Adam(head, lr=0.01)


def fit(module, *callbacks, epochs=2, checkpoint=None, **options) -> lightning.Trainer:
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False} | options
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=list(callbacks), enable_model_summary=False, **settings
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, batches(), ckpt_path=checkpoint, weights_only=True)
    return trainer


@pytest.mark.parametrize("name", MAKE)
def test_lightning_trains_as_a_plain_loop_does(name):
    make, rules = MAKE[name]
    module = Module(make)
    callback = [integration.RulesCallback(*rules)] if rules else []
    fit(module, *callback)
    assert_equal(module.model, by_hand(make, rules))
    if callback:
        assert callback[0].rules.steps == 2 * STEPS
        assert callback[0].rules.verify()
        assert "model.2.weight" in str(callback[0].rules.table().routes)


@pytest.mark.parametrize(
    ("trainer", "loop"),
    [
        ({"gradient_clip_val": 0.5}, {"clip": 0.5}),
        ({"accumulate_grad_batches": 3}, {"accumulate": 3}),
        ({"precision": "bf16-mixed"}, {"autocast": True}),
    ],
    ids=["clipping", "accumulation", "bf16-mixed"],
)
def test_what_lightning_does_before_a_step_is_done_before_the_rules(trainer, loop):
    module = Module()
    fit(module, integration.RulesCallback(*GATED), **trainer)
    assert_equal(module.model, by_hand(**loop))


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_lightning_precision_plugins_that_change_the_weights(precision):
    module, callback = Module(), integration.RulesCallback(ws.manifolds.Stiefel(on=ws.on.convs))
    fit(module, callback, precision=precision)
    dtype = torch.float64 if precision == "64-true" else torch.bfloat16
    assert module.model[2].weight.dtype == dtype
    callback.rules.verify()


def test_a_gate_that_computes_batches_twice_works_with_lightning_closures():
    rules = (ws.penalties.L1(1e-2, gate=ws.gates.Coherent("lookahead"), on=ws.on.convs),)
    module = Module()
    callback = integration.RulesCallback(*rules)
    fit(module, callback)
    assert_equal(module.model, by_hand(rules=rules, closures=True))
    assert {"L1"} & {name.partition("(")[0] for duty in callback.rules.duty_cycles.values() for name in duty}


@pytest.mark.parametrize("name", MAKE)
def test_lightning_resumes_bit_for_bit(tmp_path, name):
    make, rules = MAKE[name]
    callbacks = [integration.RulesCallback(*rules)] if rules else []
    trainer = fit(Module(make), *callbacks, epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert list(saved["callbacks"]) == ["weightspace.RulesCallback(optimizer=0)"] * len(callbacks)

    resumed, fresh = Module(make), [integration.RulesCallback(*rules)] if rules else []
    fit(resumed, *fresh, checkpoint=str(tmp_path / "one.ckpt"))
    assert_equal(resumed.model, by_hand(make, rules))
    for callback in fresh:
        assert callback.rules.steps == 2 * STEPS
        straight = integration.RulesCallback(*rules)
        fit(Module(make), straight)
        assert callback.rules.duty_cycles == straight.rules.duty_cycles


def test_a_lightning_checkpoint_of_other_rules_is_refused(tmp_path):
    fit(Module(), integration.RulesCallback(*GATED), epochs=1).save_checkpoint(tmp_path / "one.ckpt")
    other = integration.RulesCallback(ws.metrics.ChannelL2(smoothing=2.0))
    with pytest.raises(AttachError, match="saved with other rules"):
        fit(Module(), other, checkpoint=str(tmp_path / "one.ckpt"))


def test_manual_optimization_with_a_callback_for_each_optimizer():
    metric, shape = ws.metrics.ChannelL2(on=ws.on.convs), ws.manifolds.Sphere(on=ws.on.linears)
    module = Manual()
    fit(module, integration.RulesCallback(metric, optimizer=0), integration.RulesCallback(shape, optimizer=1))
    model = make_model()
    optimizers = two(model)
    for optimizer, rule in zip(optimizers, (metric, shape), strict=True):
        ws.attach(optimizer, model, rule)
    for _ in range(2):
        for images, labels in batches():
            for optimizer in optimizers:
                optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            for optimizer in optimizers:
                optimizer.step()
    assert_equal(module.model, model)


def test_which_optimizer_is_asked_for():
    with pytest.raises(AttachError, match=r"has 2 optimizers \(0: SGD, 1: Adam\); say which one"):
        fit(Manual(), integration.RulesCallback(ws.metrics.ChannelL2()))
    with pytest.raises(AttachError, match=r"got optimizer=2, but the module has 2 \(0: SGD, 1: Adam\)"):
        fit(Manual(), integration.RulesCallback(ws.metrics.ChannelL2(), optimizer=2))
    gated = ws.penalties.L1(1e-2, gate=ws.gates.Coherent("lookahead"), on=ws.on.convs)
    with pytest.raises(AttachError, match="use automatic optimization or another gate"):
        fit(Manual(), integration.RulesCallback(gated, optimizer=0))


def test_rules_of_a_callback_before_and_after_fit():
    callback = integration.RulesCallback(ws.metrics.ChannelL2(), optimizer=0)
    assert repr(callback) == "RulesCallback(ChannelL2(), optimizer=0)"
    assert callback.state_dict() == {}
    with pytest.raises(AttachError, match=r"on no optimizer yet: Trainer\.fit\(\) attaches them"):
        callback.rules  # noqa: B018
    module = Module()
    fit(module, callback)
    first = callback.rules
    fit(module, callback, epochs=1)  # a new optimizer: the rules begin anew
    assert callback.rules is not first
    assert callback.rules.steps == STEPS


def test_an_optimizer_that_a_module_keeps_carries_its_rules_into_the_next_fit():
    module, callback = Module(), integration.RulesCallback(ws.metrics.ChannelL2())
    kept = sgd(module.model)
    module.make = lambda _: kept
    fit(module, callback, epochs=1)
    fit(module, callback, epochs=1)
    assert callback.rules.steps == 2 * STEPS


class Remembering(DummyLogger):
    def __init__(self):
        super().__init__()
        self.seen = []

    def log_metrics(self, *_, **options):
        self.seen.append((options.get("step"), _[0] if _ else options["metrics"]))


def test_lightning_logs_the_figures_of_measured_steps():
    logger = Remembering()
    callback = integration.RulesCallback(ws.metrics.ChannelL2(on=ws.on.name("*0.weight")), measure_every=4)
    fit(Module(), callback, logger=logger, log_every_n_steps=1000, accumulate_grad_batches=2, epochs=3)
    found = [(step, figures) for step, figures in logger.seen if "weightspace/model.0.weight/rho" in figures]
    assert [step for step, _ in found] == [1, 5, 9]  # optimizer steps, not batches
    assert found[-1][1]["weightspace/model.0.weight/rho"] == callback.rules.measurements["model.0.weight"]["rho"]


# ---------------------------------------------------------------------------------------------------- Hugging Face


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = make_model()

    def forward(self, images, labels):
        logits = self.model(images)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


ROWS = [{"images": images, "labels": labels} for images, labels in make_data()]


def run(folder, *callbacks, make=sgd, resume=None, network=None, **options) -> transformers.Trainer:
    """Train two epochs with the Hugging Face Trainer."""
    arguments = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    } | options
    network = network or Network()
    trainer = transformers.Trainer(
        model=network,
        args=transformers.TrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=ROWS,
        optimizers=(make(network.model), None),
        callbacks=list(callbacks),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


@pytest.mark.parametrize("name", MAKE)
def test_the_trainer_trains_as_a_plain_loop_does(tmp_path, name):
    make, rules = MAKE[name]
    callbacks = [huggingface.RulesCallback(*rules)] if rules else []
    assert_equal(run(tmp_path, *callbacks, make=make).model.model, by_hand(make, rules))
    for callback in callbacks:
        assert callback.rules.steps == 2 * STEPS
        assert callback.rules.verify()


@pytest.mark.parametrize(
    ("arguments", "loop"),
    [
        ({"max_grad_norm": 0.5}, {"clip": 0.5}),
        ({"gradient_accumulation_steps": 3}, {"accumulate": 3}),
        ({"bf16": True}, {"autocast": True}),
    ],
    ids=["clipping", "accumulation", "bf16"],
)
def test_what_the_trainer_does_before_a_step_is_done_before_the_rules(tmp_path, arguments, loop):
    trainer = run(tmp_path, huggingface.RulesCallback(*GATED), **arguments)
    assert_equal(trainer.model.model, by_hand(**loop))


SAVING = {"save_strategy": "steps", "save_steps": 4}


@pytest.mark.parametrize("name", MAKE)
def test_the_trainer_resumes_bit_for_bit(tmp_path, name):
    make, rules = MAKE[name]

    def callbacks():
        return [huggingface.RulesCallback(*rules)] if rules else []

    run(tmp_path, *callbacks(), make=make, **SAVING)
    assert (tmp_path / "checkpoint-4/weightspace").is_dir() == bool(rules)
    fresh = callbacks()
    resumed = run(tmp_path, *fresh, make=make, resume=tmp_path / "checkpoint-4", **SAVING)
    assert_equal(resumed.model.model, by_hand(make, rules))
    for callback in fresh:
        assert callback.rules.steps == 2 * STEPS


def test_the_state_of_rules_is_no_pickle(tmp_path):
    run(tmp_path, huggingface.RulesCallback(*GATED), **SAVING)
    (file,) = (tmp_path / "checkpoint-8/weightspace").iterdir()
    assert file.suffix == ".safetensors"
    token = json.loads((tmp_path / "checkpoint-8/trainer_state.json").read_text())["stateful_callbacks"]["weightspace"]
    assert len(token) == 16


def test_a_checkpoint_elsewhere_must_be_named_and_one_of_another_run_is_refused(tmp_path):
    run(tmp_path / "a", huggingface.RulesCallback(*GATED), **SAVING)
    run(tmp_path / "b", huggingface.RulesCallback(*GATED), **SAVING)
    elsewhere = tmp_path / "a/checkpoint-4"
    with pytest.raises(AttachError, match="holds that of another run; name the folder that training resumes from"):
        run(tmp_path / "b", huggingface.RulesCallback(*GATED), resume=elsewhere)
    with pytest.raises(AttachError, match="was written with rules, but .*checkpoint-4 holds no state of them"):
        run(tmp_path / "c", huggingface.RulesCallback(*GATED), resume=elsewhere)
    trainer = run(tmp_path / "c", huggingface.RulesCallback(*GATED, resume_from=elsewhere), resume=elsewhere)
    assert_equal(trainer.model.model, by_hand())
    (file,) = (elsewhere / "weightspace").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match="is no whole checkpoint"):
        run(tmp_path / "c", huggingface.RulesCallback(*GATED, resume_from=elsewhere), resume=elsewhere)


def test_rules_that_join_at_a_checkpoint_without_them_say_so(tmp_path):
    run(tmp_path, **SAVING)
    callback = huggingface.RulesCallback(ws.metrics.ChannelL2())
    with pytest.warns(RuntimeWarning, match="checkpoint of step 8 was written without rules; they begin now"):
        run(tmp_path, callback, resume=tmp_path / "checkpoint-8", **SAVING)
    assert callback.rules.steps == 4
    again = huggingface.RulesCallback(ws.metrics.ChannelL2())
    run(tmp_path, again, resume=tmp_path / "checkpoint-12", num_train_epochs=3)
    assert again.rules.steps == 4 + STEPS


def test_training_again_begins_anew(tmp_path):
    callback = huggingface.RulesCallback(*GATED)
    trainer = run(tmp_path, callback)
    first = callback.rules
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    assert callback.rules is not first
    assert callback.rules.steps == 2 * STEPS


def test_the_trainer_records_the_figures_of_measured_steps(tmp_path):
    callback = huggingface.RulesCallback(ws.metrics.ChannelL2(on=ws.on.name("*0.weight")), measure_every=4)
    trainer = run(tmp_path, callback, gradient_accumulation_steps=2, num_train_epochs=3)
    found = [entry for entry in trainer.state.log_history if "weightspace/model.0.weight/rho" in entry]
    assert [entry["step"] for entry in found] == [1, 5, 9]
    told = []
    callback = huggingface.RulesCallback(ws.metrics.ChannelL2(on=ws.on.name("*0.weight")), measure_every=4)
    callback.log = told.append
    run(tmp_path, callback)
    assert [set(figures) for figures in told] == [
        {"weightspace/model.0.weight/rho", "weightspace/model.0.weight/shrinkage"}
    ] * 3


def test_what_cannot_work_in_the_trainer_is_said_at_once(tmp_path, monkeypatch):
    callback = huggingface.RulesCallback(ws.metrics.ChannelL2())
    assert repr(callback) == "RulesCallback(ChannelL2())"
    with pytest.raises(AttachError, match=r"on no optimizer yet: Trainer\.train\(\) attaches them"):
        callback.rules  # noqa: B018
    gated = ws.penalties.L1(1e-2, gate=ws.gates.Coherent("lookahead"), on=ws.on.convs)
    with pytest.raises(AttachError, match="steps without a closure that could; use another gate"):
        run(tmp_path, huggingface.RulesCallback(gated))
    with pytest.raises(AttachError, match="The Trainer has no optimizer"):
        callback.on_train_begin(None, None, None)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.warns(RuntimeWarning, match="FSDP was asked for, but no weight is sharded"):
        huggingface._warn_if_whole(make_model())
