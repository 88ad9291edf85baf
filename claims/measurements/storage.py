"""Bytes of real files of a nine times sparser weight, indices included."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weightspace.compress import load_sparse, save_sparse

SPARSER = 9


def files(*, is_quick: bool) -> dict[str, Any]:
    """Writes sparse files of networks of which one weight in nine is left, reads them back, counts bytes."""
    cases = []
    for seed in range(2 if is_quick else 5):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3), nn.Flatten(), nn.Linear(64 * 36, 256), nn.Linear(256, 10)
        )
        for layer in model:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                keep = round(layer.weight.numel() / SPARSER)
                least = layer.weight.detach().abs().flatten().kthvalue(layer.weight.numel() - keep).values
                layer.weight.data[layer.weight.abs() <= least] = 0
        cases.append({"seed": seed, **_bytes(model)})
    return {"sparser": SPARSER, "cases": cases}


def _bytes(model: nn.Module) -> dict[str, Any]:
    state = model.state_dict()
    weights = [tensor for name, tensor in state.items() if name.endswith("weight")]
    numbers, kept = sum(w.numel() for w in weights), sum(int(w.count_nonzero()) for w in weights)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_sparse(model, path)
        loaded = load_sparse(path)
        size = path.stat().st_size
    return {
        "numbers": numbers,
        "nonzeros": kept,
        "dense_bytes": sum(t.numel() * t.element_size() for t in state.values()),
        "file_bytes": size,
        # The common format with the same numbers: 32-bit column indices, 32-bit row ends.
        "csr_bytes": sum(4 * (2 * int(w.count_nonzero()) + len(w) + 1) for w in weights),
        "loads_equal": all(torch.equal(loaded[name], tensor) for name, tensor in state.items()),
    }
