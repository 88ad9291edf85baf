"""Contests rank who takes part, leave out who is missing, and the committed page is what the committed numbers say."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
NUMBERS = ROOT / "docs" / "benchmarks" / "contests.json"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def frame(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("contests")


class Clock:
    """Time that passes only where a contestant says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def measured(frame: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A contest of fake contestants: (name, kind, seconds, error)."""
    clock = Clock()
    monkeypatch.setitem(frame.CLOCKS, "cpu", clock)

    def run(*fakes: tuple[Any, ...], **options: Any) -> dict[str, Any]:
        def build(seconds: float, error: float | None) -> Any:
            def call() -> None:
                clock.now += seconds

            return frame.Running(call, None if error is None else lambda: error)

        def entrants(_: bool) -> list[Any]:
            found = [frame.Entrant(n, kind, lambda s=s, e=e: build(s, e), *more) for n, kind, s, e, *more in fakes]
            return [*found, *options.get("more", ())]

        floor = frame.Floor("words", bytes=2e6, flops=1e6)
        contest = frame.Contest("fake", "Fake", "What?", "this", "off", 0.1, entrants, lambda _: floor)
        settings = frame.Settings(clock="cpu", seconds=60.0, rounds=6, peak=options.get("peak"))
        return frame.measure(contest, settings, frame.Rates(bandwidth=1e9, flops=1e9))

    return run


def test_the_fastest_that_answers_are_compared(measured: Callable[..., dict[str, Any]]) -> None:
    record = measured(
        ("slow ours", "ours", 0.009, 0.0),
        ("ours", "ours", 0.002, 0.05),
        ("wrong peer", "peer", 0.001, 0.2),
        ("bounds nothing", "peer", 0.001, -0.3),
        ("peer", "peer", 0.006, 0.1),
        ("hand", "by hand", 0.007, None),
        ("bare", "reference", 0.0001, None),
        peak=lambda contest, name: float(len(contest + name)),
    )
    assert (record["ours"], record["rival"], record["verdict"]) == ("ours", "peer", "first")
    assert record["ratio"] == pytest.approx([3.0, 3.0, 3.0])
    assert record["floor"]["ms"] == pytest.approx(2.0)
    by_name = {c["name"]: c for c in record["contestants"]}
    assert by_name["peer"]["ms"] == pytest.approx(6.0)
    assert by_name["peer"]["turns"] == 6
    assert by_name["peer"]["peak_mib"] == len("fakepeer")
    assert by_name["wrong peer"]["error"] == 0.2


@pytest.mark.parametrize(("peer", "verdict"), [(0.001, "behind"), (0.002, "level"), (0.003, "first"), (None, "alone")])
def test_verdicts(measured: Callable[..., dict[str, Any]], peer: float | None, verdict: str) -> None:
    peers = [] if peer is None else [("peer", "peer", peer, 0.0)]
    assert measured(("ours", "ours", 0.002, 0.0), *peers)["verdict"] == verdict


def test_ours_without_an_answer_is_not_compared(measured: Callable[..., dict[str, Any]]) -> None:
    record = measured(("ours", "ours", 0.002, 0.5), ("peer", "peer", 0.003, 0.0))
    assert (record["ours"], record["ratio"], record["verdict"]) == (None, None, "no answer of ours")


def test_the_slow_take_three_turns(measured: Callable[..., dict[str, Any]]) -> None:
    record = measured(("ours", "ours", 0.002, 0.0), ("peer", "peer", 30.0, 0.0))
    assert [c["turns"] for c in record["contestants"]] == [6, 3]
    assert record["ratio"][1] == pytest.approx(15_000)


def test_who_is_missing_or_fails_is_reported(measured: Callable[..., dict[str, Any]], frame: ModuleType) -> None:
    def fail() -> Any:
        raise ValueError("no such thing")

    def stumble() -> None:
        raise RuntimeError("too large")

    record = measured(
        ("ours", "ours", 0.002, 0.0),
        ("absent", "peer", 0.001, 0.0, "a_package_that_nobody_has"),
        more=[
            frame.Entrant("builds not", "peer", fail),
            frame.Entrant("runs not", "peer", lambda: frame.Running(stumble)),
        ],
    )
    why = {c["name"]: c["why_not"] for c in record["contestants"]}
    assert why["absent"] == "ModuleNotFoundError: No module named 'a_package_that_nobody_has'"
    assert why["builds not"] == "failed: ValueError: no such thing"
    assert why["runs not"] == "failed: RuntimeError: too large"
    assert record["verdict"] == "alone"
    ours = frame.Entrant("ours", "ours", fail)
    with pytest.raises(ValueError, match="no such thing"):
        measured(more=[ours])


def test_rates_are_read_by_the_clock(frame: ModuleType) -> None:
    rates = frame.measured_rates(frame.Settings(quick=True))
    assert 1e5 < rates.bandwidth < 1e13
    assert 1e5 < rates.flops < 1e16


# --------------------------------------------------------------------------- floors


def test_floors_of_known_sizes(load: Callable[[str], ModuleType]) -> None:
    manifolds, operators = load("contests_manifolds"), load("contests_operators")
    one = ((8, 4, 3, 3),)  # p = 8, n = 36
    stiefel = manifolds.floor_of(manifolds.Stiefel(), one)
    assert (stiefel.flops, stiefel.bytes) == (7 * 36 * 8**2, 20 * 288)
    unit = manifolds.floor_of(manifolds.Sphere("filter"), one)
    assert (unit.flops, unit.bytes) == (0, 20 * 288)
    # Pairs of three taps that come together: 9 by shifts of one, 0-0 1-1 2-2 0-2 2-0 by shifts of two.
    assert [operators.pairs_of_taps(3, stride) for stride in (1, 2, 3)] == [9, 5, 3]
    assert load("contests_metrics").floor(quick=True).bytes == 20 * (
        8 * 147 + 11_157_504 // 64
    )  # the stem, and all else by the square of the width


def test_every_contest_has_ours_a_rival_and_a_name_of_its_own(load: Callable[[str], ModuleType]) -> None:
    contests, main = load("contests_list").CONTESTS, load("__main__")
    assert len(contests) >= 20
    assert len(set(main.NAMES)) == len(main.NAMES)
    assert len({c.title for c in contests.values()}) == len(contests)
    for name, contest in contests.items():
        entrants = contest.entrants(True)
        assert {"ours"} < {e.kind for e in entrants}, name
        assert len({e.name for e in entrants}) == len(entrants), name
    reasons = load("contests_reasons").REASONS
    assert set(reasons) <= set(contests)


@pytest.mark.parametrize("name", ["centralization", "l1", "cautious-decay", "pruning", "unit-sgd", "langevin-free"])
def test_answers_of_torch_and_ours_agree_with_float64(load: Callable[[str], ModuleType], name: str) -> None:
    contest = load("contests_list").CONTESTS[name]
    for entrant in contest.entrants(True):
        if entrant.kind == "peer" or "curvature" in entrant.name or "attach(SGD, Sphere" in entrant.name:
            continue
        running = entrant.build()
        running.call()
        if running.error is not None:
            assert load("contests").is_answer(running.error(), contest.tolerance), entrant.name


def test_the_error_of_a_bound_that_is_none_is_negative(load: Callable[[str], ModuleType]) -> None:
    entrants = {e.name: e.build() for e in load("contests_list").CONTESTS["largest-circular"].entrants(True)[:1]}
    assert 0 <= entrants["`norm_bound`"].error() < 0.05
    operators = load("contests_operators")
    assert operators.bounding(operators.torch_spectral_norm, "circular", 8, 8).error() < -0.1


# --------------------------------------------------------------------------- pages


def record(verdict: str = "first", **changes: Any) -> dict[str, Any]:
    contestant = {"kind": "peer", "package": "", "turns": 9, "why_not": ""}
    return {
        "title": "A step",
        "question": "Step.",
        "size": "a matrix",
        "error": "off",
        "tolerance": 0.1,
        "floor": {"words": "bytes", "bytes": 1.0, "flops": 0.0, "ms": 0.5},
        "contestants": [
            {**contestant, "name": "mine", "kind": "ours", "ms": 2.0, "error": 1e-7, "peak_mib": 3.2},
            {**contestant, "name": "theirs", "ms": 5.0, "error": None, "peak_mib": None},
            {**contestant, "name": "wrong", "ms": 1.0, "error": 0.3, "peak_mib": 1.0},
            {**contestant, "name": "gone", "ms": None, "error": None, "peak_mib": None, "why_not": "no | such\nmodule"},
        ],
        "ours": "mine",
        "rival": "theirs",
        "ratio": [2.4, 2.5, 2.6],
        "verdict": verdict,
        "date": "2026-01-01",
        "machine": "a machine, 1 thread",
        "clock": "cpu",
        "rates": {"bandwidth": 2e10, "flops": 1e11},
        **changes,
    }


def data(**contests: dict[str, Any]) -> dict[str, Any]:
    panel = {"title": "a step", "label": "c", "sizes": [1, 2], "floor": [0.1, 0.2], "floor_words": "bytes"}
    curves = {"ours: a": [1.0, 2.0], "b": [3.0, None]}
    return {
        "format": 1,
        "command": "python -m benchmarks",
        "date": "2026-01-01",
        "machine": "a machine, 1 thread",
        "versions": {"torch": "2"},
        "missing": {"geoopt": "ImportError: no"},
        "contests": contests,
        "scaling": {"channels": {"words": "channels", "panels": [{**panel, "curves": curves}] * 2}},
    }


def test_the_first_page_says_who_is_first_and_why_not(load: Callable[[str], ModuleType]) -> None:
    page = load("contests_page")
    both = data(
        a=record(), b=record("behind", title="Another", ratio=[0.4, 0.5, 0.6]), c=record("level", title="Third")
    )
    text = page.render(both, {"b": "The floor forbids it."})
    assert (
        "| [A step](benchmarks-contests.md#a-step) | first | 2 | theirs: 5 | 2.50 (2.40–2.60) | 4 | 3 / – | 1.0e-07 / – |"
    ) in text
    assert "first in 1 of 3 contests, level in 1" in text
    assert "**Another** (behind: theirs takes 0.50 of our time). The floor forbids it." in text
    assert f"**Third** (level: theirs takes 2.50 of our time). {page.UNFOUND}" in text
    assert "geoopt (ImportError: no)" in text
    assert "![time against channels](benchmarks/scaling-channels.png)" in text
    assert "processor for this process alone" in text
    assert "## Where" not in page.render(data(a=record()))


def test_the_details_show_everyone(load: Callable[[str], ModuleType]) -> None:
    text = load("contests_page").render_details(data(a=record()))
    assert "| wrong | peer | 1 | 9 | 3.0e-01, **no answer** | 1 |" in text
    assert "| **mine** | ours | 2 | 9 | 1.0e-07 | 3 |" in text
    assert "- gone is left out: no \\| such" in text
    assert "module" not in text.partition("gone is left out")[2].splitlines()[0]


def test_a_page_without_rivals_or_floor_is_written(load: Callable[[str], ModuleType]) -> None:
    alone = record("alone", rival=None, ratio=None, floor=None)
    assert "| [A step](benchmarks-contests.md#a-step) | alone | 2 | – | – | – | 3 / – | 1.0e-07 / – |" in load(
        "contests_page"
    ).render(data(a=alone))
    nobody = record("no answer of ours", ours=None, rival=None, ratio=None)
    assert "**no answer of ours**" in load("contests_page").render(data(a=nobody))


def test_the_committed_pages_are_those_of_the_committed_numbers(load: Callable[[str], ModuleType]) -> None:
    page, numbers = load("contests_page"), json.loads(NUMBERS.read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8") == page.render(numbers)
    assert (ROOT / "docs" / "benchmarks-contests.md").read_text(encoding="utf-8") == page.render_details(numbers)


def test_the_committed_numbers_are_whole(load: Callable[[str], ModuleType]) -> None:
    numbers, run = json.loads(NUMBERS.read_text(encoding="utf-8")), load("contests_run")
    known = [*numbers["contests"], *(f"scaling-{name}" for name in numbers["scaling"])]
    assert sorted([*known, *numbers.get("unmeasured", [])]) == sorted(run.NAMES)
    assert list(numbers["contests"]) == [name for name in run.CONTESTS if name in known], "in the order of the list"
    for contest in numbers["contests"].values():
        able = [c for c in contest["contestants"] if not c["why_not"]]
        assert all(c["ms"] > 0 and math.isfinite(c["ms"]) for c in able)
    for name in numbers["scaling"]:
        assert (ROOT / "docs" / "benchmarks" / f"scaling-{name}.png").stat().st_size > 10_000


# --------------------------------------------------------------------------- the command


def test_a_contest_is_merged_into_what_is_known(
    load: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frame: ModuleType
) -> None:
    run = load("contests_run")
    contest = frame.Contest(
        "pruning", "P", "Q?", "s", "e", 0.1, lambda _: [frame.Entrant("m", "ours", lambda: frame.Running(int))]
    )
    monkeypatch.setitem(run.CONTESTS, "pruning", contest)
    monkeypatch.setattr(run, "measured_rates", lambda _: frame.Rates(1e9, 1e9))
    monkeypatch.setattr(run, "missing", lambda module: "" if module == "torch" else "gone")
    (tmp_path / "benchmarks").mkdir()
    known = data(l1=record(title="L"), **{"old contest": record()})
    (tmp_path / "benchmarks" / "contests.json").write_text(json.dumps(known), encoding="utf-8")
    run.run(["pruning"], frame.Settings(rounds=5), "the command", docs=tmp_path)
    merged = json.loads((tmp_path / "benchmarks" / "contests.json").read_text(encoding="utf-8"))
    assert list(merged["contests"]) == ["l1", "pruning"], "in the order of the list; what no longer exists is dropped"
    assert merged["contests"]["pruning"]["verdict"] == "alone"
    assert "decay" in merged["unmeasured"]
    assert "l1" not in merged["unmeasured"]
    assert merged["missing"]["geoopt"] == "gone"
    assert (tmp_path / "benchmarks.md").read_text(encoding="utf-8") == load("contests_page").render(merged)


def test_scaling_drops_who_takes_too_long_and_draws(
    load: Callable[[str], ModuleType], frame: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaling, clock = load("contests_scaling"), Clock()
    monkeypatch.setitem(frame.CLOCKS, "cpu", clock)

    def entrants(size: int) -> list[Any]:
        def call(seconds: float) -> None:
            clock.now += seconds

        return [
            frame.Entrant("mine", "ours", lambda: frame.Running(lambda: call(1e-3 * size))),
            frame.Entrant("theirs", "peer", lambda: frame.Running(lambda: call(1.0 * size))),
        ]

    panel = scaling.Panel("t", "n", (1, 2, 4), entrants, lambda n: frame.Floor("f", bytes=1e5 * n))
    monkeypatch.setitem(scaling.PLOTS, "channels", ("channels", (panel, panel)))
    plot = scaling.measure("channels", frame.Settings(clock="cpu", seconds=10.0), frame.Rates(1e9, 1e9))
    found = plot["panels"][0]
    assert found["curves"]["ours: mine"] == pytest.approx([1, 2, 4])
    assert found["curves"]["theirs"] == [pytest.approx(1000), pytest.approx(2000), None]
    assert found["floor"] == pytest.approx([0.1, 0.2, 0.4])
    scaling.draw(plot, tmp_path / "plot.png", "a machine")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_the_clock_of_a_processor_is_not_read_for_an_accelerator(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    main = load("__main__")
    monkeypatch.setattr(main, "device", lambda: torch.device("cuda"))
    with pytest.raises(SystemExit, match="leave it out"):
        main.run_contests(["l1"], main.parser().parse_args(["--clock", "cpu"]))


def test_memory_is_the_growth_of_a_fresh_process(load: Callable[[str], ModuleType]) -> None:
    before = load("contests_memory").forget_the_past()
    kept = torch.ones(2**20 * 8)  # 32 MiB
    assert load("memory").largest_resident_mebibytes() - before == pytest.approx(32, abs=6)
    del kept
