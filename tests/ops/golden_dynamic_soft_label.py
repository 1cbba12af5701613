"""What the assigners of mmdet, NanoDet-Plus and DAMO-YOLO gave: the arrays, and how they were made.

``python -m tests.ops.golden_dynamic_soft_label`` writes ``tests/golden/dynamic_soft_label_*.npz`` anew. It needs mmdet
3.3 (with `gflv2.integrations.mmdet.standin`), and of NanoDet (be9b4a9) and DAMO-YOLO (319572e) a checkout each that
PYTHONPATH names; what is absent is left out. Inputs are drawn again from the seed; the arrays are outputs alone.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gflv2.ops.reference.boxes import distances_to_boxes, points_of_levels, strides_of_points

FOLDER = Path(__file__).resolve().parents[1] / "golden"
CASES = ("rtmdet", "nanodet", "simota", "align_ota")
_SHAPES, _STRIDES = [(20, 24), (10, 12), (5, 6)], [8.0, 16.0, 32.0]
_COUNTS, _CLASSES = (9, 1, 0, 60), 12


def golden_inputs(cost: str, device: torch.device | str = "cpu") -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of ``dynamic_soft_label``: multiples of 1/64, which NumPy draws alike everywhere."""
    draw = np.random.RandomState(CASES.index(cost))

    def number(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(draw.randint(int(low * 64), int(high * 64), size=shape).astype(np.float32) / 64)

    points, strides = points_of_levels(_SHAPES, _STRIDES), strides_of_points(_SHAPES, _STRIDES)
    truths, labels, boxes = [], [], []
    for count in _COUNTS:
        corner = torch.cat([number(0, 150, count, 1), number(0, 120, count, 1)], 1)
        truth = torch.cat([corner, corner + number(4, 90, count, 2)], 1)
        own = distances_to_boxes(points, strides[:, None] * number(0.25, 4, len(points), 4))
        if count:
            inside = ((points[:, None] > truth[:, :2]) & (points[:, None] < truth[:, 2:])).all(-1)
            near = truth[inside.int().argmax(1)] + number(-6, 6, len(points), 4)
            own = torch.where(inside.any(1, keepdim=True), near, own)
        truths.append(truth.to(device))
        labels.append(torch.from_numpy(draw.randint(0, _CLASSES, size=count)).to(device))
        boxes.append(own)
    values = number(-5, 2, len(_COUNTS), len(points), _CLASSES)
    if cost in ("simota", "align_ota"):
        values = (values + 5.5) / 8  # exact, within (0, 1)
    given = (values, torch.stack(boxes), points, strides)
    return (*(tensor.to(device) for tensor in given), truths, labels), {"cost": cost}


def golden_results(cost: str) -> tuple[Tensor, Tensor, Tensor]:
    """(B, A) index, IoU and labels."""
    with np.load(FOLDER / f"dynamic_soft_label_{cost}.npz") as arrays:
        return tuple(torch.from_numpy(arrays[name]) for name in ("gt_inds", "max_overlaps", "labels"))  # type: ignore[return-value]


def _assigner(cost: str) -> Any:
    if cost in ("rtmdet", "simota"):
        importlib.import_module("gflv2.integrations.mmdet").standin()
        found = importlib.import_module("mmdet.models.task_modules.assigners")
        instances = importlib.import_module("mmengine.structures").InstanceData
        assigner = (found.DynamicSoftLabelAssigner if cost == "rtmdet" else found.SimOTAAssigner)()
        return lambda values, priors, boxes, truth, label: assigner.assign(
            instances(bboxes=boxes, scores=values, priors=priors), instances(bboxes=truth, labels=label)
        )
    if cost == "nanodet":
        return importlib.import_module("nanodet.model.head.assigner.dsl_assigner").DynamicSoftLabelAssigner().assign
    return importlib.import_module("damo.base_models.core.ota_assigner").AlignOTAAssigner().assign


def main() -> None:
    for cost in CASES:
        try:
            assign = _assigner(cost)
        except ModuleNotFoundError as missing:
            print(f"{cost}: left out: {missing}")
            continue
        (values, boxes, points, strides, truths, labels), _ = golden_inputs(cost)
        priors = torch.cat([points, strides[:, None].expand(-1, 2)], 1)
        found = [assign(values[i], priors, boxes[i], truths[i], labels[i]) for i in range(len(truths))]
        arrays = {
            name: torch.stack([getattr(image, name) for image in found]).numpy()
            for name in ("gt_inds", "max_overlaps", "labels")
        }
        np.savez_compressed(FOLDER / f"dynamic_soft_label_{cost}.npz", **arrays)
        print(f"{cost}: {(arrays['gt_inds'] > 0).sum()} positives")


if __name__ == "__main__":
    main()
