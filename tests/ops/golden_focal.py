"""Writes the golden cases ``focal_*``: figures that other packages' losses give, of the same logits, labels and scores.

    python -m tests.ops.golden_focal mmdet          # in an environment with mmdet and torchvision
    python -m tests.ops.golden_focal transformers   # in one with transformers

(`make test-integrations` makes both.) Each package runs its own code, in float64; kept are the total and the gradient.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROWS, CLASSES, FACTOR = 60, 7, 9.0
FOLDER = Path(__file__).resolve().parents[1] / "golden"
Figures = Iterator[tuple[str, dict[str, Any], Callable[[Tensor], Tensor]]]  # name, arguments of `focal`, the package's


def inputs() -> dict[str, Tensor]:
    """Logits, labels (C: background), and a pair of boxes a row, whose IoU is the score."""
    draw = torch.Generator().manual_seed(7)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=draw)
    labels = labels.where(torch.rand(ROWS, generator=draw) < 0.4, CLASSES)
    # Centre, width and height, in units of the image.
    found = 0.2 + 0.4 * torch.rand(ROWS, 4, generator=draw, dtype=torch.float64)
    boxes = (found + 0.05 * torch.randn(ROWS, 4, generator=draw, dtype=torch.float64)).clamp(min=0.05)
    corners = [torch.cat([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], 1) for box in (found, boxes)]
    sides = (torch.minimum(*(c[:, 2:] for c in corners)) - torch.maximum(*(c[:, :2] for c in corners))).clamp(min=0)
    inner, (one, other) = sides.prod(1), (box[:, 2:].prod(1) for box in (found, boxes))
    scores = inner / (one + other - inner)
    pred = 3 * torch.randn(ROWS, CLASSES, generator=draw, dtype=torch.float64) - 1
    return {"pred": pred, "label": labels, "score": scores, "found": found, "boxes": boxes}


def of_mmdet(given: dict[str, Tensor]) -> Figures:
    """FocalLoss, VarifocalLoss; and torchvision's sigmoid_focal_loss."""
    importlib.import_module("gflv2.integrations.mmdet").standin()
    losses = importlib.import_module("mmdet.models.losses")
    ops = importlib.import_module("torchvision.ops")
    hit = torch.nn.functional.one_hot(given["label"], CLASSES + 1)[:, :-1].double()
    for settings in ({}, {"alpha": 0.6, "gamma": 1.5}):
        loss = losses.FocalLoss(**settings)
        name = "FocalLoss" + "".join(f"_{key}{value}" for key, value in settings.items())
        options = {"kind": "sigmoid_focal", **settings}
        yield name, options, lambda pred, loss=loss: loss(pred, given["label"], avg_factor=FACTOR)
    dense = hit * given["score"][:, None]
    for settings in ({}, {"alpha": 0.5, "gamma": 1.5, "iou_weighted": False}):
        loss = losses.VarifocalLoss(**settings)
        name = "VarifocalLoss" + "".join(f"_{key}{value}" for key, value in settings.items())
        yield name, {"kind": "varifocal", **settings}, lambda pred, loss=loss: loss(pred, dense, avg_factor=FACTOR)
    for alpha in (0.25, -1.0):
        yield (
            f"torchvision_alpha{alpha}",
            {"kind": "sigmoid_focal", "alpha": alpha},
            lambda pred, a=alpha: ops.sigmoid_focal_loss(pred, hit, alpha=a, reduction="sum") / FACTOR,
        )


def of_transformers(given: dict[str, Tensor]) -> Figures:
    """Varifocal loss of RT-DETR and D-FINE, matchability-aware loss of DEIMv2, IoU-aware cross-entropy of LW-DETR."""
    rows = (given["label"] < CLASSES).nonzero()[:, 0]
    targets = [{"class_labels": given["label"][rows], "boxes": given["boxes"][rows]}]
    matches = [(rows, torch.arange(len(rows)))]

    def run(module: str, owner: str, method: str, **attributes: Any) -> Callable[[Tensor], Tensor]:
        kind = getattr(importlib.import_module(f"transformers.loss.{module}"), owner)
        criterion = SimpleNamespace(num_classes=CLASSES, **attributes)
        criterion._get_source_permutation_idx = kind._get_source_permutation_idx.__get__(criterion)

        def call(pred: Tensor) -> Tensor:
            outputs = {"logits": pred[None], "pred_boxes": given["found"][None]}
            (found,) = getattr(kind, method)(criterion, outputs, targets, matches, FACTOR).values()
            return found

        return call

    options = {"alpha": 0.75, "gamma": 2.0}
    yield (
        "vfl",
        {"kind": "varifocal", "detach": True, **options},
        run("loss_d_fine", "DFineLoss", "loss_labels_vfl", **options),
    )
    for alpha in (None, 0.3):
        call = run("loss_deimv2", "Deimv2Loss", "loss_labels_mal", mal_alpha=alpha, gamma=1.5)
        yield f"mal_alpha{alpha}", {"kind": "matchability_aware", "alpha": alpha, "gamma": 1.5}, call
    for alpha in (0.25, 0.6):
        call = run("loss_lw_detr", "LwDetrImageLoss", "loss_labels", focal_alpha=alpha)
        yield f"ia_bce_alpha{alpha}", {"kind": "iou_aware_bce", "alpha": alpha}, call


def main(package: str) -> None:
    given = inputs()
    arrays = {name: given[name] for name in ("pred", "label", "score")}
    settings = {}
    for name, options, call in {"mmdet": of_mmdet, "transformers": of_transformers}[package](given):
        pred = given["pred"].clone().requires_grad_()
        total = call(pred)
        arrays[f"loss_{name}"], arrays[f"grad_{name}"] = total.detach(), torch.autograd.grad(total, pred)[0]
        settings[name] = options
    np.savez_compressed(FOLDER / f"focal_{package}.npz", **{name: value.numpy() for name, value in arrays.items()})
    meanings = {"pred": "logits", "label": "class index; C: background", "score": "IoU of the row's boxes"}
    meta = {
        "case": f"focal_{package}",
        "source": f"{package} {version(package)}"
        + (f", torchvision {version('torchvision')}" if package == "mmdet" else ""),
        "avg_factor": FACTOR,
        "settings": settings,
        "arrays": {
            name: {"shape": list(value.shape), "dtype": str(value.numpy().dtype), "meaning": meanings.get(name, name)}
            for name, value in arrays.items()
        },
    }
    (FOLDER / f"focal_{package}.json").write_text(json.dumps(meta, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
