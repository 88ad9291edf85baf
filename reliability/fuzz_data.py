"""Targets that read data sets: IDX, CIFAR's versions and archives, parquet and arrow, image folders, texts."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from reliability.fuzz_guard import Target
from reliability.fuzz_inputs import damaged_bytes, malicious_pickle
from reliability.fuzz_source import Source, chosen, happens

_SIZES = (0, 1, 2, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1)


def _idx(shape: tuple[int, ...], body: bytes) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + body


def idx(source: Source, folder: Path) -> None:
    """MNIST's four files, one of them damaged, lying about its size, or a bomb."""
    from weightspace.training.data import load_data

    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    good = dict(zip(names, (_idx((2, 28, 28), bytes(1568)), _idx((2,), b"\1\2")) * 2, strict=True))
    name = chosen(source, names)
    kind = source.integer(0, 4)
    if kind == 0:
        good[name] = _idx(tuple(chosen(source, _SIZES) for _ in range(source.integer(0, 4))), source.content(40))
    elif kind == 1:
        good[name] = damaged_bytes(source, good[name])
    files = {key: gzip.compress(data, 1) if happens(source, 2) else data for key, data in good.items()}
    if kind == 2:
        files[name] = damaged_bytes(source, gzip.compress(good[name], 1))
    elif kind == 3:
        files[name] = _bomb()
    for key, data in files.items():
        (folder / (f"{key}.gz" if data[:2] == b"\x1f\x8b" or happens(source, 10) else key)).write_bytes(data)
    load_data("mnist", root=folder)


@lru_cache(maxsize=1)
def _bomb() -> bytes:
    """Four megabytes that become four gigabytes, with a header that announces a little less."""
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=9) as file:
        file.write(_idx((65000, 256, 256), b""))
        for _ in range(64):
            file.write(bytes(1 << 20))
    return stream.getvalue()


@cache
def _cifar(version: str) -> dict[str, bytes]:
    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    if version == "binary":
        return {f"{name}.bin": bytes(3073 * 2) for name in names}
    pixels = np.zeros((2, 3072), dtype=np.uint8)
    content = {b"data": pixels, b"labels": [3, 4], b"batch_label": b"x", b"filenames": [b"a", b"b"]}
    return {name: pickle.dumps(content, protocol=2) for name in names}


def cifar(source: Source, folder: Path) -> None:
    """CIFAR-10 as a folder or an archive: a damaged or malicious pickle, hostile members of a tar file."""
    from weightspace.training.data import load_data

    version = chosen(source, ("python", "python", "binary"))
    files = dict(_cifar(version))
    name = chosen(source, tuple(files))
    kind = source.integer(0, 5)
    if kind <= 1:
        files[name] = damaged_bytes(source, files[name])
    elif kind == 2:
        files[name] = malicious_pickle(folder.parent / "ran", source.integer(0, 5))
    elif kind == 3:
        files[name] = _opcodes(source)
    if happens(source, 2):
        place = folder / f"cifar-10-{version}.tar.gz"
        place.write_bytes(_archive(source, files, folder))
        load_data("cifar10", root=place if happens(source, 2) else folder)
    else:
        for key, data in files.items():
            (folder / key).write_bytes(data)
        load_data("cifar10", root=folder)


def _opcodes(source: Source) -> bytes:
    """A pickle that holds what CIFAR's holds, written with opcodes that nobody writes."""
    digits = chosen(source, (1, 300, 2500))
    label = chosen(
        source,
        (
            b"\x8b" + digits.to_bytes(4, "little") + b"\x7f" * digits,  # LONG4
            b"L" + b"9" * digits + b"L\n",
            b"I" + b"9" * digits + b"\n",
            b"J\xff\xff\xff\xff",
            b"K\x01",
            b"\x8b\xff\xff\xff\x7f",
            b"\x8e" + b"\xff" * 7 + b"\x7f",  # BINBYTES8 of 2^63 bytes
            b"\x95" + b"\xff" * 8,
            b"Vlabels\\ud800\n",
            b"S'\\x'\n",
            b"cos\nmkdir\n(S'ran'\ntR",
        ),
    )
    pixels = b"B" + (3072).to_bytes(4, "little") + bytes(3072)
    return b"\x80\x02" + pixels + b"U\x06labels" + label + b"."


def _archive(source: Source, files: dict[str, bytes], folder: Path) -> bytes:
    """A tar archive of the files, with members that lead elsewhere, devices, and names that occur twice."""
    stream = io.BytesIO()
    kind = chosen(source, ("gz", "gz", "bz2", "xz", ""))
    with tarfile.open(
        fileobj=stream, mode=f"w:{kind}", format=chosen(source, (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    ) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(_renamed(source, name, folder))
            member.size = len(data)
            if happens(source, 20):
                member.type = chosen(
                    source, (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
                )
                member.linkname, member.size = "/etc/passwd", 0
            if happens(source, 20):
                member.pax_headers = {"size": chosen(source, ("-1", "x", "9" * 30, "1e5", "4096"))}
            tar.addfile(member, io.BytesIO(data))
    content = stream.getvalue()
    return damaged_bytes(source, content) if happens(source, 2) else content


def _renamed(source: Source, name: str, folder: Path) -> str:
    before = ("", "../", "../../../", f"{folder.parent}/", "cifar-10-batches-py/", "a/../../")
    return (chosen(source, before) if happens(source, 3) else "cifar-10-batches-py/") + name


def _png(size: tuple[int, int] = (32, 32), kind: str = "PNG", mode: str = "RGB") -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind)
    return stream.getvalue()


_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(ran) (w) file closefile\n%%EOF\n"


@lru_cache(maxsize=1)
def _images() -> tuple[bytes, ...]:
    """Good images of several kinds, and hostile ones."""
    huge = bytearray(_png())
    huge[16:24] = struct.pack(">II", 100_000, 100_000)
    wide = bytearray(_png())
    wide[16:24] = struct.pack(">II", 4096, 4096)
    kinds = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "PPM", "WEBP")
    return (
        *(_png(kind=kind) for kind in kinds),
        _png(mode="I;16"),
        _EPS,
        bytes(huge),
        bytes(wide),
        _png((1, 1)),
        b"",
        b"GIF89a",
    )


def images(source: Source, folder: Path) -> None:
    """A folder of images, some of them damaged, bombs, or programs for other programs (PostScript)."""
    from weightspace.training.data import load_data

    for part, count in (("train", source.integer(1, 3)), ("test", 1)):
        place = folder / part / chosen(source, ("a", "a", "b"))
        place.mkdir(parents=True)
        for k in range(count):
            data = chosen(source, (*_images(), _images()[0], _images()[0]))
            data = damaged_bytes(source, data) if happens(source, 2) else data
            (place / f"{k}.{chosen(source, ('png', 'jpg', 'tiff', 'gif'))}").write_bytes(data)
    load_data("folder", root=folder)


@cache
def _table(kind: str) -> bytes:
    """A good parquet or arrow file of images or text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    png = _png()
    of_images = {"img": [{"bytes": png, "path": "x"}] * 3, "label": [0, 1, 2]}
    columns: dict[str, Any] = {
        "images": of_images,
        "plain": {"image": [png] * 3, "label": pa.array([0, 1, 2], pa.uint64())},
        "text": {"sentence": ["a b c"] * 30, "text": ["d e f"] * 30},
        "huge labels": {"image": [png], "label": pa.array([2**64 - 1], pa.uint64())},
        "times": {"image": pa.array([1], pa.timestamp("ns")), "label": pa.array([1], pa.duration("ns"))},
        "no text": {"sentence": pa.array([b"\xff\xfe"]).view(pa.string()), "text": ["x"]},
        "many rows": {"sentence": pa.DictionaryArray.from_arrays(pa.array(np.zeros(50_000, dtype=np.int8)), ["a"])},
    }[kind.removesuffix(" arrow")]
    table = pa.table(columns)
    stream = io.BytesIO()
    if kind.endswith(" arrow"):
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, stream)
    return stream.getvalue()


def tables(source: Source, folder: Path) -> None:
    """Parquet and arrow files: damaged, of the wrong types, with twice the same column."""
    from weightspace.training.data import load_data, load_text

    ending = chosen(source, ("", "", " arrow"))
    is_text = happens(source, 3)
    kinds = ("text", "no text", "many rows") if is_text else ("images", "images", "plain", "huge labels", "times")
    for part in ("train", "test"):
        data = _table(chosen(source, kinds) + ending)
        data = damaged_bytes(source, data) if happens(source, 2) else data
        (folder / (f"set-{part}.arrow" if ending else f"{part}.parquet")).write_bytes(data)
    if is_text:
        load_text("penn-treebank", root=folder, level="word", context=4)
    else:
        load_data("cifar10", root=folder)


def texts(source: Source, folder: Path) -> None:
    """Text files: of other encodings, of one character, of zeros; contexts and counts out of range."""
    from weightspace.training.data import load_text

    good = b"In the beginning was the word, and the word was long enough. " * 4
    pieces = (b"", b"\0" * 50, b"\xff\xfea\0b\0", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", "\u2028\x85\x1c".encode() * 20, b"\n" * 99, b" " * 99, b"a" * 99, good, good)  # fmt: skip
    data = chosen(source, pieces) + (damaged_bytes(source, good) if happens(source, 2) else b"")
    name = chosen(source, ("text", "text", "bible-kjv", "wikitext-2", "penn-treebank"))
    for file in ("train.txt", "test.txt", "wiki.train.tokens", "wiki.test.tokens"):
        (folder / file).write_bytes(data)
    root = chosen(source, (folder, folder / "train.txt", folder / ("x" * 300), folder / "a\0b"))
    load_text(
        name, root=root, level=chosen(source, ("character", "word", "x")), context=chosen(source, (1, 4, 128, 10**12))
    )


def _prepare() -> None:
    """Imports whatever is imported late, and makes the good files."""
    import pyarrow.ipc
    import pyarrow.parquet  # noqa: F401
    from PIL import Image

    import weightspace.training.data  # noqa: F401

    Image.init()
    _images()
    _bomb()
    for kind in ("images", "plain", "huge labels", "times", "text", "no text", "many rows"):
        _table(kind), _table(f"{kind} arrow")


DATA_TARGETS = (
    Target(
        "IDX files",
        "MNIST's files: headers that announce gigabytes, bombs of zeros, damaged bytes",
        idx,
        quick=100,
        full=1500,
        prepare=_prepare,
    ),
    Target(
        "CIFAR files",
        "CIFAR's pickles (forged and malicious ones too) and tar archives with hostile members",
        cifar,
        quick=100,
        full=1500,
        prepare=_prepare,
    ),
    Target(
        "image folders",
        "images: damaged, bombs, PostScript under the name of a PNG",
        images,
        quick=80,
        full=1500,
        prepare=_prepare,
    ),
    Target(
        "tables", "parquet and arrow files: damaged, of the wrong types", tables, quick=60, full=1000, prepare=_prepare
    ),
    Target(
        "texts",
        "text files: not UTF-8, empty, of zeros; contexts out of range",
        texts,
        quick=80,
        full=1500,
        prepare=_prepare,
    ),
)
