"""IDX and CIFAR files: known answers, damage, and pickles that must never run."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch

from weightspace.errors import DataError
from weightspace.training.data import load_data
from weightspace.training.data.cifar_pickle import parse_pickle
from weightspace.training.data.idx import read_idx


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def idx_arrays(train=12, test=5):
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (train, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": (np.arange(train) % 10).astype(np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (test, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": (np.arange(test) % 10).astype(np.uint8),
    }


def write_idx(folder, *, zipped=False, rename=lambda name: name, **sizes):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = idx_arrays(**sizes)
    for name, array in arrays.items():
        data = idx_bytes(array)
        path = folder / (rename(name) + (".gz" if zipped else ""))
        path.write_bytes(gzip.compress(data) if zipped else data)
    return arrays


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("sub", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("dotted", [False, True])
def test_idx_round_trip(tmp_path, zipped, sub, dotted):
    rename = (lambda name: name.replace("-idx", ".idx")) if dotted else (lambda name: name)
    arrays = write_idx(tmp_path / sub, zipped=zipped, rename=rename)
    data = load_data("fashion-mnist", root=tmp_path)
    assert np.array_equal(data.train_images[:, 0].numpy(), arrays["train-images-idx3-ubyte"])
    assert np.array_equal(data.test_images[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])
    assert data.train_labels.tolist() == arrays["train-labels-idx1-ubyte"].tolist()
    assert data.test_labels.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    assert data.train_labels.dtype == torch.int64
    assert data.source.startswith(f"IDX files at {tmp_path / sub}")
    assert "check sums differ from the published files" in data.source
    assert "12 training and 5 test images instead of the published 60,000 and 10,000" in data.source
    assert data.label == "Fashion-MNIST"


def test_a_single_idx_file_as_root_stands_for_its_folder(tmp_path):
    write_idx(tmp_path)
    assert len(load_data("mnist", root=str(tmp_path / "train-images-idx3-ubyte")).train_labels) == 12


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data: data[:-100], r"announces 12 x 28 x 28 = 9,408 bytes of data but holds 9,308"),
        (lambda data: data + b"x", "but holds more"),
        (lambda data: b"\0\0\x0d\x03" + data[4:], "expected it to start with 00 00 08 03, found 00 00 0d 03"),
        (lambda data: data[:10], "expected 16 bytes, found 10"),
        (lambda _: b"", "found an empty file"),
        (lambda data: data[:4] + struct.pack(">3I", *[2**32 - 1] * 3), "more than the"),
    ],
)
def test_damaged_idx(tmp_path, damage, sentence):
    write_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=sentence) as caught:
        load_data("mnist", root=tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-30], lambda _: b"no gzip", lambda data: data[:40] + b"\xff" * 60 + data[100:]]
)
def test_damaged_gzip(tmp_path, damage):
    write_idx(tmp_path, zipped=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz is not a complete gzip file"):
        load_data("mnist", root=tmp_path)


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "labels.gz"
    with gzip.open(path, "wb") as file:
        file.write(idx_bytes(np.zeros(3, np.uint8)))
        for _ in range(64):
            file.write(bytes(1 << 20))
    with pytest.raises(DataError, match="holds more"):
        read_idx(path, 1)


def test_missing_mismatched_and_out_of_range_idx(tmp_path):
    arrays = write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"but not t10k-labels-idx1-ubyte \(or the same with .gz\)"):
        load_data("mnist", root=tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(4, np.uint8)))
    with pytest.raises(DataError, match=r"holds 5 images, but .* holds 4 labels"):
        load_data("mnist", root=tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(5, 10, np.uint8)))
    with pytest.raises(DataError, match=r"test labels must be in 0\.\.9, but they range from 10 to 10"):
        load_data("mnist", root=tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(arrays["t10k-labels-idx1-ubyte"]))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((5, 20, 28), np.uint8)))
    with pytest.raises(DataError, match="square"):
        load_data("mnist", root=tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((5, 32, 32), np.uint8)))
    with pytest.raises(DataError, match="MNIST has 1x28x28 images, but the test images there are 1x32x32"):
        load_data("mnist", root=tmp_path)


def test_files_of_another_data_set_are_recognized(tmp_path, monkeypatch):
    write_idx(tmp_path)
    _, checksum = read_idx(tmp_path / "train-images-idx3-ubyte", 3)
    from weightspace.training.data.catalog import DATASETS

    monkeypatch.setitem(DATASETS["mnist"].checksums, "train-images-idx3-ubyte", checksum)
    with pytest.raises(DataError, match="is MNIST, not Fashion-MNIST"):
        load_data("fashion-mnist", root=tmp_path)


# CIFAR ------------------------------------------------------------------------------------------------------------


def cifar_part(count, classes, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3072), dtype=np.uint8), rng.integers(0, classes, count).tolist()


def binary_bytes(name, pixels, labels):
    rows = []
    for row, label in zip(pixels, labels, strict=True):
        # The coarse label (here: 19) comes first in CIFAR-100 and must not be taken for the fine one.
        rows.append(bytes([label] if name == "cifar10" else [19, label]) + row.tobytes())
    return b"".join(rows)


def python2_pickle(name, pixels, labels):
    """The instructions that Python 2's cPickle wrote for the published files (protocol 2)."""
    key = b"labels" if name == "cifar10" else b"fine_labels"
    parts = [b"\x80\x02}q\x01("]
    raw = pixels.tobytes()
    parts.append(
        b"U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
    )
    parts.append(
        b"(K\x01M" + struct.pack("<H", len(pixels)) + b"M\x00\x0c\x86q\x06cnumpy\ndtype\nq\x07U\x02u1K\x00K\x01\x87R"
    )
    parts.append(
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )
    if name == "cifar100":
        parts.append(b"U\x0dcoarse_labels]q\x10(" + b"K\x13" * len(labels) + b"e")
    parts.append(b"U" + bytes([len(key)]) + key + b"q\x08]q\x09(")
    parts.append(b"".join(b"K" + bytes([label]) for label in labels[:5]) + b"e(")
    parts.append(b"".join(b"K" + bytes([label]) for label in labels[5:]) + b"e")
    parts.append(b"U\x0bbatch_labelU\x15training batch 1 of 5U\x09filenames](U\x05a.pngK\x07eu.")
    return b"".join(parts)


def python3_pickle(protocol):
    def write(name, pixels, labels):
        key = "labels" if name == "cifar10" else "fine_labels"
        entries = {"coarse_labels": [19] * len(labels), key: labels, "data": pixels, "filenames": ["a.png"]}
        return pickle.dumps({key.encode(): value for key, value in entries.items()}, protocol=protocol)

    return write


WRITERS = {
    "binary": binary_bytes,
    "python 2": python2_pickle,
    **{f"python 3, protocol {protocol}": python3_pickle(protocol) for protocol in range(6)},
}
NAMES = {
    ("cifar10", True): ([f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin", "cifar-10-batches-bin"),
    ("cifar10", False): ([f"data_batch_{i}" for i in range(1, 6)], "test_batch", "cifar-10-batches-py"),
    ("cifar100", True): (["train.bin"], "test.bin", "cifar-100-binary"),
    ("cifar100", False): (["train"], "test", "cifar-100-python"),
}


def cifar_files(name, version):
    """Files by name, the published folder, and the expected arrays."""
    train_names, test_name, folder = NAMES[name, version == "binary"]
    classes = 10 if name == "cifar10" else 100
    parts = {file: cifar_part(7, classes, seed) for seed, file in enumerate([*train_names, test_name])}
    files = {file: WRITERS[version](name, *part) for file, part in parts.items()}
    train = [parts[file] for file in train_names]
    return (
        files,
        folder,
        (np.concatenate([p for p, _ in train]), [label for _, labels in train for label in labels]),
        parts[test_name],
    )


def write_tar(path, files, prefix):
    with tarfile.open(path, "w:gz") as archive:
        for file, data in files.items():
            member = tarfile.TarInfo(f"{prefix}/{file}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("version", WRITERS)
@pytest.mark.parametrize("place", ["folder", "parent", "archive", "archive in folder"])
def test_cifar_round_trip(tmp_path, name, version, place):
    files, folder, train, test = cifar_files(name, version)
    root = tmp_path
    if place.startswith("archive"):
        kind = "binary" if version == "binary" else "python"
        root = tmp_path / f"cifar-{name.removeprefix('cifar')}-{kind}.tar.gz"
        write_tar(root, {"batches.meta": b"", **files}, f"../../{folder}")
        root = tmp_path if place == "archive in folder" else root
    else:
        (tmp_path / folder).mkdir()
        for file, data in files.items():
            (tmp_path / folder / file).write_bytes(data)
        root = tmp_path / folder if place == "folder" else tmp_path
    data = load_data(name, root=root)
    assert np.array_equal(data.train_images.flatten(1).numpy(), train[0])
    assert data.train_labels.tolist() == train[1]
    assert np.array_equal(data.test_images.flatten(1).numpy(), test[0])
    assert data.test_labels.tolist() == test[1]
    assert data.source.startswith("CIFAR binary version" if version == "binary" else "CIFAR python version")
    assert ("(read from the archive)" in data.source) == place.startswith("archive")
    assert data.label == {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[name]


def test_a_forged_pickle_is_read_but_never_run(tmp_path):
    witness = tmp_path / "ran"
    pixels, labels = cifar_part(7, 10, 0)
    genuine = python2_pickle("cifar10", pixels, labels)
    attack = f"""cbuiltins\nexec\n(S"open('{witness}', 'w').close()"\ntR0""".encode()
    forged = genuine[:2] + attack + genuine[2:]
    split = parse_pickle(forged, "forged")
    assert split.labels.tolist() == labels
    assert not witness.exists()
    with pytest.raises(Exception):  # noqa: B017 - whatever unpickling the rest ends in
        pickle.loads(forged[:2] + attack + b".")
    assert witness.exists(), "the forged instructions would run if unpickled, so the test above means something"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data: data[:2000], "truncated or not a file of CIFAR's Python version"),
        (lambda _: b"", "truncated or not a file"),
        (lambda _: b"garbage\n", "truncated or not a file"),
        (lambda data: data.replace(b"labels", b"lapels"), "the 0 entries of 'labels'"),
        (lambda data: data.replace(b"\x89T", b"\x88T"), "column-major"),
        (lambda data: data.replace(b"e(K", b"e(K\x01K"), "for each of the 8 entries"),
    ],
)
def test_damaged_pickles(damage, sentence):
    pixels, labels = cifar_part(7, 10, 0)
    pixels[:] = 1
    with pytest.raises(DataError, match=sentence):
        parse_pickle(damage(python2_pickle("cifar10", pixels, labels)), "here/data_batch_1")


def test_pickled_labels_out_of_range():
    pixels, _ = cifar_part(2, 10, 0)
    with pytest.raises(DataError, match="run from 0 to 99999999999999999999999"):
        parse_pickle(python3_pickle(3)("cifar10", pixels, [0, 99999999999999999999999]), "here")


def test_damaged_cifar_folders(tmp_path):
    files, _, _, _ = cifar_files("cifar10", "binary")
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"but not data_batch_3\.bin"):
        load_data("cifar10", root=tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(files["data_batch_3.bin"][:-1])
    with pytest.raises(DataError, match=r"data_batch_3\.bin is truncated .* multiple of 3,073 bytes, found 21,510"):
        load_data("cifar10", root=tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(b"\x0a" + files["data_batch_3.bin"][1:])
    with pytest.raises(DataError, match="to 10"):
        load_data("cifar10", root=tmp_path)


def test_damaged_and_hostile_archives(tmp_path):
    files, folder, _, _ = cifar_files("cifar10", "binary")
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_tar(path, files, folder)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"is not a complete tar archive|but not"):
        load_data("cifar10", root=path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="is not a complete tar archive"):
        load_data("cifar10", root=path)
    with tarfile.open(path, "w:gz") as archive:
        for file in files:
            link = tarfile.TarInfo(f"{folder}/{file}")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(link)
    with pytest.raises(DataError, match="holds no CIFAR-10 in a known format"):
        load_data("cifar10", root=path)
    with tarfile.open(path, "w:gz") as archive:
        for prefix in "ab":
            member = tarfile.TarInfo(f"{prefix}/test_batch.bin")
            member.size = 4
            archive.addfile(member, io.BytesIO(b"abcd"))
    with pytest.raises(DataError, match=r"holds test_batch\.bin twice"):
        load_data("cifar10", root=path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name], "nothing was extracted"
