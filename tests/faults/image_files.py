"""Image files that are wrong or unusual: each takes the place of the base's second image."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data.generated import picture
from tests.faults.annotation_files import TWO
from tests.faults.base import Make, content, image_bytes, write_images
from tests.faults.row import BOX, Row

GREY = np.asarray(Image.fromarray(picture(120, 160, 2)).convert("L"))


def second(write: Callable[[Path], Any], name: str = "im2.png", size: tuple[int, int] = (160, 120)) -> Make:
    """The base with a second image that ``write`` makes; ``size`` is the (width, height) that the file states."""

    def make(folder: Path) -> Path:
        write_images(folder / "images")
        (folder / "images" / "im2.png").unlink()
        write(folder / "images" / name)
        base = content()
        base["images"][1].update(file_name=name, width=size[0], height=size[1])
        path = folder / "train.json"
        path.write_text(json.dumps(base))
        return path

    return make


def saved(image: Image.Image | np.ndarray, name: str = "im2.png", **options: Any) -> Make:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return second(lambda path: image.save(path, **options), name, image.size)


def raw(data: bytes, name: str = "im2.png") -> Make:
    return second(lambda path: path.write_bytes(data), name)


def oriented(value: Any, size: tuple[int, int]) -> Make:
    exif = Image.Exif()
    exif[0x0112] = value
    image = Image.fromarray(picture(120, 160, 2))
    return second(lambda path: image.save(path, exif=exif), "im2.jpg", size)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header_alone(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and holds none."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", size) + _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")


def _pages(path: Path) -> None:
    pages = [Image.fromarray(picture(120, 160, seed)) for seed in (2, 3, 4)]
    pages[0].save(path, save_all=True, append_images=pages[1:])


COLOUR = Image.fromarray(picture(120, 160, 2))
JPEG = image_bytes(2, ".jpg")
PNG = image_bytes(2, ".png")
_START, _END = PNG.index(b"IDAT") + 4, PNG.index(b"IEND") - 8
DAMAGED = PNG[:_START] + b"\xff" * (_END - _START) + PNG[_END:]


def _is_grey(pixels: np.ndarray) -> bool:
    return bool((pixels == GREY[..., None]).all())


ROWS = [
    Row(
        "16-bit PNG that holds 12 bits",
        saved(GREY.astype(np.uint16) * 16),
        said=("need 12 bits and are divided by 16",),
        pixels=_is_grey,
        report="yolov5#8481, ultralytics#21645",
    ),
    Row(
        "16-bit PNG that holds 8 bits",
        saved(GREY.astype(np.uint16)),
        said=("need 8 bits and are divided by 1;",),
        pixels=_is_grey,
        report="rf-detr#488",
    ),
    Row("16-bit PNG that holds 16 bits", saved(GREY.astype(np.uint16) * 257), pixels=_is_grey),
    Row(
        "32-bit TIFF that holds 8 bits", saved(GREY.astype(np.int32), "im2.tif"), said=("need 8 bits",), pixels=_is_grey
    ),
    Row(
        "floating-point TIFF",
        saved(GREY.astype(np.float32), "im2.tif"),
        "im2.tif' cannot be read: image of floating-point values (mode 'F')",
    ),
    Row(
        "palette, transparency",
        saved(COLOUR.quantize(16)),
        pixels=lambda p: bool((p == np.asarray(COLOUR.quantize(16).convert("RGB"))).all()),
    ),
    Row("CMYK JPEG", saved(COLOUR.convert("CMYK"), "im2.jpg")),
    Row("grey with alpha", saved(COLOUR.convert("LA")), pixels=_is_grey),
    Row("1 bit", saved(COLOUR.convert("1"))),
    Row("JPEG data in a file called .png", raw(JPEG)),
    Row(
        "EXIF orientation 6, the record has the upright size",
        oriented(6, (120, 160)),
        boxes={1: [BOX], 2: [BOX], 3: [BOX]},
        pixels=lambda p: p.shape == (160, 120, 3),
    ),
    Row(
        "EXIF orientation 6, the record has the stored size",
        oriented(6, (160, 120)),
        pixels=lambda p: p.shape == (120, 160, 3),
    ),
    Row("EXIF orientation 9", oriented(9, (160, 120)), pixels=lambda p: p.shape == (120, 160, 3)),
    Row("EXIF orientation 0", oriented(0, (160, 120)), pixels=lambda p: p.shape == (120, 160, 3)),
    Row(
        "EXIF block of rubbish",
        second(lambda path: COLOUR.save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), "im2.jpg"),
    ),
    Row(
        "an image file is missing",
        second(lambda path: None),
        "1 of 3 image files are missing in 'images'; first: image 2: 'im2.png' (data.skip_bad or",
        report="mmdet#6779, super-gradients#1037",
    ),
    Row(
        "the same with `data.skip_bad`",
        second(lambda path: None),
        said=(
            "images whose file is missing, left out (data.skip_bad): 1; first: image 2",
            "annotations of images that were left out: 1",
        ),
        boxes=TWO,
        options={"skip_bad": True},
    ),
    Row("a text called .png", raw(b"not an image"), "im2.png' is not an image that can be read"),
    Row(
        "the same with `data.skip_bad`",
        raw(b"not an image"),
        said=(
            "images that cannot be used, left out (data.skip_bad): 1; first: image 2: ",
            "annotations of images that were left out",
        ),
        boxes=TWO,
        options={"skip_bad": True},
    ),
    Row("a file of 0 bytes", raw(b""), "im2.png' is not an image that can be read"),
    Row(
        "a JPEG without its last two bytes",
        raw(JPEG[:-2], "im2.jpg"),
        "im2.jpg' cannot be read: image file is truncated",
        report="yolov5#3638, SKU110K_CVPR19#28",
    ),
    Row("half of a JPEG", raw(JPEG[: len(JPEG) // 2], "im2.jpg"), "im2.jpg' cannot be read: image file is truncated"),
    Row("half of a PNG", raw(PNG[: len(PNG) // 2]), "im2.png' cannot be read"),
    Row("a PNG whose pixels are damaged", raw(DAMAGED), "im2.png' cannot be read: broken data stream"),
    Row("a JPEG with 10,000 bytes after its end", raw(JPEG + bytes(10_000), "im2.jpg")),
    Row(
        "a PNG header of 60,000 × 60,000 pixels",
        second(lambda path: path.write_bytes(header_alone(60_000, 60_000)), size=(60_000, 60_000)),
        "has 60000×60000 pixels, more than the 178956970 that are allowed; --max-pixels and the",
        report="kraken#299, DeepForest#1324",
    ),
    Row(
        "`GFLV2_MAX_PIXELS=1000`, images of 160 × 120",
        saved(COLOUR),
        "has 160×120 pixels, more than the 1000 that are allowed",
        environment={"GFLV2_MAX_PIXELS": "1000"},
    ),
    Row(
        "`GFLV2_MAX_PIXELS=many`",
        saved(COLOUR),
        "GFLV2_MAX_PIXELS: expected a whole number above 0, got 'many'",
        environment={"GFLV2_MAX_PIXELS": "many"},
    ),
    Row("a FIFO called .png", second(os.mkfifo), "im2.png' is a pipe, device or socket, not a file"),
    Row(
        "a link to a device",
        second(lambda path: path.symlink_to("/dev/zero")),
        "im2.png' is a pipe, device or socket, not a file",
    ),
    Row("a link to nothing", second(lambda path: path.symlink_to("absent.png")), "im2.png' does not exist"),
    Row("a folder called .png", second(Path.mkdir), "im2.png' is a folder, not a file"),
    Row(
        "PostScript called .png",
        raw(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 160 120\n%%EndComments\nshowpage\n"),
        "im2.png' is not an image that can be read (formats: JPEG, PNG",
    ),
    Row(
        "a TIFF of three pages",
        second(_pages, "im2.tif"),
        said=("im2.tif' has 3 pages; the first is read (said once)",),
        pixels=lambda p: bool((p == picture(120, 160, 2)).all()),
    ),
    Row("an animated GIF", second(_pages, "im2.gif"), said=("im2.gif' has 3 pages; the first is read (said once)",)),
]
