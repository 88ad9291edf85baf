"""Sample stores: which steps, which bytes, how much disk, what a killed, resumed or damaged run leaves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from weightspace.errors import RunError, SamplingError
from weightspace.sampling import SampleStore, chain_folder, open_chains
from weightspace.sampling import store as store_module
from weightspace.sampling._grid import Grid

QUICK = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch) -> None:
    """Hundreds of small files a test: what a power cut would take is not what is tested here."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def steps_of(store: SampleStore) -> list[int]:
    return [sample.step for sample in store]


def state_at(step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((3,), float(step))}


def feed(store: SampleStore, steps: range) -> list[int]:
    return [step for step in steps if store.offer(step, state_at(step))]


# ---------------------------------------------------------------- which steps


def slow_candidates(last: int, burn_in: int, every: int, cycle: int | None, per_cycle: int | None) -> list[int]:
    """By walking: without a cycle forward from the burn-in, with one backward from each cycle's end."""
    if cycle is None:
        return [step for step in range(1, last + 1) if step > burn_in and step in range(burn_in, last + 1, every)]
    chosen = []
    for start in range(1, last + 1, cycle):
        members = list(range(start, start + cycle))[::-1][::every][:per_cycle]
        chosen += [step for step in members[::-1] if burn_in < step <= last]
    return chosen


@given(
    burn_in=st.integers(0, 25),
    every=st.integers(1, 9),
    cycle=st.none() | st.integers(1, 15),
    per_cycle=st.integers(1, 6),
)
@settings(deadline=None, max_examples=200)
def test_the_grid_is_that_of_a_walk_and_is_numbered_without_gaps(burn_in, every, cycle, per_cycle):
    grid = Grid(burn_in=burn_in, every=every, cycle=cycle, per_cycle=None if cycle is None else per_cycle)
    numbers = {step: number for step in range(81) if (number := grid.number(step)) is not None}
    assert list(numbers) == slow_candidates(80, burn_in, every, cycle, per_cycle)
    found = list(numbers.values())
    assert found == list(range(found[0], found[0] + len(found))) if found else True
    assert not found or cycle is not None or found[0] == 1


def test_burn_in_every_and_cycles_as_the_docs_say(tmp_path):
    assert feed(SampleStore(tmp_path / "a", burn_in=10, every=5), range(31)) == [15, 20, 25, 30]
    assert feed(SampleStore(tmp_path / "b"), range(4)) == [1, 2, 3]
    cyclic = SampleStore(tmp_path / "c", cycle=10, per_cycle=2, every=3, burn_in=10)
    assert feed(cyclic, range(31)) == [17, 20, 27, 30]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"burn_in": -1}, "burn_in is -1; give a whole number of at least 0"),
        ({"every": 0}, "every is 0; give a whole number of at least 1"),
        ({"every": 2.5}, "every is 2.5; give a whole number"),
        ({"every": True}, "every is True; give a whole number"),
        ({"cycle": 10}, "cycle is given without per_cycle; give both or none"),
        ({"per_cycle": 2}, "per_cycle is given without cycle"),
        ({"cycle": 0, "per_cycle": 1}, "cycle is 0"),
        ({"max_samples": 0}, "max_samples is 0; give a whole number of at least 1"),
        ({"max_bytes": -5}, "max_bytes is -5"),
        ({"chain": -1}, "chain is -1; give a whole number of at least 0"),
        ({"chain": None}, "chain is None"),
        ({"dtype": torch.int8}, "dtype is torch.int8; give one of torch.float16, torch.bfloat16"),
    ],
)
def test_bad_settings_are_refused_and_nothing_is_made(tmp_path, options, sentence):
    with pytest.raises(SamplingError) as caught:
        SampleStore(tmp_path / "s", **options)
    assert sentence in str(caught.value)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("step", [-1, 1.0, True, "3", None])
def test_a_step_that_is_none_is_refused(tmp_path, step):
    with pytest.raises(SamplingError, match="give the number of finished optimizer steps"):
        SampleStore(tmp_path).offer(step, state_at(1))


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), "1"])
def test_a_weight_that_is_none_is_refused(tmp_path, weight):
    with pytest.raises(SamplingError, match="give a positive number"):
        SampleStore(tmp_path).offer(1, state_at(1), weight=weight)


# ---------------------------------------------------------------- what is stored


def test_a_sample_holds_parameters_and_buffers_bit_for_bit(tmp_path):
    model = network()
    model(torch.randn(16, 4))
    model[0].weight.data[0, 0] = -0.0
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    store = SampleStore(tmp_path, chain=3)
    assert store.offer(7, model, weight=0.25)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    (sample,) = store
    assert (sample.step, sample.chain, sample.weight, sample.path.parent) == (7, 3, 0.25, tmp_path)
    assert "chain-3" in sample.path.name
    assert "7" in sample.path.name
    loaded = store.load(sample)
    assert sorted(loaded) == sorted(expected)
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert torch.signbit(loaded["0.weight"][0, 0])
    assert "1.running_var" in loaded
    assert loaded["1.num_batches_tracked"].dtype == torch.int64
    assert sample.size == sample.path.stat().st_size == store.bytes


def test_any_layout_and_sharing_comes_back(tmp_path):
    base = torch.arange(24.0)
    state = {
        "transposed": base.view(4, 6).T,
        "slice": base[3:9],
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "empty too": torch.empty(0, 4),
        "complex": torch.randn(3, dtype=torch.complex64),
        "mask": torch.tensor([True, False]),
        "minus infinity": torch.full((2, 2), float("-inf")),
        "half": torch.randn(3).bfloat16(),
        "Ünïcode.weight": base,
        "tied": base,
    }
    store = SampleStore(tmp_path)
    store.offer(1, state)
    loaded = store.load(next(iter(store)))
    assert set(loaded) == set(state)
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name


def test_tied_weights_are_stored_once(tmp_path):
    big = nn.Embedding(1000, 10)
    head = nn.Linear(10, 1000, bias=False)
    untied = SampleStore(tmp_path / "untied")
    untied.offer(1, nn.ModuleList([big, head]))
    head.weight = big.weight
    tied = SampleStore(tmp_path / "tied")
    model = nn.ModuleList([big, head])
    tied.offer(1, model)
    assert tied.bytes < 0.52 * untied.bytes
    model.load_state_dict(tied.load(next(iter(tied))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_halve_the_file_and_leave_integers(tmp_path, dtype):
    model = nn.Sequential(nn.Linear(100, 100), nn.BatchNorm1d(100))
    model[1].num_batches_tracked.fill_(100_001)
    whole, half = SampleStore(tmp_path / "32"), SampleStore(tmp_path / "16", dtype=dtype)
    whole.offer(1, model)
    half.offer(1, model)
    assert half.bytes < 0.55 * whole.bytes
    loaded = half.load(next(iter(half)))
    assert loaded["0.weight"].dtype == dtype
    assert torch.equal(loaded["0.weight"], model[0].weight.detach().to(dtype))
    assert loaded["1.num_batches_tracked"] == 100_001
    model.load_state_dict(loaded)
    assert model[0].weight.dtype == torch.float32


def test_what_no_file_can_hold_is_refused_and_the_store_stays(tmp_path):
    store = SampleStore(tmp_path, dtype=torch.float16)
    store.offer(1, state_at(1))
    before = sorted(path.name for path in tmp_path.iterdir())
    for state, sentence in [
        ({"w": torch.tensor([1.0, float("nan")])}, "w of the sample holds NaN: the run has diverged"),
        ({"w": torch.tensor([1e6, float("inf")])}, "w of the sample reaches 1e+06, beyond torch.float16"),
        ({"w": "text"}, "w of the sample is a str; only dense tensors"),
        ({"w": torch.eye(2).to_sparse()}, "w of the sample is a tensor without dense values"),
        ({"w": torch.empty(2, device="meta")}, "w of the sample is a tensor without dense values"),
        ({}, "the sample has no tensors"),
    ]:
        with pytest.raises(SamplingError) as caught:
            store.offer(2, state)
        assert sentence in str(caught.value)
    assert steps_of(store) == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_wrappers_of_a_model_are_taken_off(tmp_path):
    model = network()
    store = SampleStore(tmp_path)
    compiled, wrapped = nn.Module(), nn.Module()
    compiled._orig_mod = model  # as torch.compile does
    wrapped._orig_mod = compiled
    for step, module in enumerate((model, compiled, wrapped), 1):
        store.offer(step, module)
    for sample in store:
        assert set(sample.load()) == set(model.state_dict())


def test_the_same_step_twice_is_one_sample(tmp_path):
    store = SampleStore(tmp_path, every=2)
    assert store.offer(2, state_at(2))
    assert store.offer(2, state_at(99))
    assert not store.offer(3, state_at(3))
    assert not store.offer(3, state_at(3))
    assert len(store) == 1
    assert store.load(next(iter(store)))["w"][0] == 2


# ---------------------------------------------------------------- how much disk


@given(most=st.integers(1, 9), last=st.integers(0, 120), every=st.integers(1, 4))
@QUICK
def test_what_remains_is_evenly_spaced_and_at_least_half_of_the_limit(tmp_path_factory, most, last, every):
    folder = tmp_path_factory.mktemp("s")
    store = SampleStore(folder, every=every, max_samples=most)
    for step in range(1, last + 1):
        store.offer(step, state_at(step))
        assert len(store) <= most
    candidates = last // every
    # by hand: the smallest power of two for which at most `most` candidates are left
    spacing = 1
    while candidates // spacing > most:
        spacing *= 2
    assert store.spacing == spacing
    assert steps_of(store) == [number * every for number in range(1, candidates + 1) if number % spacing == 0]
    assert len(store) >= min(candidates, (most + 1) // 2)
    assert sorted(path.name for path in folder.glob("*.safetensors")) == sorted(s.path.name for s in store)


def test_bytes_are_bounded_at_every_moment(tmp_path):
    state = {"w": torch.randn(1000)}
    probe = SampleStore(tmp_path / "probe")
    probe.offer(1, state)
    limit = 5 * probe.bytes + probe.bytes // 2
    store = SampleStore(tmp_path / "s", max_bytes=limit)
    for step in range(1, 60):
        store.offer(step, state)
        on_disk = sum(path.stat().st_size for path in (tmp_path / "s").glob("*.safetensors"))
        assert on_disk == store.bytes <= limit
    assert steps_of(store) == list(range(16, 60, 16))
    assert store.spacing == 16


def test_a_sample_above_the_limit_is_refused_and_nothing_goes_for_it(tmp_path):
    store = SampleStore(tmp_path, max_bytes=2000)
    store.offer(1, state_at(1))
    store.offer(2, state_at(2))
    with pytest.raises(SamplingError, match=r"one sample has \d+ bytes, above max_bytes 2000"):
        store.offer(3, {"w": torch.zeros(1000)})
    assert steps_of(store) == [1, 2]


# ---------------------------------------------------------------- resume


@given(
    most=st.integers(1, 6),
    checkpoint=st.integers(0, 40),
    killed=st.integers(0, 40),
    after=st.integers(0, 40),
    cyclic=st.booleans(),
)
@QUICK
def test_a_run_that_was_killed_and_resumed_keeps_what_a_whole_one_does(
    tmp_path_factory, most, checkpoint, killed, after, cyclic
):
    options = {"max_samples": most, "burn_in": 3, **({"cycle": 7, "per_cycle": 3} if cyclic else {"every": 2})}
    end = checkpoint + killed + after
    whole = SampleStore(tmp_path_factory.mktemp("whole"), **options)
    feed(whole, range(1, end + 1))
    folder = tmp_path_factory.mktemp("resumed")
    feed(SampleStore(folder, **options), range(1, checkpoint + killed + 1))
    resumed = SampleStore(folder, **options)
    resumed.truncate(checkpoint)
    assert all(step <= checkpoint for step in steps_of(resumed))
    feed(resumed, range(checkpoint + 1, end + 1))
    assert (steps_of(resumed), resumed.spacing) == (steps_of(whole), whole.spacing)
    assert steps_of(SampleStore.open(folder)) == steps_of(whole)
    for sample in resumed:
        assert sample.load()["w"][0] == sample.step


def test_truncate_forgets_files_too_and_samples_come_anew(tmp_path):
    store = SampleStore(tmp_path)
    feed(store, range(1, 7))
    assert store.truncate(4) == 2
    assert store.truncate(4) == 0
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    store.offer(5, state_at(55))
    assert [float(s.load()["w"][0]) for s in store] == [1, 2, 3, 4, 55]


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ({}, {"every": 2}, "every=1, now every=2"),
        ({"burn_in": 3}, {}, "burn_in=3, now burn_in=0"),
        ({}, {"dtype": torch.float16}, "dtype=None, now dtype=float16"),
        ({}, {"chain": 1}, "chain=0, now chain=1"),
        ({"cycle": 5, "per_cycle": 1}, {"cycle": 5, "per_cycle": 2}, "per_cycle=1, now per_cycle=2"),
    ],
)
def test_other_settings_are_refused_for_a_store_that_is_there(tmp_path, first, second, name):
    SampleStore(tmp_path, **first)
    with pytest.raises(SamplingError) as caught:
        SampleStore(tmp_path, **second)
    assert f"was begun with {name} is asked for; choose another folder" in str(caught.value)


def test_limits_may_change_between_runs(tmp_path):
    feed(SampleStore(tmp_path, max_samples=8), range(1, 9))
    assert feed(SampleStore(tmp_path, max_samples=3), range(9, 13)) == [12]
    store = SampleStore(tmp_path, max_samples=None)
    assert (steps_of(store), store.spacing, store.max_samples) == ([4, 8, 12], 4, None)
    assert feed(store, range(13, 21)) == [16, 20]


def test_what_a_kill_between_two_files_leaves_is_cleaned_up(tmp_path, monkeypatch):
    """The sample's file is there, the index does not name it yet; and a temporary file is half written."""
    store = SampleStore(tmp_path)
    store.offer(1, state_at(1))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, "write_index", killed)
    with pytest.raises(KeyboardInterrupt):
        store.offer(2, state_at(2))
    monkeypatch.undo()
    orphan = tmp_path / "chain-0-step-0000000002.safetensors"
    half = tmp_path / ".chain-0-step-0000000003.safetensors.1-ab.tmp"
    half.write_bytes(b"half")
    assert orphan.exists()
    assert steps_of(SampleStore.open(tmp_path)) == [1]
    assert orphan.exists()  # reading changes nothing
    again = SampleStore(tmp_path)
    assert not orphan.exists()
    assert not half.exists()
    assert feed(again, range(1, 4)) == [1, 2, 3]


def test_a_kill_while_thinning_loses_nothing_that_is_to_stay(tmp_path, monkeypatch):
    store = SampleStore(tmp_path, max_samples=4)
    feed(store, range(1, 5))

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, "_delete", killed)
    with pytest.raises(KeyboardInterrupt):
        store.offer(5, state_at(5))
    monkeypatch.undo()
    again = SampleStore(tmp_path, max_samples=4)
    assert (steps_of(again), again.spacing) == ([2, 4], 2)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_process_that_is_killed_at_any_moment_leaves_a_store_that_opens(tmp_path):
    script = f"""
import sys, torch
from weightspace.sampling import SampleStore
store = SampleStore({str(tmp_path / "s")!r}, max_samples=5)
for step in range(1, 1_000_000):
    store.offer(step, {{"w": torch.full((2000,), float(step))}})
    if step == 10: print("ready", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    again = SampleStore(tmp_path / "s", max_samples=5)
    assert len(again) >= 3
    assert all(sample.load()["w"][0] == sample.step for sample in again)


# ---------------------------------------------------------------- reading, and what is wrong on disk


def test_reading_alone_changes_nothing(tmp_path):
    feed(SampleStore(tmp_path, every=2, dtype=torch.float16), range(1, 9))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    store = SampleStore.open(tmp_path)
    assert (len(store), store.wants(10), store.wants(9)) == (4, True, False)
    for act in (lambda: store.offer(10, state_at(10)), lambda: store.truncate(2)):
        with pytest.raises(SamplingError, match="was opened to read; make it with SampleStore"):
            act()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert repr(store).startswith("<SampleStore chain 0: 4 samples")


def test_chains_open_in_the_order_of_their_numbers(tmp_path):
    for chain in (10, 2, 0):
        feed(SampleStore(chain_folder(tmp_path, chain), chain=chain), range(1, 3))
    (tmp_path / "chain-x").mkdir()
    assert [store.chain for store in open_chains(tmp_path)] == [0, 2, 10]
    assert [store.chain for store in open_chains(tmp_path / "chain-2")] == [2]


def test_folders_without_samples_say_so(tmp_path):
    for missing in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SamplingError, match="holds no samples"):
            open_chains(missing)
        with pytest.raises(SamplingError, match=r"holds no samples: it has no samples.json"):
            SampleStore.open(missing)


def filled(folder: Path) -> Path:
    feed(SampleStore(folder), range(1, 4))
    return folder / "chain-0-step-0000000002.safetensors"


def test_a_missing_file_is_named_at_opening_and_at_loading(tmp_path):
    path = filled(tmp_path)
    store = SampleStore.open(tmp_path)
    path.unlink()
    with pytest.raises(SamplingError, match=r"step-0000000002.safetensors is missing; restore it"):
        [sample.load() for sample in store]
    for opening in (SampleStore.open, SampleStore):
        with pytest.raises(SamplingError, match=r"step-0000000002.safetensors is missing"):
            opening(tmp_path)


def test_a_truncated_file_is_named_at_opening(tmp_path):
    path = filled(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(SamplingError, match=r"has \d+ bytes, the index says \d+"):
        SampleStore.open(tmp_path)


@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
@QUICK
def test_any_byte_that_changed_is_noticed(tmp_path_factory, place, change):
    folder = tmp_path_factory.mktemp("s")
    path = filled(folder)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= change
    path.write_bytes(content)
    with pytest.raises(SamplingError, match="is damaged: its checksum"):
        [sample.load() for sample in SampleStore.open(folder)]


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda c: c.update(format="other"), "has format 'other', not 'weightspace-samples'"),
        (lambda c: c.update(version=99), "has version 99, this weightspace reads 1: update weightspace"),
        (lambda c: c.pop("samples"), "is damaged (KeyError: 'samples')"),
        (lambda c: c["samples"][0].pop("crc32"), "is damaged (KeyError: 'crc32')"),
        (lambda c: c["samples"][0].update(file="../elsewhere"), "is outside the folder"),
        (lambda c: c["samples"].reverse(), "its steps do not rise"),
        (lambda c: c.update(spacing=0), "its steps do not rise"),
        (lambda c: c["settings"].update(every=0), "are no settings of a store (every is 0"),
        (lambda c: c["settings"].pop("dtype"), "are no settings of a store"),
        (lambda c: c["settings"].update(dtype="int4"), "are no settings of a store"),
        (lambda c: c.update(samples=3), "is damaged (TypeError"),
    ],
)
def test_a_damaged_index_is_one_sentence(tmp_path, edit, sentence):
    filled(tmp_path)
    path = tmp_path / "samples.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(SamplingError) as caught:
        SampleStore.open(tmp_path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_index_that_is_no_json_or_is_lost(tmp_path):
    filled(tmp_path)
    (tmp_path / "samples.json").write_text("{")
    with pytest.raises(SamplingError, match="is damaged"):
        SampleStore(tmp_path)
    (tmp_path / "samples.json").unlink()
    with pytest.raises(SamplingError, match=r"holds samples without samples.json"):
        SampleStore(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_a_foreign_file_under_a_samples_name_is_no_sample(tmp_path):
    """The index is right about size and checksum, but the file is another safetensors file, or none at all."""
    import zlib

    from safetensors.torch import save

    path = filled(tmp_path)
    for content in (save({"w": torch.ones(2)}), b"x" * 100):
        path.write_bytes(content)
        index = json.loads((tmp_path / "samples.json").read_text())
        index["samples"][1].update(bytes=len(content), crc32=zlib.crc32(content))
        (tmp_path / "samples.json").write_text(json.dumps(index))
        with pytest.raises(SamplingError, match="holds no sample of weightspace"):
            [sample.load() for sample in SampleStore.open(tmp_path)]


def test_a_folder_that_cannot_be_written_says_why(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file, but a folder is needed"):
        SampleStore(tmp_path / "file")
    store = SampleStore(tmp_path / "s")
    shutil.rmtree(tmp_path / "s")
    (tmp_path / "s").write_text("now a file")
    with pytest.raises(RunError, match="cannot write"):
        store.offer(1, state_at(1))


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch):
    store = SampleStore(tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(SamplingError) as caught:
        store.offer(1, state_at(1))
    assert str(caught.value) == 'A sample store needs safetensors; pip install "weightspace[sampling]"'
