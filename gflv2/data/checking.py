"""A look at a data set before anything is trained on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gflv2.config import Config, load_config
from gflv2.data.dataset import CocoDetection
from gflv2.data.positives import Positives, positives, spread
from gflv2.data.problems import shown
from gflv2.ops.reference.boxes import CLAMPED

MOST_CLAMPED = 0.001  # share of targets that the recommended reg_max leaves beyond the bins
MOST_WITHOUT = 0.01  # share of objects that the recommended image size leaves without a positive point
SCALES = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)  # of the configuration's image size that are tried
FEW = 20  # boxes of a class that are hardly enough to learn it

_SMALL, _MEDIUM = 32**2, 96**2  # square pixels, as COCO's evaluation divides


@dataclass
class LevelReport:
    """One level of the feature pyramid. Lengths are in strides."""

    stride: int
    positives: int
    side_median: float | None  # larger side of the box of a positive point; None, here and below: there is none
    side_largest: float | None
    target_99: float | None  # 99 of 100 distances to a side are at most so long
    clamped: float  # share of the distances beyond the bins


@dataclass
class DataReport:
    """What ``check`` found. Printed, it is a page of text.

    Attributes:
        source: file or folder.
        images, empty_images: number of images; of those without a box.
        boxes, crowds: number of boxes that count; of those that are neither targets nor missed objects.
        classes: name → numbers of boxes and of images that have one.
        widths, heights: least, median, greatest of the images, in pixels.
        areas: boxes that COCO calls small, medium, large.
        doubled: boxes that stand in their image a second time, with the same class.
        problems: what was left out, replaced or cut: kind → count and first records.
        looked_at: images whose boxes were assigned to points, evenly spread over the set.
        short_side, reg_max: those of the configuration that the following is for.
        objects, without_positive: boxes of those images, and how many of them get no positive point.
        without_sizes: least, median, greatest longer side in resized pixels of those.
        without_examples: the first of those, as text.
        levels: see ``LevelReport``.
        clamped: share of all distances that lie beyond the bins.
        recommended_reg_max: the least that leaves a thousandth of the distances beyond the bins; None, here and below:
            no object was looked at.
        recommended_short_side, recommended_long_side: the least (not below the configuration's) that leave a hundredth
            of the objects without a positive point; else those that leave the fewest. Both grow by one factor.
        recommended_settings: the same as settings, the short side's range and the test size by the same factor.
        without_there: share of the objects without a positive point at that size.
        notes: what to think about, as sentences.
    """

    source: str
    images: int
    empty_images: int
    boxes: int
    crowds: int
    classes: dict[str, dict[str, int]]
    widths: tuple[int, int, int]
    heights: tuple[int, int, int]
    areas: dict[str, int]
    doubled: int
    problems: dict[str, dict[str, Any]]
    looked_at: int
    short_side: int
    reg_max: int
    objects: int
    without_positive: int
    without_sizes: tuple[float, float, float] | None
    without_examples: list[str]
    levels: list[LevelReport]
    clamped: float
    recommended_reg_max: int | None
    recommended_short_side: int | None
    recommended_long_side: int | None
    recommended_settings: dict[str, Any] | None
    without_there: float
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for a JSON file."""
        return asdict(self)

    def __str__(self) -> str:
        sizes = [
            f"{name} {least} – {middle} – {most}"
            for name, (least, middle, most) in (("width", self.widths), ("height", self.heights))
        ]
        areas = ", ".join(f"{count} {name}" for name, count in self.areas.items())
        width = max([len(name) for name in self.classes] + [5])
        lines = [
            f"{self.source}: {self.images} images ({self.empty_images} without boxes), {self.boxes} boxes"
            f"{f' and {self.crowds} crowds' if self.crowds else ''}",
            f"image sizes (least – median – greatest): {'; '.join(sizes)}",
            f"boxes by area in the image: {areas}",
            "",
            f"{'class':<{width}}{'boxes':>10}{'images':>10}",
        ]
        for name, row in self.classes.items():
            lines.append(f"{name:<{width}}{row['boxes']:>10}{row['images']:>10}")
        lines += ["", "problems" if self.problems else "problems: none"]
        for kind, row in self.problems.items():
            lines.append(f"  {kind}: {row['count']}")
            lines += [f"    {example}" for example in row["examples"]]
        lines += [
            "",
            f"points and boxes at short side {self.short_side}, reg_max {self.reg_max} "
            f"({self.looked_at} images, {self.objects} boxes; lengths in strides)",
            f"{'stride':>8}{'positives':>11}{'side: median':>14}{'greatest':>10}{'99 % of targets':>17}{'clamped':>9}",
        ]
        for row in self.levels:
            lines.append(
                f"{row.stride:>8}{row.positives:>11}{_length(row.side_median):>14}{_length(row.side_largest):>10}"
                f"{_length(row.target_99):>17}{row.clamped:>9.2%}"
            )
        lines.append(f"objects without a positive point: {self.without_positive} of {self.objects}")
        lines += [f"  {example}" for example in self.without_examples]
        if self.recommended_settings is not None:
            settings = self.recommended_settings.items()
            sizes = " ".join(f"--{key} {str(value).replace(' ', '')}" for key, value in settings)
            lines += [
                f"recommended: reg_max {self.recommended_reg_max}, "
                f"which clamps at most {MOST_CLAMPED:.1%} of the targets",
                f"recommended: {sizes}, which leaves {self.without_there:.1%} of the objects without a positive point",
            ]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def _length(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def check(
    data: str | Path | CocoDetection,
    image_dir: str | Path | None = None,
    *,
    config: str | Path | dict | Config | None = None,
    split: str = "train",
    images: int = 500,
    page: str | Path | None = None,
) -> DataReport:
    """Counts, sizes, classes, problems of a data set, and what the detector's assignment makes of its boxes.

    Args:
        data: what ``CocoDetection`` takes, or one that was made with ``train=False``.
        image_dir: folder of the images of a file; None: looked for beside it.
        config: the detector's, for sizes, strides and reg_max; None: the general defaults.
        split: part of a data set that has several.
        images: boxes of so many images, evenly spread, are assigned to points.
        page: write a picture of some images with their boxes to this file; its folder is made where missing.

    Raises:
        FileNotFoundError, ValueError: the data cannot be used; one line that names file and record.
    """
    config = load_config(config)
    dataset = data
    if not isinstance(dataset, CocoDetection):
        dataset = CocoDetection(data, image_dir, config=config.data, split=split)
    if page is not None:
        Path(page).parent.mkdir(parents=True, exist_ok=True)  # before the work, which would else be lost
    items = spread(len(dataset), images)
    found = positives(dataset, config, items)
    scale, there = _recommended_scale(dataset, config, items, found)
    short_side = sum(config.data.short_side) / 2
    report = DataReport(
        source=str(dataset.annotation_file),
        **_counts(dataset),
        problems={
            kind: {"count": count, "examples": list(dataset.problems.examples[kind])}
            for kind, count in dataset.problems.counts.items()
        },
        looked_at=len(items),
        short_side=round(short_side),
        reg_max=config.model.head.reg_max,
        objects=found.objects,
        without_positive=len(found.without),
        without_sizes=_spread_of([max(size) for _, _, size in found.without]),
        without_examples=[_object(dataset, *row) for row in found.without[:5]],
        levels=_levels(found, config.model.head.reg_max),
        clamped=found.share_beyond(config.model.head.reg_max),
        recommended_reg_max=_recommended_reg_max(found) if found.objects else None,
        recommended_short_side=round(short_side * scale) if found.objects else None,
        recommended_long_side=round(config.data.long_side * scale) if found.objects else None,
        recommended_settings=_sizes(config, scale) if found.objects else None,
        without_there=there,
    )
    report.notes = _notes(report)
    if page is not None:
        from gflv2.data.pictures import draw_page

        draw_page(dataset).save(page)
    return report


def _counts(dataset: CocoDetection) -> dict[str, Any]:
    names = dataset.class_names
    boxes, images = np.zeros(len(names), dtype=int), np.zeros(len(names), dtype=int)
    areas = dict.fromkeys(("small", "medium", "large"), 0)
    empty = crowds = doubled = 0
    for item in range(len(dataset)):
        rows, labels = dataset.annotations(item)
        rows, own = rows[labels >= 0], labels[labels >= 0]
        crowds += len(labels) - len(own)
        empty += len(own) == 0
        np.add.at(boxes, own, 1)
        images[np.unique(own)] += 1
        doubled += len(own) - len({(*row, label) for row, label in zip(rows.tolist(), own.tolist(), strict=True)})
        for area in (rows[:, 2] - rows[:, 0]) * (rows[:, 3] - rows[:, 1]):
            areas["small" if area < _SMALL else "medium" if area < _MEDIUM else "large"] += 1
    sizes = [dataset.size(item) for item in range(len(dataset))]
    heights, widths = (tuple(int(v) for v in _spread_of(sides)) for sides in zip(*sizes, strict=True))
    return {
        "images": len(dataset),
        "empty_images": int(empty),
        "boxes": int(boxes.sum()),
        "crowds": int(crowds),
        "classes": {n: {"boxes": int(b), "images": int(i)} for n, b, i in zip(names, boxes, images, strict=True)},
        "widths": widths,
        "heights": heights,
        "areas": areas,
        "doubled": int(doubled),
    }


def _spread_of(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Least, median, greatest."""
    return (float(min(values)), float(np.median(values)), float(max(values))) if len(values) else None


def _levels(found: Positives, reg_max: int) -> list[LevelReport]:
    rows = []
    for stride, sides, targets in zip(found.strides, found.sides, found.targets, strict=True):
        some = len(sides) > 0
        rows.append(
            LevelReport(
                stride=stride,
                positives=len(sides),
                side_median=float(np.median(sides)) if some else None,
                side_largest=float(sides.max()) if some else None,
                target_99=float(np.quantile(targets, 0.99)) if some else None,
                clamped=float((targets > reg_max - CLAMPED).mean()) if some else 0.0,
            )
        )
    return rows


def _sizes(config: Config, scale: float) -> dict[str, Any]:
    """Settings of an image size so many times the configuration's; of one side alone, the other would be the limit."""
    return {
        "data.short_side": [round(side * scale) for side in config.data.short_side],
        "data.long_side": round(config.data.long_side * scale),
        "data.test_short_side": round(config.data.test_short_side * scale),
    }


def _recommended_reg_max(found: Positives) -> int:
    """Never below 4, the number of bins that the distribution's statistics take."""
    targets = np.concatenate([level.ravel() for level in found.targets])
    if not targets.size:
        return 4
    return max(4, math.ceil(float(np.quantile(targets, 1 - MOST_CLAMPED)) + CLAMPED))


def _recommended_scale(
    dataset: CocoDetection, config: Config, items: Sequence[int], found: Positives
) -> tuple[float, float]:
    """The least of ``SCALES`` with few enough objects without a positive point, and their share there."""
    best = (1.0, found.share_without())
    for scale in SCALES[1:]:
        if best[1] <= MOST_WITHOUT:
            break
        share = positives(dataset, config, items, scale=scale).share_without()
        best = min(best, (scale, share), key=lambda pair: pair[1])
    return best


def _object(dataset: CocoDetection, item: int, row: int, size: tuple[float, float]) -> str:
    boxes, labels = dataset.annotations(item)
    box = [round(float(value), 1) for value in boxes[row]]
    name = dataset.class_names[int(labels[row])]
    return f"{dataset.path(item).name}: {name} {box}, {size[0]:.1f} × {size[1]:.1f} px in the network's input"


def _notes(report: DataReport) -> list[str]:
    notes = []
    absent = [name for name, row in report.classes.items() if row["boxes"] == 0]
    few = [name for name, row in report.classes.items() if 0 < row["boxes"] < FEW]
    if absent:
        notes.append(f"classes without a box, {len(absent)} of {len(report.classes)}: {shown(absent)}")
    if few:
        notes.append(f"classes with fewer than {FEW} boxes, {len(few)} of {len(report.classes)}: {shown(few)}")
    if report.doubled:
        notes.append(f"{report.doubled} boxes stand in their image a second time, with the same class")
    if not report.objects:
        notes.append(f"no box in the {report.looked_at} images looked at; reg_max and size cannot be recommended")
    if report.without_positive:
        least, median, most = report.without_sizes
        notes.append(
            f"{report.without_positive} of {report.objects} objects are never learnt: no point is positive for them; "
            f"their longer sides are {least:.1f} to {most:.1f} px, median {median:.1f}, in the network's input. Larger "
            "images (data.short_side, data.long_side) help"
        )
    if report.clamped > MOST_CLAMPED:
        notes.append(
            f"{report.clamped:.2%} of the targets lie beyond reg_max {report.reg_max} and are clamped; "
            f"model.head.reg_max {report.recommended_reg_max} holds them"
        )
    return notes


def quick_notes(
    config: Config, train_set: CocoDetection, val_set: CocoDetection | None, *, images: int = 200
) -> list[str]:
    """What training says before its first step: classes and images of the two sets, objects that are not learnt.

    Args:
        images: boxes of so many training images, evenly spread, are assigned to points.
    """
    notes = _classes_without_boxes(train_set, "training")
    if val_set is not None:
        notes += _classes_without_boxes(val_set, "validation")
        there = set(_places(train_set))
        both = [path for path in _places(val_set) if path in there]
        if both:
            notes.append(f"{len(both)} of {len(val_set)} validation images are training images too; first: {both[0]}")
    items = spread(len(train_set), images)
    found = positives(train_set, config, items)
    where = f"of {found.objects} objects in {len(items)} images"
    if found.without:
        longest = max(max(size) for _, _, size in found.without)
        notes.append(
            f"{len(found.without)} {where} get no positive point and are not learnt (longer side up to {longest:.0f} "
            "px in the network's input); larger images help, gflv2.data.check says more"
        )
    reg_max = config.model.head.reg_max
    beyond = found.share_beyond(reg_max)
    if config.model.head.kind == "gfl" and beyond > 0.01:
        notes.append(f"{beyond:.1%} of the distances to the sides lie beyond reg_max {reg_max} and are clamped")
    return notes


def _places(dataset: CocoDetection) -> list[str]:
    """Path of every image, links among its folders resolved: one question a folder, not one a file."""
    folders: dict[Path, Path] = {}
    places = []
    for item in range(len(dataset)):
        path = dataset.path(item)
        if path.parent not in folders:
            folders[path.parent] = path.parent.resolve()
        places.append(str(folders[path.parent] / path.name))
    return places


def _classes_without_boxes(dataset: CocoDetection, purpose: str) -> list[str]:
    used = {int(label) for item in range(len(dataset)) for label in np.unique(dataset.annotations(item)[1])}
    absent = [name for label, name in enumerate(dataset.class_names) if label not in used]
    total = len(dataset.class_names)
    if not used - {-1}:
        return [f"the {purpose} data has no box" + ("; AP cannot be measured" if purpose == "validation" else "")]
    return [f"classes without a {purpose} box, {len(absent)} of {total}: {shown(absent)}"] if absent else []
