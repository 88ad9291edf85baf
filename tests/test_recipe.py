from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightspace.errors import RecipeError
from weightspace.training.recipe import Recipe, bundled_recipes, load_recipe, run_fingerprint
from weightspace.training.recipe_yaml import parse_yaml
from weightspace.training.schedule import broken_conditions, lr_factor

BASE = """
name: small
description: for tests
data: {name: digits}
model: {name: vgg, options: {widths: [4], convs_per_stage: 1, hidden: []}}
train:
  epochs: 4
  batch_size: 64
  optimizer: {name: SGD, lr: 0.1, options: {momentum: 0.9, weight_decay: 5e-4}}
  schedule: {name: cosine, warmup_epochs: 0.5}
compare:
  baseline: tuned SGD
  tune: {grid: {train.optimizer.lr: [0.05, 0.1]}}
  arms:
    SGD: {tune: false}
    tuned SGD: {}
    ChannelL2: {rules: [{rule: ChannelL2, smoothing: 4.0}]}
    small batch: {set: {train.batch_size: 32}, rules: [{rule: GradientCentralization}]}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load_recipe(write(tmp_path, BASE))


def write(folder: Path, text: str) -> Path:
    path = folder / "small.yaml"
    path.write_text(text)
    return path


def test_defaults_and_types(recipe: Recipe) -> None:
    assert recipe.train.optimizer.options == {"momentum": 0.9, "weight_decay": 0.0005}  # 5e-4 is no text here
    assert recipe.train.precision == "32-true"
    assert recipe.train.measure_every == 50
    assert recipe.train.deterministic
    assert recipe.compare is not None
    assert (recipe.compare.seeds, recipe.compare.level) == (5, 0.95)
    assert recipe.compare.tune is not None
    assert recipe.compare.tune.validation_fraction == 0.2


def test_round_trip_through_plain_values(recipe: Recipe) -> None:
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert parse_yaml(str(recipe.to_dict()).replace("None", "null"), "text")["name"] == "small"


def test_overrides_from_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, BASE)
    changed = load_recipe(
        path,
        [
            "train.epochs=7",
            "data.augment=[crop, flip]",
            "train.clip_norm=1e-1",
            "train.optimizer.options.nesterov=true",
            "compare.tune.grid.train.optimizer.lr=[0.3]",
            "compare.arms.ChannelL2.rules.0.smoothing=8",
            "compare.arms.small batch.set.train.batch_size=16",
        ],
    )
    assert changed.train.epochs == 7
    assert changed.data.augment == ("crop", "flip")
    assert changed.train.clip_norm == 0.1
    assert changed.train.optimizer.options["nesterov"] is True
    assert changed.compare is not None
    assert changed.compare.tune is not None
    assert changed.compare.tune.grid == {"train.optimizer.lr": [0.3]}
    assert changed.compare.arms["ChannelL2"].rules == ({"rule": "ChannelL2", "smoothing": 8},)
    assert changed.for_arm("small batch").train.batch_size == 16


def test_for_arm_applies_set_and_rules(recipe: Recipe) -> None:
    arm = recipe.for_arm("small batch")
    assert arm.compare is None
    assert arm.train.batch_size == 32
    assert [type(rule).__name__ for rule in arm.make_rules()] == ["GradientCentralization"]
    assert recipe.for_arm("SGD").rules == ()
    with pytest.raises(RecipeError, match="no arm 'Adam'; its arms are SGD, tuned SGD"):
        recipe.for_arm("Adam")


def test_with_overrides_leaves_the_old_recipe(recipe: Recipe) -> None:
    assert recipe.with_overrides({"train.optimizer.lr": 0.5}).train.optimizer.lr == 0.5
    assert recipe.train.optimizer.lr == 0.1


SENTENCES: list[tuple[dict[str, Any], str]] = [
    ({"train.epocs": 3}, "unknown key 'train.epocs', did you mean 'train.epochs'?"),
    ({"epochs": 3}, "unknown key 'epochs', did you mean 'train.epochs'?"),
    ({"trian.epochs": 3}, "unknown key 'trian.epochs', did you mean 'train.epochs'?"),
    (
        {"train.optimizer.momentum": 0.9},
        "unknown key 'train.optimizer.momentum'; 'train.optimizer' knows name, lr, options",
    ),
    ({"compare.arms.SGD.tun": True}, "unknown key 'compare.arms.SGD.tun', did you mean 'compare.arms.SGD.tune'?"),
    ({"train.epochs": 0}, "train.epochs should be greater than or equal to 1, not 0"),
    ({"train.epochs": 2.5}, "train.epochs should be a whole number, not 2.5"),
    ({"train.epochs": True}, "train.epochs should be a whole number, not True"),
    ({"train.epochs": "3"}, "train.epochs should be a whole number, not '3'"),
    ({"train.optimizer.lr": "0.1"}, "train.optimizer.lr should be a number, not '0.1'"),
    ({"train.optimizer.lr": True}, "train.optimizer.lr should be a number, not True"),
    ({"train.deterministic": "yes"}, "train.deterministic should be true or false, not 'yes'"),
    ({"train.channels_last": 1}, "train.channels_last should be true or false, not 1"),
    ({"train.label_smoothing": "0.1"}, "train.label_smoothing should be a number, not '0.1'"),
    ({"compare.arms.SGD.tune": 0}, "compare.arms.SGD.tune should be true or false, not 0"),
    ({"compare.seeds": "5"}, "compare.seeds should be a whole number, not '5'"),
    ({"train.batch_size": -1}, "train.batch_size should be greater than or equal to 1, not -1"),
    ({"train.optimizer.lr": 0}, "train.optimizer.lr should be greater than 0, not 0"),
    ({"train.optimizer.lr": float("nan")}, "train.optimizer.lr should be"),
    ({"train.optimizer.name": "SDG"}, "there is no optimizer 'SDG' in torch.optim, did you mean 'SGD'?"),
    ({"train.optimizer.name": "LBFGS"}, "train.optimizer: the optimizer LBFGS cannot be used: it needs a closure"),
    ({"train.optimizer.name": "Muon"}, "train.optimizer: the optimizer Muon cannot be used: it takes matrices only"),
    ({"train.optimizer.options": {"momentm": 0.9}}, "SGD has no option 'momentm', did you mean 'momentum'?"),
    ({"train.optimizer.options.momentum": -1}, "torch.optim.SGD refuses these settings: Invalid momentum value: -1"),
    (
        {"train.optimizer.options": {"differentiable": True}},
        "train.optimizer: options.differentiable cannot be used: the training loop does not",
    ),
    ({"train.optimizer.options": {"momentum": True}}, "train.optimizer: options.momentum should be a number, not True"),
    ({"train.optimizer.options": {"momentum": None}}, "options.momentum should be a number, not None"),
    ({"train.optimizer.options": {"nesterov": "yes"}}, "options.nesterov should be true or false, not 'yes'"),
    ({"train.optimizer.options": {"foreach": 3}}, "options.foreach should be true or false, not 3"),
    *(
        (
            {"train.optimizer": {"name": "AdamW", "lr": 0.1, "options": {"betas": betas}}},
            f"train.optimizer: options.betas should be 2 numbers such as [0.9, 0.999], not {betas}",
        )
        for betas in (3, [0.9], [0.9, 0.99, 0.999], [0.9, True], [0.9, None])
    ),
    ({"train.optimizer": {"name": "AdamW", "lr": 0.1, "options": {"betas": [0.9, 2]}}}, "Invalid beta parameter"),
    ({"model.name": "vg"}, "there is no model 'vg', did you mean 'vgg'?"),
    ({"model.options.width": 3}, "the model 'vgg' has no option 'width', did you mean 'widths'?"),
    ({"data.name": "digit"}, "there is no data set 'digit', did you mean 'digits'?"),
    ({"data.augment": ["flop"]}, "there is no augmentation 'flop', did you mean 'flip'?"),
    ({"data.augment": ["crop", "flip", "crop"]}, "data.augment: the augmentation 'crop' stands there 2 times"),
    ({"data.augment": "crop"}, "data.augment should be a list such as [a, b], not 'crop'"),
    ({"data.root": 3}, "data.root should be text, not 3"),
    ({"model.options": [1]}, "model.options should hold keys of its own, not [1]"),
    ({"data.train_size": 0}, "data.train_size should be greater than or equal to 1, not 0"),
    (
        {"train.schedule.name": "cos"},
        "train.schedule.name should be 'constant', 'cosine', 'step', 'power' or 'cyclical', not 'cos'",
    ),
    ({"train.schedule.milestones": [2]}, "milestones belong to the schedule 'step', not to 'cosine'"),
    ({"train.schedule": {"name": "step"}}, "the schedule 'step' needs milestones"),
    ({"train.schedule.warmup_epochs": 4}, "schedule.warmup_epochs (4) should be below epochs (4)"),
    ({"train.schedule": {"name": "power"}}, "the schedule 'power' is lr / (1 + rate * step)^exponent and needs a rate"),
    ({"train.schedule.rate": 0.1}, "rate and exponent belong to the schedule 'power', not to 'cosine'"),
    ({"train.schedule": {"name": "step", "milestones": [1], "exponent": 0.5}}, "belong to the schedule 'power'"),
    ({"train.schedule": {"name": "power", "rate": 0}}, "train.schedule.rate should be greater than 0, not 0"),
    ({"train.optimizer.name": "SubmanifoldSDG"}, "did you mean 'SubmanifoldSGD'?"),
    (
        {"train.optimizer": {"name": "SubmanifoldSGD", "lr": 0.1, "options": {"momentun": 0.9}}},
        "SubmanifoldSGD has no option 'momentun', did you mean 'momentum'?",
    ),
    (
        {"train.optimizer": {"name": "SubmanifoldSGD", "lr": 0.1, "options": {"step_size": "curved"}}},
        "train.optimizer: weightspace.optim.SubmanifoldSGD refuses these settings",
    ),
    (
        {"train.optimizer": {"name": "SubmanifoldAdam", "lr": 0.1, "options": {"betas": [0.9]}}},
        "train.optimizer: options.betas should be 2 numbers such as [0.9, 0.999], not [0.9]",
    ),
    ({"train.optimizer.manifold_lr_factor": 3.0}, "manifold_lr_factor belongs to SubmanifoldSGD and SubmanifoldAdam"),
    ({"rules": [{"rule": "Stiefel", "grouping": "filter"}]}, "Stiefel"),
    ({"rules": [{"rule": "Sphere", "radius": -1}]}, "radius"),
    ({"rules": [{"rule": "Product", "parts": ["sphere(slice)"]}]}, "Product got parts="),
    ({"train.precision": "fp16"}, "train.precision should be '32-true'"),
    (
        {"train.precision": "16-mixed", "train.optimizer.options.fused": True},
        "optimizer.options.fused does not go with precision 16-mixed",
    ),
    ({"rules": [{"smoothing": 4.0}]}, "a rule entry needs the key 'rule'"),
    ({"rules": [{"rule": "ChanelL2"}]}, "ChannelL2"),
    ({"rules": [{"rule": "ChannelL2", "smooothing": 4.0}]}, "smoothing"),
    ({"rules": [{"rule": "ChannelL2", "smoothing": 0}]}, "smoothing"),
    ({"rules.0.smoothing": 1}, "cannot set 'rules.0.smoothing': the list there is empty"),
    ({"train.epochs.x": 1}, "cannot set 'train.epochs.x': 'epochs' is 4, which has no keys"),
    ({"train..epochs": 1}, "is not a path into a recipe"),
    ({"train": 3}, "train should hold keys of its own, not 3"),
    ({"name": "a b"}, "name should be one word of letters, digits, '.', '_' and '-'"),
    ({"compare.baseline": "Adam"}, "the baseline 'Adam' is not one of the arms: SGD, tuned SGD"),
    ({"compare.level": 1.0}, "compare.level should be less than 1"),
    ({"compare.seeds": 0}, "compare.seeds should be greater than or equal to 1"),
    ({"compare.tune.grid": {}}, "compare.tune.grid should have at least 1 entry"),
    (
        {"compare.tune": {"random": {"trials": 2, "ranges": {"train.optimizer.lr": [0.1, 0.2, 0.3]}}}},
        "compare.tune.random.ranges.train.optimizer.lr should have at most 2 entries",
    ),
    ({"compare.tune": {}}, "tune needs exactly one of 'grid' and 'random'"),
    ({"compare.tune": {"random": {"trials": 2, "ranges": {"train.optimizer.lr": [0.3, 0.1]}}}}, "should go up"),
    ({"compare.tune.grid": {"train.lr": [0.1]}}, "compare.tune cannot set train.lr=0.1"),
    ({"compare.tune.grid": {"train.optimizer.lr": [0.1, -1]}}, "compare.tune cannot set train.optimizer.lr=-1"),
    (
        {"compare.arms.SGD.set": {"train.epoch": 1}},
        "arm 'SGD': unknown key 'train.epoch', did you mean 'train.epochs'?",
    ),
    ({"compare.arms.SGD.set": {"train.epochs": 0}}, "train.epochs should be greater"),
]


@pytest.mark.parametrize(("overrides", "sentence"), SENTENCES)
def test_every_mistake_has_its_sentence(recipe: Recipe, overrides: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.with_overrides(overrides)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)
    assert "input" not in str(caught.value).lower()


RANDOM = {"random": {"trials": 2, "ranges": {"train.optimizer.lr": [0.01, 0.1]}}}
OWN_RANGES = [
    ({"rules.0.smoothing": [1.0, 8.0]}, {}, "arm 'ChannelL2' has ranges, which only random search draws"),
    ({"rules.0.smoothing": [1.0, 8.0]}, {"tune": False}, "an arm with tune: false has no trials for its ranges"),
    ({"train.epochs": [2, 8]}, {"set": {"train.epochs": 4}}, "ranges and set both have 'train.epochs'"),
    ({"train.optimizer.lr": [0.1, 1.0]}, RANDOM, "'train.optimizer.lr', which tune.random draws for every arm"),
    ({"rules.0.smoothing": [8.0, 1.0]}, RANDOM, "the range of 'rules.0.smoothing' should go up"),
    ({"rules.0.smoothing": [0, 1.0]}, RANDOM, "ranges.rules.0.smoothing.0 should be greater than 0, not 0"),
    ({"rules.1.smoothing": [1.0, 2.0]}, RANDOM, "compare.arms.ChannelL2.ranges cannot set rules.1.smoothing=1.0"),
    ({"rules.0.smooth": [1.0, 2.0]}, RANDOM, "compare.arms.ChannelL2.ranges cannot set rules.0.smooth=1.0"),
    ({"train.label_smoothing": [0.5, 2.0]}, RANDOM, "ranges cannot set train.label_smoothing=2.0"),
]


@pytest.mark.parametrize(("ranges", "change", "sentence"), OWN_RANGES)
def test_every_mistake_in_the_ranges_of_an_arm_has_its_sentence(
    recipe: Recipe, ranges: dict[str, Any], change: dict[str, Any], sentence: str
) -> None:
    values = recipe.to_dict()
    arm = values["compare"]["arms"]["ChannelL2"]
    arm["ranges"] = ranges
    if "random" in change:
        values["compare"]["tune"] = change
    else:
        arm.update(change)
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(values)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_ranges_of_an_arm_are_read_and_overridden(tmp_path: Path) -> None:
    text = BASE.replace(
        "{grid: {train.optimizer.lr: [0.05, 0.1]}}", "{random: {trials: 2, ranges: {train.batch_size: [8, 64]}}}"
    )
    text = text.replace("smoothing: 4.0}]}", "smoothing: 4.0}], ranges: {rules.0.smoothing: [1, 8.0]}}")
    read = load_recipe(write(tmp_path, text))
    assert read.compare is not None
    assert read.compare.arms["ChannelL2"].ranges == {"rules.0.smoothing": (1, 8.0)}
    assert read.compare.arms["tuned SGD"].ranges == {}
    assert Recipe.from_dict(read.to_dict()) == read
    changed = load_recipe(write(tmp_path, text), ["compare.arms.ChannelL2.ranges.rules.0.smoothing=[2.0, 16.0]"])
    assert changed.compare is not None
    assert changed.compare.arms["ChannelL2"].ranges == {"rules.0.smoothing": (2.0, 16.0)}


def test_errors_name_the_file_and_all_mistakes(tmp_path: Path) -> None:
    text = BASE.replace("epochs: 4", "epochs: -4").replace("data: {name: digits}", "data: {nam: digits}")
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text))
    message = str(caught.value)
    assert message.startswith("small.yaml: ")
    assert "did you mean 'data.name'?" in message
    assert "'data.name' is missing" in message
    assert "train.epochs should be" in message


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: [1\ntrain: 2\n", "line 2, column 6"),
        ("name: a\nname: b\n", "line 2, column 1: the key 'name' stands here twice"),
        ("", "holds nothing"),
        ("- 1\n", "holds a list"),
        ("a: !!python/object/apply:os.system [ls]\n", "cannot be used in a recipe"),
        ("a: \x01", "not valid YAML"),
        ("1: 2\n", "has the key 1, but keys are words"),
        (f"a: {'9' * 5000}\n", "has more than 64 bits"),
        ("[" * 5000, "not valid YAML"),
    ],
)
def test_broken_yaml_names_the_place(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text))
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("small.yaml")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_read_as_itself(value: float) -> None:
    assert parse_yaml(repr(value), "a number") == value


@given(st.integers())
def test_every_integer_is_read_as_itself(value: int) -> None:
    assert parse_yaml(str(value), "a number") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-007", -7),
        ("0o17", 15),
        ("0x1f", 31),
        ("+3", 3),
        ("1e3", 1000.0),
        ("1.", 1.0),
        ("~", None),
        ("", None),
    ],
)
def test_numbers_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert parse_yaml(text, "a number") == value
    assert type(parse_yaml(text, "a number")) is type(value)


WORDS = ["on", "yes", "no", "off", "y", "convs", "1.2.3", "5e", "e5", "-", ".", "1_000", "1_0.5", "12:30:45", "1:30.5"]


@pytest.mark.parametrize("word", [*WORDS, "0b11", "08x", "2020-01-01", "="])
def test_words_stay_words(word: str) -> None:
    assert parse_yaml(word if word != "-" else "'-'", "a word") == word


def test_names_and_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no recipe 'quickstrat', did you mean 'quickstart'"):
        load_recipe("quickstrat")
    with pytest.raises(RecipeError, match=r"there is no recipe file .*missing\.yaml"):
        load_recipe(tmp_path / "missing.yaml")
    with pytest.raises(RecipeError, match="cannot read the recipe file"):
        load_recipe(tmp_path)
    with pytest.raises(RecipeError, match="is not an override; write key=value"):
        load_recipe("quickstart", ["train.epochs"])


@pytest.mark.parametrize("name", list(bundled_recipes()))
def test_bundled_recipes_are_valid_and_say_what_they_cost(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert bundled_recipes()[name].startswith("# ")


def test_fingerprint_follows_what_decides_the_numbers(recipe: Recipe) -> None:
    same = recipe.with_overrides({"description": "other", "name": "other", "compare.seeds": 9, "data.root": "/data"})
    assert run_fingerprint(same, 0) == run_fingerprint(recipe, 0)
    assert run_fingerprint(recipe, 1) != run_fingerprint(recipe, 0)
    for change in (
        {"train.optimizer.lr": 0.2},
        {"rules": [{"rule": "ChannelL2"}]},
        {"data.train_size": 100},
        {"model.options.dropout": 0.2},
        {"train.label_smoothing": 0.1},
    ):
        assert run_fingerprint(recipe.with_overrides(change), 0) != run_fingerprint(recipe, 0)


def test_schedules_have_their_known_values() -> None:
    def factors(schedule: dict[str, Any]) -> list[float]:
        settings = recipe_schedule(schedule)
        return [round(lr_factor(settings, step, steps_per_epoch=2, steps=8), 4) for step in range(8)]

    assert factors({"name": "constant"}) == [1.0] * 8
    assert factors({"name": "constant", "warmup_epochs": 2}) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert factors({"name": "step", "milestones": [1, 3], "gamma": 0.5}) == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
    cosine = factors({"name": "cosine", "warmup_epochs": 1})
    assert cosine[:3] == [0.5, 1.0, 1.0]
    assert cosine[5] == 0.5  # the middle of the six steps after warm-up
    power = factors({"name": "power", "rate": 0.5, "exponent": 0.5, "warmup_epochs": 1})
    assert power == [0.5, 1.0, *(round((1 + 0.5 * t) ** -0.5, 4) for t in range(6))]
    assert cosine == sorted(cosine[:2]) + sorted(cosine[2:], reverse=True)


@pytest.mark.parametrize(
    ("schedule", "broken"),
    [
        ({"name": "power", "rate": 0.01, "exponent": 0.51}, None),
        ({"name": "power", "rate": 0.01}, None),
        ({"name": "power", "rate": 0.01, "exponent": 0.5}, "exponent 0.5: it must be above 1/2"),
        ({"name": "power", "rate": 0.01, "exponent": 1.5}, "exponent 1.5: it must be above 1/2 and at most 1"),
        ({"name": "constant"}, "a constant rate"),
        ({"name": "cosine"}, "cosine"),
        ({"name": "step", "milestones": [1]}, "step"),
    ],
)
def test_schedules_that_break_the_conditions_of_convergence_are_told(
    schedule: dict[str, Any], broken: str | None
) -> None:
    sentence = broken_conditions(recipe_schedule(schedule))
    if broken is None:
        assert sentence is None
    else:
        assert sentence is not None
        assert sentence.startswith("the schedule breaks a condition of convergence on manifolds, ")
        assert broken in sentence


QUICKSTART = "7e13e71fadf6168752d306cd23eee085bc95bf9f19df4f3e10035cec89723e9a"


def test_later_keys_leave_the_fingerprints_of_earlier_runs() -> None:
    """Recorded before schedules had powers and optimizers had manifolds."""
    assert run_fingerprint(load_recipe("quickstart"), 0) == QUICKSTART
    power = {"train.schedule": {"name": "power", "rate": 0.1}}
    changed = load_recipe("quickstart").with_overrides(power)
    assert run_fingerprint(changed, 0) != run_fingerprint(changed.with_overrides({"train.schedule.rate": 0.2}), 0)
    ours = {"train.optimizer": {"name": "SubmanifoldSGD", "lr": 0.1}}
    changed = load_recipe("quickstart").with_overrides(ours)
    factor = changed.with_overrides({"train.optimizer.manifold_lr_factor": 2.0})
    assert run_fingerprint(changed, 0) != run_fingerprint(factor, 0)


def recipe_schedule(values: dict[str, Any]) -> Any:
    from weightspace.training.recipe import ScheduleSettings

    return ScheduleSettings.model_validate(values)
