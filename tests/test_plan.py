"""The plan of a comparison: equal budget, paired seeds, folders, choice of the best trial."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabricated import ARMS, make_recipe
from weightspace.compare.plan import final_jobs, make_plan, make_slugs, tuning_jobs
from weightspace.compare.trials import Trial, choose, make_trials
from weightspace.errors import RecipeError
from weightspace.training.recipe import Recipe, TuneSettings


def with_tuning(tune: dict) -> Recipe:
    values = make_recipe().to_dict()
    values["compare"]["tune"] = tune
    return Recipe.from_dict(values)


def test_every_tuned_arm_gets_the_same_trials_and_seeds():
    plan = make_plan(make_recipe())
    budgets = {
        tuple((job.trial, job.seed, job.recipe.train.optimizer.lr) for job in tuning_jobs(plan, arm))
        for arm in plan.arms
        if arm.tuned
    }
    assert len(budgets) == 1
    assert len(budgets.pop()) == 4
    assert sum(arm.tuned for arm in plan.arms) == len(ARMS) - 1


def test_final_seeds_are_the_same_for_every_arm_and_none_was_used_for_tuning():
    plan = make_plan(make_recipe())
    seeds = {tuple(job.seed for job in final_jobs(plan, arm, None)) for arm in plan.arms}
    assert seeds == {(0, 1, 2, 3, 4)}
    assert not set(plan.tuning_seeds) & set(plan.final_seeds)


def test_an_arm_that_is_not_tuned_uses_the_recipes_settings():
    plan = make_plan(make_recipe())
    arm = plan.arms[0]
    assert (arm.name, arm.tuned) == ("SGD", False)
    assert tuning_jobs(plan, arm) == ()
    assert {job.recipe.train.optimizer.lr for job in final_jobs(plan, arm, None)} == {0.05}


def test_final_runs_use_the_chosen_trial_and_the_arms_rules():
    plan = make_plan(make_recipe())
    arm = next(arm for arm in plan.arms if arm.name == "ChannelL2")
    job = final_jobs(plan, arm, plan.trials[3])[2]
    assert (job.recipe.train.optimizer.lr, job.seed, job.trial) == (0.1, 2, 3)
    assert [rule["rule"] for rule in job.recipe.rules] == ["ChannelL2"]
    assert job.directory == "arms/channell2/final/seed2"
    assert tuning_jobs(plan, arm)[1].directory == "arms/channell2/tune/1-seed1000"


def test_jobs_interleave_the_arms_over_seeds():
    plan = make_plan(make_recipe())
    jobs = sorted((job for arm in plan.arms for job in final_jobs(plan, arm, None)), key=lambda job: job.order)
    assert [job.arm for job in jobs[: len(ARMS)]] == list(ARMS)
    assert {job.seed for job in jobs[: len(ARMS)]} == {0}
    tuning = tuning_jobs(plan, plan.arms[1])
    assert max(job.order for job in tuning) < min(job.order for job in jobs)


def test_the_total_counts_every_run():
    plan = make_plan(make_recipe())
    jobs = [job for arm in plan.arms for job in (*tuning_jobs(plan, arm), *final_jobs(plan, arm, None))]
    assert plan.total == len(jobs) == len({job.directory for job in jobs})


def test_a_grid_of_two_paths_is_their_product():
    recipe = with_tuning({"grid": {"train.optimizer.lr": [0.1, 0.2], "train.batch_size": [16, 32, 64]}})
    trials = make_plan(recipe).trials
    assert len(trials) == 6
    assert trials[1].settings == {"train.optimizer.lr": 0.1, "train.batch_size": 32}


def test_random_draws_are_log_uniform_repeatable_and_the_same_for_all():
    recipe = with_tuning({"random": {"trials": 400, "ranges": {"train.optimizer.lr": [0.001, 1.0]}}})
    first, second = make_trials(recipe.compare.tune), make_trials(recipe.compare.tune)
    assert first == second
    logs = [math.log10(trial.settings["train.optimizer.lr"]) for trial in first]
    assert all(-3 <= value <= 0 for value in logs)
    assert abs(sum(logs) / len(logs) + 1.5) < 0.15
    assert 0.25 < sum(value < -2 for value in logs) / len(logs) < 0.42  # a third per decade


def test_random_draws_of_whole_numbers_are_whole():
    """A batch of 23.7 images is refused by the recipe; a learning rate between 1 and 10 need not be whole."""
    ranges = {"train.batch_size": (8.0, 64.0), "train.optimizer.lr": (1.0, 10.0), "rules.0.smoothing": (1.0, 16.5)}
    tune = TuneSettings.model_validate({"random": {"trials": 50, "ranges": ranges}})
    recipe = make_recipe().with_overrides({"compare": None, "rules": [{"rule": "ChannelL2", "smoothing": 4}]})
    trials = make_trials(tune, [recipe, recipe])
    sizes = [trial.settings["train.batch_size"] for trial in trials]
    assert all(type(size) is int and 8 <= size <= 64 for size in sizes)
    assert len(set(sizes)) > 20
    assert recipe.with_overrides(trials[0].settings).train.batch_size == sizes[0]
    for path in ("train.optimizer.lr", "rules.0.smoothing"):
        assert not all(float(trial.settings[path]).is_integer() for trial in trials)


RULE = {"rules": [{"rule": "ChannelL2", "smoothing": 4.0}]}
LR = "train.optimizer.lr"


def with_own_ranges(trials: int = 6, **more: dict) -> Recipe:
    """SGD, an arm with a range of its own, and whatever else is asked for, under random search."""
    arms = {"SGD": {}, "own": {**RULE, "ranges": {"rules.0.smoothing": [0.01, 10.0]}}, **more}
    values = make_recipe().to_dict()
    values["compare"] |= {"arms": arms, "baseline": "SGD"}
    values["compare"]["tune"] = {"random": {"trials": trials, "ranges": {LR: [0.01, 0.3]}}, "seeds": 2}
    return Recipe.from_dict(values)


def test_own_ranges_change_neither_the_budget_nor_the_shared_draws():
    plain = with_tuning({"random": {"trials": 6, "ranges": {LR: [0.01, 0.3]}}})
    plan = make_plan(with_own_ranges())
    sgd, own = plan.arms
    assert sgd.trials == plan.trials == make_plan(plain).trials
    assert [trial.settings[LR] for trial in own.trials] == [trial.settings[LR] for trial in sgd.trials]
    assert [trial.number for trial in own.trials] == list(range(6))
    assert [set(trial.settings) for trial in own.trials] == [{LR, "rules.0.smoothing"}] * 6
    assert len(tuning_jobs(plan, own)) == len(tuning_jobs(plan, sgd)) == 12
    assert plan.total == 2 * (12 + 5)
    for job in tuning_jobs(plan, own):
        assert job.recipe.rules[0]["smoothing"] == own.trials[job.trial].settings["rules.0.smoothing"]
    assert [job.recipe.rules for job in tuning_jobs(plan, sgd)] == [()] * 12
    assert (
        final_jobs(plan, own, own.trials[4])[0].recipe.rules[0]["smoothing"]
        == (own.trials[4].settings["rules.0.smoothing"])
    )


def test_draws_of_an_own_range_fall_into_equal_parts_once_each():
    (_, own) = make_plan(with_own_ranges(trials=30)).arms
    logs = sorted(math.log10(trial.settings["rules.0.smoothing"]) for trial in own.trials)
    for part, value in enumerate(logs):
        assert -2 + part / 10 - 1e-3 <= value <= -2 + (part + 1) / 10 + 1e-3
    rates = [trial.settings[LR] for trial in own.trials]
    strengths = [trial.settings["rules.0.smoothing"] for trial in own.trials]
    assert strengths != sorted(strengths)
    assert [strengths[i] for i in sorted(range(30), key=rates.__getitem__)] != sorted(strengths)


def test_no_arm_moves_the_draws_of_another_and_all_have_the_same_luck():
    other = {**RULE, "ranges": {"rules.0.smoothing": [1.0, 1000.0], "train.clip_norm": [0.1, 10.0]}}
    first, (_, own, two) = make_plan(with_own_ranges()).arms[1], make_plan(with_own_ranges(other=other)).arms
    assert own == first
    place = [math.log(trial.settings["rules.0.smoothing"] / 0.01) for trial in own.trials]
    assert place == pytest.approx([math.log(trial.settings["rules.0.smoothing"]) for trial in two.trials], abs=1e-3)
    clip = [3 * math.log(trial.settings["train.clip_norm"] / 0.1) / 2 for trial in two.trials]
    assert clip != pytest.approx(place, abs=0.1)  # ranges of one arm are drawn independently


def test_own_ranges_between_whole_numbers_give_whole_numbers():
    plan = make_plan(with_own_ranges(whole={"ranges": {"train.batch_size": [8, 64]}}))
    sizes = [trial.settings["train.batch_size"] for trial in plan.arms[2].trials]
    assert all(type(size) is int and 8 <= size <= 64 for size in sizes)
    assert len(set(sizes)) > 4


def test_own_ranges_of_the_data_are_refused():
    with pytest.raises(RecipeError, match=r"compare\.arms\.fewer\.ranges sets data\.train_size, but all runs share"):
        make_plan(with_own_ranges(fewer={"ranges": {"data.train_size": [100, 200]}}))


@pytest.mark.parametrize(("key", "value"), [("train_size", 500), ("test_size", 50), ("root", "elsewhere")])
def test_arms_that_would_see_other_images_are_refused(key, value):
    arms = {"base": {"tune": False}, "other": {"tune": False, "set": {f"data.{key}": value}}}
    with pytest.raises(RecipeError, match=rf"arm 'other' sets data\.{key} to {value} .*all arms.*share their images"):
        make_plan(make_recipe(arms))
    if key != "root":
        with pytest.raises(RecipeError, match=rf"compare\.tune sets data\.{key}"):
            make_plan(with_tuning({"grid": {f"data.{key}": [value]}}))


def test_augmentation_may_differ_between_arms():
    arms = {"base": {}, "flipped": {"set": {"data.augment": ["flip"]}}}
    assert make_plan(make_recipe(arms)).arms[1].recipe.data.augment == ("flip",)


def test_without_tuning_no_arm_is_tuned():
    plan = make_plan(make_recipe(grid=None))
    assert plan.trials == ()
    assert not any(arm.tuned for arm in plan.arms)


def test_a_value_that_tuning_would_overwrite_is_refused():
    arms = {"SGD": {}, "fixed": {"set": {"train.optimizer.lr": 0.3}}}
    with pytest.raises(RecipeError, match=r"arm 'fixed' sets train\.optimizer\.lr.*tune: false"):
        make_plan(make_recipe(arms))
    arms["fixed"]["tune"] = False
    assert make_plan(make_recipe(arms)).arms[1].recipe.train.optimizer.lr == 0.3


def test_a_recipe_without_arms_is_refused():
    recipe = Recipe.from_dict(make_recipe().to_dict() | {"compare": None})
    with pytest.raises(RecipeError, match="no 'compare' part"):
        make_plan(recipe)


TRIALS = [Trial(number, {"lr": lr}) for number, lr in enumerate([0.1, 0.4, 0.2])]


def test_the_best_trial_wins_and_an_edge_is_recorded():
    assert choose(TRIALS, [(0.5, 1), (0.6, 1), (0.7, 1)]).edge == ()
    choice = choose(TRIALS, [(0.5, 1), (0.9, 1), (0.7, 1)])
    assert (choice.trial.number, choice.score, choice.edge) == (1, 0.9, ("lr",))
    assert choose(TRIALS, [(0.9, 1), (0.5, 1), (0.7, 1)]).edge == ("lr",)


def test_equal_accuracy_is_decided_by_the_loss_then_by_the_number():
    assert choose(TRIALS, [(0.9, 0.5), (0.9, 0.3), (0.9, 0.4)]).trial.number == 1
    assert choose(TRIALS, [(0.9, math.inf), (0.9, 0.3), (0.9, 0.3)]).trial.number == 1


def test_words_and_single_values_have_no_edge():
    words = [Trial(0, {"name": "SGD", "lr": 0.1}), Trial(1, {"name": "Adam", "lr": 0.1})]
    assert choose(words, [(0.5, 1), (0.9, 1)]).edge == ()


def test_known_folder_names_are_kept():
    assert make_slugs(["a-b", "new", "a b"], {"a b": "a-b"}) == {"a-b": "a-b-2", "new": "new", "a b": "a-b"}


@given(st.lists(st.text(), unique=True, max_size=12))
def test_slugs_differ_and_are_safe_folder_names(names):
    slugs = make_slugs(names)
    assert list(slugs) == names
    assert len(set(slugs.values())) == len(names)
    for slug in slugs.values():
        assert slug
        assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
