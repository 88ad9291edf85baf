"""Compression that a user gets: weights pruned, zeros kept while fine-tuning, small files, small networks.

What needs an extra (safetensors, Torch-Pruning, ONNX) is imported inside the functions that use it.
"""

from __future__ import annotations

from weightspace.compress.export import Exported, export_onnx, export_program
from weightspace.compress.masks import Masks, masks_of
from weightspace.compress.measure import Latency, Sizes, count_macs, file_sizes, latency, zeros
from weightspace.compress.pruning import prune
from weightspace.compress.search import Search, Trial, prune_to
from weightspace.compress.shrinking import Kept, Layer, Shrunk, shrink
from weightspace.compress.small_files import load_shrunk, save_shrunk
from weightspace.compress.sparse_files import SparseSummary, StoredTensor, load_sparse, save_sparse, sparse_size

__all__ = [
    "Exported",
    "Kept",
    "Latency",
    "Layer",
    "Masks",
    "Search",
    "Shrunk",
    "Sizes",
    "SparseSummary",
    "StoredTensor",
    "Trial",
    "count_macs",
    "export_onnx",
    "export_program",
    "file_sizes",
    "latency",
    "load_shrunk",
    "load_sparse",
    "masks_of",
    "prune",
    "prune_to",
    "save_shrunk",
    "save_sparse",
    "shrink",
    "sparse_size",
    "zeros",
]
