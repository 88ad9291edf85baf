"""The transformer: causality, a slow reference, initialization, refusals; and training on text from end to end."""

from __future__ import annotations

import json
import math
import os
import signal
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import weightspace as ws
from test_cli import call
from weightspace.compare.execution import Execution
from weightspace.compare.opening import open_comparison
from weightspace.compare.plan import HOLD_OUT_SEED, final_jobs, make_plan, tuning_jobs
from weightspace.compare.results import read_comparison, tuning_choice
from weightspace.compare.runner import run_comparison
from weightspace.compare.table import markdown_table, table_columns, table_values
from weightspace.compare.worker import describe_data
from weightspace.errors import DataError, RecipeError, RunError
from weightspace.files import read_json
from weightspace.report import write_report
from weightspace.training import steps as steps_module
from weightspace.training.data import TextData, load_data, load_text
from weightspace.training.data.tokens import character_vocabulary, encode_characters
from weightspace.training.interrupt import Interrupted
from weightspace.training.json_lines import read_json_lines
from weightspace.training.loop import train_run
from weightspace.training.models import MODELS, build_model
from weightspace.training.models.transformer import Transformer, rotate, rotations
from weightspace.training.recipe import Recipe, load_recipe, run_fingerprint
from weightspace.training.session import load_recipe_data, open_session
from weightspace.training.steps import evaluate
from weightspace.training.trained import batch_for, fresh_model, model_arguments

SMALL = {"layers": 2, "width": 16, "heads": 2}
LANGEVIN = {"name": "ConstrainedLangevin", "lr": 0.1, "options": {"momentum": 0.9, "temperature": 1.0}}
VARIANTS = [{}, {"positions": "learned"}, {"tie_weights": True}, {"positions": "learned", "tie_weights": True}]


def build(seed=0, vocabulary=11, context=12, **options):
    torch.manual_seed(seed)
    return build_model("transformer", vocabulary=vocabulary, context=context, **{**SMALL, **options})


def some_tokens(count=3, length=12, vocabulary=11, seed=1):
    return torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Matrices as small as these are slower on several threads, and very slow where others use the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---------------------------------------------------------------- the function


@pytest.mark.parametrize("options", VARIANTS)
@settings(max_examples=15, deadline=None)
@given(place=st.integers(0, 11), seed=st.integers(0, 5))
def test_a_later_token_never_changes_an_earlier_logit(options, place, seed):
    model, tokens = build(**options).eval(), some_tokens(seed=seed)
    changed = tokens.clone()
    changed[:, place] = (changed[:, place] + 1) % 11
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :place], after[:, :place])
    assert not torch.equal(before[:, place], after[:, place])
    assert not torch.equal(before[:, -1], after[:, -1])  # and the last logit sees all of the window


@pytest.mark.parametrize("options", VARIANTS)
def test_short_windows_are_prefixes_of_long_ones(options):
    model, tokens = build(**options).eval(), some_tokens()
    with torch.no_grad():
        whole = model(tokens)
        for length in (1, 5, 11):
            torch.testing.assert_close(model(tokens[:, :length]), whole[:, :length], rtol=1e-5, atol=1e-5)


def reference(model: Transformer, tokens: list[int]) -> torch.Tensor:
    """Logits of one window, token by token and head by head, from the weights alone."""

    def norm(x, layer):
        return (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + layer.eps) * layer.weight + layer.bias

    def turned(x, position):
        half = len(x) // 2
        result = torch.empty_like(x)
        for i in range(half):
            angle = position * 10_000.0 ** (-2 * i / len(x))
            result[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
            result[i + half] = x[i] * math.sin(angle) + x[i + half] * math.cos(angle)
        return result

    rows = [model.embedding.weight[token] for token in tokens]
    if model.embedding.weight is model.head.weight:
        rows = [row * math.sqrt(model.width) for row in rows]
    if model.positions is not None:
        rows = [row + model.positions.weight[position] for position, row in enumerate(rows)]
    for block in model.blocks:
        attention, heads = block.attention, block.attention.heads
        normed = [norm(row, block.norm1) for row in rows]
        q, k, v = (
            [layer.weight @ row for row in normed] for layer in (attention.query, attention.key, attention.value)
        )
        size = model.width // heads
        mixed = []
        for position in range(len(rows)):
            parts = []
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                turn = turned if model.positions is None else lambda x, _: x
                scores = torch.stack(
                    [
                        turn(q[position][part], position) @ turn(k[other][part], other) / math.sqrt(size)
                        for other in range(position + 1)
                    ]
                )
                parts.append(sum(weight * v[other][part] for other, weight in enumerate(torch.softmax(scores, 0))))
            mixed.append(attention.out.weight @ torch.cat(parts))
        rows = [row + change for row, change in zip(rows, mixed, strict=True)]
        rows = [row + block.mlp.down.weight @ F.gelu(block.mlp.up.weight @ norm(row, block.norm2)) for row in rows]
    return torch.stack([model.head.weight @ norm(row, model.norm) for row in rows])


@pytest.mark.parametrize("options", VARIANTS)
def test_the_slow_reference_gives_the_same_logits(options):
    model = build(context=6, **options).double()
    if model.rotations is not None:
        model.rotations = rotations(6, 8).double()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and embeddings away from their start
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        tokens = some_tokens(2, 6)
        for row, logits in zip(tokens.tolist(), model(tokens), strict=True):
            torch.testing.assert_close(logits, reference(model, row), rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(first=st.integers(0, 20), distance=st.integers(0, 20), shift=st.integers(0, 20))
def test_rotary_products_depend_on_distance_only(first, distance, shift):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 8, dtype=torch.float64, generator=generator)
    table = rotations(64, 8).double()

    def product(a, b):
        return rotate(q, table[:, a]) @ rotate(k, table[:, b])

    assert product(first + distance, first) == pytest.approx(
        float(product(first + shift + distance, first + shift)), abs=1e-5
    )
    assert float(rotate(q, table[:, first]).norm()) == pytest.approx(float(q.norm()), rel=1e-6)


def test_without_positions_and_order_attention_would_be_blind():
    """Tokens in another order give another last logit: positions are really there."""
    for options in VARIANTS:
        model = build(**options).eval()
        tokens = torch.arange(8).unsqueeze(0)
        turned = tokens.clone()
        turned[0, :7] = tokens[0, :7].flip(0)  # the last token stays
        with torch.no_grad():
            assert not torch.allclose(model(tokens)[0, -1], model(turned)[0, -1], atol=1e-4), options


@pytest.mark.parametrize("vocabulary", [2, 64])
def test_a_zero_head_guesses(vocabulary):
    model = build(vocabulary=vocabulary)
    nn.init.zeros_(model.head.weight)
    tokens = some_tokens(vocabulary=vocabulary)
    loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).detach()
    assert float(loss) == pytest.approx(math.log(vocabulary), rel=1e-6)


# ---------------------------------------------------------------- the module


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        # 2 layers of (4 + 8) * 16^2 and 2 norms of 32, a norm, embedding and head of 11 * 16
        ({}, 2 * (12 * 256 + 64) + 32 + 2 * 176),
        ({"tie_weights": True}, 2 * (12 * 256 + 64) + 32 + 176),
        ({"positions": "learned"}, 2 * (12 * 256 + 64) + 32 + 2 * 176 + 12 * 16),
        ({"expansion": 1, "layers": 1}, 6 * 256 + 64 + 32 + 2 * 176),
    ],
)
def test_known_parameter_counts(options, parameters):
    assert sum(p.numel() for p in build(**options).parameters()) == parameters


def test_initialization_has_its_law():
    model = build(vocabulary=500, context=64, width=256, layers=3, heads=4, positions="learned")
    for name, parameter in model.named_parameters():
        if parameter.dim() != 2:
            continue
        branch_end = name.endswith(("out.weight", "down.weight"))
        expected = {"embedding.weight": 1.0, "positions.weight": 0.5}.get(name, parameter.shape[1] ** -0.5)
        assert float(parameter.detach().std()) == pytest.approx(
            expected / (math.sqrt(6) if branch_end else 1.0), rel=0.03
        ), name
    tied = build(vocabulary=500, width=256, heads=4, tie_weights=True)
    assert float(tied.embedding.weight.detach().std()) == pytest.approx(1 / 16, rel=0.03)
    assert tied.embedding.weight is tied.head.weight


def test_the_same_seed_gives_the_same_weights():
    one, same, other = build(0), build(0), build(1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.head.weight, other.head.weight)


def test_rules_find_its_layers():
    infos = ws.kernels.describe(build())

    def names(selection):
        return [info.name for info in infos if selection(info)]

    assert len(names(ws.on.linears)) == 13
    assert names(ws.on.head) == ["head.weight"]
    assert names(ws.on.embeddings) == ["embedding.weight"]
    assert names(ws.on.name("*.attention.query")) == [
        "blocks.0.attention.query.weight",
        "blocks.1.attention.query.weight",
    ]
    assert names(ws.on.linears & ~ws.on.head)[0] == "blocks.0.attention.query.weight"


@pytest.mark.parametrize("rule", [{"rule": "Stiefel", "grouping": "matrix"}, {"rule": "Oblique", "grouping": "matrix"}])
def test_manifolds_hold_its_matrices(rule):
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    from weightspace.registry import make_rule

    rules = ws.attach(optimizer, model, make_rule(rule["rule"], grouping="matrix", on="linears & ~head"))
    F.cross_entropy(model(some_tokens()).flatten(0, 1), some_tokens(seed=2).flatten()).backward()
    optimizer.step()
    rules.verify()
    if rule["rule"] == "Stiefel":
        query = model.blocks[0].attention.query.weight
        torch.testing.assert_close(query.T @ query, torch.eye(16), rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_only():
    model = build(dropout=0.5)
    tokens = some_tokens()
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"heads": 3}, "needs heads to divide the width into even parts"),
        ({"width": 6, "heads": 2}, "got 2 heads and width 6; give for example heads: 4 and width: 128"),
        ({"heads": 5, "positions": "learned"}, "needs heads to divide the width evenly"),
        ({"positions": "rotari"}, 'did you mean "rotary"'),
        ({"layers": 0}, "needs layers to be an integer of at least 1, got 0"),
        ({"dropout": 1.0}, "needs dropout to be at least 0 and below 1"),
        ({"tie_weights": 1}, "needs tie_weights to be true or false"),
        ({"widht": 8}, 'has no option "widht": did you mean "width"'),
        ({"in_channels": 3}, 'has no option "in_channels"'),
    ],
)
def test_wrong_options_are_one_sentence(options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        build(**options)


def test_data_of_the_other_kind_are_refused():
    with pytest.raises(RecipeError, match="reads text and needs vocabulary, context, but vocabulary was not given"):
        build_model("transformer", in_channels=1, image_size=8, num_classes=3)
    with pytest.raises(RecipeError, match="reads images and needs in_channels, image_size, num_classes"):
        build_model("mlp", vocabulary=5, context=4)
    assert MODELS["transformer"].options["width"] == 128


@pytest.mark.parametrize(
    "tokens",
    [
        torch.zeros(3, dtype=torch.long),
        torch.zeros(2, 13, dtype=torch.long),
        torch.zeros(2, 0, dtype=torch.long),
        torch.zeros(2, 5),
    ],
)
def test_wrong_batches_are_refused(tokens):
    with pytest.raises(DataError, match=r"takes int64 tokens of shape \(N, 1 to 12\)"):
        build()(tokens)


# ---------------------------------------------------------------- training


def text_data(text="the cat sat on the mat. " * 30, context=16) -> TextData:
    vocabulary = character_vocabulary(text)
    tokens = encode_characters(text, vocabulary)
    return TextData(
        "cats", tokens[:-100], tokens[-100:], vocabulary, context, "character", source="written for this test"
    )


def make_recipe(rules=(), data=None, model=None, **train: Any) -> Recipe:
    values = {
        "epochs": 2,
        "batch_size": 8,
        "optimizer": {"name": "AdamW", "lr": 0.01},
        "schedule": {"name": "cosine"},
        "measure_every": None,
    }
    return Recipe.from_dict(
        {
            "name": "test",
            "data": {"name": "verses", "context": 16, **(data or {})},
            "model": {"name": "transformer", "options": {**SMALL, **(model or {})}},
            "train": values | train,
            "rules": list(rules),
        }
    )


def test_it_learns_a_short_text_by_heart(tmp_path):
    result = train_run(make_recipe(epochs=25), tmp_path, seed=0, data=text_data())
    assert result["status"] == "done"
    assert result["train_loss"] < 0.2
    assert result["test_accuracy"] > 0.9  # the first tokens of a window have little before them
    assert result["perplexity"] == pytest.approx(math.exp(result["test_loss"]))
    assert result["bits_per_character"] == pytest.approx(result["test_loss"] / math.log(2))
    last = read_json_lines(tmp_path / "metrics.jsonl")[-1]
    assert last["perplexity"] == pytest.approx(result["perplexity"])


def test_evaluation_is_the_mean_over_every_token(monkeypatch):
    session = open_session(make_recipe(), text_data(), seed=0)
    loss, accuracy = evaluate(session)
    tokens = session.data.test_tokens.long()
    terms, right = [], []
    session.module.eval()
    for place in range(1, len(tokens)):
        begin = (place - 1) // 16 * 16
        with torch.no_grad():
            logits = session.module(tokens[None, begin:place])[0, -1].double()
        terms.append(float(torch.logsumexp(logits, 0) - logits[tokens[place]]))
        right.append(int(logits.argmax()) == int(tokens[place]))
    assert loss == pytest.approx(sum(terms) / 99, rel=1e-5)
    assert accuracy == pytest.approx(sum(right) / 99)


def weights_of(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "case",
    [
        {"model": {"dropout": 0.2}},
        {"model": {"dropout": 0.2, "tie_weights": True, "positions": "learned"}},
        {"rules": [{"rule": "Stiefel", "grouping": "matrix", "on": "linears & ~head"}]},
        {"rules": [{"rule": "Stiefel", "grouping": "matrix", "on": "linears & ~head"}], "optimizer": LANGEVIN},
        {"rules": [{"rule": "Circle", "radius": "auto", "on": "linears & ~head"}], "optimizer": LANGEVIN},
    ],
)
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, monkeypatch, case):
    monkeypatch.setattr(steps_module, "_PROGRESS_SECONDS", -1.0)
    recipe, data = make_recipe(epochs=3, **case), text_data()
    train_run(recipe, tmp_path / "whole", seed=3, data=data, checkpoint_every_epochs=1)

    def stop(done: int, total: int) -> None:
        if done >= 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train_run(recipe, tmp_path / "cut", seed=3, data=data, checkpoint_every_epochs=1, progress=stop)
    train_run(recipe, tmp_path / "cut", seed=3, data=data, checkpoint_every_epochs=1, resume=True)
    whole, cut = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
    results = [read_json(tmp_path / name / "result.json") for name in ("whole", "cut")]
    for result in results:
        del result["seconds"], result["seconds_per_step"]
    assert results[0] == results[1]
    with pytest.raises(RunError, match="holds the result of other settings|written with other settings"):
        train_run(recipe, tmp_path / "cut", seed=4, data=data, resume=True)


def test_a_sampler_counts_tokens():
    recipe = make_recipe(optimizer=LANGEVIN)
    session = open_session(recipe, text_data(), seed=0)
    assert session.inner.param_groups[0]["num_data"] == len(text_data().train_tokens) - 1


def test_a_diverged_run_counts_as_guessing(tmp_path):
    recipe = make_recipe(optimizer={"name": "SGD", "lr": 1e30})
    result = train_run(recipe, tmp_path, seed=0, data=text_data())
    assert result["status"] == "diverged"
    assert result["test_accuracy"] == 1 / text_data().num_classes
    assert result["perplexity"] is None


def test_words_train_too(tmp_path):
    data = load_text("verses", level="word", context=16, min_count=1)
    result = train_run(make_recipe(epochs=1), tmp_path, seed=0, data=data)
    assert result["perplexity"] < data.num_classes
    assert result["bits_per_character"] == pytest.approx(result["test_loss"] / math.log(2) / data.characters_per_token)


# ---------------------------------------------------------------- recipes


def test_defaults_of_text_are_written_into_the_recipe():
    recipe = make_recipe(data={"context": None})
    assert (recipe.data.level, recipe.data.context) == ("character", 128)
    assert recipe.to_dict()["data"]["context"] == 128
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert load_recipe("quickstart").data.level is None


def test_context_and_level_decide_a_run_and_the_folder_of_published_texts_does_not():
    one = make_recipe()
    prints = {
        run_fingerprint(recipe, 0)
        for recipe in (one, one.with_overrides({"data.context": 8}), one.with_overrides({"data.level": "word"}))
    }
    assert len(prints) == 3
    assert run_fingerprint(one.with_overrides({"data.root": "/a"}), 0) in prints
    mine = one.with_overrides({"data.name": "text"})
    assert run_fingerprint(mine.with_overrides({"data.root": "/a"}), 0) != run_fingerprint(
        mine.with_overrides({"data.root": "/b"}), 0
    )


def test_fingerprints_of_image_runs_stay_what_they_were():
    train = {"epochs": 1, "batch_size": 8, "optimizer": {"lr": 0.1}}
    recipe = Recipe.from_dict({"name": "x", "data": {"name": "digits"}, "model": {"name": "mlp"}, "train": train})
    # computed before there were texts
    assert run_fingerprint(recipe, 0) == "b964a723c2d1c8320aab830d06298204072e01ab027b86e3950d2b0a33c57dbe"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model": {"name": "vgg"}},
            "the model 'vgg' reads images, but the data set 'verses' is text; models for it: transformer",
        ),
        ({"data": {"name": "digits"}}, "the model 'transformer' reads text, but the data set 'digits' is images"),
        (
            {"data": {"name": "digits", "context": 8}},
            "context belongs to texts (verses, bible-kjv, wikitext-2, penn-treebank, text), not to 'digits'",
        ),
        ({"data": {"name": "digits", "level": "word"}}, "level belongs to texts"),
        (
            {"data": {"name": "verses", "augment": ["flip"]}},
            "augment changes images, and 'verses' is text; leave it out",
        ),
        ({"data": {"name": "verses", "level": "letter"}}, "data.level"),
        ({"data": {"name": "verses", "context": 0}}, "data.context"),
        ({"data": {"name": "verses", "contxt": 8}}, "context"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, sentence):
    values = make_recipe().to_dict()
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict({**values, **changes})
    assert sentence in str(caught.value)


def test_channels_last_is_for_images():
    with pytest.raises(RecipeError, match="train.channels_last is a layout of images, and 'verses' is text"):
        make_recipe(channels_last=True)


def test_sizes_of_published_vocabularies_are_known_without_the_text():
    recipe = make_recipe(data={"name": "wikitext-2", "level": "word"})
    assert model_arguments(recipe) == {"vocabulary": 33_278, "context": 16}
    assert model_arguments(make_recipe()) == {"vocabulary": 53, "context": 16}
    assert fresh_model(make_recipe(), 5).model.context == 16


def test_batches_for_inspection(monkeypatch):
    batch = batch_for(make_recipe(), 4)
    assert batch.images.shape == (4, 16)
    assert batch.labels is not None
    assert "4 windows of training text of 103 verses, characters" in batch.source
    monkeypatch.setenv("HF_HOME", "/nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    noise = batch_for(make_recipe(data={"name": "wikitext-2", "level": "word"}), 4)
    assert noise.labels is None
    assert noise.images.shape == (4, 16)
    assert "windows of random tokens" in noise.source


def test_sizes_count_tokens():
    data = load_recipe_data(make_recipe(data={"train_size": 500, "test_size": 60}))
    assert (data.describe()["train"], data.describe()["test"], data.samples) == (500, 60, 30)
    assert load_data("digits").samples == 1297


# ---------------------------------------------------------------- comparison, report, command line


def comparison_recipe() -> Recipe:
    values = make_recipe(data={"train_size": 600, "test_size": 200}, epochs=1).to_dict()
    compare = {
        "baseline": "SGD",
        "seeds": 2,
        "tune": {"grid": {"train.optimizer.lr": [0.001, 0.02]}, "validation_fraction": 0.2},
        "arms": {"SGD": {"set": {"train.optimizer.name": "SGD", "train.optimizer.options": {}}}, "AdamW": {}},
    }
    return Recipe.from_dict(values | {"compare": compare})


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """What `run_comparison` leaves, made in this process."""
    recipe, folder = comparison_recipe(), tmp_path_factory.mktemp("runs")
    plan, data = make_plan(recipe), load_recipe_data(recipe)
    session = {"at": "now", "command": "", "versions": {}, "accelerator": "cpu"}
    facts = open_comparison(recipe, folder, session) | {"data": describe_data(data)}
    (folder / "compare.json").write_text(json.dumps(facts))
    for arm in plan.arms:
        for job in tuning_jobs(plan, arm):
            train_run(job.recipe, folder / job.directory, seed=job.seed, data=data.hold_out(0.2, seed=HOLD_OUT_SEED))
        choice, _ = tuning_choice(folder, plan, arm, 1 / 53)
        for job in final_jobs(plan, arm, choice.trial if choice else None):
            train_run(job.recipe, folder / job.directory, seed=job.seed, data=data)
    return folder


@pytest.mark.slow
def test_worker_processes_train_on_text(compared, tmp_path):
    run_comparison(comparison_recipe(), tmp_path / "run", Execution(workers=1))
    ours, theirs = (table_values(read_comparison(folder)) for folder in (compared, tmp_path / "run"))
    for one, other in zip(ours["arms"], theirs["arms"], strict=True):  # of as many threads as a worker gets
        assert one["perplexity"] == pytest.approx(other["perplexity"], rel=1e-4)


def test_tables_have_the_perplexity(compared):
    comparison = read_comparison(compared)
    assert table_columns(comparison)[2:5] == ["perplexity", "perplexity, 95% interval", "test accuracy, %"]
    for arm in comparison.arms:
        assert set(arm.perplexity) == {0, 1}
        assert arm.choice is not None
        assert arm.choice.trial.number == min(arm.trials, key=lambda trial: trial.loss).number
    text = markdown_table(comparison)
    assert "guessing has 53; the lower the better" in text
    assert table_values(comparison)["arms"][0]["perplexity"].keys() == {"0", "1"}
    facts = read_json(compared / "compare.json")["data"]
    assert (facts["unit"], facts["train"], facts["classes"]) == ("characters", 600, 53)


def test_reports_say_what_was_read(compared):
    page = write_report(compared).read_text()
    assert "perplexity" in page
    assert "600 training and 200 test characters" in page


def test_arms_share_their_windows():
    values = make_recipe().to_dict()
    arms = {"one": {}, "other": {"set": {"data.context": 8}}}
    with pytest.raises(RecipeError, match="arm 'other' sets data.context to 8"):
        make_plan(Recipe.from_dict(values | {"compare": {"baseline": "one", "arms": arms}}))


def test_the_command_line_trains_inspects_and_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = make_recipe(epochs=1, data={"train_size": 800, "test_size": 200})
    (tmp_path / "verses.yaml").write_text(json.dumps(recipe.to_dict()))

    def run(*words):
        code, out, err = call(*words)
        assert code == 0, err
        return out + err

    assert "perplexity" in run("train", "verses.yaml", "--out", "run")
    run("report", "run")
    assert "bits per character" in (tmp_path / "run" / "report.html").read_text()
    shown = run("show", "verses.yaml", "--set", "rules=[{rule: Stiefel, grouping: matrix, on: linears & ~head}]")
    assert "blocks.0.attention.query.weight" in shown
    assert "blocks.1.mlp.down" in run("inspect", "run", "--images", "4", "--detail", "moments")
