"""A training function for the tests of sweeps: it only writes a result, in which strong penalties collapse.

In a module of its own because worker processes import it by name.
"""

from __future__ import annotations

import json

from weightspace.training.recipe import run_fingerprint

CHANCE, LEARNED, LEVEL, LARGEST = 0.5, 0.9, 0.003, 0.02  # what an always-on penalty and a delayed one survive


def train(recipe, run_dir, *, seed, data, progress=None):
    """Always on it collapses above LEVEL, delayed above LARGEST; a coherent gate closes the more the stronger it is."""
    run_dir.mkdir(parents=True)
    rules = recipe.make_rules()
    accuracy, duty = LEARNED + 0.01 * seed, {}
    for rule in rules:
        gate = type(rule.gate).__name__
        if rule.weight > (LEVEL if gate in ("Always", "RandomGate") else LARGEST if gate == "Delayed" else 1.0):
            accuracy = CHANCE
        if gate != "Always":
            share = {"Coherent": min(1.0, 0.002 / rule.weight), "RandomGate": getattr(rule.gate, "duty", 0)}.get(
                gate, 0.5
            )
            duty[str(rule)] = {"duty": share, "layers": {"a.weight": share, "b.weight": share / 2 + 0.01 * seed}}
    result = {
        "status": "done",
        "reason": None,
        "seed": seed,
        "steps": 10,
        "epochs": 1,
        "test_accuracy": accuracy,
        "test_loss": 1 - accuracy,
        "train_loss": 0.1,
        "seconds": 1.0,
        "seconds_per_step": 0.01,
        "parameters": 8,
        "weights": {"numbers": 8, "zeros": 0.25 * len(rules), "layers": {"a.weight": 0.0, "b.weight": 0.0}},
        "duty": duty,
        "vanished": {"b.weight": 50} if accuracy == CHANCE else {},
        "fingerprint": run_fingerprint(recipe, seed),
    }
    (run_dir / "result.json").write_text(json.dumps(result))
    return result
