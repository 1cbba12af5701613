"""The confusion matrix of detections: which class is taken for which, what is missed, what is seen where nothing is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gflv2.data import load_coco

BACKGROUND = "background"


@dataclass
class ConfusionMatrix:
    """Counts of objects and detections.

    Attributes:
        counts: (C + 1, C + 1) int64. Row: the object's class, column: the detection's; in order of the category ids.
            The last row counts detections without an object, the last column objects without a detection.
        class_names, category_ids: of the C classes.
        iou_thr, score_thr: a detection and an object belong together at IoU ≥ ``iou_thr``; only detections with a score
            ≥ ``score_thr`` take part.
        left_out: detections on crowd regions, which are neither right nor wrong.
    """

    counts: np.ndarray
    class_names: list[str]
    category_ids: list[Any]
    iou_thr: float
    score_thr: float
    left_out: int = 0

    @property
    def labels(self) -> list[str]:
        """The classes and the background."""
        return [*self.class_names, BACKGROUND]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "rows": "classes of the objects; the last one: detections without an object",
            "columns": "classes of the detections; the last one: objects without a detection",
            "labels": self.labels,
            "category_ids": self.category_ids,
            "iou_thr": self.iou_thr,
            "score_thr": self.score_thr,
            "left_out": self.left_out,
            "counts": self.counts.tolist(),
        }


def confusion_matrix(
    ground_truth: str | Path | dict | Any,
    detections: Iterable[Mapping[str, Any]],
    *,
    image_ids: Iterable[Any] | None = None,
    iou_thr: float = 0.5,
    score_thr: float = 0.3,
) -> ConfusionMatrix:
    """Count which class is taken for which.

    In each image the detections choose in the order of their scores, whatever their class: each takes the free object
    with which it has the highest IoU, if that is at least ``iou_thr``. So every object and every detection is counted
    once. A detection that finds none and lies on a crowd region (intersection / its own area ≥ ``iou_thr``) is left
    out.

    Args:
        ground_truth: as `gflv2.engine.evaluate.evaluate_detections`.
        detections: records in COCO's result format.
        image_ids: these images only; None: all.
        iou_thr: least IoU, above 0.
        score_thr: least score; 0.3 is also what `predict` draws.

    Raises:
        ValueError: a threshold out of its range.
    """
    check_thresholds(iou_thr, score_thr)
    index = load_coco(ground_truth)
    ids = sorted(index.cats)
    row_of = {category: row for row, category in enumerate(ids)}
    found: dict[Any, list[Mapping]] = defaultdict(list)
    for record in detections:
        if record["score"] >= score_thr:
            found[record["image_id"]].append(record)
    counts = np.zeros((len(ids) + 1, len(ids) + 1), dtype=np.int64)
    left_out = 0
    for image_id in index.imgs if image_ids is None else image_ids:
        objects = index.imgToAnns.get(image_id, [])
        chosen = sorted(found.get(image_id, []), key=lambda record: -record["score"])
        left_out += _count(counts, row_of, objects, chosen, iou_thr)
    names = [str(index.cats[category]["name"]) for category in ids]
    return ConfusionMatrix(counts, names, ids, iou_thr, score_thr, left_out)


def _count(
    counts: np.ndarray, row_of: Mapping, objects: Sequence[Mapping], found: Sequence[Mapping], iou_thr: float
) -> int:
    """Add the objects and detections of one image; the number of detections that are left out."""
    from pycocotools import mask

    background = len(row_of)
    is_crowd = np.array([bool(row["iscrowd"]) for row in objects], dtype=bool)
    true = np.array([row_of[row["category_id"]] for row in objects], dtype=np.int64)
    seen = np.array([row_of[row["category_id"]] for row in found], dtype=np.int64)
    overlaps = np.zeros((len(found), len(objects)))
    if overlaps.size:
        boxes = [np.array([row["bbox"] for row in rows], dtype=np.float64) for rows in (found, objects)]
        overlaps = np.asarray(mask.iou(*boxes, is_crowd.astype(np.uint8)))
    match = np.full(len(found), -1)
    free = np.where(is_crowd, 0.0, overlaps)
    for number in np.flatnonzero((free >= iou_thr).any(1)):
        best = int(free[number].argmax())
        if free[number, best] >= iou_thr:
            match[number], free[:, best] = best, 0.0
    on_crowd = (match < 0) & np.where(is_crowd, overlaps >= iou_thr, False).any(1)
    matched = match >= 0
    np.add.at(counts, (true[match[matched]], seen[matched]), 1)
    np.add.at(counts, (background, seen[~matched & ~on_crowd]), 1)
    missed = ~is_crowd
    missed[match[matched]] = False
    np.add.at(counts, (true[missed], background), 1)
    return int(on_crowd.sum())


def check_thresholds(iou_thr: float, score_thr: float) -> None:
    """Refuse thresholds at which every detection, or none, would count.

    Raises:
        ValueError
    """
    if not 0 < iou_thr <= 1:
        raise ValueError(f"confusion matrix: expected an IoU above 0, at most 1, got {iou_thr!r}")
    if not 0 <= score_thr <= 1:
        raise ValueError(f"confusion matrix: expected a score from 0 to 1, got {score_thr!r}")
