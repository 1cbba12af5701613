"""What travels in an exported file beside the network: names, preprocessing, thresholds, the whole configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gflv2.models.detector import SingleStageDetector
from gflv2.version import __version__

FORMAT = "gflv2-export"
VERSION = 1
# What a detector cannot be made without.
_NEEDED = ("names", "category_ids", "size_multiple", "outputs", "pre_topk", "score_thr", "iou_thr", "max_detections")


def describe(
    model: SingleStageDetector, *, outputs: str, precision: str, step: int, test: Mapping[str, Any]
) -> dict[str, Any]:
    """The entries, as plain values.

    ``names``, ``category_ids`` (of the annotations that it was trained on), ``mean``, ``std`` (RGB, 0–255),
    ``strides``, ``point_offset`` and ``point_shift`` (the point of cell (i, j) lies at ((j + offset)·stride + shift,
    (i + offset)·stride + shift)), ``long_side``, ``short_side`` (limits of the resized image), ``size_multiple``
    (padded sizes are a multiple of it), ``outputs``, ``precision``, ``pre_topk``, ``score_thr``, ``iou_thr``,
    ``max_detections``, ``config``; and the format's name and version.
    """
    data = model.config.data
    return {
        "format": FORMAT,
        "version": VERSION,
        "gflv2_version": __version__,
        "names": list(model.class_names),
        "category_ids": list(model.category_ids),
        "mean": list(data.mean),
        "std": list(data.std),
        "strides": list(model.bbox_head.strides),
        "point_offset": model.bbox_head.grid.offset,
        "point_shift": model.bbox_head.grid.shift,
        "long_side": data.long_side,
        "short_side": data.test_short_side,
        "size_multiple": step,
        "outputs": outputs,
        "precision": precision,
        "pre_topk": test["pre_topk"],
        "score_thr": test["score_thr"],
        "iou_thr": test["iou_thr"],
        "max_detections": test["max_detections"],
        "config": model.config.to_dict(),
    }


def is_exported(path: str | Path) -> bool:
    """Whether a file is an ONNX file of `export`; others may be weights of NanoDet, say. Needs no package for ONNX."""
    path = Path(path)
    return path.suffix == ".onnx" and path.is_file() and json.dumps(FORMAT).encode() in path.read_bytes()


def to_texts(description: Mapping[str, Any]) -> dict[str, str]:
    """Each value as JSON: ONNX keeps texts only."""
    return {name: json.dumps(value) for name, value in description.items()}


def from_texts(texts: Mapping[str, str], path: Any) -> dict[str, Any]:
    """What ``to_texts`` wrote.

    Raises:
        ValueError: the file was not exported by this package, or by a newer one.
    """
    try:
        found = {name: json.loads(text) for name, text in texts.items()}
    except json.JSONDecodeError:
        found = {}
    if found.get("format") != FORMAT:
        raise ValueError(f"{path}: not a file of `gflv2 export`: its metadata has no format {FORMAT!r}")
    if found.get("version") != VERSION:
        raise ValueError(
            f"{path}: of version {found.get('version')} of the export format, this package reads {VERSION}"
        )
    if missing := [name for name in (*_NEEDED, "config") if name not in found]:
        raise ValueError(f"{path}: damaged: its metadata has no {', '.join(missing)}")
    return found
