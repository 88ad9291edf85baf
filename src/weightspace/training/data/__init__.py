"""Image data sets in memory, and batches of them.

>>> data = load_data("digits")
>>> batches = Batches(data.train_images, data.train_labels, batch_size=64, mean=data.mean, std=data.std, seed=0,
...                   device="cpu")
>>> images, labels = next(batches.epoch(0))
>>> tuple(images.shape), images.dtype
((64, 1, 8, 8), torch.float32)
"""

from __future__ import annotations

from weightspace.training.data.batches import Batches
from weightspace.training.data.catalog import DATASETS, DatasetInfo
from weightspace.training.data.dataset import ImageData
from weightspace.training.data.load import load_data

__all__ = ["DATASETS", "Batches", "DatasetInfo", "ImageData", "load_data"]
