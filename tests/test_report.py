"""Reports: every arm is in them, nothing outside is, hostile names do no harm, unfinished runs are said to be."""

from __future__ import annotations

import io
import itertools
import json
import re
import struct
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fabricated import ARMS, fabricate, make_recipe
from weightspace.compare import comparison_table, read_comparison, write_tables
from weightspace.compare.verdict import verdict
from weightspace.errors import RunError
from weightspace.figures import robust_limits, spread
from weightspace.report import write_report
from weightspace.report.collect import read_layers
from weightspace.report.curves import tuning_figure
from weightspace.report.facts import layer_rows
from weightspace.report.layers import layers_figure
from weightspace.training.recipe import Recipe

HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in {"src", "href", "action", "data", "srcset"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    fabricate(folder, diverged=(("ChannelSobolev, periodic", 2),))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(run_dir):
    return Page((run_dir / "report.html").read_text())


def test_the_report_names_every_arm_and_every_plot(run_dir, page):
    for arm in ARMS:
        assert page.text.count(arm) >= 2
    assert page.tags.count("img") == 6
    names = {"accuracy", "differences", "seeds", "tuning", "rho", "shrinkage"}
    assert {path.stem for path in (run_dir / "plots").glob("*.png")} == names


def test_the_report_is_self_contained(run_dir, page):
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", (run_dir / "report.html").read_text())
    assert not re.search(r"https?://|@import|url\(|<script", text)


def test_the_report_tells_what_ran_where(page):
    for fact in ("2.13.0", "Some processor", "scikit-learn", "weightspace compare fabricated --set 'train.epochs=8'"):
        assert fact in page.text
    assert "Tuning: 4 trials (learning rate; grid) x 1 seed" in page.text
    assert "2026-01-01 10:00:00 UTC" in page.text
    assert "features.27.weight" in page.text
    assert "1 of 5 final runs diverged" in page.text


def test_own_settings_have_a_panel_of_the_arms_that_tune_them(tmp_path):
    ranges = {"rules.0.smoothing": [0.1, 10.0]}
    rule = {"rules": [{"rule": "ChannelL2", "smoothing": 4.0}], "ranges": ranges}
    values = make_recipe().to_dict()
    values["compare"]["arms"] = {"tuned SGD": {}, "one": rule, "other": rule}
    values["compare"]["tune"] = {"random": {"trials": 8, "ranges": {"train.optimizer.lr": [0.01, 0.1]}}, "seeds": 1}
    fabricate(tmp_path, Recipe.from_dict(values))
    comparison = read_comparison(tmp_path)
    rates, smoothing = tuning_figure(comparison).axes
    assert rates.get_xlabel() == "learning rate (train.optimizer.lr)"
    assert smoothing.get_xlabel() == "smoothing (rules.0.smoothing)"
    drawn = sorted(trial.settings["rules.0.smoothing"] for trial in comparison.arms[1].arm.trials)
    lines = [sorted(line.get_xdata()) for line in smoothing.lines if len(line.get_xdata()) == 8]
    assert lines == [drawn, drawn]
    assert sum(len(line.get_xdata()) == 8 for line in rates.lines) == 3
    write_report(tmp_path)
    chosen = comparison.arms[1].settings
    text = Page((tmp_path / "report.html").read_text()).text
    assert f"lr={chosen['train.optimizer.lr']:g}, smoothing={chosen['rules.0.smoothing']:g}" in text


def test_plots_are_wide_enough_for_a_screen(run_dir):
    for path in (run_dir / "plots").glob("*.png"):
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert width == 1440
        assert 400 < height < 3000


def test_the_verdict_names_the_arms_that_differ(run_dir):
    text = " ".join(verdict(read_comparison(run_dir)))
    assert text.startswith("Worse than tuned SGD after Holm's adjustment over 11 arms (adjusted p below 0.05): ")
    assert "ChannelL2 (-" in text
    assert "SGD (-" in text
    assert "Better" not in text


def test_the_time_of_a_step_is_that_of_the_fastest_seed(tmp_path):
    """Four of five runs shared their core with something else: the arm is not slower for it."""
    fabricate(tmp_path, make_recipe({"tuned SGD": {}, "disturbed": {}}))
    for seed, path in enumerate(sorted((tmp_path / "arms" / "disturbed" / "final").glob("*/result.json"))):
        result = json.loads(path.read_text())
        path.write_text(json.dumps({**result, "seconds_per_step": 0.5 if seed else 0.05}))
    arm = next(arm for arm in read_comparison(tmp_path).arms if arm.arm.name == "disturbed")
    assert arm.seconds_per_step == 0.05
    assert 1.0 < arm.time_ratio < 1.5


def test_no_difference_is_said_to_be_none(tmp_path):
    fabricate(tmp_path, make_recipe({"tuned SGD": {}, "same": {}}))
    sentences = verdict(read_comparison(tmp_path))
    assert sentences[0].startswith("No arm differs from tuned SGD after Holm's adjustment over 1 arm")
    assert "percentage points to either side" in sentences[0]


def test_a_better_arm_is_said_to_be_better(tmp_path):
    fabricate(tmp_path, make_recipe({"tuned SGD": {}, "good": {}}), offsets={"good": 0.03})
    assert verdict(read_comparison(tmp_path))[0].startswith("Better than tuned SGD")


@pytest.mark.parametrize("name", [HOSTILE, "$\\frac{x$ [red]bold[/red] | **a**", "x" * 300, "λ 日本 \u202e"])
def test_hostile_arm_names_do_no_harm(tmp_path, name):
    recipe = make_recipe({"tuned SGD": {}, name: {"rules": [{"rule": "ChannelL2", "smoothing": 4.0}]}}, seeds=2)
    fabricate(tmp_path, recipe)
    write_tables(tmp_path)
    text = write_report(tmp_path).read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert name in page.text
    assert HOSTILE not in (tmp_path / "table.md").read_text()
    console = Console(width=1000, record=True, file=io.StringIO())
    console.print(comparison_table(tmp_path))
    assert name[:10] in console.export_text()


def test_missing_runs_are_named_and_the_rest_is_shown(tmp_path):
    fabricate(tmp_path, without=(("ChannelL2", 3), ("tuned SGD", 1)))
    (tmp_path / "arms/channell2/final/seed3").mkdir()
    (tmp_path / "arms/channell2/final/seed3/metrics.jsonl").write_text('{"kind": "epoch", "epo')
    page = Page(write_report(tmp_path).read_text())
    assert "Not finished: 2 of 104 runs are missing ('tuned SGD, seed 1', 'ChannelL2, seed 3')" in page.text
    comparison = read_comparison(tmp_path)
    arm = next(arm for arm in comparison.arms if arm.arm.name == "ChannelL2")
    assert (len(arm.accuracy), arm.difference.n) == (4, 3)  # only the seeds that both have


def test_a_comparison_that_has_just_begun_gives_a_report(tmp_path):
    recipe = make_recipe({"tuned SGD": {}, "other": {}})
    everything = tuple((arm, seed) for arm in ("tuned SGD", "other") for seed in range(5))
    fabricate(tmp_path, recipe, without=everything)
    for path in (tmp_path / "arms/other/tune").glob("*/result.json"):
        path.unlink()
    page = Page(write_report(tmp_path).read_text())
    assert "Nothing can be said yet" in page.text
    assert "16 of 18" not in page.text
    assert "14 of 18 runs are missing" in page.text


def test_a_single_seed_and_a_single_epoch_give_a_report(tmp_path):
    fabricate(tmp_path, make_recipe({"tuned SGD": {}, "other": {}}, seeds=1, epochs=1))
    page = Page(write_report(tmp_path).read_text())
    assert "one pair: no interval" in page.text


def test_an_unfinished_tuning_stage_hides_final_runs_of_an_unknown_choice(tmp_path):
    fabricate(tmp_path, make_recipe({"tuned SGD": {}, "other": {}}))
    (tmp_path / "arms/other/tune/2-seed1000/result.json").unlink()
    arm = read_comparison(tmp_path).arms[1]
    assert arm.choice is None
    assert arm.accuracy == {}
    assert len(arm.missing) == 6


def write_single_run(folder, *, status="done"):
    arms = {"only": {"tune": False, "rules": [{"rule": "ChannelL2", "smoothing": 4.0}]}}
    recipe = make_recipe(arms, seeds=1, grid=None)
    fabricate(folder / "all", recipe, diverged=(("only", 0),) if status == "diverged" else ())
    run = folder / "all/arms/only/final/seed0"
    (run / "run.json").write_text(
        json.dumps(
            {"recipe": recipe.to_dict(), "command": "weightspace train x", "versions": {"torch": "2.13.0"}, "seed": 0}
        )
    )
    return run


def test_a_single_training_run_gives_a_report(tmp_path):
    page = Page(write_report(write_single_run(tmp_path)).read_text())
    assert "fabricated: one training run" in page.text
    assert "This is one seed" in page.text
    assert "weightspace train x" in page.text
    assert page.tags.count("img") == 3


def test_single_runs_that_diverged_or_have_not_ended_say_so(tmp_path):
    run = write_single_run(tmp_path, status="diverged")
    assert "The run diverged: loss is nan." in Page(write_report(run).read_text()).text
    (run / "result.json").unlink()
    assert "Not finished" in Page(write_report(run).read_text()).text
    (run / "metrics.jsonl").unlink()
    assert "No epoch is complete yet" in Page(write_report(run).read_text()).text
    assert not list((run / "plots").glob("*.png"))  # plots of what is no longer there are gone


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(RunError, match="holds neither"):
        write_report(tmp_path)
    with pytest.raises(RunError, match="does not exist"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file"):
        write_report(tmp_path / "file")
    with pytest.raises(RunError, match="is not a comparison"):
        comparison_table(tmp_path)


def test_layers_are_averaged_over_runs(tmp_path):
    for number, rho in enumerate((0.2, 0.4)):
        (tmp_path / str(number)).mkdir()
        lines = [{"kind": "layer", "step": 5, "name": "a", "rho": rho, "shrinkage": None}]
        lines += [{"kind": "layer", "step": 9, "name": "b", "rho": 0.5, "shrinkage": 0.1}] if number else []
        (tmp_path / str(number) / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = read_layers([tmp_path / "0", tmp_path / "1"], "arm", [])
    np.testing.assert_allclose(table.rho, [[0.3, np.nan], [np.nan, 0.5]])
    np.testing.assert_allclose(table.shrinkage, [[np.nan, np.nan], [np.nan, 0.1]])
    assert read_layers([tmp_path / "none"], "arm", []) is None


def warnings_of(run):
    return " ".join(Page(write_report(run).read_text()).text.split())


@pytest.mark.parametrize("content", [b"", b'{"recipe": ', b"[1]", b"\xff\xfe\x00", b"null", b"[" * 99999])
@pytest.mark.parametrize("name", ["run.json", "result.json"])
def test_a_damaged_file_of_a_run_is_a_warning(tmp_path, name, content):
    run = write_single_run(tmp_path)
    (run / name).write_bytes(content)
    text = warnings_of(run)
    assert f"{name} is damaged" in text
    if name == "result.json":
        assert "Not finished: there is no whole result.json" in text


def test_a_report_that_cannot_be_written_is_one_sentence(tmp_path):
    run = write_single_run(tmp_path)
    (run / "plots").touch()
    with pytest.raises(RunError, match=r"cannot write .*curves\.png: "):
        write_report(run)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match=r"cannot delete .*curves\.png: not a directory"):
        write_report(run)


def test_damaged_lines_of_a_run_are_a_warning_and_the_others_are_shown(tmp_path):
    run = write_single_run(tmp_path)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    odd = [
        b"\xff\xfe\n",
        b'{"kind": "epoch"}\n',
        b'{"kind": "layer", "step": "x"}\n',
        b'{"kind": "epoch", "epoch": true}\n',
    ]
    (run / "metrics.jsonl").write_bytes(b"".join([*lines[:5], *odd, *lines[5:], b'{"kind": "epo']))
    text = warnings_of(run)
    assert "metrics.jsonl is damaged at line 6 (not JSON); what it held there is missing in the plots." in text
    assert "has 2 records without epoch; they are left out." in text
    assert "has 1 records without step or name; they are left out." in text
    assert Page((run / "report.html").read_text()).tags.count("img") == 3


def test_damaged_lines_in_a_comparison_are_a_warning(tmp_path):
    fabricate(tmp_path, make_recipe({"tuned SGD": {}, "other": {"rules": [{"rule": "ChannelL2"}]}}, seeds=2))
    path = tmp_path / "arms/other/final/seed1/metrics.jsonl"
    path.write_bytes(b"\xff\n" + path.read_bytes())
    text = warnings_of(tmp_path)
    assert text.count("arms/other/final/seed1/metrics.jsonl is damaged at line 1") == 1  # not once for each plot
    path.unlink()
    path.mkdir()
    assert "cannot read" in warnings_of(tmp_path)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=12, deadline=None)
@given(
    run=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(["recipe", "data", "machine", "versions", "resumed", "workers", "seed", "command"], ODD),
    ),
    result=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(["status", "reason", "test_accuracy", "seconds_per_step", "epochs", "seed"], ODD)
    ),
    record=st.fixed_dictionaries(
        {"kind": st.sampled_from(["epoch", "layer"])},
        optional={
            "epoch": ODD | st.integers(1, 5),
            "step": ODD | st.integers(1, 5),
            "name": ODD | st.just("a"),
            **dict.fromkeys(["test_accuracy", "test_loss", "train_loss", "rho", "shrinkage"], ODD),
        },
    ),
)
def test_any_json_in_the_files_of_a_run_gives_a_report(tmp_path_factory, run, result, record):
    folder = tmp_path_factory.mktemp("odd")
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    Page(write_report(folder).read_text())


@given(st.lists(st.floats(0, 1), max_size=14))
def test_labels_never_overlap_and_keep_their_order(positions):
    placed = spread(positions, 0.05, 0.0, 1.0)
    assert len(placed) == len(positions)
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in placed)
    ordered = sorted(placed)
    assert all(b - a >= 0.05 - 1e-6 for a, b in itertools.pairwise(ordered))
    for i, a in enumerate(positions):
        for j, b in enumerate(positions):
            assert not (a < b and placed[i] > placed[j])


def test_limits_leave_out_a_diverged_arm_only():
    low, high = robust_limits([97.0, 97.2, 97.4, 96.0, 10.0])
    assert 95 < low < 96
    assert 97.4 < high < 98
    assert robust_limits([]) == (0.0, 1.0)
    low, high = robust_limits([5.0])
    assert low < 5.0 < high


def test_factors_of_steps_on_manifolds_get_a_plot_and_no_empty_table(tmp_path):
    lines = [
        {"kind": "epoch", "epoch": 1, "step": 2, "train_loss": 1.0, "test_loss": 1.0, "test_accuracy": 0.5},
        *(
            {"kind": "layer", "step": s, "name": "conv.weight", "R": 3.0, "r": 10.0 + s, "fallbacks": 0.0}
            for s in (1, 2)
        ),
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = read_layers([tmp_path], "Stiefel", damage := [])
    assert damage == []
    assert table.factor.tolist() == [[11.0, 12.0]]
    assert layers_figure([table], "r") is not None
    assert layers_figure([table], "rho") is None
    assert layer_rows([table]) == []
