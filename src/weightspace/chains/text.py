"""What a reader is told of the chains: the table, sentences, what to doubt, and `sample.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weightspace.files import JsonObject

HEADINGS = ("prediction of", "averaged", "accuracy, %", "NLL", "Brier score", "calibration error")
_MEANINGS = {
    "last point": "the last weights of a chain",
    "all last points": "the last weights of all chains, averaged",
    "one chain": "the samples of a chain, averaged",
    "all chains": "the samples of all chains, averaged",
}


def table_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the table: four predictions with their scores, and what averaging gains."""
    rows = [_row(row) for row in results["rows"]]
    gain = results["gain"]
    differences = [_signed(100, gain["accuracy"], 1), *(_signed(1, gain[key], 3) for key in ("nll", "brier", "ece"))]
    return [*rows, ["all chains − last point", "", *differences]]


def table_notes(results: Mapping[str, Any]) -> list[str]:
    """What rows, columns and intervals mean."""
    count = len(results["chains"])
    means = f" Rows of a chain are means over {count} chains." if count > 1 else ""
    each = results["samples"]
    of_each = _counted(each[0], "sample") if len(set(each)) == 1 else f"{min(each)} to {max(each)} samples"
    averaged = (
        f"Averaged are probabilities: {of_each} a chain.{means} The last weights of all chains, averaged, "
        "are a deep ensemble."
    )
    scores = (
        "NLL: mean negative log-likelihood of a label, in nats. Brier score: 0 to 2. Calibration error: how far "
        "confidence is from accuracy, in 15 bins. The smaller the better, all three."
    )
    intervals = (
        f"Intervals: {100 * results['level']:g} %, bootstrap over the {results['points']:,} test {results['unit']}, "
        "the same resampled points in every row. They do not show what other chains would give."
    )
    return [averaged, scores, intervals]


def verdict(results: Mapping[str, Any]) -> list[str]:
    """What came out, in sentences."""
    gain, point, best = results["gain"], results["rows"][0], results["rows"][-1]
    text = (
        f"Averaging {best['samples']} samples of {_counted(len(results['chains']), 'chain')} changes the negative "
        f"log-likelihood by {_signed(1, gain['nll'], 3)} and the accuracy by {_signed(100, gain['accuracy'], 1)} "
        f"percentage points against the last point of a chain"
    )
    if gain["nll"]["high"] < 0:
        text += ": a gain that other test data would show too."
    elif gain["nll"]["low"] > 0:
        text += ": a loss."
    else:
        text += ": no difference that these test data could show."
    before, after = point["ece"]["value"], best["ece"]["value"]
    average = results["calibration"]["all chains"]["verdict"]
    lines = [text, f"Calibration error {before:.3f} of a last point, {after:.3f} of the average: {average}."]
    if sentence := convergence(results):
        lines.append(sentence)
    return lines


def convergence(results: Mapping[str, Any]) -> str:
    """Whether chains agree on the functions of the network, in a sentence; empty where that was not measured.

    Projections of the weights are left to the table: chains in different copies of one network differ in them.
    """
    shared = [row for row in results["diagnostics"] if not row["within"]]
    known = [row for row in shared if isinstance(row["rhat"], float) and isinstance(row["ess_bulk"], float)]
    if not known:
        return ""
    worst, first = max(known, key=lambda row: row["rhat"]), known[0]
    names = f"the worst of {len(shared)} functions of the network, {worst['name']}"
    return (
        f"Convergence: R-hat of the {first['name']} {first['rhat']:.3f}, {first['ess_bulk']:.0f} effective draws of "
        f"{first['chains'] * first['draws']}; {names}: {worst['rhat']:.3f} and {worst['ess_bulk']:.0f}. Aim at R-hat "
        "below 1.01 and at 100 effective draws a chain."
    )


def temperature_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Chain, group, and its temperatures, asked for and measured; empty without a sampler."""
    return [
        [str(chain["chain"]), str(t["name"]), *(_plain(t.get(key)) for key in ("target", "kinetic", "configurational"))]
        for chain in results["chains"]
        for t in chain["temperatures"]
    ]


def temperature_line(results: Mapping[str, Any]) -> str:
    """The temperatures of all chains in one line, by group; empty without a sampler."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for chain in results["chains"]:
        for record in chain["temperatures"]:
            groups.setdefault(record["name"], []).append(record)
    parts = [
        f"{name}: asked {_plain(records[0]['target'])}, velocities {_range(records, 'kinetic')}, positions "
        f"{_range(records, 'configurational')}"
        for name, records in groups.items()
    ]
    return f"Temperatures, chain by chain: {'; '.join(parts)}." if parts else ""


def concerns(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing the table."""
    found = [f"Chain {row['chain']} diverged and is left out: {row['reason']}." for row in results["diverged"]]
    if len(results["chains"]) == 1:
        found.append("One chain cannot show what it missed; sample 4, with --chains 4.")
    shared = [row for row in results["diagnostics"] if not row["within"]]
    off = [row for row in shared if not row["converged"]]
    if off:
        found.append(
            f"{len(off)} of {len(shared)} functions of the network have not converged: the average is that of these "
            "chains, not yet that of the posterior. Longer chains and a longer burn-in help."
        )
    hot = _off_target(results)
    if hot:
        found.append(
            f"The temperature is off what was asked for ({'; '.join(hot)}): too high means steps too long or "
            "minibatches too noisy (smaller lr, larger batch_size), too low that chains have not spread yet (longer "
            "burn-in, or a weight_decay where there is none)."
        )
    return found


def _off_target(results: Mapping[str, Any]) -> list[str]:
    """Groups whose temperatures are off in some chain, in words."""
    found: dict[str, str] = {}
    for chain in results["chains"]:
        for record in chain["temperatures"]:
            for kind, tolerance in (("kinetic", 0.2), ("configurational", 0.5)):
                value, target = record.get(kind), record["target"]
                if isinstance(value, float) and abs(value - target) > tolerance * target:
                    key = f"{record['name']}, {kind}"
                    found.setdefault(key, f"{key} {value:.3g} of chain {chain['chain']}, asked {target:g}")
    return list(found.values())


def markdown(facts: JsonObject, pictures: Sequence[tuple[str, str]]) -> str:
    """`sample.md`: everything of the report but the page.

    Args:
        facts: The content of `sample.json`.
        pictures: Title and relative path of each.
    """
    results, recipe = facts["results"], facts["recipe"]
    lines = [f"# Samples of {recipe['name']}", "", *(f"{line}\n" for line in verdict(results))]
    lines += [f"- {line}" for line in concerns(results)] + [""] if concerns(results) else []
    lines += [*_markdown_table(HEADINGS, table_rows(results)), "", *(f"{note}\n" for note in table_notes(results))]
    chains = [_row(row) for chain in results["chains"] for row in (chain["point"], chain["average"])]
    lines += ["## Chain by chain", "", *_markdown_table(HEADINGS, chains), ""]
    if rows := temperature_rows(results):
        head = ("chain", "weights", "asked for", "of velocities", "of positions")
        lines += ["## Temperatures", "", *_markdown_table(head, rows), ""]
    if results["diagnostics"]:
        head = ("quantity", "mean", "R-hat", "effective draws", "verdict")
        lines += ["## Convergence", "", *_markdown_table(head, diagnostic_rows(results)), ""]
    else:
        lines += ["## Convergence", "", f"{results['diagnosis']}.", ""]
    lines += [f"## {title}\n\n![{title}]({path})\n" for title, path in pictures]
    lines += [f"Made by `{facts.get('command', '')}` with {_versions(facts)}.", ""]
    return "\n".join(lines)


def diagnostic_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Quantity, mean, R-hat, effective sample size, verdict."""
    return [
        [
            row["name"],
            _plain(row["mean"]),
            _plain(row["rhat"], "{:.3f}"),
            _plain(row["ess_bulk"], "{:.0f}"),
            row["verdict"],
        ]
        for row in results["diagnostics"]
    ]


def _row(row: Mapping[str, Any]) -> list[str]:
    name = _MEANINGS.get(row["name"]) or str(row["name"])
    scores = [_interval(100, row["accuracy"], 1), *(_interval(1, row[key], 3) for key in ("nll", "brier", "ece"))]
    return [name, str(row["samples"]), *scores]


def _interval(factor: float, estimate: Mapping[str, Any], digits: int) -> str:
    value, low, high = (_scaled(factor, estimate[key], f".{digits}f") for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _signed(factor: float, estimate: Mapping[str, Any], digits: int) -> str:
    value, low, high = (_scaled(factor, estimate[key], f"+.{digits}f") for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _scaled(factor: float, value: float | None, form: str) -> str:
    return "infinite" if value is None else format(factor * value, form).replace("-", "−")


def _plain(value: Any, form: str = "{:.3g}") -> str:
    return form.format(value) if isinstance(value, int | float) else "–"


def _range(records: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [record[key] for record in records if isinstance(record.get(key), int | float)]
    if not values:
        return "–"
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _versions(facts: JsonObject) -> str:
    return ", ".join(f"{name} {version}" for name, version in (facts.get("versions") or {}).items())
