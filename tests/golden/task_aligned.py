"""Writes task_aligned_PACKAGE.npz: what the package's own TaskAlignedAssigner gives. Run in the package's environment:

    .venv-integrations/ultralytics/bin/python -m tests.golden.task_aligned ultralytics

Inputs are stored beside the results, so that no generator of random numbers has to stay what it is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.ops.task_aligned_cases import Case

FOLDER = Path(__file__).parent
CASE = Case(counts=(9, 0, 14), size=80, form="padded", seed=5)
# name → (topk, topk2)
ULTRALYTICS = {"ten": (10, None), "one": (7, 1)}


def ultralytics(inputs: dict[str, Any]) -> tuple[str, dict[str, np.ndarray]]:
    """Of each setting: index, summed target scores, and where the metric is 0, in which torch's order decides."""
    from ultralytics import __version__
    from ultralytics.utils.tal import TaskAlignedAssigner

    found = {}
    slots = inputs["gt_boxes"].shape[1]
    mask = (torch.arange(slots) < inputs["counts"][:, None])[..., None]
    for name, (topk, topk2) in ULTRALYTICS.items():
        assigner = TaskAlignedAssigner(topk, CASE.classes, alpha=0.5, beta=6.0, stride=[8, 16, 32], topk2=topk2)
        given = (inputs["scores"], inputs["boxes"], inputs["points"], inputs["gt_labels"][..., None].float())
        _, _, scores, positive, number = assigner(*given, inputs["gt_boxes"] * mask, mask)
        found[f"{name}_index"] = torch.where(positive, number + 1, 0).numpy()
        found[f"{name}_scores"] = scores.sum(-1).numpy()
        found[f"{name}_labels"] = torch.where(scores.sum(-1) > 0, scores.argmax(-1), -1).numpy()
    return f"ultralytics {__version__}, TaskAlignedAssigner", found


def mmdet(inputs: dict[str, Any]) -> tuple[str, dict[str, np.ndarray]]:
    from gflv2.integrations.mmdet import standin

    standin()
    from mmdet.models.task_modules.assigners import TaskAlignedAssigner
    from mmdet.version import __version__
    from mmengine.structures import InstanceData

    assigner, parts = TaskAlignedAssigner(topk=13), []
    priors = torch.cat([inputs["points"] - 4, inputs["points"] + 4], 1)
    for image, count in enumerate(inputs["counts"].tolist()):
        predicted = InstanceData(priors=priors, bboxes=inputs["boxes"][image], scores=inputs["scores"][image])
        boxes, labels = inputs["gt_boxes"][image, :count], inputs["gt_labels"][image, :count]
        result = assigner.assign(predicted, InstanceData(bboxes=boxes, labels=labels), alpha=1, beta=6)
        parts.append((result.gt_inds, result.labels, result.max_overlaps.clamp(min=0), result.assign_metrics))
    names = ("thirteen_index", "thirteen_labels", "thirteen_iou", "thirteen_scores")
    arrays = {name: torch.stack(part).numpy() for name, part in zip(names, zip(*parts, strict=True), strict=True)}
    return f"mmdet {__version__}, TaskAlignedAssigner", arrays


def main(package: str) -> None:
    inputs = {name: value for name, value in CASE.inputs().items() if name not in CASE.options}
    source, found = {"ultralytics": ultralytics, "mmdet": mmdet}[package](inputs)
    stored = {name: tensor.numpy() for name, tensor in inputs.items()}
    np.savez_compressed(FOLDER / f"task_aligned_{package}.npz", **stored, **found)
    meta = {"case": f"task_aligned_{package}", "source": source, "torch": torch.__version__}
    (FOLDER / f"task_aligned_{package}.json").write_text(json.dumps(meta, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
