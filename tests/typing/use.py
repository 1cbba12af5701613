"""The public API as somebody calls it who checks types. Never run: `make lint` checks it with ``mypy --strict``.

``assert_type`` fails where a result's type changes, or has become Any.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import assert_type

import gflv2
from gflv2 import nn, ops


def operations(
    levels: list[Tensor],
    class_logits: list[Tensor],
    boxes: list[Tensor],
    labels: list[Tensor],
    predictor: ops.Predictor,
) -> None:
    strides, scales = [8.0, 16.0, 32.0, 64.0, 128.0], torch.ones(len(levels))
    shapes = [(level.shape[2], level.shape[3]) for level in levels]
    assert_type(ops.integral(levels, strides=strides), Tensor)
    assert_type(ops.dgqp(levels, *predictor[:4], scales=scales, topk=4, mean=True), Tensor)
    assert_type(ops.dgqp_statistics(levels[0], topk=4), Tensor)

    assignment = ops.atss(boxes, labels, level_shapes=shapes, strides=strides)
    assert_type(assignment, ops.Assignment)
    targets = ops.gfl_targets(class_logits, levels, assignment, boxes, strides=strides, predictor=predictor)
    assert_type(targets, ops.GFLTargets)
    sums = ops.normalisers(targets.sums)
    losses = ops.gfl_loss(class_logits, levels, targets, sums, strides=strides, scales=scales, predictor=predictor)
    assert_type(losses, ops.GFLLosses)
    assert_type(losses.qfl, Tensor)

    decoded = ops.decode(class_logits, levels, strides=strides, predictor=predictor, score_thr=0.05)
    assert_type(decoded, ops.Decoded)
    assert_type(ops.batched_nms(decoded, iou_thr=0.6), list[ops.Detections])


def losses_of_rows(logits: Tensor, target: Tensor, teacher: Tensor, boxes: Tensor, labels: Tensor) -> None:
    assert_type(ops.qfl((labels, target), logits=logits), Tensor)
    assert_type(ops.focal(logits, labels, kind="sigmoid_focal"), Tensor)
    assert_type(ops.varifocal([logits], (labels, target), detach=True), Tensor)
    assert_type(ops.dfl(logits, target, reduction="sum"), Tensor)
    assert_type(ops.distribution_kl(logits, teacher, temperature=2.0), Tensor)
    found = ops.dynamic_soft_label(logits, boxes, boxes, target, [boxes], [labels], topk=10, cost="simota")
    assert_type(found, ops.DynamicAssignment)
    assert_type(ops.giou(boxes, boxes, avg_factor=4.0), Tensor)
    assert_type(ops.iou(boxes, boxes), Tensor)


def modules() -> Sequence[torch.nn.Module]:
    return nn.Integral(reg_max=16), nn.DGQP(), nn.QualityFocalLoss(loss_weight=1.0), nn.GIoULoss(reduction="sum")


def backends(levels: list[Tensor]) -> str:
    with gflv2.use_backend("reference"):
        chosen = [choice.backend for choice in gflv2.explain("integral", levels) if choice.chosen]
    assert_type(chosen, list[str])
    return chosen[0]


def configurations() -> float:
    assert_type(gflv2.list_models(), list[str])
    return gflv2.load_config("gflv2_r50_fpn_1x").train.lr


def detector(images: Tensor, boxes: list[Tensor], labels: list[Tensor]) -> Path:
    model = gflv2.GFLV2("gflv2_lite0", num_classes=3, model__head__reg_topk=4)
    assert_type(model.loss(images, boxes, labels), dict[str, Tensor])
    assert_type(model.eval().detect(images, score_thr=0.3)[0].boxes, Tensor)
    return model.save("model.pt")
