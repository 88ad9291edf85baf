"""Parquet and arrow files as Hugging Face stores image data sets.

A row holds an encoded image (column `img` or `image`: a struct of `bytes` and `path`, or plain bytes) and a label
(column `fine_label` or `label`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightspace.errors import DataError
from weightspace.training.data.cache import cached
from weightspace.training.data.catalog import DatasetInfo
from weightspace.training.data.decode import decode_images, labels_tensor
from weightspace.training.data.found import Found
from weightspace.training.data.splits import Split

IMAGE_COLUMNS = ("img", "image")
# CIFAR-100 has coarse labels too, in a column that is not listed here.
LABEL_COLUMNS = ("fine_label", "label")
NEEDS_PYARROW = 'Parquet and arrow files need pyarrow: run pip install "weightspace[parquet]".'
# Equal rows cost nothing in a file: a few bytes can announce billions.
MAX_ROWS = 20_000_000
_SHARD = re.compile(r"-(\d+)-of-(\d+)$")


def find_tables(root: Path) -> tuple[Path, list[Path], list[Path]] | None:
    """Find the training and test files below a folder.

    Accepts `train*.parquet` beside `test*.parquet` (the hub), `*-train*.arrow` beside `*-test*.arrow` (the cache of
    the `datasets` library), and `train/*.arrow` with `test/*.arrow` (its `save_to_disk`), in `root` or below it.

    Returns:
        `(folder, training files, test files)`; `None` if there is no training file.

    Raises:
        DataError: Training files without test files, training files in several folders, or a missing shard.
    """
    candidates: list[tuple[Path, list[Path], list[Path]]] = []
    half: list[Path] = []
    for folder in sorted({root, *(path for path in root.rglob("*") if path.is_dir())}):
        train, test = _tables_of(folder, "train"), _tables_of(folder, "test")
        if train and test:
            candidates.append((folder, train, test))
        elif train:
            half.append(folder)
    if len(candidates) > 1:
        folders = ", ".join(str(folder) for folder, _, _ in candidates)
        raise DataError(f"{root} holds several data sets, in {folders}: pass the one that is meant as root=.")
    if candidates:
        _check_shards(candidates[0][1])
        _check_shards(candidates[0][2])
        return candidates[0]
    if half:
        raise DataError(
            f"{half[0]} holds training files but no test*.parquet or *-test.arrow beside them; put them there."
        )
    return None


def _tables_of(folder: Path, part: str) -> list[Path]:
    for pattern in (f"{part}*.parquet", f"*-{part}*.arrow", f"{part}/*.arrow"):
        # The datasets library keeps results of map() and filter() beside the data as cache-*.arrow.
        files = sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("cache-"))
        if files:
            return files
    return []


def _check_shards(files: Sequence[Path]) -> None:
    match = _SHARD.search(files[0].stem)
    if match and len(files) != int(match.group(2)):
        raise DataError(
            f"{files[0].parent} should hold {int(match.group(2))} files like {files[0].name}, but holds {len(files)}."
        )


def read_tables(info: DatasetInfo, root: Path) -> Found | None:
    """Read a data set from parquet or arrow files.

    Args:
        info: The data set; decides the number of channels.
        root: Folder at or above the files.

    Returns:
        The data; `None` if there is no such file.

    Raises:
        DataError: pyarrow is missing, or files are missing, damaged or lack the columns.
    """
    tables = find_tables(root)
    if tables is None:
        return None
    folder, train_files, test_files = tables
    return cached(info.name, folder, [*train_files, *test_files], lambda: _read(info, folder, train_files, test_files))


def _read(info: DatasetInfo, folder: Path, train_files: list[Path], test_files: list[Path]) -> Found:
    channels = info.shape[0] if info.shape else None
    train, train_encoding = _read_split(train_files, channels)
    test, test_encoding = _read_split(test_files, channels)
    encoding = train_encoding or test_encoding
    kind = train_files[0].suffix[1:]
    what = f"{kind}{f' ({encoding}-encoded images)' if encoding else ''} at {folder}"
    return Found(train, test, what, encoding=encoding)


def _read_split(files: list[Path], channels: int | None) -> tuple[Split, str]:
    encoded: list[bytes] = []
    labels: list[int] = []
    names: list[str] = []
    for file in files:
        table = read_table_file(file)
        values = _image_values(table, file)
        encoded.extend(values)
        labels.extend(_label_values(table, file))
        names.extend([str(file)] * len(values))
    if not encoded:
        raise DataError(f"{files[0]} holds no rows; get the file anew.")
    images, encoding = decode_images(
        len(encoded), lambda i: encoded[i], lambda i: f"image {i} of {names[i]}", channels=channels
    )
    return Split(images, labels_tensor(labels)), encoding


def read_table_file(file: Path) -> Any:
    """One parquet or arrow file as pyarrow's table.

    Raises:
        DataError: pyarrow is missing, or the file is damaged.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(f"{file}: {NEEDS_PYARROW}") from error
    try:
        if file.suffix == ".parquet":
            _check_rows(file, pq.ParquetFile(str(file)).metadata.num_rows)
            return pq.read_table(str(file))
        # Not mapped: what a damaged file points to beyond its end would end the process, not raise.
        content = pa.py_buffer(file.read_bytes())
        try:
            table = pa.ipc.open_stream(content).read_all()
        except pa.ArrowInvalid:
            table = pa.ipc.open_file(content).read_all()
        table.validate(full=True)  # offsets within columns are taken on trust otherwise
        _check_rows(file, table.num_rows)
        return table  # noqa: TRY300 - the lines above belong together
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is damaged or not a {file.suffix[1:]} file ({file.stat().st_size:,} bytes): {error}."
        ) from error


def column_of(table: Any, file: Path, wanted: tuple[str, ...]) -> Any:
    """The first of some columns that a table has.

    Raises:
        DataError: It has none of them.
    """
    for name in wanted:
        if table.column_names.count(name) > 1:
            raise DataError(f"{file} has the column {name} {table.column_names.count(name)} times; keep one of them.")
        if name in table.column_names:
            return table.column(name)
    raise DataError(f"{file} needs a column {' or '.join(wanted)}, but has {', '.join(table.column_names) or 'none'}.")


def values_of(table: Any, file: Path, wanted: tuple[str, ...]) -> list[Any]:
    """The values of a column as Python's.

    Raises:
        DataError: There is no such column, or a value has no counterpart: text that is no UTF-8, half a microsecond.
    """
    column = column_of(table, file, wanted)
    try:
        return column.to_pylist()
    except (ValueError, TypeError, OverflowError, ArithmeticError) as error:
        raise DataError(f"{file}: the column {wanted[0]} ({column.type}) cannot be read: {error}.") from error


def _check_rows(file: Path, rows: int) -> None:
    if rows > MAX_ROWS:
        raise DataError(f"{file} announces {rows:,} rows, more than the {MAX_ROWS:,} accepted.")


def _image_values(table: Any, file: Path) -> list[bytes]:
    values = values_of(table, file, IMAGE_COLUMNS)
    encoded: list[bytes] = []
    for row, value in enumerate(values):
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise DataError(
                f"{file}, row {row}: expected an encoded image (a struct of bytes and path, or bytes), "
                f"found {type(value).__name__}{' without bytes' if isinstance(value, dict) else ''}."
            )
        encoded.append(data)
    return encoded


def _label_values(table: Any, file: Path) -> list[int]:
    values = values_of(table, file, LABEL_COLUMNS)
    for row, value in enumerate(values):
        if not isinstance(value, int):
            raise DataError(f"{file}, row {row}: expected an integer label, found {value!r}.")
    return values
