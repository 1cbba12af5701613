"""The kinds of image that ``predict`` takes, all read as a uint8 tensor (3, H, W), RGB, upright."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from gflv2.data.image import read_image, to_rgb

_KINDS = "a path, a PIL image, a uint8 array (H, W, 3), a uint8 tensor (3, H, W), or a list of these"


class ImageError(ValueError):
    """An image that cannot be read; the message names the file."""


def read_source(source: Any, *, bgr: bool = False, name: str = "source") -> tuple[Tensor, Path | None]:
    """One image as a uint8 tensor (3, H, W), RGB, and its path (None for an image in memory).

    Files and PIL images are turned upright by their EXIF orientation. Grey images are repeated over the three
    channels and an alpha channel is dropped.

    Args:
        source: a path, a PIL image, a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a uint8
            tensor (1, H, W) or (3, H, W).
        bgr: the channels of arrays and tensors are blue, green, red (OpenCV's order).
        name: what error messages call it.

    Raises:
        FileNotFoundError: no such file.
        ImageError: the file is not an image, or is damaged.
        TypeError, ValueError: another kind, dtype or shape.
    """
    if isinstance(source, (str, Path)):
        path = _check_path(source, name)
        return _read_file(path), path
    if isinstance(source, Image.Image):
        # Pillow reads the file only now, so a damaged one shows here: the message names it.
        file = getattr(source, "filename", "") or None
        try:
            image = F.pil_to_tensor(to_rgb(ImageOps.exif_transpose(source)))
        except (OSError, SyntaxError) as error:
            raise ImageError(
                f"{name}: the PIL image {f'of {file!r} ' if file else ''}cannot be read: {error}"
            ) from error
        return _not_empty(image, name), None
    if isinstance(source, np.ndarray):
        return _not_empty(_from_array(source, bgr, name), name), None
    if isinstance(source, Tensor):
        return _not_empty(_from_tensor(source, bgr, name), name), None
    raise TypeError(f"{name}: expected {_KINDS}, got {type(source).__name__}")


def _check_path(source: str | Path, name: str) -> Path:
    text = str(source)
    if "://" in text:
        raise ValueError(f"{name}: URLs are not fetched; download {text!r} and give the path of the file")
    path = Path(source).expanduser()
    if path.is_dir():
        raise ValueError(
            f"{name}: {text!r} is a folder; predict_files (and `gflv2 predict`) take folders, or give a list of files"
        )
    if not path.exists() and any(character in text for character in "*?["):
        raise ValueError(f"{name}: {text!r} is a pattern; predict_files (and `gflv2 predict`) expand patterns")
    return path


def _read_file(path: Path) -> Tensor:
    try:
        return read_image(path)
    except FileNotFoundError:
        raise
    except Exception as error:
        # Damaged files make Pillow's readers raise SyntaxError, struct.error and others.
        text = str(error)
        raise ImageError(text if str(path) in text else f"image file {str(path)!r} cannot be read: {text}") from error


def _from_array(array: np.ndarray, bgr: bool, name: str) -> Tensor:
    if array.dtype != np.uint8:
        raise TypeError(
            f"{name}: expected a uint8 array (values 0 to 255), {_got(array)}{_hint(array.dtype.kind == 'f')}"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        hint = "; transpose (3, H, W) to (H, W, 3)" if array.ndim == 3 and array.shape[0] in (1, 3) else ""
        hint = "; give a batch as a list of images" if array.ndim == 4 else hint
        raise ValueError(f"{name}: expected an array (H, W, 3), (H, W, 4), (H, W, 1) or (H, W), {_got(array)}{hint}")
    # The copy also allows what torch refuses: negative strides (image[..., ::-1]) and read-only memory.
    image = torch.from_numpy(np.array(np.moveaxis(array, 2, 0), order="C"))
    return _rgb(image, bgr)


def _from_tensor(tensor: Tensor, bgr: bool, name: str) -> Tensor:
    if tensor.dtype != torch.uint8:
        raise TypeError(
            f"{name}: expected a uint8 tensor (values 0 to 255), {_got(tensor)}{_hint(tensor.is_floating_point())}"
        )
    if tensor.dim() != 3 or tensor.shape[0] not in (1, 3):
        hint = "; permute (H, W, 3) to (3, H, W)" if tensor.dim() == 3 and tensor.shape[2] in (1, 3) else ""
        hint = "; give a batch as a list of images" if tensor.dim() == 4 else hint
        raise ValueError(f"{name}: expected a tensor (3, H, W) or (1, H, W), {_got(tensor)}{hint}")
    return _rgb(tensor.detach().as_subclass(Tensor).cpu(), bgr)


def _rgb(image: Tensor, bgr: bool) -> Tensor:
    """(1 | 3 | 4, H, W) → (3, H, W)."""
    if image.shape[0] == 1:
        return image.repeat(3, 1, 1)
    image = image[:3]
    return image.flip(0) if bgr else image.contiguous()


def _not_empty(image: Tensor, name: str) -> Tensor:
    if min(image.shape[1:]) == 0:
        raise ValueError(
            f"{name}: expected an image of at least one pixel, got {image.shape[1]}×{image.shape[2]} (H×W)"
        )
    return image


def _got(value: Any) -> str:
    return f"got {str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"


def _hint(is_float: bool) -> str:
    return "; if its values lie in 0 … 1, give (255 * image).round() as uint8" if is_float else ""
