"""What the dense heads have in common: two towers, the levels' scales, the assignment of boxes to points, and NMS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gflv2.config import GRIDS, TestConfig
from gflv2.models.conv import ConvUnit, Scale, init_normal
from gflv2.nn import ATSSAssigner
from gflv2.ops import Assignment, Detections, Predictor, batched_nms, normalisers
from gflv2.ops.checks import bad_value

TEST = TestConfig()  # defaults of everything that detects
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


class LossSums(NamedTuple):
    """The losses of some images of a batch, not yet divided.

    Attributes:
        losses: 0-d tensors, loss weights included.
        sums: (2,) without gradients, as `gflv2.ops.normalisers` takes them, of these images alone.
    """

    losses: dict[str, Tensor]
    sums: Tensor


class DenseHead(nn.Module):
    """Two towers shared by all levels, for classes and boxes: each ``stacked_convs`` × [3×3 convolution → GroupNorm →
    ReLU].

    A head of this kind adds ``forward`` (levels → ``HeadOutput``), ``losses`` and ``loss_sums`` (of an assignment) and
    ``decode``.
    """

    loss_names: str  # of the three losses that ``loss_weights`` weighs, for messages
    divided_by: dict[str, int]  # loss → which of the two normalisers divides it; some losses are not always there
    grid = GRIDS["gfl"]  # where the points lie

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        feat_channels: int = 256,
        stacked_convs: int = 4,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        gn_groups: int = 32,
        depthwise: bool = False,
        atss_topk: int = 9,
        ignore_iof_thr: float = 0.0,
        loss_weights: Sequence[float] = (1.0, 2.0, 0.25),
        weight_floor: float = 1e-12,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            bad_value("num_classes", "at least 1", num_classes)
        if stacked_convs and feat_channels % gn_groups:
            bad_value("head.gn_groups", f"a divisor of head.channels = {feat_channels}", gn_groups)
        if len(loss_weights) != 3:
            bad_value("head.loss_weights", f"three numbers ({self.loss_names})", list(loss_weights))
        self.num_classes, self.strides = num_classes, tuple(strides)
        self.assigner = ATSSAssigner(atss_topk, ignore_iof_thr)
        self.loss_weights, self.weight_floor = tuple(loss_weights), weight_floor
        self.tower_channels = feat_channels if stacked_convs else in_channels
        inputs = [in_channels] + [feat_channels] * (stacked_convs - 1)
        unit = {"norm_groups": gn_groups, "depthwise": depthwise}
        self.cls_convs, self.reg_convs = (
            nn.ModuleList(ConvUnit(inputs[i], feat_channels, 3, **unit) for i in range(stacked_convs)) for _ in range(2)
        )
        init_normal(self)
        self.scales = nn.ModuleList(Scale() for _ in strides)

    def towers(self, features: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """L levels (B, in_channels, H_l, W_l) → of each the last features of the class tower and of the box tower."""
        if len(features) != len(self.strides):
            bad_value(
                "features", f"{len(self.strides)} levels, one for each of the strides {self.strides}", list(features)
            )
        pairs = []
        for feature in features:
            classes, boxes = feature, feature
            for conv in self.cls_convs:
                classes = conv(classes)
            for conv in self.reg_convs:
                boxes = conv(boxes)
            pairs.append((classes, boxes))
        return pairs

    def level_scales(self) -> Tensor:
        """(L,) the levels' factors."""
        return torch.stack([module.scale for module in self.scales])

    def assign(
        self,
        output: HeadOutput,
        boxes: Sequence[Tensor] | Tensor,
        labels: Sequence[Tensor] | Tensor,
        padded_sizes: Sequence[tuple[int, int]] | None = None,
        ignore_boxes: Sequence[Tensor] | Tensor | None = None,
        counts: Tensor | None = None,
    ) -> Assignment:
        """ATSS (arXiv 1912.02424) over all levels of the batch. Arguments as ``loss``."""
        options = {"padded_sizes": padded_sizes, "counts": counts}
        if ignore_boxes is not None:
            options["ignore_boxes"] = self.on_grid(ignore_boxes)
        options |= {"offset": self.grid.offset, "anchor_scale": self.grid.anchor_scale}
        with torch.no_grad():
            shapes = shapes_of(output.class_logits)
            return self.assigner(self.on_grid(boxes), labels, shapes, self.strides, **options)

    def on_grid(self, boxes: Sequence[Tensor] | Tensor) -> Sequence[Tensor] | Tensor:
        """Boxes as the operations see them, which know a point's offset in its cell but no shift in pixels."""
        if not self.grid.shift:
            return boxes
        return boxes - self.grid.shift if isinstance(boxes, Tensor) else [each - self.grid.shift for each in boxes]

    def loss(
        self,
        output: HeadOutput,
        boxes: Sequence[Tensor] | Tensor,
        labels: Sequence[Tensor] | Tensor,
        padded_sizes: Sequence[tuple[int, int]] | None = None,
        ignore_boxes: Sequence[Tensor] | Tensor | None = None,
        counts: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The three weighted losses of a batch as 0-d tensors; their sum is to be minimised.

        Args:
            output: of ``forward``.
            boxes: B tensors (G_i, 4), xyxy in pixels of the network's input. G_i may be 0. Or one tensor (B, G, 4),
                padded, with ``counts``.
            labels: B tensors (G_i,), int64, 0 … C − 1. Or one (B, G).
            padded_sizes: (height, width) of each image after its own padding; points beyond it do not count. None: all
                count.
            ignore_boxes: B tensors (·, 4), or one (B, K, 4); points inside them do not count where
                ``ignore_iof_thr`` > 0.
            counts: (B,) integers: how many of the padded boxes of each image exist.
        """
        assignment = self.assign(output, boxes, labels, padded_sizes, ignore_boxes, counts)
        return self.losses(output, assignment, boxes, padded_sizes, counts)

    def combine(self, parts: Sequence[LossSums]) -> dict[str, Tensor]:
        """The losses of a batch from those of its parts: what ``losses`` gives for the whole batch, but for rounding.

        Args:
            parts: of ``loss_sums``. Every rank calls this as often, for one all-reduce.
        """
        norms = normalisers(torch.stack([part.sums for part in parts]).sum(0), weight_floor=self.weight_floor)
        return {
            name: torch.stack([part.losses[name] for part in parts]).sum() / norms[which]
            for name, which in self.divided_by.items()
            if name in parts[0].losses
        }

    def clamped_sides(
        self, output: HeadOutput, assignment: Assignment, boxes: Sequence[Tensor] | Tensor
    ) -> Tensor | None:
        """(2,) how many target sides the loss clamps, because the bins end before them, and how many sides there are.

        Nothing waits for the device. None for a head without bins. Arguments as ``loss``.
        """
        return None

    def detect(
        self,
        output: HeadOutput,
        *sizes: Any,
        iou_thr: float = TEST.iou_thr,
        max_detections: int = TEST.max_detections,
        **options: Any,
    ) -> list[Detections]:
        """Detections of each image, best first.

        Args:
            output: of ``forward``.
            sizes, options: as ``GFLHead.decode``.
            iou_thr: of the class-wise NMS. max_detections: kept in each image.
        """
        return batched_nms(self.decode(output, *sizes, **options), iou_thr=iou_thr, max_detections=max_detections)


def to_original(
    boxes: Tensor,
    image_sizes: Sequence[tuple[int, int]] | Tensor | None,
    scale_factors: Sequence[tuple[float, float]] | Tensor | None,
) -> Tensor:
    """(B, N, 4) boxes in pixels of the network's input, clipped to the images and divided by their resize factors.

    Args:
        image_sizes: (B, 2) height and width of each image without padding; None: no clipping.
        scale_factors: (B, 2) resized / original (width, height); None: no change.
    """
    kind = {"dtype": boxes.dtype, "device": boxes.device}
    if image_sizes is not None:
        limit = torch.as_tensor(image_sizes, **kind).flip(1).repeat(1, 2)[:, None]
        boxes = torch.minimum(boxes.clamp(min=0), limit)
    if scale_factors is not None:
        boxes = boxes / torch.as_tensor(scale_factors, **kind).repeat(1, 2)[:, None]
    return boxes


def shapes_of(levels: Sequence[Tensor]) -> list[tuple[int, int]]:
    """(H_l, W_l) of L levels (B, channels, H_l, W_l)."""
    return [(level.shape[2], level.shape[3]) for level in levels]


def split_levels(rows: Tensor, levels: Sequence[Tensor]) -> list[Tensor]:
    """(B, A, channels) → L tensors (B, channels, H_l, W_l) with the sizes of ``levels``."""
    shapes = shapes_of(levels)
    parts = rows.transpose(1, 2).split([height * width for height, width in shapes], dim=2)
    return [part.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]
