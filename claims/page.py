"""Writes docs/claims.md from the recomputed numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from claims.evaluate import Found, Result
from claims.model import Paper, Run
from claims.runs import RUNS, cheap_runs, duration
from claims.sources import DOCS
from claims.verdicts import RULES, Verdict

HEAD = """# Claims: what the papers say, and what came of it here

weightspace builds the methods of five papers. For each of them this page takes the statements that we are sure the paper makes, says how we tested each, and gives a verdict. Then it does the same for questions of our own, and for what this project claims of itself.

**Everything here is small.** Two processor cores, networks of some ten to some hundred thousand weights, trainings of minutes, 10,000 images. A verdict says what was found at that scale; it does not say what the authors' networks do. No accuracy of a paper is repeated here as ours, and no accuracy of ours is comparable with a published one.

**Nobody decides a verdict.** Every number below is recomputed from raw values (one for each seed, chain or problem) by

```bash
python -m claims
```

which also applies the rules and fails if this page says anything else. In a checkout with `python -m pip install -c constraints.txt ".[train]"` that takes seconds. `python -m claims --rerun cheap` measures {cheap} of these claims anew on your machine in about {minutes} minutes; `python -m claims --rerun NAME` repeats an experiment and says whether it agrees; `python -m claims --list` shows names and costs.

The rule: a number that decides has a *condition*. Its interval, widened for the number of numbers that decide the same claim (Bonferroni), lies wholly inside the condition's range (it *holds*), wholly outside (*contradicted*), or across the boundary (*open*: the data do not tell). If all conditions hold the claim is reproduced, if some do it is reproduced in part, if none does it is not reproduced; for claims that something *can* happen, one is enough. "Not reproduced" therefore
means that we did not see it, which may be our scale; where the data say the opposite, the section says *contradicted*. Intervals as printed are at 95 % and not widened. `n` counts independent repetitions.
"""


def render(results: Sequence[Result]) -> str:
    """The whole page."""
    cheap = cheap_runs()
    minutes = sum(run.minutes or 0 for run in cheap)
    touched = sum(any(run.name in result.claim.runs for run in cheap) for result in results)
    parts = [HEAD.format(cheap=touched, minutes=f"{math.ceil(minutes)}"), _overview(results)]
    for paper in dict.fromkeys(result.claim.paper for result in results):
        own = [result for result in results if result.claim.paper == paper]
        parts.append(_paper(paper, own))
    return "\n".join(parts).rstrip() + "\n"


def _overview(results: Sequence[Result]) -> str:
    papers = [result for result in results if result.claim.is_papers]
    others = [result for result in results if not result.claim.is_papers]
    count = {v: sum(r.verdict is v for r in papers) for v in Verdict}
    told = ", ".join(f"{n} {v.value}" for v, n in count.items() if n)
    return "\n".join(
        [
            "## Verdicts",
            "",
            f"Statements of the papers: {told}.",
            "",
            *_verdict_table(papers, "paper"),
            "",
            "Questions of ours about these methods, and what this project claims of itself:",
            "",
            *_verdict_table(others, "about"),
            "",
        ]
    )


def _verdict_table(results: Sequence[Result], first: str) -> list[str]:
    rows = [
        f"| {first} | claim | verdict | n | a number that decides | report |",
        "|:---|:---|:---|---:|:---|:---|",
    ]
    for result in results:
        claim = result.claim
        key = result.key
        number = f"{key.number.text}: {key.value}" if key else "–"
        cells = [
            claim.paper.heading.partition(":")[0],
            f"[{claim.text}](#{anchor(claim.name)})",
            f"**{result.verdict.value}**",
            str(key.interval.n) if key else "–",
            _cell(number),
            f"[page]({claim.report})" if has_report(result) else "–",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _paper(paper: Paper, results: Sequence[Result]) -> str:
    said = [result for result in results if result.claim.is_papers]
    asked = [result for result in results if not result.claim.is_papers]
    lines = [f"## {paper.heading}", "", paper.about, ""]
    if paper.arxiv:
        lines += [f"Paper: {paper.link}.", ""]
    lines += [line for result in said for line in _section(result)]
    if asked and paper.arxiv:
        lines += ["The paper does not say this; we asked:", ""]
    lines += [line for result in asked for line in _section(result)]
    return "\n".join(lines)


def _section(result: Result) -> list[str]:
    claim = result.claim
    lines = [
        f"### {claim.name}",
        "",
        f"**{claim.text}** Verdict: **{result.verdict.value}**" + (f" ({result.tally})." if result.key else "."),
        "",
    ]
    lines += [f"- *Tested:* {claim.tested}", f"- *Would have refuted it:* {claim.refuted_by}"]
    if claim.decisive:
        lines.append(f"- *Rule:* {RULES[claim.rule]}. n counts {claim.unit_of_n}.")
    lines.append(f"- *Limits:* {claim.limits}")
    lines += [f"- *Repeat:* {_repeat(RUNS[name])}" for name in claim.runs]
    if has_report(result):
        lines.append(f"- *Report:* [{claim.report}]({claim.report})")
    if result.missing:
        lines.append(f"- *Not there yet:* {', '.join(f'`docs/{source}`' for source in result.missing)}")
    if result.found:
        lines += ["", "| number | value (95 % interval) | n | condition | outcome |", "|:---|---:|---:|:---|:---|"]
        lines += [_row(one) for one in result.found]
        lines += ["", _origin(result.found)]
    if result.extra:
        lines += ["", *result.extra]
    lines += [line for picture in claim.pictures for line in ("", f"![{claim.name}]({picture})")]
    return [*lines, ""]


def _row(one: Found) -> str:
    condition = one.number.condition.text if one.number.condition else "–"
    outcome = one.outcome or "–"
    return f"| {_cell(one.number.text)} | {one.value} | {one.interval.n} | {condition} | {outcome} |"


def _origin(found: Sequence[Found]) -> str:
    """Where the numbers come from and how they are computed, once for each file and way."""
    ways: dict[str, list[str]] = {}
    for one in found:
        source, how = one.number.source, one.number.how
        if source not in ways.setdefault(how, []):
            ways[how].append(source)
    return " ".join(
        f"Computed {how}, from {', '.join(f'[{_short(s)}]({s})' for s in files)}." for how, files in ways.items()
    )


def _short(source: str) -> str:
    parts = source.split("/")
    return "/".join(parts[-2:])


def _repeat(run: Run) -> str:
    words = ["python -m claims --rerun", run.name, *(["--root FOLDER"] if run.needs_root else [])]
    needs = f"; needs {run.needs}" if run.needs else ""
    return f"`{' '.join(words)}` ({run.cost}; {duration(run)}{needs})"


def has_report(result: Result) -> bool:
    """Whether the claim's report can be linked: it may be written later than the claim."""
    return bool(result.claim.report) and (DOCS / result.claim.report).is_file()


def anchor(heading: str) -> str:
    """What a heading's link is called."""
    return heading.lower().replace(" ", "-")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
