"""What the detection heads have in common: two towers, the levels' scales, and the assignment of boxes to points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gflv2.models.conv import ConvUnit, Scale, init_normal
from gflv2.ops import Assignment, Predictor, atss
from gflv2.ops.checks import bad_value

CLASS_PRIOR_BIAS = -4.59511985013459  # −log 99: every class starts at probability 0.01


class HeadOutput(NamedTuple):
    """What a head computes from the pyramid; logits throughout, L levels, A = Σ H_l·W_l points.

    Attributes:
        class_logits: L tensors (B, C, H_l, W_l).
        box_logits: L tensors (B, 4·R, H_l, W_l), channel = side·R + bin, before the level's scale (ATSS: (B, 4, H_l,
            W_l)).
        scales: (L,) the factors of the box logits.
        predictor: parameters of the quality predictor on distribution statistics, or None.
        quality_logits: (B, A) quality from convolutional features (ATSS: centerness), or None.
    """

    class_logits: list[Tensor]
    box_logits: list[Tensor]
    scales: Tensor
    predictor: Predictor | None = None
    quality_logits: Tensor | None = None


class Detections(NamedTuple):
    """What was found in one image, best first.

    Attributes:
        boxes: (N, 4) xyxy in pixels.
        scores: (N,).
        labels: (N,) int64.
        distributions: (N, 4, R) probabilities of the bins of each side (left, top, right, bottom), or None.
        points: (N,) int64, flat index of the point that gave each box.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    distributions: Tensor | None
    points: Tensor


class TowerHead(nn.Module):
    """Class tower and box tower shared by all levels, each ``stacked_convs`` × [3×3 convolution → GroupNorm → ReLU]."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        feat_channels: int,
        stacked_convs: int,
        strides: Sequence[int],
        gn_groups: int,
        depthwise: bool,
        atss_topk: int,
        ignore_iof_thr: float,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            bad_value("num_classes", "at least 1", num_classes)
        if stacked_convs and feat_channels % gn_groups:
            bad_value("head.gn_groups", f"a divisor of head.channels = {feat_channels}", gn_groups)
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.atss_topk = atss_topk
        self.ignore_iof_thr = ignore_iof_thr
        self.tower_channels = feat_channels if stacked_convs else in_channels
        inputs = [in_channels] + [feat_channels] * (stacked_convs - 1)
        unit = {"norm_groups": gn_groups, "depthwise": depthwise}
        self.cls_convs, self.reg_convs = (
            nn.ModuleList(ConvUnit(inputs[i], feat_channels, 3, **unit) for i in range(stacked_convs)) for _ in range(2)
        )
        init_normal(self)
        self.scales = nn.ModuleList(Scale() for _ in strides)

    def towers(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """One level (B, in_channels, H, W) → the last features of the class tower and of the box tower."""
        classes, boxes = feature, feature
        for conv in self.cls_convs:
            classes = conv(classes)
        for conv in self.reg_convs:
            boxes = conv(boxes)
        return classes, boxes

    def level_scales(self) -> Tensor:
        """(L,) the levels' factors."""
        return torch.stack([module.scale for module in self.scales])

    def check_features(self, features: Sequence[Tensor]) -> None:
        if len(features) != len(self.strides):
            bad_value(
                "features", f"{len(self.strides)} levels, one for each of the strides {self.strides}", list(features)
            )

    def assign(
        self,
        output: HeadOutput,
        boxes: Sequence[Tensor] | Tensor,
        labels: Sequence[Tensor] | Tensor,
        padded_sizes: Sequence[tuple[int, int]] | None,
        ignore_boxes: Sequence[Tensor] | Tensor | None,
        counts: Tensor | None = None,
    ) -> Assignment:
        """ATSS (arXiv 1912.02424) over all levels of the batch."""
        shapes = [(level.shape[2], level.shape[3]) for level in output.class_logits]
        with torch.no_grad():
            return atss(
                boxes,
                labels,
                shapes,
                self.strides,
                topk=self.atss_topk,
                padded_sizes=padded_sizes,
                ignore_boxes=ignore_boxes,
                ignore_iof_thr=self.ignore_iof_thr,
                counts=counts,
            )


def split_levels(rows: Tensor, levels: Sequence[Tensor]) -> list[Tensor]:
    """(B, A, channels) → L tensors (B, channels, H_l, W_l) with the sizes of ``levels``."""
    sizes = [level.shape[2] * level.shape[3] for level in levels]
    parts = rows.transpose(1, 2).split(sizes, dim=2)
    return [part.unflatten(2, tuple(level.shape[2:])) for part, level in zip(parts, levels, strict=True)]
