"""CIFAR-10 and CIFAR-100 in their two published formats, from a folder or straight from the tar archive.

Binary version: records of 1 (CIFAR-10) or 2 (CIFAR-100: coarse, fine) label bytes and 3,072 pixel bytes, channel by
channel. Python version: pickled dictionaries, which are never unpickled (see `cifar_pickle`).
"""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

from weightspace.errors import DataError
from weightspace.training.data.catalog import DatasetInfo
from weightspace.training.data.cifar_pickle import parse_pickle
from weightspace.training.data.found import Found, MissingFilesError, read_bytes
from weightspace.training.data.splits import Split

PIXELS = 3 * 32 * 32
# The largest published member has 155 MB.
MAX_MEMBER = 256 << 20
# The published archives have a dozen; a forged one may have members without end.
MAX_MEMBERS = 10_000
_PADDING = 64  # megabytes at most; the published archives have a few kilobytes

_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
# Per data set and version: training files, test file, and the folder they are published in.
_LAYOUTS: dict[tuple[str, str], tuple[tuple[str, ...], str, str]] = {
    ("cifar10", "binary"): (tuple(f"{name}.bin" for name in _BATCHES), "test_batch.bin", "cifar-10-batches-bin"),
    ("cifar10", "python"): (_BATCHES, "test_batch", "cifar-10-batches-py"),
    ("cifar100", "binary"): (("train.bin",), "test.bin", "cifar-100-binary"),
    ("cifar100", "python"): (("train",), "test", "cifar-100-python"),
}


def parse_binary(data: bytes, where: str, label_bytes: int) -> Split:
    """Parse one file of the binary version.

    Args:
        data: The file.
        where: Its name, for errors.
        label_bytes: 1 for CIFAR-10; 2 for CIFAR-100, whose second label byte is the fine label.

    Raises:
        DataError: The size is not a positive multiple of the record's.
    """
    record = label_bytes + PIXELS
    if not data or len(data) % record:
        raise DataError(
            f"{where} is truncated or not in CIFAR's binary version: expected a multiple of {record:,} bytes, "
            f"found {len(data):,}."
        )
    rows = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, record)
    return Split(rows[:, label_bytes:].reshape(-1, 3, 32, 32), rows[:, label_bytes - 1].to(torch.int64))


def folder_files(folder: Path, wanted: frozenset[str]) -> dict[str, bytes]:
    """Read those files of a folder whose name is wanted."""
    return {name: read_bytes(folder / name) for name in sorted(wanted) if (folder / name).is_file()}


def archive_files(path: Path, wanted: frozenset[str]) -> dict[str, bytes]:
    """Read those members of a tar archive whose base name is wanted, into memory.

    Nothing is written to disk, so a member's path cannot lead anywhere; links and devices are passed over.

    Raises:
        DataError: The archive is damaged, a member is implausibly large, or a wanted name occurs twice.
    """
    files: dict[str, bytes] = {}
    total = 0
    try:
        with tarfile.open(path, "r:*") as archive:
            for name, member in _wanted_members(archive, wanted):
                total += member.size
                if name in files or not 0 <= member.size <= MAX_MEMBER or total > 2 * MAX_MEMBER:
                    reason = (
                        "twice" if name in files else f"with {member.size:,} bytes (at most {MAX_MEMBER:,} accepted)"
                    )
                    raise DataError(
                        f"{path} holds {name} {reason}, so it is not a published CIFAR archive; get it anew."
                    )
                stream = archive.extractfile(member)
                files[name] = stream.read() if stream is not None else b""
                if len(files[name]) != member.size:
                    raise DataError(
                        f"{path} is truncated: {name} should have {member.size:,} bytes, found {len(files[name]):,}."
                    )
            _reach_the_end(archive)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is not a complete tar archive ({error}): get it again.") from error
    return files


def _reach_the_end(archive: tarfile.TarFile) -> None:
    """Read what follows the last member: only there gzip and xz compare their check sums with what was read."""
    stream = archive.fileobj
    for _ in range(_PADDING):
        if stream is None or not stream.read(1 << 20):
            break


def _wanted_members(archive: tarfile.TarFile, wanted: frozenset[str]) -> Iterator[tuple[str, tarfile.TarInfo]]:
    for number, member in enumerate(archive):
        if number >= MAX_MEMBERS:
            raise tarfile.ReadError(f"it has more than {MAX_MEMBERS:,} members")
        name = PurePosixPath(member.name).name
        if member.isreg() and name in wanted:
            yield name, member


def read_cifar(info: DatasetInfo, path: Path) -> Found | None:
    """Read a CIFAR data set in its binary or Python version.

    Args:
        info: `cifar10` or `cifar100`.
        path: A tar archive; or a folder with the files, with the published folder, or with the published archive.

    Returns:
        The data; `None` if neither version is there.

    Raises:
        MissingFilesError: Some files are missing.
        DataError: Files are damaged.
    """
    for version in ("binary", "python"):
        train_names, test_name, published = _LAYOUTS[info.name, version]
        wanted = frozenset((*train_names, test_name))
        for place in _places(path, published, version):
            archived = place.is_file()
            files = archive_files(place, wanted) if archived else folder_files(place, wanted)
            if not files:
                continue
            missing = sorted(wanted - files.keys())
            if missing:
                raise MissingFilesError(
                    f"{place} holds {', '.join(sorted(files))} but not {', '.join(missing)}; put them there."
                )
            label_bytes = 2 if info.name == "cifar100" else 1
            parts = {
                name: parse_binary(data, f"{place}/{name}", label_bytes)
                if version == "binary"
                else parse_pickle(data, f"{place}/{name}")
                for name, data in files.items()
            }
            what = f"CIFAR {version} version at {place}" + (" (read from the archive)" if archived else "")
            return Found(_join([parts[name] for name in train_names]), parts[test_name], what)
    return None


def _places(path: Path, published: str, version: str) -> list[Path]:
    if path.is_file():
        return [path]
    stem = published.partition("-batches")[0].removesuffix("-binary").removesuffix("-python")
    archives = [path / f"{stem}-{version}.{suffix}" for suffix in ("tar.gz", "tgz", "tar")]
    return [path, path / published, *(archive for archive in archives if archive.is_file())]


def _join(parts: list[Split]) -> Split:
    return Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
