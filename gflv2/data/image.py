"""Image files as RGB tensors, whatever their mode."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from gflv2.data.problems import shown, shown_path

_log = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
"""Pillow's names of the formats that are read. None of them starts another program, as PostScript would."""

MAX_PIXELS = 178_956_970  # where Pillow too takes a file for an attack; GFLV2_MAX_PIXELS allows larger images

_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_DEPTHS = (8, 10, 12, 14, 16, 24, 32)
_TAIL = 1 << 12  # bytes at the end of a file in which its end marker is looked for

_said: set[str] = set()
_limit_is_off = threading.Lock()


def read_image(
    path: str | Path, *, size: tuple[int, int] | None = None, least: tuple[int, int] | None = None
) -> Tensor:
    """One image file as a uint8 tensor (3, H, W), RGB, upright.

    The EXIF orientation is applied, as OpenCV's reading (the authors') and labelling tools do. An annotation file
    may however describe the pixels as they are stored: where its ``size`` agrees with the stored size only, the image
    is returned as stored.

    Args:
        path: a file of one of ``FORMATS``; see ``to_rgb`` for the modes. Of several pages the first is read.
        size: (height, width) that the annotations are made for.
        least: (height, width) that is enough: a JPEG is decoded at the least of 1, 1/2, 1/4 and 1/8 of its size that
            is no smaller, which is faster. None: as it is.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a readable image, of more pixels than allowed, or of another size than ``size`` in both
            orientations; one line that names the file.
    """
    with _opened(path) as image:
        as_stored = _is_as_stored(image, size, path)
        if least is not None and image.format in ("JPEG", "MPO"):
            height, width = least if as_stored or not _is_turned(image) else least[::-1]
            image.draft(None, (width, height))
        return F.pil_to_tensor(to_rgb(image if as_stored else upright(image), str(path)))


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of an image file as it is shown, from its header alone. Raises what ``read_image`` raises."""
    with _opened(path) as image:
        width, height = image.size
        return (width, height) if _is_turned(image) else (height, width)


def check_header(path: str | Path, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """What can be said of an image file without decoding it: ``image_size``, and that a JPEG or PNG has its end.

    Args:
        size: (height, width) that the annotations are made for.

    Returns:
        The size of the image that ``read_image`` gives.
    """
    with _opened(path) as image:
        agreed = _agreed_size(image, size, path)
        _check_range(image)
        if image.format in ("JPEG", "MPO", "PNG") and not _has_end(path, image.format):
            image.load()  # decides: raises where the data is incomplete
        return agreed


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The file as a Pillow image; whatever its readers raise becomes one line that names the file."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            # Opening a FIFO would wait for somebody to write into it.
            what = "a folder" if stat.S_ISDIR(mode) else "a pipe, device or socket"
            raise ValueError(f"image file {shown_path(path)} is {what}, not a file")
        with _open(path) as image:
            pixels, limit = image.width * image.height, max_pixels()
            if pixels > limit:
                raise ValueError(
                    f"image file {shown_path(path)} has {image.width}×{image.height} pixels, more than the {limit} "
                    "that are allowed; --max-pixels and the environment variable GFLV2_MAX_PIXELS raise the limit"
                )
            if "pages" not in _said and _pages(image) > 1:
                say_once("pages", f"image file {shown_path(path)} has {_pages(image)} pages; the first is read")
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"image file {shown_path(path)} does not exist") from None
    except UnidentifiedImageError:
        raise ValueError(
            f"{shown_path(path)} is not an image that can be read (formats: {', '.join(FORMATS)})"
        ) from None
    except MemoryError:
        raise ValueError(f"image file {shown_path(path)} cannot be read: there is not enough memory for it") from None
    except Exception as error:
        # Pillow's readers raise whatever a damaged file makes of them: OSError, SyntaxError, struct.error, and more.
        text = " ".join(str(error).split()) or type(error).__name__
        if str(path) in text or shown_path(path) in text:
            raise
        raise ValueError(f"image file {shown_path(path)} cannot be read: {text}") from error


def _open(path: str | Path) -> Image.Image:
    # Pillow has one limit for the whole process. Ours is checked by the caller, so that it can be raised by name.
    with _limit_is_off:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _pages(image: Image.Image) -> int:
    """Pages of a TIFF, frames of an animation. Further pictures in a camera's JPEG are previews."""
    try:
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception:  # a later page is damaged
        return 1


def max_pixels() -> int:
    """The most pixels of an image: ``MAX_PIXELS``, or the number in the environment variable GFLV2_MAX_PIXELS."""
    text = os.environ.get("GFLV2_MAX_PIXELS", "")
    if text and not (text.isdecimal() and int(text) > 0):
        raise ValueError(f"GFLV2_MAX_PIXELS: expected a whole number above 0, got {shown(text)}")
    return int(text) if text else MAX_PIXELS


def say_once(subject: str, text: str) -> None:
    """Warn about the first image of a kind; a data set of thousands of them needs no more lines."""
    if subject not in _said:
        _said.add(subject)
        _log.warning("%s (said once)", text)


def to_rgb(image: Image.Image, name: str = "an image") -> Image.Image:
    """Any Pillow image as RGB: grey values are repeated, palettes and CMYK converted, transparency dropped.

    Values of more than 8 bits are divided by a power of two: the depth of an image is the least of 8, 10, 12, 14, 16,
    24 and 32 bits that holds its largest value, and its upper 8 bits are kept. So 12-bit data in a 16-bit file is as
    bright as it should be, and full 16-bit data is cut to its upper 8 bits, as OpenCV's 8-bit reading does.

    Args:
        name: of the image, for the warning that its depth is less than the file's.
    """
    if image.mode in _SIXTEEN_BIT:
        image = Image.fromarray(_upper_bits(np.asarray(image), name))
    _check_range(image)
    return image.convert("RGB")


def _check_range(image: Image.Image) -> None:
    if image.mode == "F":
        raise ValueError(
            "image of floating-point values (mode 'F'): their range is unknown; convert the file to 8 bits"
        )


def _upper_bits(values: np.ndarray, name: str) -> np.ndarray:
    largest = int(values.max(initial=0))
    depth = next(d for d in _DEPTHS if largest < 1 << d)
    if depth != 16:
        say_once(
            f"depth {depth}",
            f"{name}: its values need {depth} bits and are divided by {1 << depth - 8}; images of another depth are "
            "divided by another number, so convert all to 8 bits where their brightness must be comparable",
        )
    return (values.clip(0, None).astype(np.int64) >> depth - 8).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; broken or unknown values count as 1, upright."""
    if image.format == "PNG":
        # Pillow decodes a PNG in search of its EXIF block. Damaged pixels must not pass for a damaged block: the image
        # would be taken for decoded, and black.
        image.load()
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _is_turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation exchanges width and height."""
    return _orientation(image) >= 5


def upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation."""
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _agreed_size(image: Image.Image, size: tuple[int, int] | None, path: str | Path) -> tuple[int, int]:
    """(height, width) in the orientation, upright or as stored, that agrees with ``size``."""
    stored = (image.height, image.width)
    if size is not None and stored == tuple(size):  # whatever the orientation, which a PNG tells only when decoded
        return stored
    shown_size = stored[::-1] if _is_turned(image) else stored
    if size is None or shown_size == tuple(size):
        return shown_size
    raise ValueError(
        f"image file {shown_path(path)} is {shown_size[1]}×{shown_size[0]} pixels, but its annotations are made for "
        f"{size[1]}×{size[0]} (width × height)"
    )


def _is_as_stored(image: Image.Image, size: tuple[int, int] | None, path: str | Path) -> bool:
    """Whether the annotations are made for the pixels as they are stored, though the image is shown turned."""
    agreed = _agreed_size(image, size, path)
    return _is_turned(image) and agreed == (image.height, image.width) and image.height != image.width


def _has_end(path: str | Path, format: str) -> bool:
    """Whether the end marker of a JPEG or PNG stands where a whole file has it, near the end."""
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(-min(file.tell(), _TAIL), os.SEEK_END)
        tail = file.read()
    if format == "PNG":
        return b"IEND" in tail
    # After the last scan: a preview inside the file has an end of its own.
    return tail.rfind(b"\xff\xd9") > tail.rfind(b"\xff\xda")
