"""Handwritten digits that scikit-learn carries: the data set that needs no file and no network."""

from __future__ import annotations

from typing import Any

import torch

from weightspace.errors import DataError
from weightspace.training.data.found import Found
from weightspace.training.data.splits import Split
from weightspace.training.data.subsets import pick

TEST_PER_CLASS = 50
_SPLIT_SEED = 0


def read_digits() -> Found:
    """Read scikit-learn's 1,797 gray 8x8 images with values 0..16, scaled to 0..255.

    scikit-learn has no split of its own. 50 images of every class, drawn with a fixed seed, are the test images; the
    other 1,297 are the training images.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError(
            'The data set "digits" comes with scikit-learn: run pip install "weightspace[train]".'
        ) from error
    bunch: Any = datasets.load_digits()
    values = torch.tensor(bunch["images"], dtype=torch.float64)
    images = (values * (255.0 / 16.0)).round().to(torch.uint8).unsqueeze(1)
    labels = torch.tensor(bunch["target"], dtype=torch.int64)
    test_index = pick(labels, [TEST_PER_CLASS] * 10, _SPLIT_SEED)
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    is_test[test_index] = True
    return Found(
        Split(images[~is_test], labels[~is_test]),
        Split(images[is_test], labels[is_test]),
        "scikit-learn load_digits()",
        notes=(f"fixed split with {TEST_PER_CLASS} test images of each class",),
    )
