"""ImageData: checks, subsets, held-out parts, and the embedded digits."""

from __future__ import annotations

import hashlib
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace.errors import DataError
from weightspace.training.data import DATASETS, ImageData, load_data
from weightspace.training.data.splits import Split, channel_statistics
from weightspace.training.data.subsets import balanced_quotas, proportional_quotas


def tiny(train=60, test=30, classes=3, size=4):
    def split(count):
        images = torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8)
        # The first two pixels number the image, so that it is recognized in a subset.
        images[:, 0, 0, 0] = torch.arange(count) % 256
        images[:, 0, 0, 1] = torch.arange(count) // 256
        return Split(images, torch.arange(count) % classes)

    names = tuple(f"class {index}" for index in range(classes))
    return ImageData.from_splits("tiny", split(train), split(test), names, source="made up")


def numbers(images):
    return (images[:, 0, 0, 0].long() + 256 * images[:, 0, 0, 1].long()).tolist()


def test_the_check_sum_is_that_of_every_byte():
    data = tiny(train=6, test=3)
    parts = (data.train_images, data.train_labels, data.test_images, data.test_labels)
    expected = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
    assert data.checksum == f"sha256:{expected}"
    for name, position in (("train_images", (5, 0, 3, 3)), ("train_labels", 0), ("test_images", 0), ("test_labels", 0)):
        changed = getattr(data, name).clone()
        changed[position] ^= 1
        assert replace(data, **{name: changed}).checksum != data.checksum
    turned = data.train_images.transpose(2, 3).contiguous().transpose(2, 3)  # equal values, other strides
    assert replace(data, train_images=turned).checksum == data.checksum


def test_properties():
    data = tiny()
    assert (data.num_classes, data.in_channels, data.image_size, data.label) == (3, 1, 4, "tiny")
    assert (data.mean, data.std) == channel_statistics(data.train_images)
    assert "60 training and 30 test images, 1x4x4, 3 classes; made up" in repr(data)
    with pytest.raises(FrozenInstanceError):
        data.name = "other"


def test_take_is_balanced_reproducible_and_recomputes_statistics():
    data = tiny(600, 90)
    small = data.take(30, 12, seed=1)
    assert small.train_labels.bincount().tolist() == [10, 10, 10]
    assert small.test_labels.bincount().tolist() == [4, 4, 4]
    chosen = numbers(small.train_images)
    assert len(set(chosen)) == 30
    assert torch.equal(small.train_labels, torch.tensor(chosen) % 3)
    assert (small.mean, small.std) == channel_statistics(small.train_images)
    assert small.source == "made up; class-balanced subset of 30 training and 12 test images (seed 1)"
    assert torch.equal(small.train_images, data.take(30, 12, seed=1).train_images)
    assert numbers(data.take(30, seed=2).train_images) != chosen
    assert len(data.take(30).test_labels) == 90
    assert len(data.take(None, 12).train_labels) == 600
    assert data.take(None) is data


@pytest.mark.parametrize("size", [0, -1, 61])
def test_take_refuses_impossible_sizes(size):
    with pytest.raises(DataError, match="between 1 and 60"):
        tiny().take(size)


def test_hold_out_never_touches_the_test_images():
    data = tiny(600, 90)
    tuned = data.hold_out(0.2, seed=5)
    kept, held = numbers(tuned.train_images), numbers(tuned.test_images)
    assert sorted(kept + held) == list(range(600))
    assert tuned.test_labels.bincount().tolist() == [40, 40, 40]
    assert torch.equal(tuned.test_images, data.train_images[held])
    assert torch.equal(tuned.test_labels, data.train_labels[held])
    assert tuned.mean == channel_statistics(tuned.train_images)[0]
    assert "held out" in tuned.source
    assert numbers(data.hold_out(0.2, seed=5).test_images) == held
    assert numbers(data.hold_out(0.2, seed=6).test_images) != held


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 0.001, 0.999, float("nan")])
def test_hold_out_refuses_fractions_that_leave_a_part_empty(fraction):
    with pytest.raises(DataError, match="strictly between 0 and 1"):
        tiny().hold_out(fraction, seed=0)


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=8), data=st.data())
def test_quotas(counts, data):
    size = data.draw(st.integers(0, sum(counts)))
    balanced = balanced_quotas(counts, size)
    assert sum(balanced) == size
    assert all(0 <= quota <= count for quota, count in zip(balanced, counts, strict=True))
    open_quotas = [quota for quota, count in zip(balanced, counts, strict=True) if quota < count]
    if open_quotas:
        assert max(open_quotas) - min(open_quotas) <= 1
        assert max(balanced) - min(open_quotas) <= 1
    if sum(counts):
        shares = proportional_quotas(counts, size)
        assert sum(shares) == size
        assert all(abs(share - size * count / sum(counts)) < 1 for share, count in zip(shares, counts, strict=True))
        assert all(share <= count for share, count in zip(shares, counts, strict=True))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"train_labels": torch.full((60,), 3)}, r"labels must be in 0\.\.2, but they range from 3 to 3"),
        ({"test_labels": torch.full((30,), -1)}, "range from -1"),
        ({"train_images": torch.zeros(60, 1, 4, 5, dtype=torch.uint8)}, "square, but they are 4 high and 5 wide"),
        ({"test_images": torch.zeros(30, 3, 4, 4, dtype=torch.uint8)}, "1x4x4 but test images are 3x4x4"),
        ({"train_images": torch.zeros(60, 1, 4, 4)}, "uint8"),
        ({"train_labels": torch.zeros(59, dtype=torch.int64)}, r"shape \(60,\)"),
        ({"mean": (0.0, 0.0)}, "as many means"),
        (
            {
                "test_images": torch.zeros(0, 1, 4, 4, dtype=torch.uint8),
                "test_labels": torch.zeros(0, dtype=torch.int64),
            },
            "no test images",
        ),
    ],
)
def test_inconsistent_data_is_refused(change, sentence):
    with pytest.raises(DataError, match=sentence):
        replace(tiny(), **change)


def test_digits_are_all_there_once_with_a_fixed_balanced_split():
    from sklearn.datasets import load_digits

    data = load_data("digits")
    assert data.train_images.shape == (1297, 1, 8, 8)
    assert data.test_labels.bincount().tolist() == [50] * 10
    assert data.class_names == tuple("0123456789")
    assert int(data.train_images.max()) == 255
    original = load_digits()
    expected = sorted(
        (int(label), *(round(value * 255 / 16) for value in image.flatten()))
        for image, label in zip(original["images"], original["target"], strict=True)
    )
    images = torch.cat([data.train_images, data.test_images]).flatten(1).tolist()
    labels = torch.cat([data.train_labels, data.test_labels]).tolist()
    assert sorted((label, *image) for image, label in zip(images, labels, strict=True)) == expected
    assert torch.equal(data.test_images, load_data("digits").test_images)


def test_class_names_of_the_published_sets():
    assert DATASETS["cifar10"].class_names[0] == "airplane"
    assert DATASETS["cifar10"].class_names[9] == "truck"
    fine = DATASETS["cifar100"].class_names
    assert len(fine) == len(set(fine)) == 100
    assert list(fine) == sorted(fine)
    assert (fine[0], fine[19], fine[47], fine[99]) == ("apple", "cattle", "maple_tree", "worm")
    assert DATASETS["fashion-mnist"].class_names[0] == "T-shirt/top"
    assert DATASETS["fashion-mnist"].class_names[9] == "Ankle boot"
