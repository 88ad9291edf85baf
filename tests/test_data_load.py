"""The search for a data set, its downloads, and the sentence that ends a vain search."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import struct
import threading
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from weightspace.errors import DataError
from weightspace.training.data import DATASETS, load_data
from weightspace.training.data import load as load_module
from weightspace.training.data.catalog import Remote
from weightspace.training.data.download import fetch
from weightspace.training.data.locate import data_folder, search_places

IDX_NAMES = tuple(DATASETS["mnist"].checksums)


@pytest.fixture(autouse=True)
def _empty_machine(tmp_path, monkeypatch):
    """No data set of this machine is found, and nothing is downloaded, unless a test says so."""
    for name in ("WEIGHTSPACE_DATA", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    known = {
        name: replace(
            info,
            system_folders=(str(tmp_path / "system" / name),),
            remotes=tuple(replace(remote, urls=(f"http://127.0.0.1:9/{remote.file_name}",)) for remote in info.remotes),
        )
        for name, info in DATASETS.items()
    }
    monkeypatch.setattr(load_module, "DATASETS", known)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def idx_files(value, count=4):
    """Gzipped IDX files whose pixels all have one value, by which a place is recognized."""
    images = np.full((count, 28, 28), value, np.uint8)
    labels = np.arange(count).astype(np.uint8)
    return {f"{name}.gz": gzip.compress(idx(images if "images" in name else labels)) for name in IDX_NAMES}


def put(folder, value, count=4):
    folder.mkdir(parents=True)
    for name, data in idx_files(value, count).items():
        (folder / name).write_bytes(data)
    return folder


def value_found(**options):
    return int(load_data("mnist", download=False, **options).train_images[0, 0, 0, 0])


def put_tables(folder, value, suffix="parquet"):
    buffer = io.BytesIO()
    Image.fromarray(np.full((28, 28), value, np.uint8)).save(buffer, "PNG")
    table = pa.table({"image": [{"bytes": buffer.getvalue(), "path": None}], "label": [3]})
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        if suffix == "parquet":
            pq.write_table(table, folder / f"{part}-00000-of-00001.parquet")
        else:
            with (
                pa.OSFile(str(folder / f"mnist-{part}.arrow"), "wb") as sink,
                pa.ipc.new_stream(sink, table.schema) as out,
            ):
                out.write_table(table)


def test_search_order(tmp_path, monkeypatch):
    put_tables(
        tmp_path / "cache" / "huggingface" / "datasets" / "ylecun___mnist" / "mnist" / "0.0.0" / "abc", 7, "arrow"
    )
    assert value_found() == 7
    hub = tmp_path / "cache" / "huggingface" / "hub" / "datasets--ylecun--mnist"
    put_tables(hub / "snapshots" / "older" / "mnist", 6)
    assert value_found() == 6
    put(tmp_path / "system" / "mnist", 5)
    assert value_found() == 5
    put(tmp_path / "cache" / "weightspace" / "data" / "mnist", 4)
    assert value_found() == 4
    put(tmp_path / "mine" / "mnist", 3)
    monkeypatch.setenv("WEIGHTSPACE_DATA", str(tmp_path / "mine"))
    assert value_found() == 3
    assert value_found(root=put(tmp_path / "explicit", 2)) == 2


def test_hugging_face_variables(tmp_path, monkeypatch):
    put_tables(tmp_path / "home" / "datasets" / "mnist" / "default" / "1.0.0" / "abc", 1, "arrow")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert value_found() == 1
    put_tables(tmp_path / "arrows" / "ylecun___mnist" / "default" / "1.0.0" / "abc", 2, "arrow")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "arrows"))
    assert value_found() == 2
    put_tables(tmp_path / "hub" / "datasets--mnist" / "snapshots" / "abc" / "mnist", 3)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert value_found() == 3


def test_the_snapshot_that_main_points_to_wins(tmp_path):
    hub = tmp_path / "cache" / "huggingface" / "hub" / "datasets--ylecun--mnist"
    for value, revision in enumerate(("aaa", "bbb", "ccc")):
        put_tables(hub / "snapshots" / revision / "mnist", value)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("bbb\n")
    assert value_found() == 1


def test_damage_in_a_foreign_place_is_passed_over_and_noted(tmp_path):
    broken = put(tmp_path / "system" / "mnist", 5) / "t10k-images-idx3-ubyte.gz"
    broken.write_bytes(b"broken")
    put_tables(tmp_path / "cache" / "huggingface" / "hub" / "datasets--mnist" / "snapshots" / "abc" / "mnist", 6)
    data = load_data("mnist", download=False)
    assert int(data.train_images[0, 0, 0, 0]) == 6
    assert f"passed over {broken.parent}" in data.source


def test_damage_in_an_own_place_is_an_error(tmp_path):
    broken = put(tmp_path / "cache" / "weightspace" / "data" / "mnist", 4) / "t10k-images-idx3-ubyte.gz"
    broken.write_bytes(b"broken")
    put(tmp_path / "system" / "mnist", 5)
    with pytest.raises(DataError, match=str(broken)):
        load_data("mnist", download=False)


def test_a_vain_search_says_where_it_looked_and_every_way_to_get_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSPACE_DATA", str(tmp_path / "mine"))
    with pytest.raises(DataError) as caught:
        load_data("fashion-mnist", download=False)
    sentence = str(caught.value)
    for place in search_places(load_module.DATASETS["fashion-mnist"]):
        assert str(place.path) in sentence
    for way in (
        "apt-get install dataset-fashion-mnist",
        f"into {tmp_path / 'mine' / 'fashion-mnist'}",
        "root=",
        "WEIGHTSPACE_DATA",
        "train-images-idx3-ubyte.gz",
        "downloading was switched off",
    ):
        assert way in sentence
    assert "\n" not in sentence


def test_without_a_network_the_sentence_says_so_and_nothing_is_left_behind(tmp_path):
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz could not be downloaded"):
        load_data("cifar10")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("name", "near"), [("cifar-10", "cifar10"), ("fashion", "fashion-mnist"), ("MNIST", "mnist"), ("folders", "folder")]
)
def test_unknown_names(name, near):
    with pytest.raises(DataError, match=f"choose among .* Did you mean '{near}'"):
        load_data(name)


def test_root_that_holds_nothing_or_is_not_wanted(tmp_path):
    with pytest.raises(DataError, match="holds no MNIST in a known format: wanted are IDX files"):
        load_data("mnist", root=tmp_path)
    with pytest.raises(DataError, match="holds no CIFAR-100 in a known format: wanted are CIFAR's binary or Python"):
        load_data("cifar100", root=tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load_data("mnist", root=tmp_path / "nowhere")
    with pytest.raises(DataError, match="takes no root="):
        load_data("digits", root=tmp_path)


# Downloads ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    """A server on this machine: `files` maps paths to contents; `cut` ends every answer after so many bytes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            data = self.server.files.get(self.path.lstrip("/"))
            if data is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: self.server.cut])

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.files, running.asked, running.cut = {}, [], None
        running.url = f"http://127.0.0.1:{running.server_address[1]}/"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def remote_for(server, name, data, algorithm="sha256"):
    return Remote(name, (f"{server.url}{name}",), f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")


@pytest.fixture
def mnist_online(server, monkeypatch):
    server.files = idx_files(9)
    remotes = tuple(remote_for(server, name, data) for name, data in server.files.items())
    info = replace(load_module.DATASETS["mnist"], remotes=remotes)
    monkeypatch.setitem(load_module.DATASETS, "mnist", info)
    return server


def test_download_once_then_found_locally(tmp_path, mnist_online):
    calls = []
    data = load_data("mnist", progress=lambda *call: calls.append(call))
    assert int(data.train_images[0, 0, 0, 0]) == 9
    folder = tmp_path / "cache" / "weightspace" / "data" / "mnist"
    assert "downloaded, check sums verified" in data.source
    assert sorted(path.name for path in folder.iterdir()) == sorted(mnist_online.files)
    for name, content in mnist_online.files.items():
        assert (name, len(content), len(content)) in calls
    asked = len(mnist_online.asked)
    assert "downloaded" not in load_data("mnist").source
    assert len(mnist_online.asked) == asked


def test_downloads_go_to_the_folder_that_the_variable_names(tmp_path, mnist_online, monkeypatch):
    monkeypatch.setenv("WEIGHTSPACE_DATA", str(tmp_path / "mine"))
    load_data("mnist")
    assert data_folder(DATASETS["mnist"]) == tmp_path / "mine" / "mnist"
    assert len(list((tmp_path / "mine" / "mnist").iterdir())) == 4


def test_download_false_never_asks(mnist_online):
    with pytest.raises(DataError, match="switched off"):
        load_data("mnist", download=False)
    assert mnist_online.asked == []


@pytest.mark.parametrize("fault", ["content", "cut", "missing"])
def test_faulty_downloads_leave_nothing_behind(tmp_path, mnist_online, fault):
    name = "t10k-images-idx3-ubyte.gz"
    if fault == "content":
        mnist_online.files[name] = b"something else"
    elif fault == "cut":
        mnist_online.cut = 20
        name = "train-images-idx3-ubyte.gz"
    else:
        del mnist_online.files[name]
    reason = "404|Not Found" if fault == "missing" else "expected sha256:|IncompleteRead"
    with pytest.raises(DataError, match=f"{name} could not be downloaded .*({reason})"):
        load_data("mnist")
    folder = tmp_path / "cache" / "weightspace" / "data" / "mnist"
    left = [path.name for path in folder.glob("*")] if folder.exists() else []
    assert name not in left
    assert not [path for path in folder.glob(".*") if path.suffix == ".part"]


def test_an_interrupted_download_is_completed_by_the_next(tmp_path, mnist_online):
    name = "t10k-labels-idx1-ubyte.gz"
    content = mnist_online.files.pop(name)
    with pytest.raises(DataError):
        load_data("mnist")
    mnist_online.files[name] = content
    with pytest.raises(DataError, match=f"but not {name.removesuffix('.gz')}"):
        load_data("mnist", download=False)
    assert len(load_data("mnist").train_labels) == 4


def test_the_second_mirror_is_tried(tmp_path, server):
    server.files["good"] = b"content"
    remote = replace(remote_for(server, "good", b"content", "md5"), urls=(f"{server.url}absent", f"{server.url}good"))
    assert fetch(remote, tmp_path / "new").read_bytes() == b"content"


def test_an_unwritable_folder_is_a_clear_error(tmp_path, server):
    server.files["good"] = b"content"
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="good could not be downloaded"):
        fetch(remote_for(server, "good", b"content"), tmp_path / "file" / "below")


def test_every_published_file_has_a_check_sum():
    for info in DATASETS.values():
        for remote in info.remotes:
            algorithm, _, value = remote.checksum.partition(":")
            assert len(value) == {"sha256": 64, "md5": 32}[algorithm]
            assert remote.urls
            assert all(url.endswith(remote.file_name) for url in remote.urls)
        assert all(len(value) == 64 for value in info.checksums.values())
