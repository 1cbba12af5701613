"""Precision over recall, from the evaluator's own table; and files and pictures of it and of the confusion matrix."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gflv2.engine.confusion import ConfusionMatrix
from gflv2.files import write_whole

IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
RECALLS = tuple(round(0.01 * i, 2) for i in range(101))
_SHOWN = (0, 5)  # IoU .50 and .75
_MOST_LINES, _MOST_CELLS = 20, 25  # classes with a line of their own; with a number in each cell


def precision_recall(result: Any) -> dict[str, Any]:
    """The curves as plain values.

    As COCO's evaluation has them: at 101 recalls, the precision is the highest at that recall or a greater one, and 0
    where the detections do not reach it. Their mean over the recalls is the AP.

    Args:
        result: an ``EvalResult``, of `gflv2.engine.evaluate`.

    Returns:
        ``recall`` (101 values), ``mean``: over the classes, and ``classes``: of each, with name, category id and AP.
        Curves are named "0.50", "0.75" and "0.50:0.95" (the mean over the ten IoUs). ``score`` is the least score of
        the detections that reach a recall at IoU .50. A class without objects has None in place of curves.
    """
    if result.precision is None or result.scores is None:
        raise ValueError("result: expected one of evaluate or evaluate_detections, with its table of precisions")
    classes = []
    for number, (name, row) in enumerate(result.to_dict()["per_class"].items()):
        table = result.precision[:, :, number]
        curves = None if (table < 0).any() else _curves(table)
        score = None if curves is None else result.scores[0, :, number].tolist()
        entry = {"name": name, "category_id": result.category_ids[name], **row}
        classes.append({**entry, "precision": curves, "score": score})
    known = result.precision[:, :, (result.precision >= 0).all((0, 1))]
    mean = _curves(known.mean(2)) if known.size else None
    return {"recall": list(RECALLS), "mean": mean, "classes": classes}


def _curves(table: np.ndarray) -> dict[str, list[float]]:
    """(10, 101) → the three curves."""
    named = {f"{IOUS[row]:.2f}": table[row] for row in _SHOWN} | {"0.50:0.95": table.mean(0)}
    return {name: values.tolist() for name, values in named.items()}


def write_curves(folder: str | Path, result: Any, confusion: ConfusionMatrix) -> list[Path]:
    """Write ``precision_recall`` and ``confusion_matrix`` as JSON, CSV and PNG files into a folder.

    Returns:
        The six paths.
    """
    folder = Path(folder)
    curves = precision_recall(result)
    contents = {
        "precision_recall.json": json.dumps(curves, indent=1),
        "precision_recall.csv": _curves_csv(curves),
        "precision_recall.png": _png(_draw_curves(curves)),
        "confusion_matrix.json": json.dumps(confusion.to_dict(), indent=1),
        "confusion_matrix.csv": _matrix_csv(confusion),
        "confusion_matrix.png": _png(_draw_matrix(confusion)),
    }
    return [write_whole(folder / name, content) for name, content in contents.items()]


def _curves_csv(curves: dict[str, Any]) -> str:
    """One line for each class, IoU and recall; the mean over the classes has no category id."""
    rows = []
    for entry in [{"name": "mean over classes", "precision": curves["mean"]}, *curves["classes"]]:
        for iou, values in (entry["precision"] or {}).items():
            scores = (entry.get("score") if iou == "0.50" else None) or [""] * len(values)
            head = (entry["name"], entry.get("category_id", ""), iou)
            rows += [(*head, *place) for place in zip(curves["recall"], values, scores, strict=True)]
    return _csv([("class", "category_id", "iou", "recall", "precision", "score"), *rows])


def _matrix_csv(confusion: ConfusionMatrix) -> str:
    head = f"object \\ detection (IoU ≥ {confusion.iou_thr:g}, score ≥ {confusion.score_thr:g})"
    labels = confusion.labels
    return _csv([(head, *labels), *((name, *row) for name, row in zip(labels, confusion.counts.tolist(), strict=True))])


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


# ---- pictures ----------------------------------------------------------------


def _figure(width: float, height: float) -> tuple[Any, Any]:
    # Without pyplot: no global state, window or thread is touched.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _draw_curves(curves: dict[str, Any]) -> Any:
    figure, axes = _figure(7.5, 5.0)
    known = [entry for entry in curves["classes"] if entry["precision"] is not None]
    if 1 < len(known) <= _MOST_LINES:
        for entry in known:
            label = f"{entry['name']}, AP50 {entry['AP50']:.3f}"
            axes.plot(curves["recall"], entry["precision"]["0.50"], linewidth=1, alpha=0.7, label=label)
    for (iou, values), style in zip((curves["mean"] or {}).items(), ("-", "--", ":"), strict=False):
        label = f"all classes, IoU {iou}: {np.mean(values):.3f}"
        axes.plot(curves["recall"], values, style, color="black", linewidth=2, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(alpha=0.3)
    if axes.get_lines():
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _draw_matrix(confusion: ConfusionMatrix) -> Any:
    labels, counts = confusion.labels, confusion.counts
    side = min(3.5 + 0.35 * len(labels), 16.0)
    figure, axes = _figure(side + 1, side)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the row", shrink=0.8)
    few = len(labels) <= _MOST_CELLS + 1
    size = 8 if few else 5
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
    axes.set_yticks(range(len(labels)), labels, fontsize=size)
    axes.set(xlabel="detected as", ylabel="object")
    axes.set_title(f"IoU ≥ {confusion.iou_thr:g}, score ≥ {confusion.score_thr:g}", fontsize=9)
    if few:
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            text = {"ha": "center", "va": "center", "fontsize": 7, "color": color}
            axes.text(column, row, str(counts[row, column]), **text)
    return figure
