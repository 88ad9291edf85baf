"""docs/benchmarks.md and docs/benchmarks-contests.md, written from docs/benchmarks/contests.json and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.contests import ALONE, is_answer
from benchmarks.contests_reasons import REASONS

Record = Mapping[str, Any]
DETAILS = {
    "benchmarks-contests.md": "every contestant of every contest above, with time, error, memory, and why who is missing is missing",
    "benchmarks-metrics.md": "each metric beside SGD; stacking; linear time; the training loop",
    "benchmarks-manifolds.md": "steps on manifolds: ResNet-18 and ResNet-50, flops, what `tolerance` and `every` save",
    "benchmarks-operators.md": "spectra of whole networks, moments, bounds, penalties, peak memory",
    "benchmarks-gates.md": "a gated penalty beside the bare step",
    "benchmarks-langevin.md": "Langevin steps: schemes, circles, chains",
    "benchmarks-processes.md": "work divided among processes",
}
CLOCK_WORDS = {
    "wall": "Times are the clock's.",
    "cpu": "Times are those of the processor for this process alone (`--clock cpu`), because others used the machine meanwhile.",
}
UNFOUND = "No reason was looked for yet: open."


def render(data: Record, reasons: Mapping[str, str] = REASONS) -> str:
    """The first page: who is first, why where we are not, how it scales."""
    contests: Mapping[str, Record] = data["contests"]
    first = [name for name, c in contests.items() if c["verdict"] in {"first", ALONE}]
    level = [name for name, c in contests.items() if c["verdict"] == "level"]
    parts = [
        "# Benchmarks: who is first",
        _head(data),
        f"Ours is first in {len(first)} of {len(contests)} contests, level in {len(level)}.",
        "\n".join(
            [
                "| contest | verdict | ours, ms | best peer, ms | peer / ours: median (quartiles) | times the floor | peak memory, MiB: ours / peer | error: ours / peer |",
                "|---|---|---|---|---|---|---|---|",
                *(_row(contest) for contest in contests.values()),
            ]
        ),
        _legend(data),
    ]
    if data.get("unmeasured"):
        names = " ".join(data["unmeasured"])
        parts.append(f"Not measured yet: `python -m benchmarks --only {names}`.")
    behind = {name: c for name, c in contests.items() if c["verdict"] not in {"first", ALONE}}
    if behind:
        parts.append("## Where ours is not first")
        parts += [f"**{c['title']}** ({_short(c)}). {reasons.get(name, UNFOUND)}" for name, c in behind.items()]
    if data.get("scaling"):
        parts.append("## How it scales")
        parts.append(SMALL)
        parts += [_plot(name, plot) for name, plot in data["scaling"].items()]
    parts.append("## Details")
    parts.append("\n".join(f"- [{page.removesuffix('.md')}]({page}): {words}." for page, words in DETAILS.items()))
    return "\n\n".join(parts) + "\n"


SMALL = (
    "Small kernels are the weak spot. Below some 64 channels and below a thousand chains a step is calls from Python, and ours makes more of them than POGO, geoopt or a few lines by "
    "hand, because rules, groups and checks are looked up at every step; on unit filters of 64 channels it is behind geoopt and torch by hand at every number of layers. Not yet worked on."
)


def render_details(data: Record) -> str:
    """The second page: every contestant."""
    parts = [
        "# Every contestant of every contest",
        "Written from the same numbers as [the first page](benchmarks.md), by the same command. " + _legend(data),
    ]
    for name, contest in data["contests"].items():
        parts += [f"## {contest['title']}", _setting(name, contest), _table(contest)]
        absent = [c for c in contest["contestants"] if c["why_not"]]
        if absent:
            parts.append("\n".join(f"- {c['name']} is left out: {_one_line(c['why_not'])}" for c in absent))
    return "\n\n".join(parts) + "\n"


def _head(data: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    absent = [f"{name} ({_one_line(why)})" for name, why in data["missing"].items()]
    without = f" Not installed, so left out: {'; '.join(absent)}." if absent else ""
    return (
        f"Written by `{data['command']}` on {data['date']}: {data['machine']}. Other packages: {versions}.{without} "
        'They come with `pip install -c constraints.txt -e ".[bench]"` in a checkout. `--only NAME ...` measures some contests anew and keeps the rest, `--quick` only shows that it runs.'
    )


def _legend(data: Record) -> str:
    clocks = sorted({contest["clock"] for contest in data["contests"].values()})
    turns = sorted(c["turns"] for contest in data["contests"].values() for c in contest["contestants"] if c["turns"])
    return (
        "Contestants take turns on the same weights, gradients and threads; ratios are taken turn by turn"
        + (f" ({turns[0]} to {turns[-1]} turns, those of each in the details). " if turns else ". ")
        + " ".join(CLOCK_WORDS[clock] for clock in clocks)
        + " The best peer is the fastest package or hand-written torch code that answers within the contest's tolerance; what errs more is shown in the details and is nobody's peer. "
        "First: the lower quartile of the ratio is above 1; behind: the upper one is below 1; level: in between. "
        "The floor is what the question costs at least, bytes at the rate of a copy or a sum in place, or flops at that of a matrix product, whichever takes longer. "
        "Peak memory: growth in a fresh process while the contestant is made from weights and gradients that are in place, and takes two steps."
    )


def _row(contest: Record) -> str:
    ours, rival = _by_name(contest, contest["ours"]), _by_name(contest, contest["rival"])
    floor = contest["floor"]
    times = "–" if floor is None or ours is None else f"{ours['ms'] / floor['ms']:.2g}"
    cells = [
        f"[{contest['title']}](benchmarks-contests.md#{_anchor(contest['title'])})",
        contest["verdict"] if contest["verdict"] in {"first", ALONE} else f"**{contest['verdict']}**",
        "–" if ours is None else f"{ours['ms']:.3g}",
        "–" if rival is None else f"{rival['name']}: {rival['ms']:.3g}",
        _ratio(contest["ratio"]),
        times,
        f"{_memory(ours)} / {_memory(rival)}",
        f"{_error(ours)} / {_error(rival)}",
    ]
    return "| " + " | ".join(cells) + " |"


def _short(contest: Record) -> str:
    if contest["ratio"] is None:
        return str(contest["verdict"])
    return f"{contest['verdict']}: {contest['rival']} takes {contest['ratio'][1]:.2f} of our time"


def _setting(name: str, contest: Record) -> str:
    floor = contest["floor"]
    rates = contest["rates"]
    words = "no simple one" if floor is None else f"{floor['ms']:.3g} ms: {floor['words']}"
    return (
        f"{contest['question']} On {contest['size']}. Error: {contest['error']}; up to {contest['tolerance']:g} is an answer. "
        f"Floor: {words} (the machine moves {rates['bandwidth'] / 1e9:.3g} GB/s, and multiplies matrices at {rates['flops'] / 1e9:.3g} Gflop/s). "
        f"`python -m benchmarks --only {name}`, {contest['date']}, {contest['machine']}, {contest['clock']} clock."
    )


def _table(contest: Record) -> str:
    lines = ["| contestant | kind | ms (median) | turns | error | peak memory, MiB |", "|---|---|---|---|---|---|"]
    for c in contest["contestants"]:
        if c["why_not"]:
            continue
        error = _error(c) + ("" if is_answer(c["error"], contest["tolerance"]) else ", **no answer**")
        name = f"**{c['name']}**" if c["name"] in {contest["ours"], contest["rival"]} else c["name"]
        lines.append(f"| {name} | {c['kind']} | {c['ms']:.3g} | {c['turns']} | {error} | {_memory(c)} |")
    return "\n".join(lines)


def _plot(name: str, plot: Record) -> str:
    titles = "; ".join(
        f"{panel['title']} (floor: {panel['floor_words']})" if panel["floor_words"] else panel["title"]
        for panel in plot["panels"]
    )
    return f"![time against {name}](benchmarks/scaling-{name}.png)\n\nTime against {plot['words']}: {titles}."


def _by_name(contest: Record, name: str | None) -> Record | None:
    contestants: Sequence[Record] = contest["contestants"]
    return next((c for c in contestants if c["name"] == name), None)


def _ratio(ratio: Sequence[float] | None) -> str:
    return "–" if ratio is None else f"{ratio[1]:.2f} ({ratio[0]:.2f}–{ratio[2]:.2f})"


def _memory(contestant: Record | None) -> str:
    return "–" if contestant is None or contestant["peak_mib"] is None else f"{contestant['peak_mib']:.0f}"


def _error(contestant: Record | None) -> str:
    return "–" if contestant is None or contestant["error"] is None else f"{contestant['error']:.1e}"


def _one_line(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return line.replace("|", "\\|")


def _anchor(title: str) -> str:
    return "".join(letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter == "-")
