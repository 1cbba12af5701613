"""The ATSS head (arXiv 1912.02424): the ablation without distributions, with the same towers and assignment.

One class logit, four box deltas and one centerness logit for each point. Boxes are coded as that paper's code does by
default: deltas from the square anchor of side 8·stride (the point is its centre), the centre's in units of 0.1, the
size's of 0.2. Focal loss on the classes, GIoU loss weighted by the centerness target, binary cross-entropy on the
centerness; score = σ(c)·σ(centerness).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gflv2.extras import missing_package
from gflv2.models.conv import init_normal
from gflv2.models.dense_head import (
    CLASS_PRIOR_BIAS,
    TEST,
    DenseHead,
    HeadOutput,
    LossSums,
    shapes_of,
    split_levels,
    to_original,
)
from gflv2.ops import Assignment, Decoded, giou, normalisers
from gflv2.ops.checks import bad_value, compute_dtype
from gflv2.ops.levels import flatten_levels
from gflv2.ops.reference.boxes import boxes_to_distances, pad_boxes, points_of_levels, strides_of_points, valid_cells
from gflv2.ops.reference.decode import choose

try:
    from torchvision.ops import sigmoid_focal_loss
except ModuleNotFoundError as error:
    raise missing_package(error, "The ATSS head") from error

ANCHOR_SCALE = 8.0
CENTRE_STD, SIZE_STD = 0.1, 0.2
MAX_LOG_RATIO = math.log(1000 / 16)  # keeps exp() of an untrained network's size delta finite


class ATSSHead(DenseHead):
    """Classes, boxes and centerness on every level of a pyramid. Arguments as ``GFLHead``.

    ``loss_weights``: focal, GIoU, centerness.
    """

    legacy_background = False
    loss_names = "focal, GIoU, centerness"
    divided_by = {"loss_focal": 0, "loss_giou": 1, "loss_centerness": 0}

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 256,
        *,
        loss_weights: Sequence[float] = (1.0, 2.0, 1.0),
        **common: Any,
    ) -> None:
        super().__init__(num_classes, in_channels, loss_weights=loss_weights, **common)
        self.atss_cls = nn.Conv2d(self.tower_channels, num_classes, 3, padding=1)
        self.atss_reg = nn.Conv2d(self.tower_channels, 4, 3, padding=1)
        self.atss_centerness = nn.Conv2d(self.tower_channels, 1, 3, padding=1)
        init_normal(self.atss_cls, bias=CLASS_PRIOR_BIAS)
        init_normal(self.atss_reg)
        init_normal(self.atss_centerness)

    def forward(self, features: Sequence[Tensor]) -> HeadOutput:
        """L levels (B, in_channels, H_l, W_l) → class logits, deltas before the level's scale, centerness logits."""
        pairs = self.towers(features)
        centerness = torch.cat([self.atss_centerness(boxes).flatten(1) for _, boxes in pairs], dim=1)
        return HeadOutput(
            [self.atss_cls(classes) for classes, _ in pairs],
            [self.atss_reg(boxes) for _, boxes in pairs],
            self.level_scales(),
            quality_logits=centerness,
        )

    def joint_scores(self, output: HeadOutput) -> list[Tensor]:
        """σ(c)·σ(centerness), L tensors (B, C, H_l, W_l)."""
        levels = split_levels(output.quality_logits.unsqueeze(2), output.class_logits)
        return [c.sigmoid() * q.sigmoid() for c, q in zip(output.class_logits, levels, strict=True)]

    def _geometry(self, output: HeadOutput) -> tuple[Tensor, Tensor]:
        """Points (A, 2) in pixels and their strides (A,)."""
        shapes = shapes_of(output.class_logits)
        kind = {"device": output.class_logits[0].device, "dtype": compute_dtype(output.box_logits[0].dtype)}
        return points_of_levels(shapes, self.strides, **kind), strides_of_points(shapes, self.strides, **kind)

    def boxes(self, output: HeadOutput) -> Tensor:
        """(B, A, 4) boxes in pixels."""
        points, strides = self._geometry(output)
        scaled = [
            level.to(points.dtype) * s for level, s in zip(output.box_logits, output.scales.unbind(), strict=True)
        ]
        return deltas_to_boxes(flatten_levels(scaled), points, ANCHOR_SCALE * strides)

    def losses(self, output: HeadOutput, assignment: Assignment, *truth: Any) -> dict[str, Tensor]:
        """Focal, GIoU and centerness loss of an assignment; arguments as ``GFLHead.targets``."""
        return self._losses(partial(normalisers, weight_floor=self.weight_floor), output, assignment, *truth).losses

    def loss_sums(self, output: HeadOutput, assignment: Assignment, *truth: Any) -> LossSums:
        """The same for a part of a batch, not yet divided; see ``combine``."""
        return self._losses(torch.ones_like, output, assignment, *truth)

    def _losses(
        self,
        divisors: Callable[[Tensor], Tensor],
        output: HeadOutput,
        assignment: Assignment,
        boxes: Sequence[Tensor] | Tensor,
        padded_sizes: Sequence[tuple[int, int]] | None = None,
        counts: Tensor | None = None,
    ) -> LossSums:
        points, _ = self._geometry(output)
        predicted = self.boxes(output)
        positive = assignment.index > 0
        shapes = shapes_of(output.class_logits)
        valid = valid_cells(shapes, self.strides, padded_sizes, batch=len(positive), device=positive.device)
        counted = (valid & (assignment.index >= 0)).to(predicted.dtype)

        # 1. The box of every positive point; elsewhere the prediction itself, whose weight is 0.
        target = predicted.detach()
        padded, _ = pad_boxes(boxes)
        if padded.shape[1]:
            number = (assignment.index - 1).clamp(min=0)[..., None].expand(-1, -1, 4)
            target = torch.where(positive[..., None], padded.to(target.dtype).gather(1, number), target)
        centre = torch.where(positive, centerness(points, target), 0.0)

        # 2. One all-reduce for both normalisers.
        sums = torch.stack([positive.sum(1).clamp(min=1).sum().to(centre.dtype), centre.sum()])
        total_positive, total_centre = divisors(sums).unbind()

        # 3. The losses, over all points with weights, so that no size depends on values.
        logits = flatten_levels([level.to(predicted.dtype) for level in output.class_logits])
        classes = torch.arange(self.num_classes, device=logits.device)
        wanted = (assignment.labels[..., None] == classes).to(logits.dtype)  # label −1 matches no class
        focal = sigmoid_focal_loss(logits, wanted, alpha=0.25, gamma=2.0).sum(-1)
        loss_focal = (focal * counted).sum() / total_positive
        loss_giou = giou(
            predicted.flatten(0, 1), target.flatten(0, 1), weight=centre.flatten(), avg_factor=total_centre
        )
        bce = F.binary_cross_entropy_with_logits(output.quality_logits.to(centre.dtype), centre, reduction="none")
        loss_centre = (bce * positive).sum() / total_positive
        values = (loss_focal, loss_giou, loss_centre)
        return LossSums(
            {n: w * v for n, w, v in zip(self.divided_by, self.loss_weights, values, strict=True)}, sums.detach()
        )

    def decode(
        self,
        output: HeadOutput,
        image_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        scale_factors: Tensor | None = None,
        *,
        pre_topk: int = TEST.pre_topk,
        score_thr: float = TEST.score_thr,
        return_distributions: bool = False,
    ) -> Decoded:
        """Candidates of each image before NMS; arguments as ``GFLHead.decode``, without distributions."""
        if return_distributions:
            bad_value("return_distributions", "False, since the ATSS head has no distributions", True)
        boxes, start, chosen, joint = self.boxes(output), 0, [], []
        for scores in self.joint_scores(output):
            rows = flatten_levels([scores])
            points, kept, _ = choose(rows, pre_topk)
            chosen.append(points + start)
            joint.append(kept)
            start += rows.shape[1]
        points, scores = torch.cat(chosen, dim=1), torch.cat(joint, dim=1).to(boxes.dtype)
        boxes = boxes.gather(1, points[..., None].expand(-1, -1, 4))
        boxes = to_original(boxes, image_sizes, scale_factors)
        scores = torch.where(scores > score_thr, scores, 0.0)
        return Decoded(boxes, scores, points, (scores > 0).any(-1).sum(1))


def deltas_to_boxes(deltas: Tensor, points: Tensor, sides: Tensor) -> Tensor:
    """(…, A, 4) deltas (dx, dy, dw, dh) from square anchors of side (A,) centred at points (A, 2) → boxes xyxy."""
    centres = points + CENTRE_STD * deltas[..., :2] * sides[:, None]
    half = (SIZE_STD * deltas[..., 2:]).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * sides[:, None] / 2
    return torch.cat([centres - half, centres + half], dim=-1)


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """(A, 2) points, (…, A, 4) boxes → sqrt(min(l, r)/max(l, r) · min(t, b)/max(t, b)); 0 outside the box."""
    left, top, right, bottom = boxes_to_distances(points.expand(*boxes.shape[:-1], 2), boxes).clamp(min=0).unbind(-1)
    tiny = torch.finfo(boxes.dtype).tiny
    horizontal = torch.minimum(left, right) / torch.maximum(left, right).clamp(min=tiny)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom).clamp(min=tiny)
    return (horizontal * vertical).sqrt()
