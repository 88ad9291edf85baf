"""Image files: parquet and arrow tables, image folders, and the cache of decoded images."""

from __future__ import annotations

import io
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from weightspace.errors import DataError
from weightspace.training.data import cache, load_data


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encoded(array, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def pixels(count, shape=(32, 32, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def table(arrays, labels, *, image="img", label="label", kind="PNG", plain=False, **more):
    values = [encoded(array, kind) for array in arrays]
    images = values if plain else [{"bytes": value, "path": None} for value in values]
    return pa.table({image: images, label: labels, **more})


def write_stream(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, value.schema) as writer:
        writer.write_table(value)


def write_parquet_pair(folder, **options):
    folder.mkdir(parents=True, exist_ok=True)
    train, test = pixels(6), pixels(4, seed=1)
    pq.write_table(table(train, [0, 1, 2, 3, 4, 9], **options), folder / "train-00000-of-00001.parquet")
    pq.write_table(table(test, [9, 8, 7, 6], **options), folder / "test-00000-of-00001.parquet")
    return train, test


@pytest.mark.parametrize("options", [{}, {"image": "image"}, {"plain": True}])
@pytest.mark.parametrize("sub", ["", "data", "plain_text"])
def test_parquet_png_is_exact(tmp_path, options, sub):
    train, test = write_parquet_pair(tmp_path / "hub" / sub, **options)
    data = load_data("cifar10", root=tmp_path / "hub")
    assert np.array_equal(data.train_images.permute(0, 2, 3, 1).numpy(), train)
    assert np.array_equal(data.test_images.permute(0, 2, 3, 1).numpy(), test)
    assert data.train_labels.tolist() == [0, 1, 2, 3, 4, 9]
    assert data.test_labels.tolist() == [9, 8, 7, 6]
    assert data.label == "CIFAR-10"
    assert data.source.startswith(f"parquet at {tmp_path / 'hub' / sub}")


def test_jpeg_is_said_in_source_and_label(tmp_path):
    train, _ = write_parquet_pair(tmp_path / "jpeg-free-name", kind="JPEG")
    data = load_data("cifar10", root=tmp_path / "jpeg-free-name")
    assert data.source.startswith(f"parquet (JPEG-encoded images) at {tmp_path / 'jpeg-free-name'}")
    assert (data.name, data.label) == ("cifar10", "CIFAR-10 (JPEG)")
    assert data.take(2).label == "CIFAR-10 (JPEG)"
    reference = np.asarray(Image.open(io.BytesIO(encoded(train[0], "JPEG"))))
    assert np.array_equal(data.train_images[0].permute(1, 2, 0).numpy(), reference)


def test_a_parquet_file_as_root_stands_for_its_folder(tmp_path):
    write_parquet_pair(tmp_path / "data")
    root = tmp_path / "data" / "train-00000-of-00001.parquet"
    assert len(load_data("cifar10", root=root).train_labels) == 6


def test_fine_labels_win_over_other_labels(tmp_path):
    for part in ("train", "test"):
        value = table(pixels(3), [4, 5, 99], label="fine_label", coarse_label=[0, 1, 2])
        pq.write_table(value, tmp_path / f"{part}.parquet")
    assert load_data("cifar100", root=tmp_path).train_labels.tolist() == [4, 5, 99]


def test_gray_parquet_has_one_channel(tmp_path):
    for part in ("train", "test"):
        pq.write_table(table(pixels(3, (28, 28)), [0, 1, 2], image="image"), tmp_path / f"{part}.parquet")
    data = load_data("mnist", root=tmp_path)
    assert np.array_equal(data.train_images[:, 0].numpy(), pixels(3, (28, 28)))


@pytest.mark.parametrize("layout", ["cache", "save_to_disk"])
def test_arrow_files_of_the_datasets_library(tmp_path, layout):
    train = pixels(6)
    shards = [table(train[:4], [0, 1, 2, 3]), table(train[4:], [4, 5])]
    for index, shard in enumerate(shards):
        name = "train/data" if layout == "save_to_disk" else "cifar10-train"
        write_stream(tmp_path / f"{name}-0000{index}-of-00002.arrow", shard)
    write_stream(
        tmp_path / ("test/data-00000-of-00001.arrow" if layout == "save_to_disk" else "cifar10-test.arrow"),
        table(pixels(2), [8, 9]),
    )
    write_stream(tmp_path / "cache-train-0123.arrow", table(pixels(1), [0]))
    data = load_data("cifar10", root=tmp_path)
    assert np.array_equal(data.train_images.permute(0, 2, 3, 1).numpy(), train)
    assert data.train_labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.source.startswith("arrow at")


def test_damaged_tables(tmp_path):
    write_parquet_pair(tmp_path)
    train = tmp_path / "train-00000-of-00001.parquet"
    whole = train.read_bytes()

    def refused(sentence):
        with pytest.raises(DataError, match=sentence) as caught:
            load_data("cifar10", root=tmp_path)
        assert str(tmp_path) in str(caught.value)

    train.write_bytes(whole[:-50])
    refused("train-00000-of-00001.parquet is damaged or not a parquet file")
    pq.write_table(pa.table({"picture": [b""], "label": [1]}), train)
    refused("needs a column img or image, but has picture, label")
    pq.write_table(pa.table({"img": [b"x"], "target": [1]}), train)
    refused("needs a column fine_label or label, but has img, target")
    pq.write_table(pa.table({"img": [b"no image"], "label": [1]}), train)
    refused(r"image 0 of .* is not an image that can be decoded \(8 bytes\)")
    pq.write_table(pa.table({"img": [{"bytes": None, "path": "a.png"}], "label": [1]}), train)
    refused("found dict without bytes|found NoneType|expected an encoded image")
    pq.write_table(pa.table({"img": [encoded(pixels(1)[0])[:-400]], "label": [1]}), train)
    refused("is damaged")
    pq.write_table(pa.table({"img": [encoded(pixels(1)[0])], "label": pa.array([None], pa.int64())}), train)
    refused("expected an integer label, found None")
    pq.write_table(table(pixels(1), [10]), train)
    refused(r"training labels must be in 0\.\.9, but they range from 10 to 10")
    pq.write_table(table(pixels(1, (16, 16, 3)), [1]), train)
    refused("CIFAR-10 has 3x32x32 images, but the training images there are 3x16x16")
    pq.write_table(table(pixels(1, (16, 17, 3)), [1]), train)
    refused("17x16 pixels .* must be square")
    pq.write_table(table(pixels(1), [1])[:0], train)
    refused("holds no rows")
    train.rename(tmp_path / "train-00000-of-00002.parquet")
    refused("should hold 2 files .* but holds 1")
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    refused("holds training files but no test")


def test_two_data_sets_below_one_root_are_ambiguous(tmp_path):
    write_parquet_pair(tmp_path / "a")
    write_parquet_pair(tmp_path / "b")
    with pytest.raises(DataError, match="holds several data sets"):
        load_data("cifar10", root=tmp_path)


def test_without_pyarrow_the_sentence_names_the_extra(tmp_path, monkeypatch):
    write_parquet_pair(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r'pip install "weightspace\[parquet\]"'):
        load_data("cifar10", root=tmp_path)


# Image folders ------------------------------------------------------------------------------------------------------


def write_folder(root, *, shape=(16, 16, 3), classes=("cat", "ant"), kind="PNG", parts=("train", "test")):
    arrays = {}
    for seed, part in enumerate(parts):
        for index, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            arrays[part, name] = pixels(3, shape, seed=10 * seed + index)
            for number, array in enumerate(arrays[part, name]):
                (folder / f"{number}.{kind.lower()}").write_bytes(encoded(array, kind))
    return arrays


@pytest.mark.parametrize("shape", [(16, 16, 3), (16, 16)])
def test_image_folder(tmp_path, shape):
    arrays = write_folder(tmp_path / "pets", shape=shape)
    (tmp_path / "pets" / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "pets" / "train" / "cat" / "notes.txt").write_text("not an image")
    data = load_data("folder", root=tmp_path / "pets")
    assert data.class_names == ("ant", "cat")
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = np.concatenate([arrays["train", "ant"], arrays["train", "cat"]]).reshape(6, 16, 16, -1)
    assert np.array_equal(data.train_images.permute(0, 2, 3, 1).numpy(), expected)
    assert np.array_equal(
        data.test_images[3:].permute(0, 2, 3, 1).numpy(), arrays["test", "cat"].reshape(3, 16, 16, -1)
    )
    assert (data.in_channels, data.image_size, data.label) == (expected.shape[-1], 16, "pets")
    assert data.source == f"image folder at {tmp_path / 'pets'}"


def test_jpeg_folder_says_so(tmp_path):
    write_folder(tmp_path / "pets", kind="JPEG")
    assert (
        load_data("folder", root=tmp_path / "pets").source
        == f"image folder (JPEG-encoded images) at {tmp_path / 'pets'}"
    )


def test_folder_layouts_are_explained(tmp_path):
    write_folder(tmp_path, parts=(".",))
    with pytest.raises(DataError, match="has the folders ant, cat but not train and test: images must be laid out as"):
        load_data("folder", root=tmp_path)
    with pytest.raises(DataError, match="has no folder but not train and test"):
        load_data("folder", root=tmp_path / "ant")
    with pytest.raises(DataError, match="is not a folder"):
        load_data("folder", root=tmp_path / "ant" / "0.png")
    with pytest.raises(DataError, match="needs root="):
        load_data("folder")
    with pytest.raises(DataError, match="does not exist"):
        load_data("folder", root=tmp_path / "nowhere")


def test_bad_image_folders(tmp_path):
    def refused(sentence):
        with pytest.raises(DataError, match=sentence):
            load_data("folder", root=tmp_path)

    write_folder(tmp_path)
    odd = tmp_path / "train" / "cat" / "1.png"
    odd.write_bytes(encoded(pixels(1, (8, 8, 3))[0]))
    refused(r"cat/1\.png is 8x8 pixels, but .*ant/0\.png is 16x16")
    odd.write_bytes(encoded(pixels(1, (16, 16, 3))[0])[:40])
    refused(r"cat/1\.png")
    odd.write_bytes(b"")
    refused(r"cat/1\.png is not an image that can be decoded \(0 bytes\)")
    odd.write_bytes(encoded(pixels(1, (16, 16))[0].astype(np.uint16)))
    refused("more than 8 bits a channel")
    odd.unlink()
    (tmp_path / "test" / "dog").mkdir()
    refused("dog holds no image")
    (tmp_path / "test" / "dog" / "0.png").write_bytes(encoded(pixels(1, (16, 16, 3))[0]))
    refused("has classes that .*train lacks: dog")


def test_colors_after_a_gray_first_image_are_refused(tmp_path):
    write_folder(tmp_path, shape=(16, 16))
    (tmp_path / "train" / "cat" / "0.png").write_bytes(encoded(pixels(1, (16, 16, 3))[0]))
    with pytest.raises(DataError, match=r"cat/0\.png has colors .* is gray"):
        load_data("folder", root=tmp_path)


# Cache --------------------------------------------------------------------------------------------------------------


def entries(tmp_path):
    return sorted((tmp_path / "cache" / "weightspace" / "decoded").glob("*"))


def test_decoded_images_are_cached_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SMALLEST", 1)
    write_parquet_pair(tmp_path / "data", kind="JPEG")
    first = load_data("cifar10", root=tmp_path / "data")
    (entry,) = entries(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("weightspace.training.data.parquet.decode_images", None)
        again = load_data("cifar10", root=tmp_path / "data")
    assert torch.equal(first.train_images, again.train_images)
    assert torch.equal(first.test_labels, again.test_labels)
    assert (first.source, first.label) == (again.source, again.label)
    entry.write_bytes(entry.read_bytes()[:100])
    assert torch.equal(load_data("cifar10", root=tmp_path / "data").train_images, first.train_images)
    pq.write_table(table(pixels(2, seed=5), [3, 4]), tmp_path / "data" / "train-00000-of-00001.parquet")
    assert load_data("cifar10", root=tmp_path / "data").train_labels.tolist() == [3, 4]
    (renewed,) = entries(tmp_path)
    assert renewed != entry, "the stale entry is removed"


def test_few_images_are_not_cached(tmp_path):
    write_parquet_pair(tmp_path / "data")
    load_data("cifar10", root=tmp_path / "data")
    assert entries(tmp_path) == []


def test_an_unwritable_cache_is_noted_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SMALLEST", 1)
    (tmp_path / "cache").write_text("a file where the folder should be")
    write_parquet_pair(tmp_path / "data")
    data = load_data("cifar10", root=tmp_path / "data")
    assert len(data.train_labels) == 6
    assert "decoded images not cached" in data.source
