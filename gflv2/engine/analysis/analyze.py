"""``analyze``: a detector on annotated images, its knowledge of its own boxes, its errors, and a page of both."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gflv2.data import CocoDetection, make_loader
from gflv2.engine.analysis.errors import LEFT_OUT, NEAR, Errors, decompose
from gflv2.engine.analysis.observe import Observations, has_distributions, observe
from gflv2.engine.analysis.relations import Relation, relation
from gflv2.engine.analysis.result import Analysis
from gflv2.engine.analysis.writing import write
from gflv2.engine.curves import precision_recall
from gflv2.engine.evaluate import CocoEvaluator, average_precisions, evaluate_detections
from gflv2.models.atss_head import ATSSHead
from gflv2.models.detector import SingleStageDetector


def analyze(
    model: SingleStageDetector,
    data: CocoDetection | str | Path,
    *,
    output: str | Path | None = None,
    image_dir: str | Path | None = None,
    batch_size: int = 1,
    workers: int | None = None,
    threshold: float = 0.3,
    sides: int = 24,
    progress: bool = True,
) -> Analysis:
    """How well a detector knows its own boxes, and what its errors cost.

    Relations, each with Pearson's coefficient, a curve and a picture:

    * ``score_iou_points``: predicted IoU against true IoU at the positive points of the assignment, before any NMS.
      Predicted is the joint score J of the class of the point's object; true is the IoU of the point's predicted box
      with that object. J is trained towards this IoU (quality focal loss, arXiv 2006.04388, section 3), so its curve is
      a reliability curve. The authors of GFLV2 give .690 for GFLV2 and .634 for GFLV1 on COCO (arXiv 2011.12885,
      section 4); they do not state which samples they took, so compare models on the same data, not with these numbers.
    * ``quality_iou_points``: the same of the quality σ(r) alone (section 3.2, equation 1: J = σ(c)·σ(r)); for ATSS the
      centerness.
    * ``top1_iou_points``: the highest probability of each side's distribution, mean over the four sides, against the
      true IoU (section 1, figure 2: the observation that the quality predictor rests on).
    * ``score_iou_detections``, ``top1_iou_detections``: of the detections after NMS; true IoU is the highest with an
      object of the detection's class, 0 where there is none. Detections on crowd regions are left out.
    * ``score_iou_near``, ``top1_iou_near``: of those of them near an object of their class (IoU ≥ 0.1). A distribution
      tells how sure a side is, not whether an object is there.

    Errors: see `gflv2.engine.analysis.errors`. AP: pycocotools, over all, per class and per size of object.

    Uncertain sides: of detections with at least ``threshold``, those whose distribution has the highest entropy, at
    most one a detection and two an image.

    Each image is seen once: ``model.config.test.tta`` is not used, which ``notes`` then say.

    Args:
        model: a ``GFLV2``; runs where it is, in evaluation mode, which is undone afterwards.
        data: annotations as docs/data.md lists them, or a ``CocoDetection`` made with ``train=False``.
        output: also `gflv2.engine.analysis.write` into this folder.
        image_dir: folder of the images; None: looked for beside the annotations.
        batch_size, workers: of the loader. With a batch size of 1 no image is padded to the size of another.
        threshold: least score of the detections whose sides are shown.
        sides: how many sides to show.
        progress: show a progress bar.

    Raises:
        ValueError, FileNotFoundError: data without annotations, or that cannot be read; numbers out of their range.
        TypeError: a model of another kind, an exported file for example: it gives detections alone.
    """
    from tqdm import tqdm

    if not isinstance(model, SingleStageDetector):
        raise TypeError(f"model: expected a GFLV2, whose outputs can be looked at, got {type(model).__name__}")
    _check(threshold, sides, batch_size)
    if not isinstance(data, CocoDetection):
        data = CocoDetection(data, image_dir, config=model.config.data, train=False, class_names=model.class_names)
    elif data.train:
        raise ValueError("data: expected a data set made with train=False, got one with training's transforms")
    data.require_annotations()
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)  # before the work, which would else be lost
    options = model.config.test.options()
    limit = max(options["max_detections"], 100)
    evaluator = CocoEvaluator(data, max_detections=limit)
    loader = make_loader(data, batch_size, train=False, workers=workers)
    states = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            bar = tqdm(loader, desc="analyze", unit="batch", disable=not progress)
            seen = observe(model, bar, evaluator, threshold=threshold, sides=sides, options=options)
    finally:
        for module, training in states:
            module.training = training
    found = _result(model, data, evaluator.ground_truth, seen, limit)
    if output is not None:
        write(found, output)
    return found


def _check(threshold: float, sides: int, batch_size: int) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a number from 0 to 1, got {threshold!r}")
    for name, value, least in (("sides", sides, 0), ("batch_size", batch_size, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer ≥ {least}, got {value!r}")


def _result(model, data: CocoDetection, index: Any, seen: Observations, limit: int) -> Analysis:
    evaluated = evaluate_detections(index, seen.records, image_ids=seen.image_ids, max_detections=limit)
    # In the evaluator's order: it decides between equal scores of two images.
    annotations = {image_id: index.imgToAnns.get(image_id, []) for image_id in sorted(seen.image_ids)}
    errors = decompose(annotations, seen.records, annotations)
    objects = [row for rows in annotations.values() for row in rows if not row["iscrowd"]]
    return Analysis(
        model=model.config.name or "model",
        data=str(data.annotation_file),
        images=evaluated.images,
        objects=len(objects),
        detections=len(seen.records),
        ap=average_precisions(evaluated.precision_by_size),
        classes=_classes(data, index, objects, evaluated, seen),
        relations=_relations(seen, errors),
        errors=errors,
        recall_curves=precision_recall(evaluated)["mean"] or {},
        uncertain=seen.uncertain,
        notes=_notes(model, seen, errors, objects),
        observations=seen,
        dataset=data,
    )


def _relations(seen: Observations, errors: Errors) -> dict[str, Relation]:
    points = seen.points
    pairs = {
        f"{name}_iou_points": (points[name], points["iou"]) for name in ("score", "quality", "top1") if name in points
    }
    scores = np.array([record["score"] for record in seen.records], dtype=np.float64)
    counted = np.array([kind != LEFT_OUT for kind in errors.kinds], dtype=bool)
    for name, chosen in (("detections", counted), ("near", counted & (errors.overlaps >= NEAR))):
        pairs[f"score_iou_{name}"] = (scores[chosen], errors.overlaps[chosen])
        if seen.top1 is not None:
            pairs[f"top1_iou_{name}"] = (seen.top1[chosen], errors.overlaps[chosen])
    return {name: relation(*pair) for name, pair in pairs.items()}


def _classes(data, index, objects, evaluated, seen) -> list[dict[str, Any]]:
    label_of = {category: label for label, category in enumerate(data.category_ids) if category is not None}
    rows = []
    for place, category in enumerate(sorted(index.cats)):
        count = sum(row["category_id"] == category for row in objects)
        row = {"name": str(index.cats[category]["name"]), "category_id": category, "objects": count}
        row |= average_precisions(evaluated.precision_by_size[:, :, place : place + 1])
        inside = seen.points["label"] == label_of.get(category, -1) if seen.points else np.zeros(0, bool)
        for name in ("score", "iou"):
            row[f"mean_{name}"] = float(seen.points[name][inside].mean()) if inside.any() else math.nan
        rows.append(row)
    return rows


def _notes(model, seen: Observations, errors: Errors, objects: list) -> list[str]:
    head, notes = model.bbox_head, []
    if isinstance(head, ATSSHead):
        notes.append(
            "This ATSS head regresses distances: it has no distributions, so top-1 probabilities and uncertain "
            "sides do not apply. Its score is class probability times centerness and is not trained to be an IoU: its "
            "correlation can be compared, its distance from the diagonal is no error of calibration. Its quality is "
            "the centerness."
        )
    elif "quality" not in seen.points:
        notes.append(
            "This head has no quality predictor beside the class scores (GFLV1, or the composed form): the score "
            "itself is trained to be the IoU, and there is no quality alone to compare."
        )
    if model.config.test.tta.active:
        notes.append("Each image was seen once: test.tta is set, but not used here.")
    if seen.unknown:
        notes.append(f"{seen.unknown} detections of classes that the data do not have were left out.")
    crowd = errors.kinds.count(LEFT_OUT)
    if crowd:
        notes.append(f"{crowd} detections on crowd regions are neither right nor wrong, and were left out.")
    if not objects:
        notes.append("The data have no objects: AP, errors and relations to objects are not defined.")
    if has_distributions(head) and not seen.uncertain:
        notes.append("No detection reaches the threshold of the uncertain sides.")
    return notes
