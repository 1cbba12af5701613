"""COCO's table of precisions, for every class and size of objects."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SIZES = ("all", "small", "medium", "large")
IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


def precision_table(
    index: Any, detections: Sequence[Mapping], image_ids: Sequence[Any], limit: int
) -> tuple[np.ndarray, list[Any]]:
    """pycocotools's precisions.

    Args:
        index: the ground truth, as ``load_coco`` returns it. Not changed.
        detections: complete records in COCO's result format, of these images.
        image_ids: the images that count.
        limit: detections of an image that count.

    Returns:
        (10, 101, K, 4): IoU .50 to .95, recall 0 to 1, class, size (``SIZES``); −1 where there are no objects. And the
        K category ids.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    categories = sorted(index.cats)
    # The evaluator wants small numbers for ids, and writes into the records.
    image_of = {own: number for number, own in enumerate(image_ids, 1)}
    category_of = {own: number for number, own in enumerate(categories, 1)}

    def numbered(rows: Any) -> list[dict]:
        rows = (row for row in rows if row["image_id"] in image_of)
        ids = ("image_id", image_of), ("category_id", category_of)
        return [{**row, **{key: table[row[key]] for key, table in ids}, "id": n} for n, row in enumerate(rows, 1)]

    found = [{**row, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0} for row in detections]
    content = {"images": [{"id": number} for number in image_of.values()]}
    content["categories"] = [{"id": number} for number in category_of.values()]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports each step by print
        sets = []
        for rows in (index.dataset["annotations"], found):
            one = COCO()
            one.dataset = {**content, "annotations": numbered(rows)}
            one.createIndex()
            sets.append(one)
        evaluation = COCOeval(*sets, iouType="bbox")
        evaluation.params.maxDets = [limit]
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[..., 0], categories


def mean(values: np.ndarray) -> float:
    """Mean of the precisions that exist; NaN where none does."""
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan


def average_precisions(table: np.ndarray) -> dict[str, float]:
    """AP, AP50, AP75 and AP of each size, from the table or a part of its classes (10, 101, k, 4)."""
    named = {"AP": mean(table[..., 0]), "AP50": mean(table[0, ..., 0]), "AP75": mean(table[5, ..., 0])}
    return named | {f"AP_{size}": mean(table[..., place]) for place, size in enumerate(SIZES) if place}


def curves(table: np.ndarray) -> dict[str, list[float]]:
    """Precision at the 101 recalls, the mean over the classes that have objects: at IoU .50, .75, and over all ten."""
    known = table[..., 0]
    known = known[:, :, (known > -1).all((0, 1))]
    if not known.size:
        return {}
    average = known.mean(2)
    named = {"0.50": average[0], "0.75": average[5], "0.50:0.95": average.mean(0)}
    return {name: values.tolist() for name, values in named.items()}
