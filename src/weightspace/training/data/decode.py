"""Encoded image files (PNG, JPEG, ...) to one uint8 tensor."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightspace.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

JPEG_MAGIC = b"\xff\xd8\xff"
# Modes of Pillow that hold one channel; everything else is converted to RGB.
_GRAY_MODES = frozenset({"1", "L", "LA", "La"})
MAX_SIZE = 4096
MAX_BYTES = 32 << 30
# Pillow goes by content, whatever the file is called, and would start Ghostscript for PostScript.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")


def decode_images(
    count: int, read: Callable[[int], bytes], name: Callable[[int], str], *, channels: int | None = None
) -> tuple[Tensor, str]:
    """Decode images that all have one square size.

    Cost: about 40 microseconds for a 32x32 JPEG.

    Args:
        count: Number of images.
        read: Encoded bytes of image i.
        name: Name of image i, for errors.
        channels: 1 or 3; `None` takes 3 if the first image has colors and 1 otherwise.

    Returns:
        `(images, encoding)`: uint8 `(count, channels, size, size)`, and `"JPEG"` if any image is one, else `""`.

    Raises:
        DataError: An image cannot be decoded, is not square, or differs in size or (for `channels=None`) has colors
            although the first has none.
    """
    if count == 0:
        raise DataError("There are no images to decode.")
    # Pillow only warns of implausibly large images; here that is an error. Set once: it costs as much as an image.
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=_pillow().DecompressionBombWarning)
        return _decode_all(count, read, name, channels)


def _decode_all(
    count: int, read: Callable[[int], bytes], name: Callable[[int], str], channels: int | None
) -> tuple[Tensor, str]:
    encoding = ""
    pixels = bytearray()
    size = 0
    wanted = channels or 3
    for i in range(count):
        data = read(i)
        if data.startswith(JPEG_MAGIC):
            encoding = "JPEG"
        image = _open(data, name, i)
        if i == 0:
            size = _checked_size(image, name(0))
            wanted = channels or (1 if image.mode in _GRAY_MODES else 3)
        if image.size != (size, size):
            raise DataError(
                f"{name(i)} is {image.width}x{image.height} pixels, but {name(0)} is {size}x{size}: "
                "all images of a data set must have the same square size."
            )
        if channels is None and wanted == 1 and image.mode not in _GRAY_MODES:
            raise DataError(
                f"{name(i)} has colors (mode {image.mode}), but {name(0)} is gray: save all images in the same mode."
            )
        # Grown image by image: what the first one's header says of its size must not take memory for all of them.
        pixels += _convert(image, "RGB" if wanted == 3 else "L", name, i)
        if len(pixels) > MAX_BYTES:
            raise DataError(
                f"The images up to {name(i)} take more than {MAX_BYTES >> 30} GB decoded, which is all that is kept in "
                "memory: use smaller or fewer images."
            )
    images = torch.frombuffer(pixels, dtype=torch.uint8).view(count, size, size, wanted)
    return images.permute(0, 3, 1, 2).contiguous(), encoding


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError('Decoding images needs Pillow: run pip install "weightspace[train]".') from error
    return Image


def _open(data: bytes, name: Callable[[int], str], i: int) -> Image.Image:
    pillow = _pillow()
    try:
        image = pillow.open(io.BytesIO(data), formats=FORMATS)
    # Pillow's readers raise whatever they stumble on, and its errors about bombs derive from Exception alone.
    except Exception as error:
        raise DataError(f"{name(i)} is not an image that can be decoded ({len(data):,} bytes): {error}.") from error
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{name(i)} has more than 8 bits a channel (mode {image.mode}): save it with 8 bits.")
    return image


def _convert(image: Image.Image, mode: str, name: Callable[[int], str], i: int) -> bytes:
    try:
        return (image if image.mode == mode else image.convert(mode)).tobytes()
    except Exception as error:  # as above: damage shows when pixels are read
        raise DataError(f"{name(i)} is damaged: {error}.") from error


def _checked_size(image: Image.Image, name: str) -> int:
    width, height = image.size
    if width != height:
        raise DataError(f"{name} is {width}x{height} pixels (width x height), but images must be square.")
    if width > MAX_SIZE:
        raise DataError(
            f"{name} is {width}x{height} pixels; at most {MAX_SIZE}x{MAX_SIZE} fit in memory as a data set."
        )
    return width


def labels_tensor(labels: Sequence[int]) -> Tensor:
    """Labels as int64 `(N,)`.

    Raises:
        DataError: One is beyond 64 bits.
    """
    try:
        return torch.tensor(labels, dtype=torch.int64)
    except (RuntimeError, OverflowError, ValueError) as error:
        raise DataError(f"There is a label {max(labels, key=abs):,}: labels count classes from 0.") from error
