"""COCO evaluation of detections, of a model over a data set, and inside a training loop."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gflv2.config import TTAConfig
from gflv2.data import Batch, CocoDetection, load_coco, make_loader
from gflv2.data.coco import class_mapping, read_json
from gflv2.data.loader import rank_and_world
from gflv2.data.problems import shown
from gflv2.engine.confusion import check_thresholds, confusion_matrix
from gflv2.engine.tta import batches_of_views, detect_views
from gflv2.extras import missing_package

METRICS = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
"""The twelve numbers in pycocotools's order; AP and AR without a suffix are means over IoU 0.50 to 0.95."""

ENGINES = ("pycocotools", "faster-coco-eval")


@dataclass
class EvalResult(Mapping):
    """The twelve COCO numbers, as a mapping from the names of ``METRICS`` to floats, and more beside them.

    A number is NaN where the ground truth has no object that it is about (pycocotools says −1 there), and 0 where there
    are objects but no detections.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)  # name -> {"AP", "AP50"}
    images: int = 0  # images that were evaluated
    boxes: int = 0  # ground-truth boxes on them, without crowds
    detections: int = 0
    max_detections: int = 100  # per image, the best of them, in all numbers but AR1 and AR10; also in "AR100"
    category_ids: dict[str, Any] = field(default_factory=dict)  # name -> id in the ground truth
    # (IoU .50 to .95, recall 0 to 1 in 101 steps, class): the evaluator's table, −1 where a class has no objects, and
    # the least score that reaches each recall. See gflv2.engine.curves.
    precision: np.ndarray | None = field(default=None, repr=False, compare=False)
    scores: np.ndarray | None = field(default=None, repr=False, compare=False)
    # The same with the size of objects last: all (which is ``precision``), small, medium, large.
    precision_by_size: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __getitem__(self, name: str) -> float:
        return self.metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for a JSON file; None stands for NaN, which JSON has not."""
        numbers = {name: _or_none(value) for name, value in self.metrics.items()}
        classes = {name: {key: _or_none(value) for key, value in row.items()} for name, row in self.per_class.items()}
        names = ("images", "boxes", "detections", "max_detections")
        counts = {name: getattr(self, name) for name in names}
        return {**numbers, "per_class": classes, "category_ids": dict(self.category_ids), **counts}

    def table(self, *, per_class: bool = True) -> str:
        """The numbers as text: overall, per size, and one line per class; "–" where there is nothing to measure."""
        m = {name: _shown(value) for name, value in self.metrics.items()}
        most = f"AR {self.max_detections:5d} per image"
        lines = [
            f"{self.images} images, {self.boxes} boxes, {self.detections} detections",
            "",
            f"{'':<20}{'all':>8}{'small':>8}{'medium':>8}{'large':>8}",
            f"{'AP   IoU .50–.95':<20}{m['AP']:>8}{m['AP_small']:>8}{m['AP_medium']:>8}{m['AP_large']:>8}",
            f"{'AP50 IoU .50':<20}{m['AP50']:>8}",
            f"{'AP75 IoU .75':<20}{m['AP75']:>8}",
            f"{most:<20}{m['AR100']:>8}{m['AR_small']:>8}{m['AR_medium']:>8}{m['AR_large']:>8}",
            f"{'AR    10 per image':<20}{m['AR10']:>8}",
            f"{'AR     1 per image':<20}{m['AR1']:>8}",
        ]
        if per_class and self.per_class:
            width = max(20, *(len(name) + 2 for name in self.per_class))
            lines += ["", f"{'class':<{width}}{'AP':>8}{'AP50':>8}"]
            for name, row in self.per_class.items():
                lines.append(f"{name:<{width}}{_shown(row['AP']):>8}{_shown(row['AP50']):>8}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _shown(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def evaluate_detections(
    ground_truth: str | Path | dict | Any,
    detections: str | Path | Sequence[Mapping[str, Any]],
    *,
    image_ids: Iterable[Any] | None = None,
    engine: str = "pycocotools",
    max_detections: int = 100,
) -> EvalResult:
    """The twelve COCO numbers of detections in COCO's result format.

    Args:
        ground_truth: COCO annotation file, its content, or a ``pycocotools.coco.COCO``. Not changed.
        detections: records ``{"image_id", "category_id", "bbox": (x, y, width, height), "score"}`` in original pixels,
            or a JSON file of them. May be empty. Not changed.
        image_ids: evaluate these images only; None: all of the file, those without detections or boxes too.
        engine: "pycocotools", or "faster-coco-eval" where that package is installed (same numbers, faster).
        max_detections: the best so many of each image count. COCO's own numbers are with 100; images with more objects
            need more.

    Raises:
        ValueError: a record is incomplete, or of an image or category that the ground truth does not have.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(map(repr, ENGINES))}, got {engine!r}")
    if isinstance(max_detections, bool) or not isinstance(max_detections, int) or max_detections < 1:
        raise ValueError(f"max_detections: expected an integer ≥ 1, got {max_detections!r}")
    index = load_coco(ground_truth)
    if isinstance(detections, (str, Path)):
        detections = read_json(detections, "file of detections")
        if not isinstance(detections, list):
            raise ValueError("detections: expected a list of records in the file, in COCO's result format")
    wanted = set(index.imgs) if image_ids is None else set(image_ids)
    missing = wanted - set(index.imgs)
    if missing:
        raise ValueError(f"image_ids: {min(missing, key=str)!r} is not among the images of the ground truth")
    records = [_complete(number, record, index) for number, record in enumerate(detections)]
    # Copies, because the evaluators write into the records, with small numbers for ids: one of the evaluators keeps ids
    # as floating-point numbers, and so takes large ones for each other, and texts are not taken everywhere.
    image_of = {own_id: number for number, own_id in enumerate(sorted(wanted), 1)}
    category_of = {own_id: number for number, own_id in enumerate(sorted(index.cats), 1)}

    def numbered(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**row, "image_id": image_of[row["image_id"]], "category_id": category_of[row["category_id"]]}
            for row in rows
            if row["image_id"] in wanted
        ]

    records = [{**record, "id": number} for number, record in enumerate(numbered(records), 1)]
    content = {
        "images": [{**i, "id": image_of[i["id"]]} for i in index.dataset["images"] if i["id"] in wanted],
        "annotations": numbered(index.dataset["annotations"]),
        "categories": [{**c, "id": category_of[c["id"]]} for c in index.dataset["categories"]],
    }
    boxes = sum(not annotation["iscrowd"] for annotation in content["annotations"])
    ids = {_name(index, category): category for category in sorted(index.cats)}
    if not wanted:
        metrics = dict.fromkeys(METRICS, math.nan)
        classes = {_name(index, i): {"AP": math.nan, "AP50": math.nan} for i in sorted(index.cats)}
        empty = np.full((10, 101, len(index.cats), 4), -1.0)
        return EvalResult(
            metrics, classes, 0, 0, 0, max_detections, ids, empty[..., 0], empty[..., 0], precision_by_size=empty
        )
    recalls, precision, scores = _run(engine, content, records, max_detections)
    numbers = [average_precisions(precision[:, :, k : k + 1]) for k in range(len(index.cats))]
    classes = {
        _name(index, category): {name: found[name] for name in ("AP", "AP50")}
        for category, found in zip(sorted(index.cats), numbers, strict=True)
    }
    metrics = average_precisions(precision) | dict(zip(METRICS[6:], recalls, strict=True))
    counts = len(wanted), boxes, len(records), max_detections
    return EvalResult(metrics, classes, *counts, ids, precision[..., 0], scores, precision_by_size=precision)


def average_precisions(precision: np.ndarray) -> dict[str, float]:
    """AP, AP50, AP75 and AP of each size; NaN where there are no objects.

    Args:
        precision: ``EvalResult.precision_by_size``, or a part of its classes, (10, 101, k, 4).
    """
    overall = {"AP": precision[..., 0], "AP50": precision[0, ..., 0], "AP75": precision[5, ..., 0]}
    by_size = {name: precision[..., size] for size, name in enumerate(METRICS[3:6], 1)}
    return {name: _mean(values) for name, values in (overall | by_size).items()}


def _name(index: Any, category: Any) -> str:
    """Name of a category, with its id where another one has the same name."""
    name = str(index.cats[category]["name"])
    twice = sum(str(other["name"]) == name for other in index.cats.values()) > 1
    return f"{name} ({category})" if twice else name


def _complete(number: int, record: Mapping[str, Any], index: Any) -> dict[str, Any]:
    """A detection with the fields that the evaluators read; ``area`` is that of its box."""
    try:
        x, y, w, h = (float(value) for value in record["bbox"])
        row = {"image_id": record["image_id"], "category_id": record["category_id"], "score": float(record["score"])}
        known = row["image_id"] in index.imgs, row["category_id"] in index.cats
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError(
            f"detections: record {number}: expected image_id, category_id, bbox (x, y, width, height) and score, "
            f"got {shown(record)}"
        ) from None
    if not all(map(math.isfinite, (x, y, w, h, row["score"]))):
        raise ValueError(f"detections: record {number}: expected finite numbers, got {shown(record)}")
    if not known[0]:
        raise ValueError(f"detections: record {number}: image_id {row['image_id']!r} is not in the ground truth")
    if not known[1]:
        raise ValueError(f"detections: record {number}: category_id {row['category_id']!r} is not in the ground truth")
    return {**row, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}


def _run(engine: str, content: dict, records: list[dict], limit: int) -> tuple[list[float], np.ndarray, np.ndarray]:
    """The six recalls; precision (IoU, recall, class, size) and, over all sizes, least score (IoU, recall, class), at
    ``limit`` detections per image.
    """
    if engine == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        try:
            from faster_coco_eval import COCO
            from faster_coco_eval import COCOeval_faster as COCOeval
        except ModuleNotFoundError as error:
            raise missing_package(error, "engine='faster-coco-eval'") from error
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports each step by print
        truth, found = COCO(), COCO()
        truth.dataset = content
        # Built by hand: pycocotools's loadRes fails on an empty list and copies every category.
        found.dataset = {**content, "annotations": records}
        truth.createIndex()
        found.createIndex()
        evaluation = COCOeval(truth, found, iouType="bbox")
        evaluation.params.maxDets = [min(1, limit), min(10, limit), limit]
        evaluation.evaluate()
        evaluation.accumulate()
    # (IoU .50 to .95, recall, class, size, limit) and the same without recall. The evaluators' own summary would look
    # for a limit of 100 and give −1 where there is none.
    names = ("precision", "recall", "scores")
    precision, recall, scores = (np.asarray(evaluation.eval[name]).copy() for name in names)
    recalls = [_mean(recall[:, :, 0, k]) for k in range(3)] + [_mean(recall[:, :, size, -1]) for size in (1, 2, 3)]
    return recalls, precision[..., -1], scores[:, :, :, 0, -1]


def _mean(values: np.ndarray) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else math.nan


class CocoEvaluator:
    """Collects the detections of batches, from every process, and evaluates them together.

    Args:
        ground_truth: COCO annotation file, its content, a ``pycocotools.coco.COCO``, or a ``CocoDetection``, whose file
            and class names are taken.
        class_names: name per label of the detections; None: labels are the file's categories in the order of their ids.
        engine, max_detections: see ``evaluate_detections``.

    Detections of classes that the file does not have are left out: nothing can be said about them. Only images that
    were given to ``update`` count, so that a run over a part of the data measures that part.
    """

    def __init__(
        self,
        ground_truth: str | Path | dict | Any,
        *,
        class_names: Sequence[str] | None = None,
        engine: str = "pycocotools",
        max_detections: int = 100,
    ) -> None:
        if engine not in ENGINES:
            raise ValueError(f"engine: expected one of {', '.join(map(repr, ENGINES))}, got {engine!r}")
        if isinstance(ground_truth, CocoDetection):
            class_names = ground_truth.class_names if class_names is None else class_names
            # What the data set was made of: read once, and not always a COCO file. Training's sets do not keep it.
            ground_truth = ground_truth.annotation_file if ground_truth.index is None else ground_truth.index
        self.ground_truth = load_coco(ground_truth)
        name = str(ground_truth) if isinstance(ground_truth, (str, Path)) else "ground_truth"
        self.class_names, self.category_ids, _ = class_mapping(self.ground_truth, class_names, name)
        self.engine = engine
        self.max_detections = max_detections
        self._found: dict[Any, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def reset(self) -> None:
        """Forget all detections, before another epoch."""
        self._found = {}

    def update(self, batch: Batch | Sequence[Any], detections: Sequence[Any]) -> None:
        """Add the detections of one batch.

        Args:
            batch: the batch, or its image ids alone.
            detections: per image an object with ``boxes`` (N, 4) x1 y1 x2 y2 in pixels of the **original** image,
                ``scores`` (N,) and ``labels`` (N,). An image that comes again (samplers fill up the last batch) is kept
                as it came first.
        """
        image_ids = batch.image_ids if isinstance(batch, Batch) else batch
        if len(image_ids) != len(detections):
            raise ValueError(f"detections: expected one per image, {len(image_ids)}, got {len(detections)}")
        for image_id, found in zip(image_ids, detections, strict=True):
            image_id = image_id.item() if isinstance(image_id, (torch.Tensor, np.generic)) else image_id
            boxes, scores, labels = (_array(value) for value in (found.boxes, found.scores, found.labels))
            if boxes.shape != (len(scores), 4) or scores.ndim != 1 or labels.shape != scores.shape:
                raise ValueError(
                    "detections: expected boxes (N, 4), scores (N,) and labels (N,), "
                    f"got shapes {boxes.shape}, {scores.shape} and {labels.shape}"
                )
            if labels.size and not 0 <= labels.min() <= labels.max() < len(self.class_names):
                raise ValueError(
                    f"detections: expected labels of {len(self.class_names)} classes, "
                    f"got labels from {labels.min():g} to {labels.max():g}"
                )
            self._found.setdefault(image_id, (boxes, scores, labels.astype(np.int64)))

    def records(self, found: Mapping[Any, tuple] | None = None) -> list[dict[str, Any]]:
        """Detections in COCO's result format, ready for a JSON file; None: those of this process."""
        rows = []
        for image_id, (boxes, scores, labels) in (self._found if found is None else found).items():
            for (x1, y1, x2, y2), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
                category = self.category_ids[label]
                if category is not None:
                    box = [x1, y1, x2 - x1, y2 - y1]
                    rows.append({"image_id": image_id, "category_id": category, "bbox": box, "score": score})
        return rows

    def compute(self) -> EvalResult:
        """Evaluate what all processes collected. Every process has to call it, and gets the same result."""
        return self.together(lambda found: None)

    def together(self, use: Callable[[Mapping[Any, tuple]], Any]) -> EvalResult:
        """``compute``, and before it ``use``, in the first process alone, of what all processes collected."""
        rank, world = rank_and_world()
        if world == 1:
            use(self._found)
            return self._evaluate(self._found)
        parts: list[Any] = [None] * world
        torch.distributed.all_gather_object(parts, self._found)
        # One process evaluates; an error must reach the others too, or they would wait for the result for ever.
        outcome: list[Any] = [None]
        if rank == 0:
            found: dict[Any, tuple] = {}
            for part in parts:
                found.update({image_id: rows for image_id, rows in part.items() if image_id not in found})
            try:
                use(found)
                outcome = [self._evaluate(found)]
            except Exception as error:
                outcome = [error]
        torch.distributed.broadcast_object_list(outcome, src=0)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    def _evaluate(self, found: Mapping[Any, tuple]) -> EvalResult:
        return evaluate_detections(
            self.ground_truth,
            self.records(found),
            image_ids=found.keys(),
            engine=self.engine,
            max_detections=self.max_detections,
        )


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().to("cpu", torch.float64).numpy()
    return np.asarray(value, dtype=np.float64)


def evaluate(
    model: torch.nn.Module,
    data: CocoDetection | torch.utils.data.DataLoader | str | Path,
    *,
    image_dir: str | Path | None = None,
    batch_size: int = 1,
    workers: int | None = None,
    device: torch.device | str | None = None,
    engine: str = "pycocotools",
    progress: bool = True,
    save_detections: str | Path | None = None,
    output: str | Path | None = None,
    confusion_iou: float = 0.5,
    confusion_score: float = 0.3,
    **detect_options: Any,
) -> EvalResult:
    """Run a detector over a data set and evaluate its detections in the original pixels of the images.

    Under ``torch.distributed`` every process runs its share and all get the same result.

    Args:
        model: a ``GFLV2``, or any module with ``detect(images, image_sizes, scale_factors)``.
        data: a COCO annotation file or what else docs/data.md lists (read with the model's config and class names), a
            ``CocoDetection`` made with ``train=False``, or a loader of one, e.g. from ``make_loader``.
        image_dir: folder of the images of an annotation file; None: looked for beside it.
        batch_size, workers: of the loader that is made for a file or data set. With a batch size of 1 no image is
            padded to the size of another.
        device: where to run; None: where the model is.
        engine: see ``evaluate_detections``.
        progress: show a progress bar.
        save_detections: also write the detections to this JSON file, in COCO's result format; its folder is made where
            missing.
        output: also write the precision-recall curves and the confusion matrix into this folder, as JSON, CSV and PNG
            (see `gflv2.engine.curves`).
        confusion_iou, confusion_score: which detections count in the matrix (see
            `gflv2.engine.confusion.confusion_matrix`).
        detect_options: passed to ``model.detect``, e.g. ``score_thr``. With more than 100 ``max_detections``, here or
            in the model's configuration, so many are evaluated.

    ``model.config.test.tta`` may ask for several views of each image.
    """
    from tqdm import tqdm

    if isinstance(data, (str, Path)):
        names = getattr(model, "class_names", None)
        data = CocoDetection(data, image_dir, config=model.config.data, train=False, class_names=names)
    if not isinstance(data, torch.utils.data.DataLoader):
        data = make_loader(data, batch_size, train=False, workers=workers)
    dataset = data.dataset
    if not isinstance(dataset, CocoDetection):
        raise TypeError(f"data: expected a loader of CocoDetection, got one of {type(dataset).__name__}")
    if dataset.train:
        raise ValueError("data: expected a data set made with train=False, got one with training's transforms")
    dataset.require_annotations()
    if save_detections is not None:
        Path(save_detections).parent.mkdir(parents=True, exist_ok=True)  # before the work, which would else be lost
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
        check_thresholds(confusion_iou, confusion_score)
    limit = detect_options.get("max_detections") or _limit_of(model)
    evaluator = CocoEvaluator(dataset, engine=engine, max_detections=max(limit, 100))
    device = torch.device(device) if device is not None else _device_of(model)
    rank, _ = rank_and_world()
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            bar = {"desc": "evaluate", "unit": "batch", "disable": not progress or rank > 0}
            tta = model.config.test.tta if hasattr(model, "config") else TTAConfig()
            if tta.active:
                limits = model.config.test.options(**detect_options)
                for views in tqdm(batches_of_views(data, tta.scales), total=len(data), **bar):
                    views = [batch.to(device, non_blocking=True) for batch in views]
                    found, _ = detect_views(model, views, flip=tta.flip, **limits)
                    evaluator.update(views[0], found)
            else:
                for batch in tqdm(data, **bar):
                    batch = batch.to(device, non_blocking=True)
                    found = model.detect(batch.images, batch.image_sizes, batch.scale_factors, **detect_options)
                    evaluator.update(batch, found)
    finally:
        model.train(was_training)
    matrix = None

    def use(found: Mapping[Any, tuple]) -> None:
        nonlocal matrix
        records = evaluator.records(found)
        if save_detections is not None:
            Path(save_detections).write_text(json.dumps(records))
        if output is not None:
            limits = {"iou_thr": confusion_iou, "score_thr": confusion_score}
            matrix = confusion_matrix(evaluator.ground_truth, records, image_ids=found, **limits)

    result = evaluator.together(use)
    if matrix is not None:
        from gflv2.engine.curves import write_curves

        write_curves(output, result, matrix)
    return result


def _limit_of(model: torch.nn.Module) -> int:
    """Detections per image that the model's configuration allows."""
    config = getattr(model, "config", None)
    return config.test.max_detections if config is not None else 100


def _device_of(model: torch.nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
