"""Image files as RGB tensors, whatever their mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as F

_ORIENTATION = 0x0112  # EXIF tag
_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def read_image(path: str | Path, *, size: tuple[int, int] | None = None) -> Tensor:
    """One image file as a uint8 tensor (3, H, W), RGB, upright.

    The EXIF orientation is applied, as OpenCV's reading (the authors') and labelling tools do. An annotation file
    may however describe the pixels as they are stored: where its ``size`` agrees with the stored size only, the image
    is returned as stored.

    Args:
        path: any format that Pillow reads; see ``to_rgb`` for the modes.
        size: (height, width) that the annotations are made for.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a readable image, or of another size than ``size`` in both orientations.
    """
    try:
        with Image.open(path) as image:
            return F.pil_to_tensor(to_rgb(_oriented(image, size, path)))
    except FileNotFoundError:
        raise FileNotFoundError(f"image file {str(path)!r} does not exist") from None
    except UnidentifiedImageError:
        raise ValueError(f"{str(path)!r} is not an image that Pillow can read") from None
    except OSError as error:  # truncated or damaged data
        raise ValueError(f"image file {str(path)!r} cannot be read: {error}") from error


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of an image file as it is shown, from its header alone."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (width, height) if _is_turned(image) else (height, width)
    except FileNotFoundError:
        raise FileNotFoundError(f"image file {str(path)!r} does not exist") from None
    except UnidentifiedImageError:
        raise ValueError(f"{str(path)!r} is not an image that Pillow can read") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as RGB: grey values are repeated, palettes and CMYK converted, transparency dropped, 16 bits cut
    to the upper 8 (as OpenCV's 8-bit reading does).
    """
    if image.mode in _SIXTEEN_BIT:
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError(
            "image of floating-point values (mode 'F'): their range is unknown; convert the file to 8 bits"
        )
    return image.convert("RGB")


def _is_turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation exchanges width and height (values 5 to 8)."""
    return image.getexif().get(_ORIENTATION, 1) >= 5


def _oriented(image: Image.Image, size: tuple[int, int] | None, path: str | Path) -> Image.Image:
    stored = (image.height, image.width)
    upright = stored[::-1] if _is_turned(image) else stored
    if size is None or upright == tuple(size):
        return ImageOps.exif_transpose(image)
    if stored == tuple(size):
        return image
    raise ValueError(
        f"image file {str(path)!r} is {upright[1]}×{upright[0]} pixels, but its annotations are made for "
        f"{size[1]}×{size[0]} (width × height)"
    )
