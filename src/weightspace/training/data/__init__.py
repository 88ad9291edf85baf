"""Data sets in memory, images and text, and batches of them.

>>> data = load_data("digits")
>>> batches = Batches(data.train_images, data.train_labels, batch_size=64, mean=data.mean, std=data.std, seed=0,
...                   device="cpu")
>>> images, labels = next(batches.epoch(0))
>>> tuple(images.shape), images.dtype
((64, 1, 8, 8), torch.float32)

>>> text = load_text("verses", context=32)
>>> inputs, labels = next(text.train_batches(batch_size=4, seed=0, device="cpu").epoch(0))
>>> tuple(inputs.shape), inputs.dtype, bool((inputs[:, 1:] == labels[:, :-1]).all())
((4, 32), torch.int64, True)
"""

from __future__ import annotations

from weightspace.training.data.batches import Batches
from weightspace.training.data.catalog import DATASETS, DatasetInfo
from weightspace.training.data.dataset import ImageData
from weightspace.training.data.kind import BatchSource, Data
from weightspace.training.data.load import load_data
from weightspace.training.data.text import TextData
from weightspace.training.data.text_batches import TextBatches
from weightspace.training.data.text_load import load_text

__all__ = [
    "DATASETS",
    "BatchSource",
    "Batches",
    "Data",
    "DatasetInfo",
    "ImageData",
    "TextBatches",
    "TextData",
    "load_data",
    "load_text",
]
