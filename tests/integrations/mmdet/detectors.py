"""Small detectors of mmdet's, with two images and their boxes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

CLASSES = 5
SIZE = (128, 160)
STRIDES = (8, 16, 32, 64, 128)
GENERATOR = {
    "type": "AnchorGenerator",
    "ratios": [1.0],
    "octave_base_scale": 8,
    "scales_per_octave": 1,
    "strides": list(STRIDES),
}
TRAIN = {"assigner": {"type": "ATSSAssigner", "topk": 9}, "allowed_border": -1, "pos_weight": -1, "debug": False}
TEST = {
    "nms_pre": 1000,
    "min_bbox_size": 0,
    "score_thr": 0.05,
    "nms": {"type": "nms", "iou_threshold": 0.6},
    "max_per_img": 100,
}
_SHARED = {
    "num_classes": CLASSES,
    "in_channels": 32,
    "stacked_convs": 1,
    "feat_channels": 32,
    "norm_cfg": {"type": "GN", "num_groups": 8},
    "anchor_generator": GENERATOR,
    "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
}
_GFL = {
    **_SHARED,
    "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0},
    "loss_dfl": {"type": "DistributionFocalLoss", "loss_weight": 0.25},
    "reg_max": 16,
}
_ANCHORS = {
    **_SHARED,
    "bbox_coder": {
        "type": "DeltaXYWHBBoxCoder",
        "target_means": [0.0, 0.0, 0.0, 0.0],
        "target_stds": [0.1, 0.1, 0.2, 0.2],
    },
    "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
}
_MAX_IOU = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.1, "neg_iou_thr": 0.1, "min_pos_iou": 0, "ignore_iof_thr": -1}
HEADS = {
    "GFL": {"type": "GFLHead", **_GFL},
    "GFLV2": {"type": "GFLV2Head", **_GFL, "reg_topk": 4, "reg_channels": 64, "add_mean": True},
    "ATSS": {
        "type": "ATSSHead",
        **_ANCHORS,
        "loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
    },
    "FCOS": {
        "type": "FCOSHead",
        **{key: value for key, value in _SHARED.items() if key != "anchor_generator"},
        "strides": list(STRIDES),
        "norm_on_bbox": True,
        "centerness_on_reg": True,
    },
    "VFNet": {
        "type": "VFNetHead",
        **{key: value for key, value in _SHARED.items() if key != "anchor_generator"},
        "strides": list(STRIDES),
        "loss_cls": {"type": "VarifocalLoss", "use_sigmoid": True, "alpha": 0.75, "gamma": 2.0, "iou_weighted": True},
        "loss_bbox_refine": {"type": "GIoULoss", "loss_weight": 2.0},
    },
    "PAA": {
        "type": "PAAHead",
        **_ANCHORS,
        "reg_decoded_bbox": True,
        "score_voting": True,
        "topk": 9,
        "loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 0.5},
        "train_cfg": {**TRAIN, "assigner": _MAX_IOU},
    },
    "RTMDet": {
        "type": "RTMDetHead",
        **_SHARED,
        "norm_cfg": {"type": "BN"},
        "with_objectness": False,
        "anchor_generator": {"type": "MlvlPointGenerator", "offset": 0, "strides": list(STRIDES)},
        "bbox_coder": {"type": "DistancePointBBoxCoder"},
        "loss_cls": _GFL["loss_cls"],
        "train_cfg": {**TRAIN, "assigner": {"type": "DynamicSoftLabelAssigner", "topk": 13}},
    },
    "TOOD": {
        "type": "TOODHead",
        **_ANCHORS,
        "stacked_convs": 2,
        "initial_loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "activated": True, "gamma": 2.0, "alpha": 0.25},
        "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "activated": True, "beta": 2.0},
        "train_cfg": {
            **TRAIN,
            "initial_epoch": 0,
            "initial_assigner": {"type": "ATSSAssigner", "topk": 9},
            "assigner": {"type": "TaskAlignedAssigner", "topk": 13},
            "alpha": 1,
            "beta": 6,
        },
    },
    "YOLOX": {
        "type": "YOLOXHead",
        "num_classes": CLASSES,
        "in_channels": 32,
        "feat_channels": 32,
        "stacked_convs": 1,
        "strides": list(STRIDES),
        "norm_cfg": {"type": "BN"},
        "train_cfg": {"assigner": {"type": "SimOTAAssigner", "center_radius": 2.5}},
    },
}


def config(kind: str, **head: Any) -> ConfigDict:
    """The configuration of a detector with one of ``HEADS``; keywords change the head's settings, or ``train_cfg``."""
    head = {**copy.deepcopy(HEADS[kind]), **head}
    train = head.pop("train_cfg", TRAIN)
    return ConfigDict(
        type="ATSS" if kind == "ATSS" else "GFL",
        data_preprocessor={"type": "DetDataPreprocessor", "pad_size_divisor": 32},
        backbone={
            "type": "ResNet",
            "depth": 18,
            "base_channels": 8,
            "stem_channels": 8,
            "out_indices": (0, 1, 2, 3),
            "norm_cfg": {"type": "BN", "requires_grad": True},
            "norm_eval": True,
            "style": "pytorch",
        },
        neck={
            "type": "FPN",
            "in_channels": [8, 16, 32, 64],
            "out_channels": 32,
            "start_level": 1,
            "add_extra_convs": "on_output",
            "num_outs": 5,
        },
        bbox_head=head,
        train_cfg=copy.deepcopy(train),
        test_cfg=copy.deepcopy(TEST),
    )


def build(kind: str, *, like: nn.Module | None = None, weights: int = 0, **head: Any) -> nn.Module:
    """A detector with seeded weights whose scores vary, or with the weights of another."""
    model = MODELS.build(config(kind, **head))
    if like is not None:
        model.load_state_dict(like.state_dict())
        return model
    draw = torch.Generator().manual_seed(weights)
    for parameter in model.bbox_head.parameters():
        if parameter.dim() > 1:
            fan = parameter[0].numel()
            parameter.data = torch.randn(parameter.shape, generator=draw) * (2 / fan) ** 0.5
    return model


def batch(boxes: tuple[int, ...] = (4, 2)) -> tuple[Tensor, list[DetDataSample]]:
    """Two images (noise) and their samples; the second is smaller than the batch. No boxes of one size or place."""
    draw = torch.Generator().manual_seed(1)
    images, samples = torch.randn(len(boxes), 3, *SIZE, generator=draw), []
    for index, count in enumerate(boxes):
        height, width = SIZE if index == 0 else (93, 118)
        centre = (0.2 + 0.6 * torch.rand(count, 2, generator=draw)) * torch.tensor([width, height])
        half = (0.1 + 0.2 * torch.rand(count, 2, generator=draw)) * torch.tensor([width, height])
        truth = InstanceData(
            bboxes=torch.cat([centre - half, centre + half], dim=1),
            labels=torch.randint(0, CLASSES, (count,), generator=draw),
        )
        padded = tuple(-(-side // 32) * 32 for side in (height, width))
        meta = {"img_shape": (height, width), "pad_shape": padded, "batch_input_shape": SIZE}
        sample = DetDataSample(metainfo={**meta, "ori_shape": (height, width), "scale_factor": (1.25, 1.3)})
        sample.gt_instances, sample.ignored_instances = truth, InstanceData(bboxes=torch.zeros(0, 4))
        samples.append(sample)
    return images, samples


def step(model: nn.Module, boxes: tuple[int, ...] = (4, 2)) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses of a training step, each the sum over the levels, and the gradients of all parameters."""
    model.train()
    model.zero_grad()
    losses = {
        name: sum(value) if isinstance(value, list) else value for name, value in model.loss(*batch(boxes)).items()
    }
    sum(losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    return losses, gradients


@torch.no_grad()
def detect(model: nn.Module, **settings: Any) -> list[InstanceData]:
    model.eval()
    before = model.bbox_head.test_cfg
    model.bbox_head.test_cfg = ConfigDict({**before, **settings})
    try:
        return [sample.pred_instances for sample in model.predict(*batch())]
    finally:
        model.bbox_head.test_cfg = before
