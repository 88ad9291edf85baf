"""Targets that read text: recipes, overrides, selections, manifolds, gates; and the state of rules and optimizers."""

from __future__ import annotations

import traceback
from functools import cache
from pathlib import Path
from typing import Any

import torch

from reliability.fuzz_guard import Target
from reliability.fuzz_inputs import damaged_bytes, damaged_tree, hostile_value
from reliability.fuzz_source import Source, chosen, happens

_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
_MERGE_BOMB = "a: &a {k: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
RECIPE: dict[str, Any] = {
    "name": "hostile",
    "description": "text",
    "data": {"name": "digits", "train_size": 64, "test_size": 32, "augment": ["flip"]},
    "model": {"name": "mlp", "options": {"hidden": [8]}},
    "train": {
        "epochs": 4,
        "batch_size": 16,
        "optimizer": {"name": "SGD", "lr": 0.05, "options": {"momentum": 0.9, "nesterov": True}},
        "schedule": {"name": "step", "milestones": [2.0], "gamma": 0.5},
        "clip_norm": 1.0,
    },
    "rules": [
        {"rule": "ChannelL2", "smoothing": 4.0, "on": "linears & ~head"},
        {"rule": "L1", "weight": 1e-4, "gate": {"gate": "Coherent", "against": "history"}},
        {"rule": "Stiefel", "on": "linears"},
    ],
    "compare": {
        "baseline": "plain",
        "seeds": 2,
        "tune": {"random": {"trials": 2, "ranges": {"train.optimizer.lr": [0.01, 0.1]}}},
        "arms": {"plain": {"rules": [], "tune": False}, "ours": {"set": {"train.clip_norm": 2.0}}},
    },
    "sweep": {"rule": {"rule": "L1"}, "strengths": [0.001, 0.01], "gates": {"always": {"gate": "Always"}}},
    "sample": {"chains": 2, "max_samples": 4},
}
_TRANSFORMER = RECIPE | {
    "data": {"name": "verses", "context": 16},
    "model": {"name": "transformer", "options": {"width": 16, "layers": 1, "heads": 2}},
    "compare": {"baseline": "plain", "seeds": 1, "arms": {"plain": {}}, "tune": None},
}
_CYCLES = {"name": "cyclical", "cycles": 2}
_CYCLICAL = RECIPE | {
    "train": RECIPE["train"]
    | {"schedule": _CYCLES, "optimizer": {"name": "ConstrainedLangevin", "lr": 0.01, "options": {"friction": 1.0}}},
    "rules": [],
    "compare": None,
    "sweep": None,
}
SNIPPETS = (
    *(
        _BOMB,
        _MERGE_BOMB,
        "a: &a [*a]\n",
        "a: &a {b: *a}\n",
        "x: " + "[" * 3000,
        "x: " + "{a: " * 3000,
        "- " * 3000 + "x",
    ),
    *("!!python/object/apply:os.mkdir [ran]", "x: !!python/name:os.system", "!!python/object/new:os.mkdir {}"),
    *(
        "x: !!timestamp x",
        "x: !!bool x",
        "x: !!float ''",
        "x: !!int ''",
        "x: !!set {a}",
        "? !!set {a}\n: 1",
        "x: !!binary '*'",
    ),
    *(
        "x: !!omap x",
        "x: !!pairs x",
        "x: !!null x",
        "x: !!str [a]",
        "!!map x",
        "x: !!seq y",
        "x: &a",
        "x: *missing",
        "<<: 1",
    ),
    *(
        "x: " + "9" * 5000,
        "x: 0x" + "f" * 5000,
        "x: 1e" + "9" * 50,
        "? [a]\n: 1",
        "a: 1\na: 2",
        "---\na: 1\n---\nb: 2",
        "%YAML 9",
    ),
    *(
        "",
        "null",
        "3",
        "[]",
        "\ufeffname: x",
        "x: '\\0'",
        'x: "\\ud800"',
        "x: \x07",
        "\t",
        "a: b: c",
        "key" * 3000 + ": 1",
    ),
)


def _dumped(tree: Any) -> bytes:
    import json

    # JSON is YAML: it writes lone surrogates and huge numbers without a word.
    return json.dumps(tree, indent=1).encode()


def recipe(source: Source, folder: Path) -> None:
    """A recipe file, planned and built as far as the first step if it is accepted."""
    from weightspace.compare.plan import make_plan
    from weightspace.training.recipe import load_recipe, run_fingerprint
    from weightspace.training.session import load_recipe_data
    from weightspace.training.trained import fresh_model

    content = _dumped(damaged_tree(source, chosen(source, (RECIPE, RECIPE, _TRANSFORMER, _CYCLICAL)), most=2))
    kind = source.integer(0, 9)
    if kind == 0:
        content = damaged_bytes(source, content)
    elif kind == 1:
        content = chosen(source, SNIPPETS).encode("utf-8", errors="surrogatepass")
    elif kind == 2:
        snippet = chosen(source, SNIPPETS).encode("utf-8", errors="surrogatepass")
        content = _dumped(RECIPE).replace(
            b'"name": "hostile"', b'"name": "hostile",\n' + snippet.replace(b"\n", b" "), 1
        )
    path = folder / "recipe.yaml"
    path.write_bytes(content)
    found = load_recipe(path)
    run_fingerprint(found, 0)
    if found.compare is not None:
        make_plan(found)
    if found.data.name in {"digits", "verses", "folder", "text"}:
        fresh_model(found)
        if found.sample is not None:
            _sampled(found, len(load_recipe_data(found).train_labels) if found.data.name == "digits" else 100)


def _sampled(found: Any, size: int) -> None:
    from weightspace.errors import RecipeError
    from weightspace.training.recipe_sampling import sample_plan

    try:
        sample_plan(found.sample, found.train, max(1, size // found.train.batch_size))
    except ValueError as error:  # its contract; the chains make a RunError of it
        raise RecipeError(str(error)) from error


_PATHS = ("train.epochs", "train.optimizer.lr", "train.optimizer.options.momentum", "rules.0.smoothing", "rules", "compare.arms", "model.options.hidden", "data.augment", "sample.chains", "compare.tune.grid.train.optimizer.lr", "name", "train", "compare.arms.a.b.set.x", "rules.99", "a..b", "")  # fmt: skip


def override(source: Source, folder: Path) -> None:
    """What `--set` takes."""
    import json

    from weightspace.training.recipe import load_recipe

    del folder
    words: list[str] = []
    for _ in range(source.integer(1, 3)):
        text = json.dumps(hostile_value(source)) if happens(source, 2) else chosen(source, SNIPPETS)
        words.append(f"{chosen(source, _PATHS)}{chosen(source, ('=', '=', '=', ' = ', ''))}{text}")
    load_recipe(chosen(source, ("quickstart", "quickstart", "digits", "x" * 300, "../../etc", "a\0b")), words)


_GOOD = ("convs & ~head", "name('layer*') | (linears & ~biases)", "sphere(filter, radius=2.0)", "stiefel(slice, retraction=qr)", "product(input, parts=(sphere(slice), stiefel(slice)), every=2)", "oblique(matrix, by=column)", "circle(entry, slack=2)")  # fmt: skip
_PIECES = ("(", ")", "~", "&", "|", ",", "=", "'", '"', "[", "]", "{", "}", "**", "*", ":", ";", "\n", "\0", "é", "\ud800", " ", "not ", "lambda: 0", "__import__('os').mkdir('ran')", "0x", "1e999", "9" * 400, "9" * 5000, "None", "True", "f'{1}'", "b''", "...", "await x", "x:=1", "-", "1j", "on=convs", "radius=", "sphere", "stiefel", "name", "convs", "parts=", "every=10**9")  # fmt: skip
_LONG = ("(" * 150 + "convs" + ")" * 150, "~" * 20_000 + "convs", "&".join(["convs"] * 20_000), "(" * 20_000, "-" * 5000 + "1", "sphere(" * 90 + ")" * 90, "sphere(filter, radius=" + "-" * 50_000 + "1)", "x." * 20_000 + "x", "name('" + "*" * 50_000 + "')", "name('" + "[" * 5000 + "')", "sphere(filter, parts=(" + "sphere(filter)," * 5000 + "))")  # fmt: skip


def notation(source: Source, folder: Path) -> None:
    """Text of a selection, a manifold or a gate; one that is accepted is used on a network."""
    import weightspace as ws
    from reliability.fuzz_files import network
    from weightspace.kernels import describe
    from weightspace.registry import GATES, REGISTRY, make_gate, make_rule

    del folder
    text = chosen(source, (*_GOOD, *_GOOD, *_LONG))
    for _ in range(source.integer(1, 4)):
        place = source.integer(0, len(text))
        text = text[:place] + chosen(source, _PIECES) + text[place + source.integer(0, 4) :]
    kind = source.integer(0, 4)
    if kind == 0:
        selection = ws.on.parse(text)
        for info in describe(network()):
            selection(info)
    elif kind == 1:
        manifold = ws.manifolds.parse(text)
        ws.manifolds.parse(manifold.text())
    elif kind == 2:
        name = chosen(source, (*REGISTRY, text))
        make_rule(name, **_options(source, name))
    elif kind == 3:
        name = chosen(source, (*GATES, text))
        make_gate(name, **_options(source, name))
    else:
        options = {"on": text, "parts": [text, "sphere(slice)"], "gate": {"gate": text}}
        key = chosen(source, tuple(options))
        make_rule({"on": "L1", "parts": "Product", "gate": "L1"}[key], **{key: options[key]})


def _options(source: Source, name: str) -> dict[str, Any]:
    from dataclasses import fields

    from weightspace.registry import GATES, REGISTRY

    entry = REGISTRY.get(name) or GATES.get(name)
    known = [field.name for field in fields(entry.factory)] if entry is not None else ["weight"]
    return {chosen(source, known): hostile_value(source) for _ in range(source.integer(1, 3))}


_CASES = (
    "metric, band, L1, Stiefel",
    "L1 behind Coherent(total, global)",
    "Product slice, random",
    "SubmanifoldSGD stiefel(matrix)",
    "SubmanifoldSGD curvature",
    "SubmanifoldAdam",
    "ConstrainedLangevin stiefel(matrix)",
    "ConstrainedLangevin circle(entry)",
)


@cache
def _opened(name: str) -> tuple[Any, Any, dict[str, Any], dict[str, Any] | None]:
    """A case that has made two steps: optimizer, rules, and their states."""
    from reliability.cases import case, make_model, train

    model = make_model(torch.float32)
    opened = case(name).open(model)
    train(model, opened, 2)
    optimizer, rules = opened
    return optimizer, rules, optimizer.state_dict(), None if rules is None else rules.state_dict()


def state(source: Source, folder: Path) -> None:
    """The state of rules and optimizers, as another run, version or program left it."""
    from weightspace.errors import AttachError

    del folder
    optimizer, rules, of_optimizer, of_rules = _opened(chosen(source, _CASES))
    try:
        if rules is not None and happens(source, 2):
            rules.load_state_dict(damaged_tree(source, of_rules))
        else:
            optimizer.load_state_dict(damaged_tree(source, of_optimizer))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if "/torch/" not in last or isinstance(error, AttachError):
            raise
        raise AttachError(f"torch refused: {error}") from error  # torch's own checks raise what torch raises
    finally:
        optimizer.load_state_dict(of_optimizer)
        if rules is not None:
            rules.load_state_dict(of_rules)


def _prepare() -> None:
    """Imports whatever is imported late, and makes the good states."""
    import weightspace.compare.plan
    import weightspace.training.trained
    from weightspace.training.recipe import Recipe

    for tree in (RECIPE, _TRANSFORMER, _CYCLICAL):
        weightspace.training.trained.fresh_model(Recipe.from_dict(tree))
    for name in _CASES:
        _opened(name)


TEXT_TARGETS = (
    Target(
        "recipes",
        "recipe files: wrong types and keys, bombs of aliases, tags, nesting, absurd sizes",
        recipe,
        quick=60,
        full=1500,
        prepare=_prepare,
    ),
    Target(
        "overrides",
        "--set KEY=VALUE: paths that lead nowhere, values that are anything",
        override,
        quick=40,
        full=500,
        prepare=_prepare,
    ),
    Target(
        "notation", "selections, manifolds, gates and rules as text", notation, quick=200, full=3000, prepare=_prepare
    ),
    Target(
        "states",
        "state_dicts of rules and optimizers with entries of the wrong kind",
        state,
        quick=200,
        full=2000,
        prepare=_prepare,
    ),
)
