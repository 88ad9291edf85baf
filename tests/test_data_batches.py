"""Batches: order, augmentation and normalization against slow references."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace.errors import DataError
from weightspace.training.data import Batches
from weightspace.training.data.augment import crop_padding, draw_parameters, gather_batch, reflect
from weightspace.training.data.splits import channel_statistics


def tagged_images(count, channels=1, size=8):
    """Images whose first pixel of every channel is their index, the rest random."""
    images = torch.randint(
        0, 256, (count, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(7)
    )
    images[:, :, 0, 0] = torch.arange(count, dtype=torch.uint8).unsqueeze(1)
    return images


def make(count=50, *, size=8, channels=1, **options):
    settings_ = {
        "batch_size": 16,
        "mean": (0.0,) * channels,
        "std": (1.0 / 255.0,) * channels,
        "seed": 3,
        "device": "cpu",
        **options,
    }
    return Batches(tagged_images(count, channels, size), torch.arange(count), **settings_)


def collect(batches, epoch, start=0):
    return [(images.clone(), labels.clone()) for images, labels in batches.epoch(epoch, start)]


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(left, right, strict=True)
    )


def slow_crop_flip(image, row_shift, column_shift, mirrored, padding):
    """Pad by reflection, cut the window out, mirror it: what the gather must equal."""
    size = image.shape[-1]
    padded = F.pad(image.unsqueeze(0).float(), (padding,) * 4, mode="reflect")[0]
    top, left = padding + row_shift, padding + column_shift
    window = padded[:, top : top + size, left : left + size]
    return (window.flip(-1) if mirrored else window).to(torch.uint8)


@settings(max_examples=25, deadline=None)
@given(size=st.integers(2, 33), channels=st.sampled_from([1, 3]), count=st.integers(1, 6), seed=st.integers(0, 2**32))
def test_crop_and_flip_equal_the_slow_reference(size, channels, count, seed):
    padding = crop_padding(size)
    if padding >= size:
        return
    images = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8)
    index = torch.randperm(count)
    parameters = draw_parameters(count, padding=padding, flip=True, seed=seed)
    result = gather_batch(images, index, parameters)
    for position in range(count):
        row_shift, column_shift, mirrored = parameters[:, position].tolist()
        expected = slow_crop_flip(images[index[position]], row_shift, column_shift, mirrored, padding)
        assert torch.equal(result[position], expected)


def test_reflect_equals_torch_reflect_padding():
    line = torch.arange(6.0).view(1, 1, 6)
    expected = F.pad(line, (5, 5), mode="reflect").flatten().long()
    assert torch.equal(reflect(torch.arange(-5, 11), 6), expected)


def test_parameters_cover_their_whole_range_and_nothing_else():
    parameters = draw_parameters(4000, padding=2, flip=True, seed=0)
    assert parameters[0].unique().tolist() == [-2, -1, 0, 1, 2]
    assert parameters[1].unique().tolist() == [-2, -1, 0, 1, 2]
    assert parameters[2].unique().tolist() == [0, 1]
    assert abs(parameters[2].float().mean() - 0.5) < 0.05
    assert not torch.equal(parameters[0], parameters[1])
    assert draw_parameters(10, padding=None, flip=True, seed=0)[:2].abs().max() == 0
    assert draw_parameters(10, padding=2, flip=False, seed=0)[2].abs().max() == 0


def test_flip_alone_mirrors_some_and_leaves_the_others():
    images = tagged_images(50)
    for batch, labels in make(augment=("flip",)).epoch(0):
        for image, label in zip(batch.to(torch.uint8), labels, strict=True):
            original = images[label]
            assert torch.equal(image, original) or torch.equal(image, original.flip(-1))


def test_batches_are_a_pure_function_of_seed_epoch_and_batch():
    options = {"augment": ("crop", "flip")}
    first = make(**options)
    list(first.epoch(5))
    torch.manual_seed(99)
    torch.rand(10)
    assert same(collect(first, 2), collect(make(**options), 2))
    assert not same(collect(first, 2), collect(first, 3))
    assert not same(collect(first, 2), collect(make(seed=4, **options), 2))


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    collect(make(augment=("crop", "flip")), 0)
    assert torch.equal(before, torch.get_rng_state())


def test_augmentation_differs_between_batches_of_the_same_images():
    batches = make(32, batch_size=16, shuffle=False, augment=("crop",))
    assert not torch.equal(batches._parameters(0, 0, 16), batches._parameters(0, 1, 16))
    assert not torch.equal(batches._parameters(0, 0, 16), batches._parameters(1, 0, 16))


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_starting_late_equals_skipping(start):
    batches = make(augment=("crop", "flip"))
    assert len(batches) == 3
    assert same(collect(batches, 1, start), collect(batches, 1)[start:])


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 60), batch_size=st.integers(1, 60), epoch=st.integers(0, 1000))
def test_every_sample_exactly_once_per_epoch(count, batch_size, epoch):
    batches = make(count, batch_size=batch_size, drop_last=False)
    served = list(batches.epoch(epoch))
    assert len(served) == len(batches) == -(-count // batch_size)
    assert torch.cat([labels for _, labels in served]).sort().values.tolist() == list(range(count))


def test_drop_last_leaves_out_the_incomplete_batch_only():
    served = collect(make(50, batch_size=16), 0)
    assert [len(labels) for _, labels in served] == [16, 16, 16]
    labels = torch.cat([labels for _, labels in served])
    assert len(labels.unique()) == 48
    assert [len(labels) for _, labels in collect(make(48, batch_size=16), 0)] == [16, 16, 16]
    assert [len(labels) for _, labels in collect(make(50, batch_size=16, drop_last=False), 0)] == [16, 16, 16, 2]


def test_labels_stay_with_their_images_and_epochs_are_shuffled():
    orders = []
    for epoch in range(2):
        for images, labels in make(drop_last=False).epoch(epoch):
            assert torch.equal(images[:, 0, 0, 0].long(), labels)
            orders.append(labels)
    assert not torch.equal(torch.cat(orders[:4]), torch.cat(orders[4:]))


def test_unshuffled_order_is_that_of_the_data_set():
    served = collect(make(shuffle=False, drop_last=False), 9)
    assert torch.cat([labels for _, labels in served]).tolist() == list(range(50))


def test_normalized_images_have_mean_zero_and_deviation_one():
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([40.0, 70.0, 100.0]).view(1, 3, 1, 1)
    images = (torch.rand(300, 3, 8, 8, generator=generator) * spread + 10).to(torch.uint8)
    mean, std = channel_statistics(images)
    batches = Batches(
        images, torch.zeros(300, dtype=torch.int64), batch_size=300, mean=mean, std=std, seed=0, device="cpu"
    )
    normalized, _ = next(batches.epoch(0))
    assert normalized.dtype == torch.float32
    assert normalized.mean((0, 2, 3)).abs().max() < 1e-5
    assert (normalized.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    expected = (images.double() / 255 - torch.tensor(mean).double().view(1, 3, 1, 1)) / torch.tensor(std).double().view(
        1, 3, 1, 1
    )
    unshuffled = Batches(
        images,
        torch.zeros(300, dtype=torch.int64),
        batch_size=300,
        mean=mean,
        std=std,
        seed=0,
        device="cpu",
        shuffle=False,
    )
    assert (next(unshuffled.epoch(0))[0] - expected).abs().max() < 1e-5


def test_channel_statistics_equal_the_direct_formula():
    images = tagged_images(40, channels=3)
    mean, std = channel_statistics(images)
    scaled = images.double() / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist(), abs=1e-12)
    assert channel_statistics(torch.full((2, 1, 2, 2), 51, dtype=torch.uint8)) == ((0.2,), (1.0,))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_size": 51}, "at most 50"),
        ({"batch_size": 0}, "at least 1"),
        ({"augment": ("cutout",)}, "Unknown augmentation 'cutout'"),
        ({"mean": (0.0, 0.0)}, "1 channels need"),
        ({"std": (0.0,)}, "must be positive"),
        ({"std": (float("nan"),)}, "must be positive"),
        ({"size": 1, "augment": ("crop",)}, "cannot be reflected"),
    ],
)
def test_wrong_options_are_refused(change, sentence):
    with pytest.raises(DataError, match=sentence):
        make(**change)


def test_wrong_tensors_and_start_are_refused():
    options = {"batch_size": 2, "mean": (0.0,), "std": (1.0,), "seed": 0, "device": "cpu"}
    images, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(DataError, match="uint8"):
        Batches(images.float(), labels, **options)
    with pytest.raises(DataError, match=r"shape \(4,\)"):
        Batches(images, labels[:3], **options)
    with pytest.raises(DataError, match="no given images"):
        Batches(images[:0], labels[:0], **options)
    with pytest.raises(DataError, match="cannot start at batch 3"):
        Batches(images, labels, **options).epoch(0, start=3)


def test_an_epoch_of_ten_thousand_images_takes_far_less_than_a_second():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        images = torch.randint(0, 256, (10_000, 1, 28, 28), dtype=torch.uint8)
        batches = Batches(
            images,
            torch.zeros(10_000, dtype=torch.int64),
            batch_size=128,
            mean=(0.5,),
            std=(0.5,),
            augment=("crop", "flip"),
            seed=0,
            device="cpu",
        )
        best = 60.0
        for epoch in range(3):
            begin = time.perf_counter()
            for _ in batches.epoch(epoch):
                pass
            best = min(best, time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    assert best < 0.5
