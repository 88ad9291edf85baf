"""The words of a report beside its plots: settings of every arm, per-layer numbers, and what ran where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import yaml

from weightspace.compare.notes import settings_text
from weightspace.compare.results import ArmResult, Comparison, value_at
from weightspace.files import JsonObject
from weightspace.report.collect import Curve, LayerTable, number_of
from weightspace.training.sparsity import sparsity_text


def arm_settings(comparison: Comparison, arm: ArmResult) -> dict[str, str]:
    """What an arm trains, beside the recipe that all arms share.

    Args:
        comparison: The comparison.
        arm: One of its arms.

    Returns:
        Keys `name`, `rules`, `differences` (from the recipe), `tuned` and `validation`.
    """
    entry = comparison.plan.settings.arms[arm.arm.name]
    resolved, base = arm.arm.recipe.to_dict(), comparison.plan.recipe.to_dict()
    changes = [f"{path} = {value_at(resolved, path)} (recipe: {value_at(base, path)})" for path in entry.set]
    rules = [rule_text(rule) for rule in resolved["rules"]]
    if arm.choice is not None:
        tuned, validation = settings_text(arm.settings), f"{100 * arm.choice.score:.2f} %"
    else:
        tuned = "not complete" if arm.arm.tuned else f"not tuned: {settings_text(arm.settings)}"
        validation = "–"
    return {
        "name": arm.arm.name,
        "rules": "; ".join(rules) or "none",
        "differences": "; ".join(changes) or "none",
        "tuned": tuned,
        "validation": validation,
    }


def rule_text(rule: Mapping[str, Any]) -> str:
    """A rule entry as a call.

    >>> rule_text({"rule": "ChannelL2", "smoothing": 4.0})
    'ChannelL2(smoothing=4.0)'
    """
    options = ", ".join(f"{key}={value!r}" for key, value in rule.items() if key != "rule")
    return f"{rule.get('rule')}({options})"


def layer_rows(tables: Sequence[LayerTable]) -> list[list[str]]:
    """One row per layer: rho and shrinkage of every arm, as means over all measured steps."""
    names = list(dict.fromkeys(name for table in tables for name in table.names))
    rows: list[list[str]] = []
    for name in names:
        if not any(_has_numbers(table, name) for table in tables):
            continue
        row = [name]
        for table in tables:
            if name in table.names:
                index = table.names.index(name)
                row.append(f"{_mean_text(table.rho[index])} / {_mean_text(table.shrinkage[index])}")
            else:
                row.append("–")
        rows.append(row)
    return rows


def _has_numbers(table: LayerTable, name: str) -> bool:
    if name not in table.names:
        return False
    index = table.names.index(name)
    return bool(np.isfinite(table.rho[index]).any() or np.isfinite(table.shrinkage[index]).any())


def facts_of(facts: JsonObject) -> list[tuple[str, str]]:
    """Command, data, versions, machine and dates from `compare.json` or `run.json`, as rows."""
    data, machine, versions = (_table(facts, key) for key in ("data", "machine", "versions"))
    train, test = data.get("train"), data.get("test")
    counted = isinstance(train, int) and isinstance(test, int)
    sizes = f"{train:,} training and {test:,} test {data.get('unit', 'images')}" if counted else ""
    parts = [data.get("label") or data.get("name"), sizes, data.get("source")]
    workers = f"{facts['workers']} with {facts.get('threads')} threads each" if "workers" in facts else ""
    sessions = cast("list[Any]", facts["resumed"]) if isinstance(facts.get("resumed"), list) else []
    resumed = [str(session.get("at")) for session in sessions if isinstance(session, dict)]
    seed = facts.get("seed")
    rows = [
        ("command", str(facts.get("command") or "")),
        ("seed", str(seed) if seed is not None else ""),
        ("data", "; ".join(str(part) for part in parts if part)),
        ("data check sum", str(data.get("checksum") or "")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("machine", ", ".join(f"{key}: {value}" for key, value in machine.items() if value is not None)),
        ("worker processes", workers),
        ("started", str(facts.get("created") or "")),
        ("continued", ", ".join(resumed)),
        ("finished", str(facts.get("finished") or "")),
    ]
    return [(name, value) for name, value in rows if value]


def _table(facts: JsonObject, key: str) -> dict[str, Any]:
    """A part of the facts that should be a table; empty where it is missing or something else."""
    value = facts.get(key)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def recipe_of(recipe: object) -> str:
    """A stored recipe as YAML; empty when there is none."""
    if not isinstance(recipe, dict):
        return ""
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100)


def run_summary(result: JsonObject, curve: Curve) -> tuple[list[str], list[str]]:
    """Sentences about a single run, and what is wrong with it.

    Args:
        result: `result.json`, empty when the run has not ended.
        curve: Its epochs so far.
    """
    if not result:
        if not curve.epochs:
            return ["No epoch is complete yet."], ["Not finished: there is no whole result.json."]
        text = f"Test accuracy {100 * curve.accuracy[-1]:.2f} % after {curve.epochs[-1]} epochs."
        return [text], ["Not finished: there is no whole result.json; resume the run to complete it."]
    accuracy, speed = (number_of(result, key) for key in ("test_accuracy", "seconds_per_step"))
    sentences = [
        f"Test accuracy {100 * accuracy:.2f} % after {result.get('epochs')} epochs, {result.get('steps')} steps."
        if math.isfinite(accuracy)
        else "The run has no test accuracy."
    ]
    perplexity, bits = (number_of(result, key) for key in ("perplexity", "bits_per_character"))
    if math.isfinite(perplexity):
        sentences.append(f"Test perplexity {perplexity:.3f}, {bits:.3f} bits per character.")
    if math.isfinite(speed):
        sentences.append(f"Median time per step: {1000 * speed:.3g} ms; parameters: {result.get('parameters')}.")
    if text := sparsity_text(result):
        sentences.append(f"{text[0].upper()}{text[1:]}.")
    sentences.append("This is one seed: it says nothing about how far another seed would be off.")
    concerns = [f"The run diverged: {result.get('reason')}."] if result.get("status") == "diverged" else []
    return sentences, concerns


def _mean_text(values: Any) -> str:
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    return f"{float(finite.mean()):.3f}" if finite.size and math.isfinite(float(finite.mean())) else "–"
