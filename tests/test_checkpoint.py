from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from test_files import file_size_limit
from weightspace.errors import RunError
from weightspace.training.checkpoint import delete_checkpoints, load_checkpoint, read_checkpoint, save_checkpoint

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@settings(max_examples=40, deadline=None)
@given(TREES)
def test_any_tree_comes_back_with_its_types(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(folder, 1, {"tree": tree}, fingerprint="f")
    found = load_checkpoint(folder, fingerprint="f")
    assert found is not None
    assert repr(found["tree"]) == repr(tree)  # repr tells tuples from lists, 1 from True, and integer keys


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.complex64,
    ],
)
def test_tensors_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        0: torch.arange(6).reshape(2, 3).to(dtype),
        "scalar": torch.tensor(3).to(dtype),
        "empty": torch.empty(0, 2, dtype=dtype),
        "transposed": torch.arange(6).reshape(2, 3).to(dtype).t(),
        "images": torch.arange(48).reshape(2, 2, 3, 4).to(dtype).contiguous(memory_format=torch.channels_last),
    }
    tensors["shared"] = tensors[0]
    save_checkpoint(tmp_path, 1, {"state": tensors}, fingerprint="f")
    found = load_checkpoint(tmp_path, fingerprint="f")
    assert found is not None
    assert list(found["state"]) == list(tensors)
    for key, tensor in tensors.items():
        assert found["state"][key].dtype == dtype
        assert torch.equal(found["state"][key], tensor)
    assert found["state"]["images"].stride() == tensors["images"].stride()


def test_optimizer_state_keeps_integer_keys_and_tuples(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.8, 0.9))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path, 1, {"optimizer": optimizer.state_dict(), "nan": math.nan}, fingerprint="f")
    found = load_checkpoint(tmp_path, fingerprint="f")
    assert found is not None
    assert found["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    assert set(found["optimizer"]["state"]) == {0, 1}
    assert math.isnan(found["nan"])


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        save_checkpoint(tmp_path, step, {"step": step}, fingerprint="f")
    assert names(tmp_path) == ["checkpoint-000000010.safetensors", "checkpoint-000000011.safetensors"]
    found = load_checkpoint(tmp_path, fingerprint="f")
    assert found == {"step": 11}
    delete_checkpoints(tmp_path)
    assert names(tmp_path) == []
    assert load_checkpoint(tmp_path, fingerprint="f") is None


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "flipped header", "flipped bit"])
def test_a_damaged_newest_file_is_reported_and_the_one_before_used(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1, "w": torch.ones(100)}, fingerprint="f")
    newest = save_checkpoint(tmp_path, 2, {"step": 2, "w": torch.ones(100)}, fingerprint="f")
    content = newest.read_bytes()
    if damage == "truncated":
        newest.write_bytes(content[:-7])
    elif damage == "empty":
        newest.write_bytes(b"")
    elif damage == "foreign":
        save_file({"w": torch.ones(1)}, newest)
    elif damage == "flipped bit":
        newest.write_bytes(content[:-50] + bytes([content[-50] ^ 1]) + content[-49:])
    else:
        newest.write_bytes(content[:20] + b"\xff" * 8 + content[28:])
    with pytest.warns(RuntimeWarning, match=r"checkpoint-000000002.* is damaged .*trying the checkpoint before it"):
        found = load_checkpoint(tmp_path, fingerprint="f")
    assert found is not None
    assert found["step"] == 1


def small_state() -> dict[str, Any]:
    return {"step": 7, "w": torch.tensor([1.5, -2.0]), "n": torch.tensor([3], dtype=torch.int64), 0: (None, "text")}


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, small_state(), fingerprint="f")
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            with pytest.raises(RunError, match="no whole checkpoint"):
                read_checkpoint(path)
    path.write_bytes(content)
    assert repr(read_checkpoint(path)) == repr(small_state())


@pytest.mark.parametrize("where", ["step", "fingerprint", "tree", "format", "dtype", "shape", "name"])
def test_a_changed_header_is_found(tmp_path: Path, where: str) -> None:
    """A file that is a good safetensors file in every other respect."""
    path = save_checkpoint(tmp_path, 1, small_state(), fingerprint="f")
    with safe_open(path, framework="pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in ("t0", "t1")}
    if where == "dtype":
        tensors["t0"] = tensors["t0"].view(torch.int32)
    elif where == "shape":
        tensors["t0"] = tensors["t0"].view(2, 1)
    elif where == "name":
        tensors = {"t0": tensors["t0"], "t2": tensors["t1"]}
        header["tree"] = header["tree"].replace('"t1"', '"t2"')
    else:
        old, new = {"step": "1", "fingerprint": "f", "tree": "7", "format": "3"}[where], "2"
        header[where] = header[where].replace(old, new) if where != "format" else "weightspace-checkpoint-9"
    save_file(tensors, path, metadata=header)
    sentence = (
        "the digest differs" if where != "format" else "format is weightspace-checkpoint-9, .* update weightspace"
    )
    with pytest.raises(RunError, match=sentence):
        read_checkpoint(path)


def test_what_earlier_versions_wrote_is_read(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, small_state(), fingerprint="f")
    with safe_open(path, framework="pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in ("t0", "t1")}
    del header["digest"]
    save_file(tensors, path, metadata=header)
    with pytest.raises(RunError, match="no whole checkpoint"):  # the present format has one
        read_checkpoint(path)
    save_file(tensors, path, metadata={**header, "format": "weightspace-checkpoint-2"})
    assert repr(load_checkpoint(tmp_path, fingerprint="f")) == repr(small_state())


def test_checkpoints_of_an_abandoned_future_go(tmp_path: Path) -> None:
    """The newest is damaged, the run goes on from the one before: the damaged one must not outlive good ones."""
    for step in (10, 20):
        save_checkpoint(tmp_path, step, {"step": step}, fingerprint="f")
    (tmp_path / "checkpoint-000000020.safetensors").write_bytes(b"")
    save_checkpoint(tmp_path, 13, {"step": 13}, fingerprint="f")
    assert names(tmp_path) == ["checkpoint-000000010.safetensors", "checkpoint-000000013.safetensors"]
    assert load_checkpoint(tmp_path, fingerprint="f") == {"step": 13}


def test_when_all_are_damaged_it_says_so(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1}, fingerprint="f").write_bytes(b"")
    with pytest.warns(RuntimeWarning), pytest.raises(RunError, match=r"no checkpoint in .* can be read"):
        load_checkpoint(tmp_path, fingerprint="f")


def test_other_settings_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1}, fingerprint="f")
    with pytest.raises(RunError, match="written with other settings or another seed"):
        load_checkpoint(tmp_path, fingerprint="g")


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"w": torch.ones(10)}, fingerprint="f")
    with (
        pytest.raises(RunError, match=r"cannot write .*2\.safetensors: file too large; checkpoint-000000001\S+ stays"),
        file_size_limit(2000),
    ):
        save_checkpoint(tmp_path, 2, {"w": torch.ones(1000)}, fingerprint="f")
    assert names(tmp_path) == ["checkpoint-000000001.safetensors"]
    delete_checkpoints(tmp_path)
    with pytest.raises(RunError, match="file too large; nothing is saved yet"), file_size_limit(2000):
        save_checkpoint(tmp_path, 2, {"w": torch.ones(1000)}, fingerprint="f")


@pytest.mark.parametrize("value", [object(), {1.5: 2}, {True: 1}, b"bytes"])
def test_what_cannot_be_saved_is_refused_and_nothing_is_written(tmp_path: Path, value: Any) -> None:
    with pytest.raises(RunError, match="a checkpoint cannot hold a"):
        save_checkpoint(tmp_path, 1, {"value": value}, fingerprint="f")
    assert names(tmp_path) == []
