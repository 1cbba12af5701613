"""Small COCO sets made for one test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth picture (height, width, 3) uint8, another one for each seed."""
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    return np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))


def annotation(image_id, bbox, category_id=1, **more) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), **more}


def write_set(
    folder: Path,
    sizes: list[tuple[int, int]],
    annotations: list[dict],
    *,
    categories: dict[int, str] | None = None,
    file: str = "instances.json",
    images: str = "images",
) -> Path:
    """A COCO file with images of the given (height, width) and ids 1, 2, …; returns its path."""
    (folder / images).mkdir(parents=True, exist_ok=True)
    records = []
    for number, (height, width) in enumerate(sizes, 1):
        name = f"{number:04d}.png"
        Image.fromarray(picture(height, width, number)).save(folder / images / name)
        records.append({"id": number, "file_name": name, "height": height, "width": width})
    rows = [{"id": number, **row} for number, row in enumerate(annotations, 1)]
    names = categories if categories is not None else {1: "thing"}
    content = {
        "images": records,
        "annotations": rows,
        "categories": [{"id": i, "name": name} for i, name in names.items()],
    }
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
