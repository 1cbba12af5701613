"""What ``analyze`` found, as plain values and as text."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from gflv2.data import CocoDetection
from gflv2.engine.analysis.errors import Errors
from gflv2.engine.analysis.observe import Observations, UncertainSide
from gflv2.engine.analysis.relations import Relation, or_none

AUTHORS = {"GFLV1": 0.634, "GFLV2": 0.690}
"""Pearson coefficients of predicted and real IoU on COCO that the authors published (arXiv 2011.12885, section 4)."""

TITLES = {
    "score_iou_points": "score and IoU, at positive points",
    "quality_iou_points": "quality alone and IoU, at positive points",
    "top1_iou_points": "mean top-1 probability and IoU, same points",
    "score_iou_detections": "score and IoU, of detections",
    "top1_iou_detections": "mean top-1 probability and IoU, of detections",
    "score_iou_near": "score and IoU, of detections near an object",
    "top1_iou_near": "mean top-1 probability and IoU, same detections",
}


@dataclass
class Analysis:
    """What ``analyze`` found. ``pearson`` has the coefficients alone; `gflv2.engine.analysis.write` makes the files.

    Attributes:
        model, data: names. images, objects (without crowds), detections: their numbers.
        ap: AP, AP50, AP75, AP_small, AP_medium, AP_large as COCO's evaluation has them; NaN without objects.
        classes: of each class ``name``, ``category_id``, ``objects``, the numbers of ``ap``, and the mean over its
            positive points of ``score`` and ``iou``.
        relations: see ``analyze``; only those that the model has.
        errors: see `gflv2.engine.analysis.errors`.
        recall_curves: precision at the recalls 0, 0.01, …, 1, mean over the classes, for "0.50", "0.75", "0.50:0.95";
            empty without objects.
        uncertain: sides of detections, the highest entropy first.
        notes: what does not apply to this model or these data, and what was left out, in sentences.
        observations: the raw numbers behind it.
    """

    model: str
    data: str
    images: int
    objects: int
    detections: int
    ap: dict[str, float]
    classes: list[dict[str, Any]]
    relations: dict[str, Relation]
    errors: Errors
    recall_curves: dict[str, list[float]]
    uncertain: list[UncertainSide]
    notes: list[str]
    observations: Observations = field(repr=False)
    dataset: CocoDetection = field(repr=False)

    @property
    def pearson(self) -> dict[str, float]:
        """Pearson's coefficient of each relation; NaN where it is not defined."""
        return {name: found.pearson for name, found in self.relations.items()}

    def to_dict(self) -> dict[str, Any]:
        """All but the single samples as plain values for a JSON file; None stands for NaN."""
        return {
            "model": self.model,
            "data": self.data,
            "images": self.images,
            "objects": self.objects,
            "detections": self.detections,
            "ap": _plain(self.ap),
            "pearson": _plain(self.pearson),
            "authors_pearson": AUTHORS,
            "relations": {name: found.to_dict() for name, found in self.relations.items()},
            "errors": {
                "AP50": or_none(self.errors.ap50),
                "gains": _plain(self.errors.gains),
                "counts": self.errors.counts,
            },
            "classes": [_plain(row) for row in self.classes],
            "precision_recall": self.recall_curves,
            "uncertain": [asdict(side) for side in self.uncertain],
            "notes": self.notes,
        }

    def __str__(self) -> str:
        lines = [f"{self.model} on {self.data}: {self.images} images, {self.objects} objects, "]
        lines[0] += f"{self.detections} detections"
        lines.append("  ".join(f"{name} {shown(value)}" for name, value in self.ap.items()))
        width = max(map(len, TITLES.values()))
        lines += ["", f"{'':<{width}}{'Pearson':>8}{'samples':>9}"]
        for name, found in self.relations.items():
            lines.append(f"{TITLES[name]:<{width}}{shown(found.pearson):>8}{found.samples:>9}")
        lines += ["", f"{'error':<16}{'count':>7}  AP50 gained if mended"]
        for kind, gain in self.errors.gains.items():
            lines.append(f"{kind:<16}{self.errors.counts[kind]:>7}  {shown(gain)}")
        return "\n".join([*lines, *([""] if self.notes else []), *self.notes])


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {key: or_none(value) if isinstance(value, float) else value for key, value in row.items()}


def shown(value: float) -> str:
    """Three digits; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.3f}"
