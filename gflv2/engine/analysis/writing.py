"""The files of an analysis: the page, and the raw numbers beside it."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from gflv2.engine.analysis.page import page
from gflv2.engine.analysis.result import Analysis
from gflv2.files import write_whole
from gflv2.sides import SIDES


def write(found: Analysis, folder: str | Path) -> Path:
    """Write the page and the raw numbers into a folder, made where missing; files of an earlier call are replaced.

    ``report.html`` needs no network and no other file. Beside it: ``analysis.json`` (``Analysis.to_dict``) and, one
    line a sample, ``points.csv``, ``detections.csv``, ``classes.csv`` and ``precision_recall.csv``.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    write_whole(folder / "analysis.json", json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    for name, rows in _tables(found).items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_whole(folder / f"{name}.csv", text.getvalue())
    return write_whole(folder / "report.html", page(found))


def _tables(found: Analysis) -> dict[str, list]:
    """Rows of each CSV file; the first has the names of the columns."""
    seen, names = found.observations, found.dataset.class_names
    points, ids = seen.points, seen.image_ids
    columns = [name for name in ("score", "quality", "iou", "top1") if name in points]
    rows = zip(points.get("image", ()), points.get("label", ()), *(points[name] for name in columns), strict=True)
    tables = {"points": [("image_id", "class", *columns)]}
    tables["points"] += [(ids[image], names[label], *map(_short, values)) for image, label, *values in rows]

    name_of = {row["category_id"]: row["name"] for row in found.classes}
    head = ("image_id", "class", "score", "x", "y", "width", "height", "iou", "kind")
    extra = () if seen.top1 is None else ("top1", *(f"entropy_{side}" for side in SIDES))
    tables["detections"] = [(*head, *extra)]
    for number, record in enumerate(seen.records):
        numbers = (record["score"], *record["bbox"], found.errors.overlaps[number])
        row = (record["image_id"], name_of[record["category_id"]], *map(_short, numbers), found.errors.kinds[number])
        if seen.top1 is not None:
            row += (_short(seen.top1[number]), *map(_short, seen.entropy[number]))
        tables["detections"].append(row)

    keys = list(found.classes[0]) if found.classes else []
    tables["classes"] = [keys, *([_cell(row[key]) for key in keys] for row in found.classes)]
    curve = found.recall_curves
    tables["precision_recall"] = [("recall", *(f"precision_{iou}" for iou in curve))]
    tables["precision_recall"] += [
        (f"{place / 100:.2f}", *map(_short, values)) for place, values in enumerate(zip(*curve.values(), strict=True))
    ]
    return tables


def _short(value: float) -> str:
    return f"{value:.5g}"


def _cell(value: Any) -> Any:
    return ("" if math.isnan(value) else _short(value)) if isinstance(value, float) else value
