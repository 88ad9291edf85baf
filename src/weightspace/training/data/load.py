"""`load_data`: find a data set by name, or say how to get it."""

from __future__ import annotations

import os
from pathlib import Path

from weightspace.errors import DataError, nearest
from weightspace.training.data.catalog import DATASETS, DatasetInfo
from weightspace.training.data.cifar import read_cifar
from weightspace.training.data.dataset import ImageData
from weightspace.training.data.digits import read_digits
from weightspace.training.data.download import Progress
from weightspace.training.data.download import download as download_files
from weightspace.training.data.folders import read_image_folder
from weightspace.training.data.found import Found, MissingFilesError, to_image_data
from weightspace.training.data.idx import read_idx_folder
from weightspace.training.data.locate import VARIABLE, data_folder, given_root, search_places
from weightspace.training.data.parquet import read_tables

_FORMATS = {
    "idx": "IDX files (train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-..., plain or .gz)",
    "cifar": "CIFAR's binary or Python version (folder or tar.gz)",
}


def load_data(
    name: str, *, root: str | os.PathLike[str] | None = None, download: bool = True, progress: Progress | None = None
) -> ImageData:
    """Load a data set by name.

    Looked for in `root` only, if given. Else in `$WEIGHTSPACE_DATA/<name>`, `~/.cache/weightspace/data/<name>`, system
    packages and the caches of Hugging Face, in this order; and then downloaded, with check sums.

    Args:
        name: A name of images in `DATASETS`: `"digits"`, `"mnist"`, `"fashion-mnist"`, `"cifar10"`, `"cifar100"`, or
            `"folder"` for image folders (which need `root`). Texts have `load_text`.
        root: Folder, archive or file of the data set.
        download: Whether to download what is found nowhere.
        progress: Called during downloads with file name, bytes received and bytes expected (or `None`).

    Raises:
        DataError: Unknown name; damaged files; or nothing found, with the ways to get the data set.

    >>> data = load_data("digits")
    >>> data.num_classes, data.in_channels, data.image_size, len(data.train_labels), len(data.test_labels)
    (10, 1, 8, 1297, 500)
    """
    info = _lookup(name)
    if info.kind == "text":
        raise DataError(f"The data set {name!r} is text: load it with load_text({name!r}).")
    if info.family == "digits":
        if root is not None:
            raise DataError('The data set "digits" comes with scikit-learn and takes no root=: leave it out.')
        return to_image_data(info, read_digits())
    if root is not None:
        return to_image_data(info, _read_root(info, given_root(root)))
    if info.family == "folder":
        raise DataError(
            'The data set "folder" needs root=: a folder with root/train/<class>/* and root/test/<class>/* images.'
        )
    return to_image_data(info, _search(info, download=download, progress=progress))


def _lookup(name: str) -> DatasetInfo:
    if name in DATASETS:
        return DATASETS[name]
    raise unknown_name(name)


def unknown_name(name: str) -> DataError:
    """The error for a name that no data set has."""
    known = ", ".join(map(repr, DATASETS))
    guess = nearest(name, DATASETS, " Did you mean {!r}?")
    return DataError(f"Unknown data set {name!r}: choose among {known}.{guess}")


def read_place(info: DatasetInfo, path: Path) -> Found | None:
    """Read a data set from one place, in whichever format it is there.

    Args:
        info: The data set.
        path: A folder; or, for CIFAR, a tar archive.

    Returns:
        The data; `None` if no file of a known format is there.

    Raises:
        DataError: Files of a known format are there, but damaged or incomplete.
    """
    if info.family == "folder":
        return read_image_folder(path)
    found = read_idx_folder(info, path) if info.family == "idx" and path.is_dir() else None
    if found is None and info.family == "cifar":
        found = read_cifar(info, path)
    if found is None and path.is_dir():
        found = read_tables(info, path)
    return found


def _read_root(info: DatasetInfo, root: Path) -> Found:
    if not root.exists():
        raise DataError(
            f"root={str(root)!r} for the data set {info.name!r} does not exist; give the folder or file that holds it."
        )
    is_archive = info.family == "cifar" and root.suffix in {".gz", ".tgz", ".tar", ".xz", ".bz2"}
    # Any other single file stands for the folder it lies in: no format keeps a whole data set in one file.
    place = root if root.is_dir() or is_archive or info.family == "folder" else root.parent
    found = read_place(info, place)
    if found is None:
        raise DataError(
            f"root={str(root)!r} holds no {info.title} in a known format: wanted are {_FORMATS[info.family]}, "
            "or train*.parquet and test*.parquet."
        )
    return found


def _search(info: DatasetInfo, *, download: bool, progress: Progress | None) -> Found:
    skipped: list[str] = []
    places = search_places(info)
    for place in places:
        if not place.path.is_dir():
            continue
        try:
            found = read_place(info, place.path)
        except DataError as error:
            # What is incomplete may be completed by the download; what is damaged must not go unnoticed.
            if place.owned and not isinstance(error, MissingFilesError):
                raise
            skipped.append(f"passed over {place.path}: {error}")
            continue
        if found is not None:
            return found.noted(*skipped)
    reason = "downloading was switched off"
    if download:
        folder = data_folder(info)
        try:
            download_files(info, folder, progress=progress)
        except DataError as error:
            reason = str(error)
        else:
            found = read_place(info, folder)
            if found is not None:
                return found.noted("downloaded, check sums verified", *skipped)
            reason = f"nothing readable arrived in {folder}"
    looked = ", ".join(str(place.path) for place in places)
    raise DataError(_ways(info, looked, skipped, reason))


def _ways(info: DatasetInfo, looked: str, skipped: list[str], reason: str) -> str:
    """One sentence: where it was looked for, what failed, and every way to get the data set."""
    ways = [f"run `{info.system_package}`"] if info.system_package else []
    names = " ".join(remote.file_name for remote in info.remotes)
    ways.append(f"put {_FORMATS[info.family]} or train*.parquet and test*.parquet into {data_folder(info)}")
    ways.append("pass root= with the folder (or archive) that holds them")
    ways.append(f"set {VARIABLE} to a folder that has them in {info.name}/")
    ways.append(f"download {names} where there is a network, for example from {info.remotes[0].urls[0]}")
    remarks = f" ({'; '.join(skipped)})" if skipped else ""
    return (
        f"The data set {info.name!r} was not found; looked in {looked}{remarks}; not downloaded: {reason.rstrip('.')}: "
        f"to get it, {'; or '.join(ways)}."
    )
