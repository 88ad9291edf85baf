"""Hostile input: every target of `reliability.hostile` a little (slow: a lot), and each defect that was ever found."""

import ast
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import time
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reliability import fuzz_inputs
from reliability.fuzz_files import network
from reliability.fuzz_guard import judge
from reliability.fuzz_source import BytesSource, DrawnSource, RandomSource, chosen
from reliability.hostile import TARGETS, attack
from torch import nn
from typer.testing import CliRunner

import weightspace as ws
from weightspace.errors import (
    AttachError,
    CompressError,
    DataError,
    RecipeError,
    RuleError,
    RunError,
    SamplingError,
    SelectionError,
    WeightspaceError,
)
from weightspace.training.recipe_yaml import parse_yaml

SOURCE = Path(ws.__file__).parent
RUNS = {"run folders", "resumed runs", "command lines"}  # which make runs first
FAST = [target for target in TARGETS if target.name not in RUNS]


def refused(function, *arguments, error=WeightspaceError, **options) -> str:
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    return str(caught.value)


# ---------------------------------------------------------------- the targets


@pytest.mark.parametrize("target", FAST, ids=lambda t: t.name)
def test_a_few_inputs_are_accepted_or_refused(target):
    tally = attack(target, 12)
    assert (tally.tried, tally.crashes) == (12, {})
    assert tally.refused > 0


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_many_inputs_are_accepted_or_refused(target):
    tally = attack(target, target.full // 2, first=1_000_000)
    assert tally.crashes == {}


def _with_hypothesis(target, examples):
    if target.prepare is not None:
        target.prepare()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        derandomize=examples < 100,
    )
    @given(st.data())
    def run(data):
        source = DrawnSource(
            lambda low, high: data.draw(st.integers(low, high)), lambda most: data.draw(st.binary(max_size=most))
        )
        outcome = judge(target.attempt, source)
        assert outcome.kind != "crash", outcome.text

    run()


@pytest.mark.parametrize(
    "target", [t for t in FAST if t.name in {"recipes", "sparse files", "notation"}], ids=lambda t: t.name
)
def test_hypothesis_finds_no_crash(target):
    _with_hypothesis(target, 10)


@pytest.mark.slow
@pytest.mark.parametrize("target", FAST, ids=lambda t: t.name)
def test_hypothesis_finds_no_crash_in_thousands(target):
    _with_hypothesis(target, 2000)


# ---------------------------------------------------------------- the judge: mutants of the laws


def _unpickles(source, folder):
    pickle.loads(fuzz_inputs.malicious_pickle(folder.parent / "ran"))


def _escapes(source, folder):
    (folder / ".." / "escaped").write_text("x")


def _writes_elsewhere(source, folder):
    Path(f"/dev/shm/hostile-{os.getpid()}").touch()


def _starts_a_program(source, folder):
    os.system("true")


def _allocates(source, folder):
    try:
        torch.zeros(10**12)
    except RuntimeError as error:
        raise RunError(f"damaged: {error}") from error


def _breaks(source, folder):
    raise KeyError("w")


def _says_nothing(source, folder):
    raise RunError(" ")


@pytest.mark.parametrize(
    "attempt", [_unpickles, _escapes, _writes_elsewhere, _starts_a_program, _allocates, _breaks, _says_nothing]
)
def test_the_judge_sees_every_breach(attempt):
    assert judge(attempt, RandomSource("x")).kind == "crash"
    Path(f"/dev/shm/hostile-{os.getpid()}").unlink(missing_ok=True)


def test_the_judge_tells_refused_from_accepted():
    def attempt(source, folder):
        (folder / "inside").write_text("x")
        if source.integer(0, 1):
            raise RunError("damaged")

    kinds = {judge(attempt, RandomSource(str(k))).kind for k in range(20)}
    assert kinds == {"accepted", "refused"}


def test_sources_choose_within_bounds_and_repeat_themselves():
    for make in (lambda: RandomSource("s"), lambda: BytesSource(bytes(range(200)))):
        first, second = make(), make()
        numbers = [first.integer(-3, 5) for _ in range(50)]
        assert all(-3 <= n <= 5 for n in numbers)
        assert len(set(numbers)) > 3
        assert numbers == [second.integer(-3, 5) for _ in range(50)]
        assert len(first.content(7)) <= 7
    assert chosen(BytesSource(b""), "abc") == "a"


def test_damage_is_damage():
    tree = {"a": [1, 2, {"b": 3}], "c": "text"}
    found = [fuzz_inputs.damaged_tree(RandomSource(str(k)), tree) for k in range(50)]
    assert tree == {"a": [1, 2, {"b": 3}], "c": "text"}
    assert sum(entry != tree for entry in found) > 40
    assert len({fuzz_inputs.damaged_bytes(RandomSource(str(k)), bytes(100)) for k in range(50)}) > 25


# ---------------------------------------------------------------- nothing is executed


def test_no_module_unpickles_or_evaluates():
    banned = {"eval", "exec", "compile", "pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load", "yaml.load"}
    banned |= {"yaml.unsafe_load", "yaml.full_load", "marshal.loads", "shelve.open", "joblib.load", "os.system"}
    banned |= {"np.load", "numpy.load", "shutil.unpack_archive"}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = ast.unparse(node.func)
                assert name not in banned, f"{path}:{node.lineno} calls {name}"
                assert not name.endswith(".extractall"), f"{path}:{node.lineno} unpacks an archive"
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            assert not names & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}, path


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "checkpoint-000000001.safetensors"])
def test_a_malicious_pickle_in_place_of_weights_does_not_run(tmp_path, name):
    from weightspace.training.trained import load_weights

    sentinel = tmp_path / "ran"
    for content in (fuzz_inputs.malicious_pickle(sentinel), fuzz_inputs.malicious_checkpoint(sentinel)):
        (tmp_path / name).write_bytes(content)
        refused(load_weights, nn.Linear(2, 2), tmp_path / name, error=RunError)
        refused(ws.compress.load_sparse, tmp_path / name, error=CompressError)
        assert not sentinel.exists()
    pickle.loads(fuzz_inputs.malicious_pickle(sentinel))
    assert sentinel.exists()  # the pickle does what it should, if somebody loads it


def test_a_malicious_pickle_as_cifar_batch_does_not_run(tmp_path):
    from weightspace.training.data import load_data

    for k in range(1, 6):
        (tmp_path / f"data_batch_{k}").write_bytes(fuzz_inputs.malicious_pickle(tmp_path / "ran"))
    (tmp_path / "test_batch").write_bytes(fuzz_inputs.malicious_pickle(tmp_path / "ran"))
    assert "not a file of CIFAR's Python version" in refused(load_data, "cifar10", root=tmp_path, error=DataError)
    assert not (tmp_path / "ran").exists()


def test_postscript_under_another_name_starts_no_program(tmp_path):
    from reliability.fuzz_data import _EPS

    from weightspace.training.data.decode import decode_images

    assert "not an image" in refused(decode_images, 1, lambda _: _EPS, lambda _: "x.png", error=DataError)


def test_tags_of_yaml_run_nothing(tmp_path):
    for text in ("!!python/object/apply:os.mkdir [ran]", "x: !!python/name:os.system", "x: !!binary aGk="):
        assert "tag" in refused(parse_yaml, text, "r", error=RecipeError)


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x: !!timestamp x", "the tag !!timestamp cannot be used"),
        ("x: !!bool x", "'x' is no bool"),
        ("x: !!float ''", "'' is no float"),
        ("? !!set {a}\n: 1", "the tag !!set cannot be used"),
        ("a: &a [*a]", "an alias stands inside"),
        ("x: 0x" + "f" * 5000, "has more than 64 bits"),
        ("x: " + "9" * 5000, "has more than 64 bits"),
        ("x" * (1 << 21), "characters; a recipe has at most"),
    ],
)
def test_yaml_that_used_to_crash(text, words):
    assert words in refused(parse_yaml, text, "r", error=RecipeError)


def test_aliases_of_aliases_are_refused_at_once():
    from reliability.fuzz_texts import _BOMB, _MERGE_BOMB

    for text in (_BOMB, _MERGE_BOMB):
        started = time.perf_counter()
        assert "more than 100,000 values" in refused(parse_yaml, text, "r", error=RecipeError)
        assert time.perf_counter() - started < 2


def test_aliases_and_merges_of_an_honest_recipe_still_work():
    found = parse_yaml("a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, x: 3}\nc: *a\n", "r")
    assert found == {"a": {"x": 1, "y": [1, 2]}, "b": {"x": 3, "y": [1, 2]}, "c": {"x": 1, "y": [1, 2]}}


def _recipe(**changes):
    from reliability.fuzz_texts import RECIPE

    from weightspace.training.recipe import Recipe

    return Recipe.from_dict(json.loads(json.dumps(RECIPE)) | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"description": "a\0b"}, "no file name or text can hold"),
        ({"description": "\ud800"}, "no file name or text can hold"),
        ({"name": "x" * 101}, "at most 100 characters"),
        ({"name": "../../x"}, "one word of letters"),
        ({"rules": [{"rule": "L1", "weight": 10**400}]}, "more than 64 bits"),
        ({"rules": fuzz_inputs.nested(100)}, "nested more than 40 levels"),
        ({"rules": [{1: 2}]}, "keys are words"),
        ({"rules": [{"rule": b"L1"}]}, "is a bytes"),
        ({"sample": {"chains": 10**8}}, "sample.chains should be at most 10,000"),
    ],
)
def test_recipes_that_no_run_can_have(changes, words):
    assert words in refused(_recipe, error=RecipeError, **changes)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("train.epochs", 10**18, "train.epochs should be at most 1,000,000"),
        ("compare.seeds", 10**12, "compare.seeds should be at most 10,000"),
        ("compare.tune.random.trials", 10**12, "should be at most 10,000"),
        ("compare.tune", {"grid": {f"train.k{i}": list(range(50)) for i in range(9)}}, "settings, each of them a run"),
    ],
)
def test_absurd_numbers_are_refused_before_anything_is_made(path, value, words):
    assert words in refused(lambda: _recipe().with_overrides({path: value}), error=RecipeError)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mlp", {"hidden": [10**9]}, "needs 300.0 GB"),
        ("mlp", {"hidden": [1 << 30, 1 << 30]}, "for its weights alone"),
        ("mlp", {"hidden": [1 << 40]}, "beyond any network"),
        ("plain", {"depth": 10**9}, "at most 10,000 layers"),
        ("vgg", {"widths": [1] * 20_000}, "entries in widths"),
    ],
)
def test_a_model_beyond_this_machine_is_refused_with_its_size(monkeypatch, name, options, words):
    from weightspace.training.models import build_model, size

    monkeypatch.setattr(size, "machine_memory", lambda: 64 * 10**9)

    started = time.perf_counter()
    sentence = refused(build_model, name, in_channels=1, image_size=8, num_classes=10, error=RecipeError, **options)
    assert words in sentence
    assert time.perf_counter() - started < 5


def test_the_size_check_draws_nothing():
    from weightspace.training.models import build_model

    build = lambda: build_model("mlp", in_channels=1, image_size=4, num_classes=3, hidden=[4096, 2])
    torch.manual_seed(3)
    first = build().state_dict()
    torch.manual_seed(3)
    from weightspace.training.models.mlp import MLP

    second = MLP(in_channels=1, image_size=4, num_classes=3, hidden=[4096, 2]).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_names_that_the_system_cannot_have():
    from weightspace.training.data import load_data, load_text
    from weightspace.training.recipe import load_recipe

    assert "no recipe" in refused(load_recipe, "x" * 300, error=RecipeError)
    refused(load_recipe, Path("a\0b.yaml"), error=RecipeError)
    refused(load_recipe, "/dev/zero/x.yaml", error=RecipeError)
    for root in ("x" * 300, "a\0b"):
        assert "cannot be read" in refused(load_data, "mnist", root=root, error=DataError)
        assert "cannot be read" in refused(load_text, "text", root=root, error=DataError)


def test_a_device_is_no_recipe(tmp_path):
    (tmp_path / "r.yaml").symlink_to("/dev/zero")
    from weightspace.training.recipe import load_recipe

    refused(load_recipe, tmp_path / "r.yaml", error=RecipeError)


# ---------------------------------------------------------------- notation


@pytest.mark.parametrize("text", ["~" * 3000 + "convs", "&".join(["convs"] * 600), "(" * 3000, "convs & " * 5000])
def test_deep_selections_are_refused(text):
    refused(ws.on.parse, text, error=SelectionError)


@pytest.mark.parametrize(
    "text", ["sphere(filter, radius=" + "-" * 3900 + "1)", "sphere(" * 900, "sphere(filter, radius=1" + "0" * 400 + ")"]
)
def test_deep_manifolds_are_refused(text):
    refused(ws.manifolds.parse, text, error=RuleError)


def test_a_long_name_is_shown_in_short():
    assert len(refused(ws.registry.make_rule, "x" * 10**6, error=RuleError)) < 2000


# ---------------------------------------------------------------- files with weights


def _forged(tmp_path, change):
    """A checkpoint of the format before the digest, whose tree was changed."""
    from reliability.fuzz_files import _made

    header, body = fuzz_inputs.safetensors_parts(_made("old checkpoint"))
    tree = json.loads(header["__metadata__"]["tree"])
    header["__metadata__"]["tree"] = json.dumps(change(tree))
    path = tmp_path / "checkpoint-000000007.safetensors"
    path.write_bytes(fuzz_inputs.safetensors_bytes(header, body))
    return path


def test_forged_checkpoints_are_refused(tmp_path):
    from weightspace.training.checkpoint import load_checkpoint, read_checkpoint
    from weightspace.training.trained import history_of, load_weights

    scalar = {"tensor": "t3", "channels_last": True}  # no four dimensions
    assert "whole checkpoint" in refused(read_checkpoint, _forged(tmp_path, lambda _: {"dict": [["model", scalar]]}))
    for tree in (3, {"list": []}, {"dict": []}, {"dict": [["model", 3]]}):
        path = _forged(tmp_path, lambda _, tree=tree: tree)
        assert "checkpoint" in refused(load_weights, network(), path, error=RunError)
        assert "checkpoint" in refused(history_of, path, error=RunError)
    with pytest.warns(RuntimeWarning, match="is damaged"):
        assert "no checkpoint" in refused(load_checkpoint, _forged(tmp_path, lambda _: 3).parent, fingerprint="f" * 64)


def test_a_small_sparse_file_declares_no_terabyte(tmp_path):
    record = {"w": {"as": "sparse", "shape": [10**12], "dtype": "float32", "block": 1, "levels": [[0, 0, 0]]}}
    metadata = {"format": "weightspace-sparse", "version": "1", "tensors": json.dumps(record)}
    parts = {
        "w#values": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
        "w#places": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]},
    }
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(fuzz_inputs.safetensors_bytes({"__metadata__": metadata, **parts}, b""))
    assert "damaged at w: it declares tensors of 4,000,000,000,000 bytes" in refused(
        ws.compress.load_sparse, path, error=CompressError
    )


def test_a_layer_of_zeros_is_no_bomb(tmp_path):
    ws.compress.save_sparse({"w": torch.zeros(4000, 4000)}, tmp_path / "zeros.safetensors")
    assert ws.compress.load_sparse(tmp_path / "zeros.safetensors")["w"].shape == (4000, 4000)


@pytest.mark.parametrize(
    "changes",
    [
        {"": {"training": 1}},
        {"3": {"out_features": float("inf")}},
        {"3": {"out_features": 10**30}},
        {"3": 4},
        [],
        {"3": {"__class__": 1}},
    ],
)
def test_a_file_of_a_shrunk_model_changes_sizes_only(tmp_path, changes):
    from reliability.fuzz_files import _made

    from weightspace.compress.small_files import load_shrunk

    header, body = fuzz_inputs.safetensors_parts(_made("shrunk"))
    header["__metadata__"]["changes"] = json.dumps(changes)
    (tmp_path / "f").write_bytes(fuzz_inputs.safetensors_bytes(header, body))
    refused(load_shrunk, network(), tmp_path / "f", error=CompressError)


def _store(tmp_path):
    store = ws.sampling.SampleStore(tmp_path, every=1)
    store.offer(1, nn.Linear(2, 2))
    index = tmp_path / "samples.json"
    return index, json.loads(index.read_text())


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "samples.json", "model.safetensors", "x" * 5000, "chain-0-step-1.safetensors"]
)
def test_an_index_names_nothing_but_samples(tmp_path, name):
    index, content = _store(tmp_path)
    content["samples"][0]["file"] = name
    index.write_text(json.dumps(content))
    assert "is damaged" in refused(ws.sampling.SampleStore.open, tmp_path, error=SamplingError)


@pytest.mark.parametrize("shared", [[], 3, {"a": "missing"}, {"a": [1]}])
def test_a_sample_whose_tied_weights_lie(tmp_path, shared):
    index, content = _store(tmp_path)
    path = tmp_path / content["samples"][0]["file"]
    header, body = fuzz_inputs.safetensors_parts(path.read_bytes())
    header["__metadata__"]["shared"] = json.dumps(shared)
    data = fuzz_inputs.safetensors_bytes(header, body)
    path.write_bytes(data)
    content["samples"][0] |= {"bytes": len(data), "crc32": zlib.crc32(data)}
    index.write_text(json.dumps(content))
    store = ws.sampling.SampleStore.open(tmp_path)
    assert "no sample of weightspace" in refused(store.load, next(iter(store)), error=SamplingError)


# ---------------------------------------------------------------- data


def _idx(shape, body=b""):
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + body


def test_an_idx_header_takes_no_memory(tmp_path):
    from weightspace.training.data.idx import read_idx

    (tmp_path / "f").write_bytes(_idx((1000, 1000, 1000)))
    assert "which cannot hold more" in refused(read_idx, tmp_path / "f", 3, error=DataError)
    (tmp_path / "f.gz").write_bytes(gzip.compress(_idx((1000, 1000, 1000))))
    assert "which cannot hold more" in refused(read_idx, tmp_path / "f.gz", 3, error=DataError)
    (tmp_path / "g.gz").write_bytes(gzip.compress(_idx((1000, 1000, 1), bytes(10**6))))
    assert read_idx(tmp_path / "g.gz", 3)[0].shape == (1000, 1000, 1)  # as many zeros as honest files hold


def test_a_label_of_five_thousand_digits(tmp_path):
    from weightspace.training.data.cifar_pickle import parse_pickle

    label = b"\x8b" + (2500).to_bytes(4, "little") + b"\x7f" * 2500
    data = b"\x80\x02B" + (3072).to_bytes(4, "little") + bytes(3072) + b"U\x06labels" + label + b"."
    assert "out of range" in refused(parse_pickle, data, "f", error=DataError)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_damaged_archives_of_every_kind(tmp_path, kind):
    from weightspace.training.data.cifar import archive_files

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{kind}") as tar:
        member = tarfile.TarInfo("a/../../data_batch_1")
        member.size = 200_000
        tar.addfile(member, io.BytesIO(bytes(k * k % 251 for k in range(200_000))))
    content = bytearray(stream.getvalue())
    path = tmp_path / f"c.tar.{kind}"
    path.write_bytes(content)
    assert list(archive_files(path, frozenset({"data_batch_1"}))) == ["data_batch_1"]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing was unpacked
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    path.write_bytes(content)
    assert "not a complete tar archive" in refused(archive_files, path, frozenset({"data_batch_1"}), error=DataError)


def test_an_archive_of_endless_members(tmp_path, monkeypatch):
    from weightspace.training.data import cifar

    monkeypatch.setattr(cifar, "MAX_MEMBERS", 3)
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        for k in range(5):
            tar.addfile(tarfile.TarInfo(str(k)))
    assert "more than 3 members" in refused(cifar.archive_files, tmp_path / "c.tar", frozenset({"x"}), error=DataError)


def test_hostile_tables(tmp_path):
    pytest.importorskip("pyarrow")
    from reliability.fuzz_data import _table

    from weightspace.training.data import load_data, load_text

    for kind, words in (("huge labels", "labels count classes"), ("times", "row 0: expected")):
        for part in ("train", "test"):
            (tmp_path / f"{part}.parquet").write_bytes(_table(kind))
        assert words in refused(load_data, "cifar10", root=tmp_path, error=DataError)
    for part in ("train", "test"):
        (tmp_path / f"{part}.parquet").write_bytes(_table("no text"))
    refused(load_text, "penn-treebank", root=tmp_path, error=DataError)


def test_a_damaged_arrow_file_does_not_end_the_process(tmp_path):
    pytest.importorskip("pyarrow")
    from reliability.fuzz_data import _table

    from weightspace.training.data.parquet import read_table_file

    good = _table("images arrow")
    for cut in range(0, len(good), max(1, len(good) // 40)):
        (tmp_path / "f.arrow").write_bytes(good[:cut])
        try:
            read_table_file(tmp_path / "f.arrow")
        except DataError:
            continue


# ---------------------------------------------------------------- states, runs, commands


def test_foreign_states_are_refused():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, ws.penalties.L1(1e-3, gate=ws.gates.Coherent()))
    state = rules.state_dict()
    for key, value in (("version", []), ("steps", "x"), ("penalties", 3), ("routes", None)):
        refused(rules.load_state_dict, {**state, key: value}, error=AttachError)
    refused(rules.load_state_dict, 3, error=AttachError)
    groups = ws.param_groups(model, {ws.on.convs: ws.manifolds.parse("sphere(filter)")})
    moving = ws.optim.SubmanifoldSGD(groups, lr=0.1)
    good = moving.state_dict()
    bad = {**good, "param_groups": [{**group, "param_names": 3} for group in good["param_groups"]]}
    assert "names" in refused(moving.load_state_dict, bad, error=AttachError)
    moving.load_state_dict(good)


def test_damaged_results_count_as_none(tmp_path):
    from weightspace.compare.records import finished_run
    from weightspace.files import read_json

    (tmp_path / "result.json").write_text('{"status": ["done"]}')
    assert finished_run(tmp_path) is None
    (tmp_path / "result.json").write_text('{"status": ' + "9" * 5000 + "}")
    assert finished_run(tmp_path) is None
    assert "damaged" in refused(read_json, tmp_path / "result.json", error=RunError)


def test_progress_of_a_forged_checkpoint():
    from weightspace.training.progress import Progress

    for change in (
        {"epoch": []},
        {"step": -1},
        {"train_loss": "x"},
        {"step_seconds": [1, None]},
        {"loss_sum": torch.zeros(2)},
    ):
        with pytest.raises(ValueError, match="progress"):
            Progress(**({"loss_sum": torch.zeros(())} | change))


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", ":x"],
        ["inspect", "..:x"],
        ["show", "a" * 300],
        ["inspect", "antigravity_:x"],
        ["verify", "a" * 300],
        ["report", "a" * 300],
        ["train", "a" * 300 + ".yaml"],
    ],
)
def test_commands_end_with_a_sentence(tmp_path, monkeypatch, words):
    from weightspace.cli.app import app

    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "error" in result.output.lower()


def test_what_stands_in_a_file_does_not_steer_the_terminal(tmp_path, monkeypatch):
    from weightspace.cli.app import app

    (tmp_path / "r.yaml").write_text('name: x\n"\\e[2J\\e]0;title\\a": 1\n')
    result = CliRunner().invoke(app, ["show", str(tmp_path / "r.yaml")])
    assert result.exit_code == 2
    assert "\x1b" not in result.output
    assert "\\x1b[2J" in result.output


def test_arm_names_are_no_paths_and_no_markup(tmp_path):
    from weightspace.compare.plan import make_plan

    arms = {"../../x": {}, "/etc/passwd": {}, "<script>alert(1)</script>": {}, "..": {}}
    plan = make_plan(_recipe(compare={"baseline": "..", "seeds": 1, "arms": arms}))
    slugs = [arm.slug for arm in plan.arms]
    assert len(set(slugs)) == 4
    assert all(set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for slug in slugs)


def test_reports_escape_what_recipes_say(tmp_path):
    from fabricated import fabricate, make_recipe
    from weightspace.report import write_report

    arms = {"<script>alert(1)</script>": {"tune": False}, "b": {"tune": False}}
    recipe = make_recipe(arms, seeds=2, epochs=2, grid=None).with_overrides({"description": "<img src=x onerror=y>"})
    fabricate(tmp_path / "run", recipe)
    page = write_report(tmp_path / "run").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert" in page
