"""Image folders: `root/train/<class>/*.png` and `root/test/<class>/*.png`."""

from __future__ import annotations

from pathlib import Path

import torch

from weightspace.errors import DataError
from weightspace.training.data.cache import cached
from weightspace.training.data.decode import decode_images
from weightspace.training.data.found import Found, read_bytes
from weightspace.training.data.splits import Split, shape_text

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
_LAYOUT = "root/train/<class>/* and root/test/<class>/*"


def read_image_folder(root: Path) -> Found:
    """Read a data set of image files.

    Classes are the names of the folders under `train`, sorted; a class may lack test images. Gray images give one
    channel, all others three.

    Args:
        root: Folder with `train` and `test`.

    Raises:
        DataError: Another layout, an empty class, a class of `test` that `train` lacks, or images that cannot be
            decoded or differ in size.
    """
    _check_layout(root)
    train_files = _class_files(root / "train")
    test_files = _class_files(root / "test")
    unknown = sorted(test_files.keys() - train_files.keys())
    if unknown:
        raise DataError(f"{root / 'test'} has classes that {root / 'train'} lacks: {', '.join(unknown)}.")
    class_names = tuple(sorted(train_files))
    files = [path for part in (train_files, test_files) for paths in part.values() for path in paths]
    return cached("folder", root, files, lambda: _read(root, train_files, test_files, class_names))


def _read(
    root: Path, train_files: dict[str, list[Path]], test_files: dict[str, list[Path]], class_names: tuple[str, ...]
) -> Found:
    train, train_encoding = _read_split(train_files, class_names)
    test, test_encoding = _read_split(test_files, class_names)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{root}: training images are {shape_text(train.images)} but test images are {shape_text(test.images)}; "
            "both must have the same channels and size."
        )
    encoding = train_encoding or test_encoding
    what = f"image folder{' (JPEG-encoded images)' if encoding else ''} at {root}"
    return Found(train, test, what, class_names=class_names, encoding=encoding)


def _read_split(files: dict[str, list[Path]], class_names: tuple[str, ...]) -> tuple[Split, str]:
    paths = [path for name in class_names for path in files.get(name, [])]
    counts = torch.tensor([len(files.get(name, [])) for name in class_names])
    images, encoding = decode_images(len(paths), lambda i: read_bytes(paths[i]), lambda i: str(paths[i]))
    return Split(images, torch.arange(len(class_names)).repeat_interleave(counts)), encoding


def _check_layout(root: Path) -> None:
    missing = [part for part in ("train", "test") if not (root / part).is_dir()]
    if not missing:
        return
    if not root.is_dir():
        raise DataError(
            f"An image folder was asked for, but {root} is not a folder; give one with train/ and test/ in it."
        )
    present = sorted(path.name for path in root.iterdir() if path.is_dir())
    shown = f"the folders {', '.join(present[:5])}{', ...' if len(present) > 5 else ''}" if present else "no folder"
    raise DataError(
        f"{root} has {shown} but not {' and '.join(missing)}: images must be laid out as {_LAYOUT}; "
        "divide them into a training and a test part yourself, so that the division is fixed."
    )


def _class_files(part: Path) -> dict[str, list[Path]]:
    """Image files of every class folder, sorted by name; hidden files and other suffixes are passed over."""
    classes: dict[str, list[Path]] = {}
    for folder in sorted(path for path in part.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        classes[folder.name] = [path for path in files if not path.name.startswith(".")]
        if not classes[folder.name]:
            raise DataError(f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}): fill or remove it.")
    if not classes:
        raise DataError(f"{part} has no class folder: images must be laid out as {_LAYOUT}.")
    return classes
