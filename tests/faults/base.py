"""The set that the tables change: three images of 160×120 pixels, one category, one box each."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from tests.data.generated import picture

Make = Callable[[Path], Path]
ABSENT = object()  # as a value: the key is taken away


@functools.cache
def image_bytes(number: int, suffix: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(120, 160, number)).save(file, Image.registered_extensions()[suffix])
    return file.getvalue()


def write_images(folder: Path, names: tuple[str, ...] = ("im1.png", "im2.png", "im3.png")) -> None:
    for number, name in enumerate(names, 1):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image_bytes(number, Path(name).suffix))


def content() -> dict:
    return {
        "images": [{"id": i, "file_name": f"im{i}.png", "width": 160, "height": 120} for i in (1, 2, 3)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [20, 20, 60, 50], "area": 3000, "iscrowd": 0}
            for i in (1, 2, 3)
        ],
        "categories": [{"id": 1, "name": "box"}],
    }


def changed(*changes: Callable[[dict], Any]) -> Make:
    """The base as a COCO file after the changes, which are made in place."""

    def make(folder: Path) -> Path:
        base = content()
        for change in changes:
            change(base)
        return written(json.dumps(base).encode())(folder)

    return make


def written(text: bytes, images: tuple[str, ...] = ("im1.png", "im2.png", "im3.png")) -> Make:
    """A COCO file of these bytes, beside the base's images."""

    def make(folder: Path) -> Path:
        write_images(folder / "images", images)
        path = folder / "train.json"
        path.write_bytes(text)
        return path

    return make


def encoded(encoding: str) -> Make:
    return written(json.dumps(content()).encode(encoding))


def top(**fields: Any) -> Make:
    """The base with other values at its top."""
    return changed(lambda base: _set(base, fields))


def image(**fields: Any) -> Make:
    """The base with other values in its second image."""
    return changed(lambda base: _set(base["images"][1], fields))


def annotation(**fields: Any) -> Make:
    """The base with other values in its second annotation."""
    return changed(lambda base: _set(base["annotations"][1], fields))


def annotations(**fields: Any) -> Make:
    """The base with other values in all its annotations."""
    return changed(lambda base: [_set(row, fields) for row in base["annotations"]])


def category(**fields: Any) -> Make:
    return changed(lambda base: _set(base["categories"][0], fields))


def more(key: str, *records: Any) -> Make:
    """The base with further records in one of its lists."""
    return changed(lambda base: base[key].extend(records))


def _set(record: dict, fields: dict[str, Any]) -> None:
    for key, value in fields.items():
        if value is ABSENT:
            record.pop(key, None)
        else:
            record[key] = value
