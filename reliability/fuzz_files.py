"""Targets that read files with weights: checkpoints, weights, sparse and small files, stores of samples."""

from __future__ import annotations

import json
import tempfile
import zlib
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import nn

from reliability.fuzz_guard import Target
from reliability.fuzz_inputs import (
    damaged_safetensors,
    damaged_tree,
    malicious_checkpoint,
    malicious_pickle,
    safetensors_bytes,
    safetensors_parts,
)
from reliability.fuzz_source import Source, chosen, happens


def network() -> nn.Sequential:
    """A small network with zeros, a scalar buffer and several dtypes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 40), nn.Linear(40, 3))
    with torch.no_grad():
        model[0].weight[::2] = 0.0
        model[3].weight[torch.rand(40, 24) < 0.9] = 0.0
        model[4].weight[:, 5:] = -0.0
    return model


@cache
def _made(kind: str) -> bytes:
    """The content of a good file."""
    from weightspace.compress import save_sparse
    from weightspace.compress.small_files import save_shrunk
    from weightspace.training.checkpoint import save_checkpoint

    model = network()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "file"
        if kind == "old checkpoint":  # of the format before the digest: whoever forges one leaves the digest out
            header, body = safetensors_parts(_made("checkpoint"))
            header["__metadata__"] |= {"format": "weightspace-checkpoint-2"}
            del header["__metadata__"]["digest"]
            return safetensors_bytes(header, body)
        if kind == "checkpoint":
            optimizer = torch.optim.Adam(model.parameters())
            model(torch.randn(4, 2, 4, 4)).sum().backward()
            optimizer.step()
            state = {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict(), "records": 3}
            progress = {"step": 7, "epoch": 1, "loss": 0.5, "step_seconds": torch.zeros(2)}
            path = save_checkpoint(folder, 7, {**state, "progress": progress}, fingerprint="f" * 64)
        elif kind == "weights":
            from safetensors.torch import save_file

            save_file(dict(model.state_dict()), path, metadata={"recipe": "x"})
        elif kind == "shrunk":
            small = network()
            small[3] = nn.Linear(24, 39)
            small[4] = nn.Linear(39, 3)
            save_shrunk(small, model, path)
        else:
            save_sparse(model, path, bits=8 if kind == "sparse 8 bits" else None)
        return path.read_bytes()


@lru_cache(maxsize=1)
def _store() -> dict[str, bytes]:
    """The files of a good store with two samples."""
    from weightspace.sampling import SampleStore

    with tempfile.TemporaryDirectory() as name:
        store = SampleStore(name, every=2)
        for step in (2, 4):
            store.offer(step, nn.Linear(3, 2))
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


def _pickled(source: Source, folder: Path) -> bytes:
    """A malicious pickle in place of the file."""
    sentinel = folder.parent / "ran"
    return malicious_checkpoint(sentinel) if happens(source, 2) else malicious_pickle(sentinel, source.integer(0, 5))


def _content(source: Source, folder: Path, kind: str, embedded: tuple[str, ...] = ()) -> bytes:
    if happens(source, 40):
        return _pickled(source, folder)
    return damaged_safetensors(source, _made(kind), embedded)


def checkpoint(source: Source, folder: Path) -> None:
    """A run's folder with damaged checkpoints, read as `--resume`, `inspect` and `verify` do."""
    from weightspace.errors import RunError
    from weightspace.training.checkpoint import load_checkpoint
    from weightspace.training.trained import history_of, load_weights

    path = folder / "checkpoint-000000007.safetensors"
    path.write_bytes(_content(source, folder, chosen(source, ("checkpoint", "old checkpoint")), ("tree",)))
    way = source.integer(0, 2)
    if way == 0:
        load_weights(network(), path)
    elif way == 1:
        history_of(path)
    elif load_checkpoint(folder, fingerprint="f" * 64) is None:
        raise RunError("none found")


def weights(source: Source, folder: Path) -> None:
    """A damaged `model.safetensors`, or a pickle of that name."""
    from weightspace.training.trained import load_weights

    path = folder / chosen(source, ("model.safetensors", "model.pt", "model.bin"))
    path.write_bytes(_content(source, folder, "weights"))
    load_weights(network(), path)


def sparse(source: Source, folder: Path) -> None:
    """A damaged sparse file, or one that declares more numbers than there is memory."""
    from weightspace.compress import load_sparse

    path = folder / "model.sparse.safetensors"
    kind = chosen(source, ("sparse", "sparse 8 bits"))
    path.write_bytes(_content(source, folder, kind, ("tensors",)))
    load_sparse(path)


def shrunk(source: Source, folder: Path) -> None:
    """A damaged file of a shrunk model."""
    from weightspace.compress.small_files import load_shrunk

    path = folder / "model.small.safetensors"
    path.write_bytes(_content(source, folder, "shrunk", ("tensors", "changes")))
    model = load_shrunk(network(), path)
    if len(dict(model.named_parameters())) > 100:
        raise AssertionError("a file may not add parameters at will")


def samples(source: Source, folder: Path) -> None:
    """A store of samples: its index, and files whose check sums an attacker has made fit."""
    from weightspace.sampling import SampleStore
    from weightspace.sampling.store import open_chains

    (folder / "chain-0").mkdir()
    for name, data in _store().items():
        (folder / "chain-0" / name).write_bytes(data)
    index = folder / "chain-0" / "samples.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    if happens(source, 2):
        path = folder / "chain-0" / content["samples"][0]["file"]
        bad = damaged_safetensors(source, path.read_bytes(), ("shared",))
        path.write_bytes(bad)
        if not happens(source, 4):
            content["samples"][0] |= {"bytes": len(bad), "crc32": zlib.crc32(bad)}
    else:
        content = damaged_tree(source, content)
    index.write_text(json.dumps(content), encoding="utf-8")
    for chain in open_chains(folder):
        for sample in chain:
            chain.load(sample)
    if happens(source, 10):
        SampleStore(folder / "chain-0", every=2).truncate(2)


def _prepare() -> None:
    """Imports whatever is imported late, and makes the good files."""
    import weightspace.training.trained  # noqa: F401

    _store()
    for kind in ("old checkpoint", "weights", "sparse", "sparse 8 bits", "shrunk"):
        _made(kind)


FILE_TARGETS = (
    Target(
        "checkpoints",
        "a run's checkpoint: damaged bytes, lying headers, damaged trees, pickles",
        checkpoint,
        quick=150,
        full=3000,
        prepare=_prepare,
    ),
    Target(
        "weights",
        "model.safetensors: damaged bytes, lying headers, pickles under any ending",
        weights,
        quick=150,
        full=3000,
        prepare=_prepare,
    ),
    Target(
        "sparse files",
        "sparse files: damaged bytes, records that lie about shapes and places",
        sparse,
        quick=150,
        full=3000,
        prepare=_prepare,
    ),
    Target(
        "small files",
        "files of shrunk models: the same, and changes to attributes",
        shrunk,
        quick=150,
        full=3000,
        prepare=_prepare,
    ),
    Target(
        "sample stores",
        "sample stores: index and samples, with check sums made to fit",
        samples,
        quick=100,
        full=2000,
        prepare=_prepare,
    ),
)
