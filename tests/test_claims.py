"""The claims page is what the raw values give: rules at their edges, mutants of the values, commands that parse."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import pytest
from claims import __main__ as command
from claims import rerun
from claims.evaluate import Found, evaluate, evaluate_all, written
from claims.intervals import Interval, bootstrap, exact, from_error, geometric, paired, share, student
from claims.losses import collect
from claims.measurements.__main__ import MEASUREMENTS
from claims.measurements.__main__ import main as measure
from claims.model import Claim, Number, Paper, Run
from claims.page import anchor, render
from claims.papers import combined, lao, ozay, park
from claims.registry import CLAIMS, claim_named
from claims.runs import RUNS, cheap_runs
from claims.sources import DOCS, Sources, accuracy_difference, by_seed
from claims.verdicts import Verdict, above, at_least, at_most, below, level_for, verdict, within
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from page_commands import check_command

VGG = "results/channel-directed/fashion-mnist-vgg/table.json"
HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results():
    return evaluate_all(CLAIMS, Sources())


# ---------------------------------------------------------------------------------------------------------- the page


def test_the_page_says_what_the_raw_values_give(results):
    assert command.check(results) == [], "python -m claims --write"


def test_the_command_succeeds_on_the_page_and_fails_on_another(results, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "evaluate_all", lambda *_: results)
    assert command.main([]) == 0
    page = tmp_path / "claims.md"
    page.write_text(render(results).replace("**reproduced**", "**not reproduced**", 1))
    monkeypatch.setattr(command, "check", lambda found: _differences(found, page))
    assert command.main([]) == 1
    assert "does not say what the raw values give" in capsys.readouterr().out


def _differences(found, page, real=command.check):
    return real(found, page)


def test_a_changed_raw_value_changes_the_page(tmp_path, results):
    table = json.loads((DOCS / VGG).read_text())
    for arm in table["arms"]:
        if arm["name"] == "ChannelL2":
            arm["accuracy"]["0"] += 0.05  # one seed of five
    changed = tmp_path / "table.json"
    changed.write_text(json.dumps(table))
    sources = Sources(instead={VGG: changed})
    claim = claim_named("lao-accuracy")
    others = [result for result in results if result.claim is not claim]
    differences = command.check([*others, evaluate(claim, sources)])
    assert any("ChannelL2 minus tuned SGD" in line for line in differences if line.startswith("+"))


def test_a_changed_verdict_changes_the_page(tmp_path):
    table = json.loads((DOCS / "claims/penalty-gradients.json").read_text())
    table["cases"][0]["relative_error"] = 0.01
    changed = tmp_path / "x.json"
    changed.write_text(json.dumps(table))
    claim = claim_named("guo-gradient")
    assert evaluate(claim, Sources()).verdict is Verdict.REPRODUCED
    assert evaluate(claim, Sources(instead={"claims/penalty-gradients.json": changed})).verdict is Verdict.NOT


def test_stored_means_are_not_read(tmp_path):
    table = json.loads((DOCS / VGG).read_text())
    for arm in table["arms"]:
        for key in ("mean", "difference", "adjusted_p", "time_ratio"):
            arm[key] = "nobody reads this"
    table["verdict"] = ["nobody reads this"]
    changed = tmp_path / "table.json"
    changed.write_text(json.dumps(table))
    claim = claim_named("lao-accuracy")
    assert evaluate(claim, Sources(instead={VGG: changed})).found == evaluate(claim, Sources()).found


def test_a_missing_source_is_not_measured_yet(tmp_path):
    claim = claim_named("lao-cost")
    result = evaluate(claim, Sources(tmp_path))
    assert (result.verdict, result.found, result.missing) == (Verdict.NOT_MEASURED, (), ("claims/linear-cost.json",))
    assert "not measured yet" in render([result])


def test_links_and_anchors_of_the_page_lead_somewhere(results):
    page = render(results)
    headings = {anchor(line.lstrip("# ")) for line in page.splitlines() if line.startswith("#")}
    for target in re.findall(r"\]\(([^)]+)\)", page):
        if target.startswith("#"):
            assert target[1:] in headings
        elif not target.startswith("http"):
            waits = any(target in result.missing for result in results)
            assert (DOCS / target).exists() or waits, target


# ------------------------------------------------------------------------------------------------------ the registry


def test_names_are_unique_and_claims_are_whole():
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.name.startswith(f"{claim.paper.key}-") or claim.paper.key == "weightspace"
        assert bool(claim.runs) == bool(claim.numbers), claim.name
        assert all(field.strip() for field in (claim.text, claim.tested, claim.refuted_by, claim.limits, claim.report))
        assert all(run in RUNS for run in claim.runs)


def test_every_source_is_committed_and_made_by_a_run_of_its_claim():
    optional = {combined.SOURCE, "benchmarks/contests.json"}  # measured by others, at their own pace
    for claim in CLAIMS:
        made = {source for run in claim.runs for source in RUNS[run].produces}
        for number in claim.numbers:
            assert (DOCS / number.source).is_file() or number.source in optional, number.source
            assert number.source in made | {"benchmarks/contests.json"}, (claim.name, number.source)


@pytest.mark.parametrize("name", RUNS)
def test_every_run_parses(name):
    for words in RUNS[name].commands("runs/claims/x", "data", is_quick=True):  # all of its words, and a few more
        if not any(word.endswith(".yaml") and not (HERE / word).exists() for word in words):
            check_command(["python", "-m", *words])


def test_a_run_that_does_not_parse_is_found():
    with pytest.raises(Exception, match="no-such-option"):
        check_command(["python", "-m", "weightspace", "compare", "quickstart", "--no-such-option"])


def test_every_short_measurement_has_its_run():
    assert set(MEASUREMENTS) == {run.name for run in cheap_runs()}
    (every,) = rerun.runs_of(rerun.CHEAP)
    assert set(every.produces) == {f"claims/{name}.json" for name in MEASUREMENTS}
    assert every.minutes < 10
    check_command(["python", "-m", *every.commands("runs/claims/x")[0]])


# ------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("condition", "interval", "outcome"),
    [
        (above(0), (1.0, 0.1, 1.9), "holds"),
        (above(0), (1.0, 0.0, 2.0), "open"),  # the boundary itself is not above
        (above(0), (-1.0, -2.0, 0.0), "open"),
        (above(0), (-1.0, -2.0, -0.1), "contradicted"),
        (above(0), (0.0, 0.0, 0.0), "contradicted"),  # exactly no difference
        (below(0), (-1.0, -1.9, -0.1), "holds"),
        (at_most(2), (2.0, 2.0, 2.0), "holds"),
        (at_most(2), (2.1, 2.1, 2.1), "contradicted"),
        (at_most(2), (1.9, 1.7, 2.1), "open"),
        (at_least(2), (2.0, 2.0, 2.0), "holds"),
        (within(-1, 1), (0.0, -1.0, 1.0), "holds"),
        (within(-1, 1), (0.9, 0.7, 1.1), "open"),
        (within(-1, 1), (1.2, 1.1, 1.3), "contradicted"),
        (above(0), (1.0, None, None), "open"),
    ],
)
def test_conditions_at_their_edges(condition, interval, outcome):
    assert condition.outcome(Interval(*interval, 5)) == outcome


@pytest.mark.parametrize(
    ("outcomes", "rule", "expected"),
    [
        (["holds", "holds"], "all", Verdict.REPRODUCED),
        (["holds", "open"], "all", Verdict.IN_PART),
        (["holds", "contradicted"], "all", Verdict.IN_PART),
        (["open", "contradicted"], "all", Verdict.NOT),
        (["holds", "contradicted"], "any", Verdict.REPRODUCED),
        (["open", "open"], "any", Verdict.NOT),
        ([], "all", Verdict.UNTESTED),
    ],
)
def test_verdicts(outcomes, rule, expected):
    assert verdict(outcomes, rule, is_paper=True) is expected


def test_more_conditions_widen_the_intervals_that_decide(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([0.1, 0.9, 1.2, 0.4, 0.8]))
    number = Number("x", "x.json", "", student, above(0))
    paper = Paper("p", "P", "A", "", "")
    made = Claim("p-x", paper, "t", "t", "r", "l", (number,), "")
    alone, many = made, dataclasses.replace(made, numbers=(number,) * 40)
    sources = Sources(tmp_path)
    assert evaluate(alone, sources).verdict is Verdict.REPRODUCED
    assert evaluate(many, sources).verdict is Verdict.NOT  # 99.875 % reaches below zero
    assert evaluate(many, sources).found[0].interval == evaluate(alone, sources).found[0].interval  # printed at 95 %


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30), st.integers(1, 50))
def test_a_wider_level_never_narrows(values, count):
    narrow, wide = student(values), student(values, level_for(count))
    assert wide.low <= narrow.low + 1e-9 * abs(narrow.low)
    assert wide.high >= narrow.high - 1e-9 * abs(narrow.high)


# --------------------------------------------------------------------------------------------------------- intervals


def test_intervals_equal_those_of_the_comparison():
    from weightspace.compare.statistics import mean_interval, paired_difference

    one, two = [0.872, 0.875, 0.869, 0.877, 0.876], [0.86, 0.88, 0.87, 0.85, 0.87]
    ours, theirs = student(one), mean_interval(one)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)
    ours, theirs = paired(one, two), paired_difference(one, two)
    assert (ours.mean, ours.low, ours.high) == pytest.approx((theirs.mean, theirs.low, theirs.high), rel=1e-12)


def test_known_intervals():
    assert geometric([1.0, 10.0, 100.0]).mean == pytest.approx(10)
    assert share(5, 10).low == pytest.approx(0.1871, abs=1e-4)  # Clopper and Pearson 1934, table
    assert share(0, 0 + 59).high == pytest.approx(0.0606, abs=1e-4)
    assert from_error(1.0, 0.5, 100).high == pytest.approx(1 + 1.959964 * 0.5, rel=1e-6)
    assert bootstrap([1.0, 2.0, 3.0]).mean == 2.0
    assert exact(2.0, 3).is_exact
    assert exact(0.5, 4).scaled(100) == exact(50.0, 4)


@pytest.mark.parametrize("wrong", [lambda: student([]), lambda: student([math.nan]), lambda: geometric([0.0, 1.0]), lambda: share(3, 2), lambda: paired([1.0], [1.0, 2.0])])  # fmt: skip
def test_what_has_no_interval_is_refused(wrong):
    with pytest.raises(ValueError, match="need"):
        wrong()


def test_numbers_are_written_as_they_are():
    assert written(Interval(-0.001, -0.002, 0.001, 5), "+.2f") == "0.00 (0.00 to 0.00)"
    assert written(Interval(1234.5, None, None, 1), ",.0f") == "1,234"
    assert written(exact(0.0, 5), ".0e") == "0"


# ---------------------------------------------------------------------------------------------------------- measures


def test_fresh_seeds_leave_the_first_out():
    table = {"arms": [{"name": n, "accuracy": {"0": 0.9, "5": v, "6": v}} for n, v in (("a", 0.5), ("b", 0.4))]}
    found = accuracy_difference("a", "b", first_seed=5)(table, 0.95)
    assert (found.mean, found.n) == (pytest.approx(10), 2)
    with pytest.raises(KeyError, match="no arm 'c'"):
        by_seed(table, "c")


def test_the_sparsest_network_is_the_one_whose_interval_reaches_zero():
    def run(arm, seed, accuracies):
        ratios = {z: {"accuracy": a, "numbers": 100, "nonzeros": n} for (z, n), a in zip((("0.0", 100), ("0.9", 10), ("0.99", 1)), accuracies, strict=True)}  # fmt: skip
        return {"arm": arm, "seed": seed, "is_final": True, "ratios": ratios}

    runs = [run("dense", s, (0.5, 0.1, 0.1)) for s in (0, 1)] + [
        run("magnitude", s, (0.8 + s / 100, 0.1, 0.1)) for s in (0, 1)
    ]
    runs += [run("L1", s, (0.8, 0.805 - s / 100, 0.2 + s / 100)) for s in (0, 1)]
    assert park.best_dense({"runs": runs}) == [0.8, 0.81]
    assert park.sparsest("L1")({"runs": runs}, 0.95).mean == pytest.approx(10)
    assert park.sparsest("dense")({"runs": runs}, 0.95).mean == 1


def test_width_of_a_sweep_is_counted_in_half_decades():
    sweep = {"plain": [[0.5, 0.01, 0.0, 0.011, None]], "curvature": [[0.5, 0.5, 0.005, 0.4, 0.2]]}
    found = {"sweep": {"1": {"p": {"all samples": sweep}}}}
    assert ozay.widths(found, "1", "p", "all samples") == {"plain": [1.0], "curvature": [0.5]}


def test_linear_time_has_the_exponent_one():
    assert lao.exponent([10, 100, 1000], [3e-3, 3e-2, 3e-1]) == pytest.approx(1)
    assert lao.exponent([10, 100], [1, 100]) == pytest.approx(2)


def test_combinations_by_hand():
    """An additive world has no interactions; one cell that is better by 3 has one of 3 (averaged over the third factor)."""
    gains = {"ChannelL2": 1.0, "Stiefel": 2.0, "Sphere": -1.0, "L1": -4.0, "L1 gated": 0.5, "SingularValueBand": 0.0, "SingularValueBand gated": 0.1, "none": 0.0}  # fmt: skip
    cells = {}
    for metric in combined.METRICS:
        for manifold in combined.MANIFOLDS:
            for penalty in combined.PENALTIES:
                levels = (metric, manifold, penalty)
                value = 80 + sum(gains[level] for level in levels)
                runs = [{"seed": s, "accuracy": (value + s * 0.1) / 100} for s in range(3)]
                cells[combined.cell_name(levels)] = {"runs": runs}
    found = {"cells": cells}
    assert combined.minus_plain(("none", "Stiefel", "L1"))(found, 0.95).mean == pytest.approx(-2)
    assert combined.interaction(0, "ChannelL2", 1, "Stiefel")(found, 0.95).mean == pytest.approx(0, abs=1e-9)
    assert combined.gate_effect("L1", "Stiefel")(found, 0.95).mean == pytest.approx(4.5)
    for run in cells["ChannelL2 + Stiefel"]["runs"]:
        run["accuracy"] += 0.03
    assert combined.interaction(0, "ChannelL2", 1, "Stiefel")(found, 0.95).mean == pytest.approx(3 / 5)
    lines = combined.matrix(found)
    assert len(lines) == 2 + 2 + 5
    assert "86.10" in lines[4]  # 80 + 1 + 2 + 3 and the seeds' mean


def test_losses_are_collected_by_arm_and_seed(tmp_path):
    folder = tmp_path / "arms" / "a-slug" / "final" / "seed3"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"train_loss": 0.1, "test_loss": 0.2, "other": 1}))
    (tmp_path / "table.json").write_text(json.dumps({"recipe": "r", "arms": [{"name": "A", "slug": "a-slug"}]}))
    assert collect(tmp_path) == {"recipe": "r", "arms": {"A": {"train_loss": {"3": 0.1}, "test_loss": {"3": 0.2}}}}


# ------------------------------------------------------------------------------------------------------------ reruns


def _number(low, mean, high, condition=None):
    number = Number("x", "s", "", lambda *_: exact(0, 1), condition)
    interval = Interval(mean, low, high, 5)
    return Found(number, interval, None if condition is None else condition.outcome(interval))


def test_agreement_of_an_old_and_a_new_number():
    assert rerun.agrees(_number(0, 1, 2), _number(1.5, 2.5, 3.5))
    assert not rerun.agrees(_number(0, 1, 2), _number(2.1, 3, 4))
    assert rerun.agrees(_number(1e-9, 1e-9, 1e-9, at_most(1e-6)), _number(5e-8, 5e-8, 5e-8, at_most(1e-6)))
    assert not rerun.agrees(_number(1e-9, 1e-9, 1e-9, at_most(1e-6)), _number(1e-3, 1e-3, 1e-3, at_most(1e-6)))
    assert rerun.agrees(_number(10, 10, 10), _number(10.5, 10.5, 10.5))
    assert not rerun.agrees(_number(10, 10, 10), _number(12, 12, 12))


def test_a_rerun_compares_with_the_page_and_keeps_only_when_asked(tmp_path, monkeypatch, capsys):
    def execute(words, console):
        out = Path(words[words.index("--out") + 1])
        shutil.copyfile(DOCS / "claims/toeplitz.json", out / "toeplitz.json")
        return True

    monkeypatch.setattr(rerun, "_execute", execute)
    assert rerun.rerun("guo-structure", out=tmp_path) == 0
    assert "reproduced" in capsys.readouterr().out

    def worse(words, console):
        out = Path(words[words.index("--out") + 1])
        (out / "toeplitz.json").write_text(json.dumps({"cases": [{"largest_deviation": 0.1}]}))
        return True

    monkeypatch.setattr(rerun, "_execute", worse)
    assert rerun.rerun("toeplitz", out=tmp_path) == 1
    assert "NO" in capsys.readouterr().out
    assert rerun.rerun("toeplitz", out=tmp_path, is_quick=True) == 0  # decides nothing
    monkeypatch.setattr(rerun, "_execute", lambda *_: False)
    assert rerun.rerun("toeplitz", out=tmp_path) == 1


def test_a_run_that_needs_data_says_so(tmp_path, capsys):
    assert rerun.rerun("cifar10-vgg", out=tmp_path) == 2
    assert "give its folder with --root FOLDER" in capsys.readouterr().err


def test_a_run_fills_in_both_folders():
    run = Run("x", ("m", "--out", "{out}", "data={root}"), {}, 1, "", quick=("--quick",), then=("n", "{out}"))
    assert run.commands("o", "d", is_quick=True) == [["m", "--out", "o", "data=d", "--quick"], ["n", "o"]]
    assert run.needs_root


def test_a_real_measurement_is_repeated(tmp_path):
    measure(["toeplitz", "penalty-gradients", "--quick", "--out", str(tmp_path)])
    run, console = RUNS["penalty-gradients"], Console(quiet=True)
    assert rerun.compare(run, tmp_path, console, is_quick=False)


@pytest.mark.slow
def test_every_measurement_runs_quickly_and_has_the_shape_of_the_committed_one(tmp_path):
    measure(["--quick", "--out", str(tmp_path)])
    for name in MEASUREMENTS:
        new, old = (json.loads((folder / f"{name}.json").read_text()) for folder in (tmp_path, DOCS / "claims"))
        assert set(new) == set(old), name
        assert rerun.compare(RUNS[name], tmp_path, Console(quiet=True), is_quick=True)
