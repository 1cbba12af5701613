"""What keeps a detector from a perfect AP50: each wrong detection and each missed object has one kind of error.

The kinds and the question behind them are those of TIDE (arXiv 2008.08115, section 2.2): how much would AP50 gain if
errors of one kind alone were mended? The code is our own, and one rule differs: here a second detection of an object is
a duplicate even where it also lies on an object of another class.

A detection finds an object as in COCO's evaluation at IoU .50: of each class, in the order of the scores, each takes
the free object with the highest IoU ≥ 0.5. One that finds none but a crowd region is left out. For the others, with
``own`` the highest IoU with an object of the detection's class and ``other`` with one of another class, the first that
applies:

* duplicate: own ≥ 0.5; a better detection has the object. Mended: the detection is removed.
* localisation: own ≥ 0.1. Mended: its box is right, so it finds the object; removed where the object is found already.
* classification: other ≥ 0.5. Mended: its class is right; removed where the object is found already.
* both: other ≥ 0.1. Mended: removed.
* background: no object is near. Mended: removed.

An object is missed if nothing finds it and no localisation or classification error lies on it. Mended: it is taken out
of the ground truth; a class that has no object left then counts as 1 without wrong detections, else as 0.

The gains do not add up to 1 − AP50: mending one kind changes what the others cost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FOUND, NEAR = 0.5, 0.1  # least IoU with an object, to be right and to be meant
KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
RIGHT, LEFT_OUT = "right", "on a crowd"
_RECALLS = np.linspace(0, 1, 101)


@dataclass
class Errors:
    """The decomposition.

    Attributes:
        ap50: as COCO's evaluation has it: the mean over the classes that have objects; NaN without any.
        gains: kind → AP50 with errors of that kind mended, minus ``ap50``.
        counts: kind → number of detections, or of objects for "missed".
        kinds: of each detection, in the order given: one of ``KINDS`` but "missed", ``RIGHT`` or ``LEFT_OUT``.
        overlaps: of each detection, the highest IoU with an object of its class, 0 where there is none.
    """

    ap50: float
    gains: dict[str, float]
    counts: dict[str, int]
    kinds: list[str]
    overlaps: np.ndarray


@dataclass
class _Image:
    """One image while it is matched: class of each object, whether something found it; numbers of its detections."""

    classes: np.ndarray
    found: np.ndarray
    meant: np.ndarray
    numbers: np.ndarray


def decompose(
    objects: Mapping[Any, Sequence[Mapping]], detections: Sequence[Mapping], image_ids: Iterable[Any]
) -> Errors:
    """Name the error of each detection and what AP50 would gain without each kind.

    Args:
        objects: image id → COCO annotations with ``bbox`` (x, y, width, height), ``category_id`` and ``iscrowd``.
        detections: records in COCO's result format, all of these images.
        image_ids: the images that count.
    """
    chosen = defaultdict(list)
    for number, record in enumerate(detections):
        chosen[record["image_id"]].append(number)
    kinds = [""] * len(detections)
    overlaps = np.zeros(len(detections))
    target: dict[int, tuple[Any, int]] = {}  # detection → (image, object) that it should have found
    images: dict[Any, _Image] = {}
    for image_id in image_ids:
        # A stable sort, as the evaluator's: of equal scores the first.
        numbers = np.array(sorted(chosen[image_id], key=lambda n: -detections[n]["score"]), dtype=np.int64)
        images[image_id] = _match(objects.get(image_id, ()), detections, numbers, kinds, overlaps, target, image_id)
    scores = np.array([record["score"] for record in detections], dtype=np.float64)
    # One array for each class: AP is formed class by class, in the images' order, as the evaluator does.
    order = [n for image in images.values() for n in image.numbers.tolist()]
    classes = {n: detections[n]["category_id"] for n in order}
    totals: dict[Any, int] = defaultdict(int)
    missed: dict[Any, int] = defaultdict(int)
    for image in images.values():
        for category, found, meant in zip(image.classes.tolist(), image.found, image.meant, strict=True):
            totals[category] += 1
            missed[category] += not found and not meant
    right = {n: kinds[n] == RIGHT for n in order if kinds[n] != LEFT_OUT}
    base = _ap50(order, right, classes, scores, totals, totals)
    gains = {}
    for kind in KINDS:
        now, labels, left = dict(right), classes, totals
        if kind == "missed":
            left = {category: count - missed[category] for category, count in totals.items()}
        else:
            labels = dict(classes)
            _mend(kind, order, kinds, target, images, now, labels, scores)
        gains[kind] = _ap50(order, now, labels, scores, totals, left) - base
    counts = {kind: sum(found == kind for found in kinds) for kind in KINDS}
    counts["missed"] = sum(missed.values())
    return Errors(base, gains, counts, kinds, overlaps)


def _match(objects, detections, numbers, kinds, overlaps, target, image_id) -> _Image:
    """Match one image, and fill in ``kinds``, ``overlaps`` and ``target`` of its detections."""
    from pycocotools import mask

    crowd = np.array([bool(row["iscrowd"]) for row in objects], dtype=bool)
    solid = np.flatnonzero(~crowd)
    true = np.array([row["category_id"] for row in objects], dtype=object)
    image = _Image(true[solid], np.zeros(len(solid), bool), np.zeros(len(solid), bool), numbers)
    table = np.zeros((len(numbers), len(objects)))
    if table.size:
        boxes = [
            np.array([row["bbox"] for row in rows], dtype=np.float64)
            for rows in ([detections[n] for n in numbers], objects)
        ]
        table = np.asarray(mask.iou(*boxes, crowd.astype(np.uint8)))
    for row, number in enumerate(numbers.tolist()):
        same = true == detections[number]["category_id"]
        near, own_class = table[row, solid], same[solid]
        own = np.where(own_class, near, 0.0)
        other = np.where(own_class, 0.0, near)
        overlaps[number] = own.max(initial=0.0)
        free = np.where(image.found, 0.0, own)
        if free.max(initial=0.0) >= FOUND:
            image.found[_last_best(free)] = True
            kinds[number] = RIGHT
        elif (table[row, crowd & same] >= FOUND).any():
            kinds[number] = LEFT_OUT
        elif own.max(initial=0.0) >= FOUND:
            kinds[number] = "duplicate"
        elif own.max(initial=0.0) >= NEAR:
            kinds[number] = "localisation"
            target[number] = (image_id, int(own.argmax()))
        elif other.max(initial=0.0) >= FOUND:
            kinds[number] = "classification"
            target[number] = (image_id, int(other.argmax()))
        else:
            kinds[number] = "both" if other.max(initial=0.0) >= NEAR else "background"
        if number in target:
            image.meant[target[number][1]] = True
    return image


def _last_best(values: np.ndarray) -> int:
    """Where the highest value is; of equal ones the last, as the evaluator takes it."""
    return len(values) - 1 - int(values[::-1].argmax())


def _mend(kind, order, kinds, target, images, right, labels, scores) -> None:
    """Mend the detections of one kind, in place."""
    taken = set()
    for number in sorted((n for n in order if kinds[n] == kind), key=lambda n: -scores[n]):
        goal = target.get(number)
        if goal is None or goal in taken or images[goal[0]].found[goal[1]]:
            del right[number]
            continue
        taken.add(goal)
        right[number], labels[number] = True, images[goal[0]].classes[goal[1]]


def _ap50(order, right, labels, scores, totals, left) -> float:
    """Mean over the classes of COCO's AP at one IoU: 101 recalls, precision made to fall.

    ``totals``: objects of each class, whose classes count; ``left``: how many of them are still to be found.
    """
    rows = defaultdict(list)
    for number in order:
        if number in right:
            rows[labels[number]].append(number)
    values = []
    for category, total in totals.items():
        if not total:
            continue
        numbers = np.array(rows[category], dtype=np.int64)
        if not left[category]:
            values.append(float(not len(numbers)))
            continue
        numbers = numbers[np.argsort(-scores[numbers], kind="mergesort")]
        hits = np.cumsum([right[n] for n in numbers.tolist()])
        precision = hits / np.arange(1, len(hits) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        place = np.searchsorted(hits / left[category], _RECALLS, side="left")
        values.append(float(np.append(precision, 0.0)[np.minimum(place, len(precision))].mean()))
    return float(np.mean(values)) if values else float("nan")
