"""Targets that read what runs leave, and the command line: folders of runs, comparisons, sweeps and chains, and words."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from reliability.fuzz_data import _png
from reliability.fuzz_guard import Target
from reliability.fuzz_inputs import damaged_bytes, damaged_safetensors, damaged_tree, hostile_value
from reliability.fuzz_source import Source, chosen, happens

Files = dict[str, bytes]
_RUN: dict[str, Any] = {
    "name": "tiny",
    "data": {"name": "digits", "train_size": 64, "test_size": 32},
    "model": {"name": "mlp", "options": {"hidden": [4]}},
    "train": {"epochs": 2, "batch_size": 32, "optimizer": {"name": "SGD", "lr": 0.05}, "measure_every": 1},
    "rules": [{"rule": "ChannelL2", "smoothing": 4.0, "on": "linears"}],
}
_COMPARE = {"baseline": "plain", "seeds": 2, "arms": {"plain": {"rules": []}, "ours": {}}}


@cache
def _folder(kind: str) -> Files:
    """The files of a good folder, by path: of one run, a comparison, or chains."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        {"run": _make_run, "comparison": _make_comparison, "chains": _make_chains}[kind](root)
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _make_run(root: Path) -> None:
    from weightspace.training.loop import train_run
    from weightspace.training.recipe import Recipe, run_fingerprint
    from weightspace.training.session import load_recipe_data

    recipe = Recipe.from_dict(_RUN)
    data = load_recipe_data(recipe)
    train_run(recipe, root, seed=0, data=data, checkpoint_every_epochs=1, accelerator="cpu")
    run = {
        "recipe": recipe.to_dict(),
        "seed": 0,
        "fingerprint": run_fingerprint(recipe, 0),
        "command": "weightspace train",
    }
    (root / "run.json").write_text(
        json.dumps(run | {"versions": {"torch": "2"}, "machine": {"cores": 2}, "data": data.describe()})
    )


def _make_comparison(root: Path) -> None:
    from weightspace.compare.plan import final_jobs, make_plan
    from weightspace.training.loop import train_run
    from weightspace.training.recipe import Recipe
    from weightspace.training.session import load_recipe_data

    recipe = Recipe.from_dict(_RUN | {"compare": _COMPARE})
    data = load_recipe_data(recipe)
    plan = make_plan(recipe)
    for arm in plan.arms:
        for job in final_jobs(plan, arm, None):
            train_run(job.recipe, root / job.directory, seed=job.seed, data=data, accelerator="cpu")
    facts = {
        "recipe": recipe.to_dict(),
        "data": data.describe(),
        "resumed": [],
        "slugs": {"plain": "plain", "ours": "ours"},
    }
    (root / "compare.json").write_text(
        json.dumps(facts | {"command": "x", "versions": {"torch": "2"}, "machine": {"cores": 2}})
    )


def _make_chains(root: Path) -> None:
    from weightspace.chains import run_sampling
    from weightspace.compare import Execution
    from weightspace.training.recipe import Recipe

    recipe = Recipe.from_dict(_RUN | {"sample": {"chains": 2, "max_samples": 4}})
    how = Execution(workers=1, accelerator="cpu", command="weightspace sample", progress=lambda *_: None)
    run_sampling(recipe, root, how)


def _write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _damaged(source: Source, name: str, content: bytes) -> bytes:
    """One file, damaged where its kind is weak."""
    if happens(source, 6) or not content.strip():
        return damaged_bytes(source, content)
    if name.endswith(".safetensors"):
        return damaged_safetensors(source, content)
    if name.endswith(".jsonl"):
        lines = content.splitlines()
        for _ in range(source.integer(1, 4)):
            place = source.integer(0, len(lines) - 1)
            lines[place] = json.dumps(
                damaged_tree(source, json.loads(lines[place])) if happens(source, 2) else hostile_value(source)
            ).encode()
        return b"\n".join(lines) + b"\n"
    if name.endswith(".json"):
        return json.dumps(damaged_tree(source, json.loads(content), most=2)).encode()
    return damaged_bytes(source, content)


def folder_read(source: Source, folder: Path) -> None:
    """The folder of a run, a comparison or chains, with damaged files, as `report` reads it."""
    from weightspace.compare import comparison_table
    from weightspace.report import write_report

    kind = chosen(source, ("run", "comparison", "comparison", "chains"))
    files = dict(_folder(kind))
    for _ in range(source.integer(1, 2)):
        name = chosen(source, sorted(key for key in files if key.endswith((".json", ".jsonl"))))
        files[name] = _damaged(source, name, _folder(kind)[name])
    _write(folder, files)
    with nullcontext() if happens(source, 20) else _plots_left_out():
        if kind == "comparison":
            comparison_table(folder)
        write_report(folder)


def folder_resumed(source: Source, folder: Path) -> None:
    """The folder of a run whose checkpoint, records or result are damaged, gone on with."""
    from weightspace.training.loop import train_run
    from weightspace.training.recipe import Recipe
    from weightspace.training.session import load_recipe_data

    files = dict(_folder("run"))
    del files["result.json"]
    last = max(name for name in files if name.startswith("checkpoint"))
    newest, body = _undigested(files.pop(last))
    if happens(source, 3):
        files["metrics.jsonl"] = _damaged(source, "metrics.jsonl", files["metrics.jsonl"])
    from reliability.fuzz_inputs import safetensors_bytes

    newest["__metadata__"]["tree"] = json.dumps(
        damaged_tree(source, json.loads(newest["__metadata__"]["tree"]), most=2)
    )
    _write(folder, {name: data for name, data in files.items() if not name.startswith("checkpoint")})
    (folder / last).write_bytes(safetensors_bytes(newest, body))
    recipe = Recipe.from_dict(_RUN)
    train_run(
        recipe, folder, seed=0, data=load_recipe_data(recipe), resume=True, checkpoint_every_epochs=1, accelerator="cpu"
    )


def _undigested(content: bytes) -> tuple[dict[str, Any], bytes]:
    from reliability.fuzz_inputs import safetensors_parts

    header, body = safetensors_parts(content)
    header["__metadata__"] |= {"format": "weightspace-checkpoint-2"}
    header["__metadata__"].pop("digest", None)
    return header, body


_WORDS = ("", "-", "--", "quickstart", "tiny.yaml", "hostile.yaml", "run", "comparison", "chains", "nothing", "run/model.safetensors", "run/run.json", "../..", "/dev/null", "a" * 300, "0", "-1", "1e9", "1" * 30, "nan", "3x8x8", "0x0", "999999x999999x9", "a=b", "train.epochs=3", "rules=[[[", "os:system", ":x", "x:", "..:x", "json:loads", "torch.nn:Linear", "in_features=3", "convs", "stiefel(matrix)", "L1", "0.5", "cpu", "cuda", "tpu", "\x1b[31m", "é", "\udcff", "convs &", "spectra", "evaluation")  # fmt: skip


@lru_cache(maxsize=1)
def _options() -> dict[str, tuple[str, ...]]:
    """The options of every command."""
    import typer

    from weightspace.cli.app import app

    group: Any = typer.main.get_command(app)
    return {
        name: tuple(o for p in c.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--"))
        for name, c in group.commands.items()
    }


def command(source: Source, folder: Path) -> None:
    """A command with arguments at random, in a folder with good and damaged files. Nothing is trained."""
    from typer.testing import CliRunner

    from weightspace.cli.app import app
    from weightspace.errors import RunError

    name = chosen(source, (*_options(), "nonsense"))
    words = [name]
    if not happens(source, 4):
        words.append(chosen(source, ("run", "run", "tiny.yaml", "hostile.yaml", "run/model.safetensors", "comparison")))
    for _ in range(source.integer(0, 5)):
        if happens(source, 2) and name in _options():
            words.append(chosen(source, (*_options()[name], "--help")))
        words.append(chosen(source, _WORDS))
    files = {f"run/{key}": data for key, data in _folder("run").items()} | {"comparison/compare.json": b"{}"}
    if happens(source, 2):
        hurt = chosen(source, sorted(files))
        files[hurt] = _damaged(source, hurt, files[hurt])
    files |= {"tiny.yaml": json.dumps(_RUN).encode(), "hostile.yaml": json.dumps(damaged_tree(source, _RUN)).encode()}
    _write(folder, files)
    os.chdir(folder)
    with _nothing_trained(), _plots_left_out():
        result = CliRunner().invoke(app, words)
    shutil.rmtree(folder / "runs", ignore_errors=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise RuntimeError(f"weightspace {words}") from result.exception
    if result.exit_code not in (0, 1, 2) or "Traceback" in result.output or "\x1b[31m" in result.output:
        raise RuntimeError(f"weightspace {words}: exit code {result.exit_code}, {result.output[-500:]!r}")
    if result.exit_code == 2:
        text = result.output.strip()
        if "rror" not in text and "Usage" not in text:
            raise RuntimeError(f"weightspace {words}: no sentence, {text[-300:]!r}")
        raise RunError(text.splitlines()[-1][:500] if text else "refused")


@contextmanager
def _nothing_trained() -> Generator[None, None, None]:
    """Commands get as far as the training, which takes minutes and is tried elsewhere."""
    import weightspace.chains
    import weightspace.compare
    import weightspace.compare.tolerance
    import weightspace.training.loop
    from weightspace.errors import RunError

    def refuse(*_: Any, **__: Any) -> Any:
        raise RunError("error: nothing is trained here")

    places = (
        (weightspace.compare, "run_comparison"),
        (weightspace.chains, "run_sampling"),
        (weightspace.compare.tolerance, "run_tolerance"),
        (weightspace.training.loop, "train_run"),
    )
    before = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, refuse)
    try:
        yield
    finally:
        for (module, name), old in zip(places, before, strict=True):
            setattr(module, name, old)


@contextmanager
def _plots_left_out() -> Generator[None, None, None]:
    """Drawing takes seconds: the figures are made, and one pixel is written in place of each."""
    import weightspace.chains.pictures
    import weightspace.report.html

    def write(figure: Any, path: Path) -> Path:
        del figure
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png((1, 1)))
        return path

    places = (weightspace.report.html, weightspace.chains.pictures)
    before = [module.save_figure for module in places]
    for module in places:
        setattr(module, "save_figure", write)  # noqa: B010 - it is no attribute to a type checker
    try:
        yield
    finally:
        for module, old in zip(places, before, strict=True):
            setattr(module, "save_figure", old)  # noqa: B010


def _prepare() -> None:
    """Imports whatever is imported late, and makes the good folders."""
    import matplotlib as mpl

    mpl.use("agg")
    from weightspace.report import write_report

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        _write(Path(name), _folder("run"))
        write_report(Path(name))
    _options()


def _prepare_folders() -> None:
    """The same, and folders of comparisons and chains, which take longer to make."""
    _prepare()
    _folder("comparison")
    _folder("chains")


RUN_TARGETS = (
    Target(
        "run folders",
        "folders of runs, comparisons and chains, damaged, as `report` reads them",
        folder_read,
        10,
        200,
        _prepare_folders,
    ),
    Target("resumed runs", "a run that goes on from a forged checkpoint", folder_resumed, 20, 300, _prepare),
    Target("command lines", "all commands with arguments at random, among damaged files", command, 40, 700, _prepare),
)
