from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightspace.errors import RunError
from weightspace.training.files import (
    JsonLines,
    ensure_writable_folder,
    finite,
    keep_first_records,
    read_json,
    read_json_lines,
    replacing,
    write_json_atomically,
    write_text_atomically,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON))
def test_json_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, value: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("json") / "value.json"
    write_json_atomically(path, value)
    assert read_json(path) == value
    assert [entry.name for entry in path.parent.iterdir()] == ["value.json"]


def test_non_finite_numbers_become_null(tmp_path: Path) -> None:
    write_json_atomically(tmp_path / "r.json", {"a": math.nan, "b": [math.inf, 1.5, (2, -math.inf)], "c": True})
    assert read_json(tmp_path / "r.json") == {"a": None, "b": [None, 1.5, [2, None]], "c": True}
    assert finite(1e308) == 1e308


def test_a_failed_write_keeps_the_old_content_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "r.txt"
    write_text_atomically(path, "old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_below_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write .*r\.json"):
        write_json_atomically(tmp_path / "file" / "r.json", {})


@pytest.mark.parametrize(
    ("content", "sentence"), [(b'{"a": 1', "damaged"), (b"[1]", "JSON object, not a list"), (b"\xff\xfe", "damaged")]
)
def test_damaged_json_is_named(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=sentence) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        read_json(tmp_path / "result.json")


def test_lines_append_and_survive_every_cut(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    records = [{"step": step, "name": "ü\n"} for step in range(3)]
    with JsonLines(path) as lines:
        for record in records:
            lines.write(record)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):  # a process may die after any byte
        path.write_bytes(whole[:length])
        complete = whole[:length].count(b"\n")
        found = read_json_lines(path)
        assert found[:complete] == records[:complete]
        assert len(found) - complete in {0, 1}  # a whole last record that lacks only its newline may count
        with JsonLines(path) as lines:
            lines.write({"step": "new"})
        assert read_json_lines(path) == [*records[:complete], {"step": "new"}]


def test_no_file_reads_as_no_records(tmp_path: Path) -> None:
    assert read_json_lines(tmp_path / "metrics.jsonl") == []
    keep_first_records(tmp_path / "metrics.jsonl", 0)


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunError, match="damaged at line 2"):
        read_json_lines(path)
    path.write_text("[1]\n")
    with pytest.raises(RunError, match="line 1 should be a JSON object"):
        read_json_lines(path)


def test_keep_first_records(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(4)) + '{"st')
    with pytest.raises(RunError, match="holds 4 records but 5 were written"):
        keep_first_records(path, 5)
    keep_first_records(path, 2)
    assert read_json_lines(path) == [{"step": 0}, {"step": 1}]


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = ensure_writable_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert not list(folder.iterdir())


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file, but a folder is needed"):
        ensure_writable_folder(tmp_path / "file")
    with pytest.raises(RunError, match="is a file"):
        ensure_writable_folder(tmp_path / "file" / "below")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunError, match="permission denied"):
            ensure_writable_folder(tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


def test_the_reason_of_the_system_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(RunError, match=r"cannot write to the folder .*: permission denied"):
        ensure_writable_folder(tmp_path)
