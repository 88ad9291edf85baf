"""IDX files, the format of MNIST and its relatives, plain or gzipped.

An IDX file starts with two zero bytes, a type code (0x08: unsigned bytes), the number of dimensions d, and d big-endian
32-bit sizes; the values follow in row-major order.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from weightspace.errors import DataError
from weightspace.training.data.catalog import DATASETS, DatasetInfo
from weightspace.training.data.found import Found, MissingFilesError, digest
from weightspace.training.data.splits import Split

# A header is not to be trusted with all memory: MNIST has 47 MB.
MAX_BYTES = 1 << 30
# No byte of a gzipped file stands for more bytes than that.
DEFLATE_RATIO = 1032
_SMALL = 16 << 20  # of that much memory no file needs to be suspected

# torchvision's folders, so that its `root` is also ours.
_SUBFOLDERS = ("", "raw", "MNIST/raw", "FashionMNIST/raw")

_PARTS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_idx(path: Path, dimensions: int) -> tuple[Tensor, str]:
    """Read one IDX file of unsigned bytes, plain or gzipped.

    Never reads more than the header announces.

    Args:
        path: The file; gzipped if its name ends in `.gz`.
        dimensions: Number of dimensions it must have.

    Returns:
        `(values, sha256)`: uint8 tensor with the file's shape, and the check sum of the decompressed file.

    Raises:
        DataError: Not gzip, wrong magic number, wrong number of dimensions, or a size other than the header announces.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            shape = _parse_header(path, header, dimensions)
            _check_possible(path, shape)
            body = file.read(prod(shape) + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a complete gzip file ({error}): get it again.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(body) != prod(shape):
        found = f"{len(body):,}" if len(body) < prod(shape) else "more"
        raise DataError(
            f"{path} announces {' x '.join(map(str, shape))} = {prod(shape):,} bytes of data but holds {found}: "
            "get it again."
        )
    values = torch.frombuffer(bytearray(body), dtype=torch.uint8) if body else torch.empty(0, dtype=torch.uint8)
    return values.view(shape), digest(header + body)


def _parse_header(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    magic = bytes([0, 0, 8, dimensions])
    if header[:4] != magic:
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes with {dimensions} dimensions: "
            f"expected it to start with {magic.hex(' ')}, found {header[:4].hex(' ') or 'an empty file'}."
        )
    if len(header) < 4 + 4 * dimensions:
        raise DataError(f"{path} ends within its header: expected {4 + 4 * dimensions} bytes, found {len(header)}.")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    if prod(shape) > MAX_BYTES:
        raise DataError(f"{path} announces {prod(shape):,} bytes of data, more than the {MAX_BYTES:,} accepted.")
    return shape


def _check_possible(path: Path, shape: tuple[int, ...]) -> None:
    """Refuse a header that announces more than a file of this length can hold, before room is made for it.

    Raises:
        DataError: It does.
    """
    length = path.stat().st_size
    most = length * (DEFLATE_RATIO if path.suffix == ".gz" else 1)
    if prod(shape) > max(most, _SMALL):
        raise DataError(
            f"{path} announces {' x '.join(map(str, shape))} = {prod(shape):,} bytes of data but has {length:,} bytes, "
            f"which cannot hold more than {most:,}: get it again."
        )


def find_idx(folder: Path) -> dict[str, Path]:
    """The IDX files of a folder (or of torchvision's folders within it), by their published name.

    Accepts `train-images-idx3-ubyte`, the variant `train-images.idx3-ubyte`, and both with `.gz`.
    """
    for sub in _SUBFOLDERS:
        files: dict[str, Path] = {}
        for name in (name for part in _PARTS.values() for name in part):
            variants = [name, name.replace("-idx", ".idx")]
            for variant in (*variants, *(f"{variant}.gz" for variant in variants)):
                if (folder / sub / variant).is_file():
                    files.setdefault(name, folder / sub / variant)
        if files:
            return files
    return {}


def read_idx_folder(info: DatasetInfo, folder: Path) -> Found | None:
    """Read the four IDX files of a data set.

    Args:
        info: The data set; its check sums decide the remark in `source`.
        folder: Where the files are, or torchvision's `root`.

    Returns:
        The data; `None` if there is no IDX file.

    Raises:
        MissingFilesError: Some of the four are missing.
        DataError: One is damaged, images and labels differ in number, or the files are those of another data set.
    """
    files = find_idx(folder)
    if not files:
        return None
    missing = [name for part in _PARTS.values() for name in part if name not in files]
    if missing:
        raise MissingFilesError(
            f"{folder} holds {', '.join(sorted(files))} but not {', '.join(missing)} (or the same with .gz); put "
            "them there."
        )
    splits: dict[str, Split] = {}
    genuine = True
    for part, (image_name, label_name) in _PARTS.items():
        images, image_sum = read_idx(files[image_name], 3)
        labels, label_sum = read_idx(files[label_name], 1)
        _check_not_another(info, files[image_name], image_name, image_sum)
        if len(images) != len(labels):
            raise DataError(
                f"{files[image_name]} holds {len(images):,} images, "
                f"but {files[label_name]} holds {len(labels):,} labels."
            )
        published = (info.checksums.get(image_name), info.checksums.get(label_name))
        genuine = genuine and (image_sum, label_sum) == published
        splits[part] = Split(images.unsqueeze(1), labels.to(torch.int64))
    remark = "check sums as published" if genuine else "check sums differ from the published files"
    return Found(splits["train"], splits["test"], f"IDX files at {files['train-images-idx3-ubyte'].parent}").noted(
        remark
    )


def _check_not_another(info: DatasetInfo, path: Path, name: str, checksum: str) -> None:
    for other in DATASETS.values():
        if other.name != info.name and other.checksums.get(name) == checksum:
            raise DataError(
                f"{path} is {other.title}, not {info.title}: its check sum is that of {other.title}'s file."
            )
