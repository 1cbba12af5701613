"""mmdet 3.3: its losses, ATSSAssigner, and the loss and the decoding of GFLHead (which is GFLV1: no quality predictor).

mmcv-lite is enough: what it lacks, `gflv2.integrations.mmdet.standin` takes from torchvision.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.harness.cases import STRIDES, Case

PIP = 'pip install mmdet==3.3.0 mmengine==0.10.7 mmcv-lite==2.1.0 "setuptools<81"'


@functools.cache
def load() -> None:
    """Import mmdet.

    Raises:
        peers.Absent: it is not there, or cannot be imported.
    """
    if importlib.util.find_spec("mmdet") is None:
        raise peers.Absent(f"not installed: {PIP}")
    try:
        importlib.import_module("gflv2.integrations.mmdet").standin()
        importlib.import_module("mmdet.models")
    except Exception as error:  # it fails in many ways beside a newer torch or numpy
        raise peers.Absent(f"cannot be imported ({type(error).__name__}: {error}): {PIP}") from error


def _module(path: str) -> Any:
    load()
    return importlib.import_module(f"mmdet.{path}")


def qfl(case: Case) -> Callable[..., Tensor] | None:
    loss = _module("models.losses").QualityFocalLoss()
    if case.form != "logits":
        return None

    def call(target, *, logits, weight, avg_factor) -> Tensor:
        return loss(logits, target, weight=weight, avg_factor=avg_factor)

    return call


def focal(case: Case) -> Callable[..., Tensor] | None:
    losses = _module("models.losses")
    if case.form == "sigmoid_focal":
        loss = losses.FocalLoss()
        return lambda logits, target, *, kind, weight, avg_factor: loss(logits, target, weight, avg_factor)
    if case.form != "varifocal":
        return None
    loss = losses.VarifocalLoss()

    def call(logits, target, *, kind, weight, avg_factor) -> Tensor:
        labels, scores = target
        dense = torch.nn.functional.one_hot(labels, logits.shape[1] + 1)[:, :-1] * scores[:, None]
        return loss(logits, dense, weight[:, None], avg_factor)

    return call


def dfl(case: Case) -> Callable[..., Tensor]:
    return _module("models.losses").DistributionFocalLoss()


def distribution_kl(case: Case) -> Callable[..., Tensor]:
    loss = _module("models.losses").KnowledgeDistillationKLDivLoss(T=10)

    def call(logits, teacher_logits, *, temperature, weight, avg_factor) -> Tensor:
        assert temperature == loss.T
        return loss(logits, teacher_logits, weight=weight, avg_factor=avg_factor)

    return call


def giou(case: Case) -> Callable[..., Tensor]:
    return _module("models.losses").GIoULoss(eps=1e-6)


def atss(case: Case) -> Callable[..., Any]:
    assigner = _module("models.task_modules.assigners").ATSSAssigner(topk=9)
    instances = importlib.import_module("mmengine.structures").InstanceData
    generator = _module("models.task_modules.prior_generators").AnchorGenerator(
        ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=list(STRIDES)
    )

    def call(boxes, labels, level_shapes, strides) -> list[Any]:
        anchors = torch.cat(generator.grid_priors(level_shapes, device=boxes[0].device))
        counts = [height * width for height, width in level_shapes]
        return [
            assigner.assign(instances(priors=anchors), counts, instances(bboxes=image, labels=label))
            for image, label in zip(boxes, labels, strict=True)
        ]

    return call


def dynamic_soft_label(case: Case) -> Callable[..., Any]:
    assigner = _module("models.task_modules.assigners").DynamicSoftLabelAssigner()
    instances = importlib.import_module("mmengine.structures").InstanceData

    def call(logits, boxes, points, strides, gt_boxes, gt_labels) -> list[Any]:
        priors = torch.cat([points, strides[:, None].expand(-1, 2)], 1)
        return [
            assigner.assign(
                instances(priors=priors, bboxes=boxes[image], scores=logits[image]),
                instances(bboxes=truth, labels=label),
            )
            for image, (truth, label) in enumerate(zip(gt_boxes, gt_labels, strict=True))
        ]

    return call


def _head(case: Case) -> Any:
    load()
    config = importlib.import_module("mmengine.config").ConfigDict
    assigner = {"type": "ATSSAssigner", "topk": 9}
    generator = {"type": "AnchorGenerator", "ratios": [1.0], "octave_base_scale": 8, "scales_per_octave": 1}
    return _module("models.dense_heads").GFLHead(
        case.classes,
        in_channels=32,
        feat_channels=32,
        stacked_convs=1,
        reg_max=case.reg_max,
        anchor_generator={**generator, "strides": list(STRIDES)},
        loss_cls={"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0},
        loss_dfl={"type": "DistributionFocalLoss", "loss_weight": 0.25},
        loss_bbox={"type": "GIoULoss", "loss_weight": 2.0},
        train_cfg=config(assigner=assigner, allowed_border=-1, pos_weight=-1, debug=False),
        test_cfg=config(
            nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms={"type": "nms", "iou_threshold": 0.6}, max_per_img=100
        ),
    )


def _scaled(box_logits: list[Tensor], scales: Tensor) -> list[Tensor]:
    """mmdet multiplies in the head's forward, in place of the fused product."""
    return [level.float() * scale for level, scale in zip(box_logits, scales.unbind(), strict=True)]


def head(case: Case) -> Callable[..., Tensor]:
    module = _head(case)
    instances = importlib.import_module("mmengine.structures").InstanceData
    metas = [{"img_shape": case.size, "pad_shape": case.size}] * case.batch

    def call(class_logits, box_logits, boxes, labels, *, strides, scales, predictor) -> Tensor:
        wanted = [instances(bboxes=image, labels=label) for image, label in zip(boxes, labels, strict=True)]
        losses = module.loss_by_feat(class_logits, _scaled(box_logits, scales), wanted, metas)
        return sum(sum(values) for values in losses.values())

    return call


def detect(case: Case) -> Callable[..., Any]:
    module = _head(case)
    metas = [{"img_shape": case.size, "scale_factor": (1.0, 1.0)}] * case.batch

    def call(class_logits, box_logits, *, strides, scales, predictor, image_sizes) -> list[Any]:
        return module.predict_by_feat(class_logits, _scaled(box_logits, scales), batch_img_metas=metas, rescale=False)

    return call
