"""What a reader hands back, and the checks that every data set passes whatever its format."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from weightspace.errors import DataError
from weightspace.training.data.catalog import DatasetInfo
from weightspace.training.data.dataset import ImageData
from weightspace.training.data.splits import Split, check_split, shape_text


class MissingFilesError(DataError):
    """Some files of a data set are there and others are not: an interrupted download, or one under way."""


@dataclass(frozen=True)
class Found:
    """A data set as read from files, not yet checked against what its name says.

    Attributes:
        train: Training images and labels.
        test: Test images and labels.
        what: Format and place: `"IDX files at ..."`.
        class_names: Where the files decide the classes (image folders).
        encoding: `"JPEG"` where at least one image went through a lossy JPEG file; empty otherwise.
        notes: Further remarks for the `source` line.
    """

    train: Split
    test: Split
    what: str
    class_names: tuple[str, ...] = ()
    encoding: str = ""
    notes: tuple[str, ...] = ()

    def noted(self, *notes: str) -> Found:
        """The same data with more remarks."""
        return replace(self, notes=(*self.notes, *notes))


def to_image_data(info: DatasetInfo, found: Found) -> ImageData:
    """Check that the files hold what the name says, and say in one line what was found.

    A number of images other than the published one is a remark in `source`: subsets are legitimate.

    Raises:
        DataError: Wrong image shape, or a label without a class.
    """
    class_names = found.class_names or info.class_names
    for part, split in (("training", found.train), ("test", found.test)):
        check_split(found.what, part, split, len(class_names))
        if info.shape is not None and tuple(split.images.shape[1:]) != info.shape:
            raise DataError(
                f"{found.what}: {info.title} has {'x'.join(map(str, info.shape))} images, "
                f"but the {part} images there are {shape_text(split.images)}."
            )
    notes = list(found.notes)
    sizes = (len(found.train), len(found.test))
    if info.train_size and sizes != (info.train_size, info.test_size):
        notes.append(
            f"{sizes[0]:,} training and {sizes[1]:,} test images instead of the published "
            f"{info.train_size:,} and {info.test_size:,}"
        )
    label = info.title if info.name != "folder" else found.what.rpartition("/")[2]
    # JPEG loses detail, so numbers on such files must not be taken for numbers on the published images.
    if found.encoding and info.name != "folder":
        label = f"{label} ({found.encoding})"
    source = "; ".join([found.what, *notes])
    return ImageData.from_splits(info.name, found.train, found.test, class_names, source=source, label=label)


def read_bytes(path: Path) -> bytes:
    """Read a whole file.

    Raises:
        DataError: The system does not let it be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def digest(data: bytes, algorithm: str = "sha256") -> str:
    """Hexadecimal check sum of `data`."""
    return hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
