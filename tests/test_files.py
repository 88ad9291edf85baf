from __future__ import annotations

import errno
import json
import math
import os
import resource
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightspace.errors import RunError
from weightspace.files import (
    delete_leftovers,
    ensure_writable_folder,
    finite,
    read_json,
    renew_text,
    replacing,
    write_json_atomically,
    write_text_atomically,
)
from weightspace.training.json_lines import JsonLines, keep_first_records, read_json_lines, read_whole_lines
from weightspace.training.lock import locked


@contextmanager
def file_size_limit(size: int) -> Generator[None, None, None]:
    """Files of this process cannot grow beyond `size` bytes: as near to a full disk as a test can come."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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


def test_content_then_name_are_on_the_disk_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def sync(descriptor: int) -> None:
        info = os.fstat(descriptor)
        done.append("folder" if stat.S_ISDIR(info.st_mode) else f"content of {info.st_size} bytes")

    replace = os.replace
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("rename"), replace(old, new))[1])
    write_text_atomically(tmp_path / "r.txt", "12345")
    assert done == ["content of 5 bytes", "rename", "folder"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_folder_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    sync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    if number == errno.EINVAL:  # a file system that has no such thing
        write_text_atomically(tmp_path / "r.txt", "new")
    else:
        with pytest.raises(RunError, match=r"cannot write .*r\.txt: input/output error"):
            write_text_atomically(tmp_path / "r.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["r.txt"]


def test_writing_below_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write .*r\.json"):
        write_json_atomically(tmp_path / "file" / "r.json", {})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b'{"a": 1', "damaged"), (b"[1]", "JSON object, not a list"), (b"\xff\xfe", "damaged"), (b"[" * 99999, "damaged")],
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
    path.write_bytes(b'{"step": 1}\n{"st\n\xff\xfe\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"damaged at line 2 \(not JSON\) and 1 more lines"):
        read_json_lines(path)
    assert read_whole_lines(path)[0] == [{"step": 1}, {"step": 3}]
    path.write_text("[1]\n")
    with pytest.raises(RunError, match=r"damaged at line 1 \(no JSON object\)"):
        read_json_lines(path)
    with pytest.raises(RunError, match="cannot read"):
        read_json_lines(tmp_path)


def test_keep_first_records(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(4)) + '{"st')
    assert keep_first_records(path, 2) == 2
    assert read_json_lines(path) == [{"step": 0}, {"step": 1}]


def test_lost_records_are_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.warns(RuntimeWarning, match=r"metrics.jsonl has lost 3 of 3 records; the run goes on without them"):
        assert keep_first_records(path, 3) == 0
    path.write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.warns(
        RuntimeWarning, match=r"has lost 1 of 3 records: it is damaged at line 2 \(not JSON\); the run goes"
    ):
        assert keep_first_records(path, 3) == 2
    assert read_json_lines(path) == [{"step": 0}, {"step": 2}]


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with JsonLines(tmp_path / "metrics.jsonl") as lines, Path("/dev/full").open("a", encoding="utf-8") as full:
        monkeypatch.setattr(lines, "_stream", full)  # refuses every byte
        with pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl: no space left on device"):
            lines.write({"step": 1})
        lines.close()
    with pytest.raises(RunError, match=r"cannot write .*r\.txt: file too large"), file_size_limit(1000):
        write_text_atomically(tmp_path / "r.txt", "x" * 2000)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_leftovers_of_killed_writers_go_and_nothing_else(tmp_path: Path) -> None:
    keep = ["result.json", ".report.html.7-0badcafe.tmp", "my.tmp", ".result.json.mine"]
    for name in (*keep, ".result.json.7-0badcafe.tmp", ".checkpoint-000000002.safetensors.7-0badcafe.tmp"):
        (tmp_path / name).touch()
    delete_leftovers(tmp_path, "result.json", "checkpoint-*")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(keep)


def test_the_lock_is_held_by_one_and_given_back(tmp_path: Path) -> None:
    with locked(tmp_path / "run", "training"):
        with (
            pytest.raises(RunError, match=r"another process is training in .*run; wait for it, or choose another"),
            locked(tmp_path / "run", "training"),
        ):
            pass
        with locked(tmp_path / "other", "training"):
            pass
    with locked(tmp_path / "run", "training"):
        pass


def test_a_file_system_without_locks_is_no_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(RuntimeWarning, match=r"cannot be locked \(operation not supported\)"), locked(tmp_path, "x"):
        (tmp_path / "used").touch()


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


def test_the_reason_of_the_system_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(RunError, match=r"cannot write to the folder .*: permission denied"):
        ensure_writable_folder(tmp_path)


def test_a_text_that_is_up_to_date_is_not_written(tmp_path):
    path = tmp_path / "folder" / "page.md"
    assert renew_text(path, "one\n")
    before = path.stat().st_mtime_ns
    assert not renew_text(path, "one\n")
    assert path.stat().st_mtime_ns == before
    assert renew_text(path, "two\n")
    assert path.read_text() == "two\n"
