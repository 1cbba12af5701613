"""One pass of a detector over a data set: what it says at the training's positive points, and what it detects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gflv2.data import Batch
from gflv2.engine.evaluate import CocoEvaluator
from gflv2.models.atss_head import ATSSHead
from gflv2.models.dense_head import DenseHead, HeadOutput, shapes_of
from gflv2.models.detector import SingleStageDetector
from gflv2.ops import iou
from gflv2.ops.levels import flatten_levels
from gflv2.ops.reference.boxes import points_of_levels, strides_of_points
from gflv2.sides import SIDES

_DIRECTION = torch.tensor([-1.0, -1.0, 1.0, 1.0])  # in which a side lies from its point


@dataclass
class UncertainSide:
    """One side of a detection, and its distribution.

    Attributes:
        image_id, box (x1, y1, x2, y2), score, label: of the detection, in pixels of the original image.
        side: "left", "top", "right" or "bottom".
        entropy: of the distribution, in bits. spread: its standard deviation, in pixels.
        positions, probabilities: of its bins: where in the image (x of left and right, else y), how likely.
    """

    image_id: Any
    box: tuple[float, ...]
    score: float
    label: int
    side: str
    entropy: float
    spread: float
    positions: list[float]
    probabilities: list[float]


@dataclass
class Observations:
    """What one pass found.

    Attributes:
        points: arrays (P,), one entry a positive point of the assignment: ``image`` (place in ``image_ids``),
            ``label``, ``score`` (J of its object's class), ``iou`` (of its predicted box with its object) and, where
            the model has them, ``quality`` (J divided by the class probability) and ``top1`` (the highest probability
            of a side's distribution, mean over the four sides).
        records: detections in COCO's result format, those of classes that the data do not have left out.
        top1: (N,) of these, or None. entropy: (N, 4) in bits, or None.
        unknown: detections that were left out.
        uncertain: sides of detections, the highest entropy first, one a detection and two an image at most.
        image_ids: in the order of the pass.
    """

    points: dict[str, np.ndarray] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    top1: np.ndarray | None = None
    entropy: np.ndarray | None = None
    unknown: int = 0
    uncertain: list[UncertainSide] = field(default_factory=list)
    image_ids: list[Any] = field(default_factory=list)


def has_distributions(head: DenseHead) -> bool:
    """Whether a head predicts its sides as distributions."""
    return hasattr(head, "integral")


def observe(
    model: SingleStageDetector,
    batches: Iterable[Batch],
    evaluator: CocoEvaluator,
    *,
    threshold: float,
    sides: int,
    options: dict[str, Any],
) -> Observations:
    """Run the model over batches with their boxes.

    Args:
        evaluator: knows the data's categories.
        threshold: least score of detections whose sides are shown.
        sides: how many uncertain sides to keep.
        options: as ``DenseHead.detect``.
    """
    head, seen = model.bbox_head, Observations()
    distributed = has_distributions(head)
    device = next(model.parameters()).device
    parts: list[dict[str, Tensor]] = []
    top1, entropy = [np.zeros(0)], [np.zeros((0, 4))]
    for batch in batches:
        batch = batch.to(device)
        output = model(batch.images)
        part = _at_positives(head, output, batch)
        part["image"] = part["image"] + len(seen.image_ids)
        parts.append(part)
        found = head.detect(output, batch.image_sizes, batch.scale_factors, return_distributions=distributed, **options)
        for image_id, factors, detections in zip(batch.image_ids, batch.scale_factors, found, strict=True):
            known = [evaluator.category_ids[label] is not None for label in detections.labels.tolist()]
            seen.unknown += known.count(False)
            evaluator.update([image_id], [detections])
            if distributed:
                p = detections.distributions
                entropies = torch.special.entr(p).sum(-1) / torch.log(torch.tensor(2.0))
                keep = torch.tensor(known, dtype=torch.bool, device=p.device)
                top1.append(_numpy(p.amax(-1).mean(-1)[keep]))
                entropy.append(_numpy(entropies[keep]))
                shapes = shapes_of(output.class_logits)
                rows = _uncertain(head, shapes, detections, entropies, factors, image_id, threshold)
                seen.uncertain = sorted(seen.uncertain + rows, key=lambda side: -side.entropy)[:sides]
        seen.image_ids += batch.image_ids
    names = parts[0] if parts else {}
    seen.points = {name: np.concatenate([_numpy(part[name]) for part in parts]) for name in names}
    seen.records = evaluator.records()
    if distributed:
        seen.top1, seen.entropy = np.concatenate(top1), np.concatenate(entropy)
    return seen


def _at_positives(head: DenseHead, output: HeadOutput, batch: Batch) -> dict[str, Tensor]:
    """The values of ``Observations.points`` for one batch."""
    truth = (batch.boxes, batch.labels, batch.padded_sizes, batch.ignore_boxes)
    assignment = head.assign(output, *truth)
    image, place = (assignment.index > 0).nonzero(as_tuple=True)
    label = assignment.labels[image, place]
    chosen = (image, place, label)
    score = flatten_levels([level.float() for level in head.joint_scores(output)])[chosen]
    values = {"image": image, "label": label, "score": score}
    if isinstance(head, ATSSHead):
        target = torch.zeros(len(image), 4, device=score.device)
        for number, boxes in enumerate(batch.boxes):
            inside = image == number
            target[inside] = boxes[assignment.index[number, place[inside]] - 1]
        values["iou"] = iou(head.boxes(output)[image, place].float(), target)
        values["quality"] = output.quality_logits[image, place].float().sigmoid()
        return values
    values["iou"] = head.targets(output, assignment, batch.boxes, batch.padded_sizes).scores[image, place]
    if output.predictor is not None or output.quality_logits is not None:
        classes = flatten_levels([level.float() for level in output.class_logits])[chosen]
        # J = σ(c)·σ(r); σ(c) may round to 0 only where c < −103.
        values["quality"] = (score / classes.sigmoid().clamp(min=1e-30)).clamp(max=1)
    scaled = [level.float() * scale for level, scale in zip(output.box_logits, output.scales, strict=True)]
    rows = flatten_levels(scaled)[image, place]
    values["top1"] = rows.unflatten(1, (4, -1)).softmax(-1).amax(-1).mean(-1)
    return values


def _uncertain(head, shapes, detections, entropies, factors, image_id, threshold) -> list[UncertainSide]:
    """The two most uncertain sides of one image, of different detections."""
    chosen = (detections.scores >= threshold).nonzero()[:, 0]
    if not len(chosen):
        return []
    best, side = entropies[chosen].max(1)
    order = best.argsort(descending=True, stable=True)[:2]
    rows, sides = chosen[order], side[order]
    points = points_of_levels(shapes, head.strides, offset=head.grid.offset, device=rows.device) + head.grid.shift
    strides = strides_of_points(shapes, head.strides, device=rows.device)
    found = []
    for row, number in zip(rows.tolist(), sides.tolist(), strict=True):
        point, axis = detections.points[row], number % 2
        distances = head.integral.project.float() * strides[point] * _DIRECTION[number].item()
        positions = (points[point, axis] + distances) / factors[axis]
        p = detections.distributions[row, number].float()
        mean = (p * positions).sum()
        found.append(
            UncertainSide(
                image_id,
                tuple(detections.boxes[row].tolist()),
                detections.scores[row].item(),
                int(detections.labels[row]),
                SIDES[number],
                entropies[row, number].item(),
                (p * (positions - mean).square()).sum().sqrt().item(),
                positions.tolist(),
                p.tolist(),
            )
        )
    return found


def _numpy(values: Tensor) -> np.ndarray:
    values = values.detach().cpu()
    return (values.double() if values.is_floating_point() else values).numpy()
