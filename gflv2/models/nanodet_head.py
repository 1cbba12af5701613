"""The head of NanoDet-m: a GFLV1 head (arXiv 2006.04388) with a light tower of its own for each level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gflv2.config import GRIDS
from gflv2.models.conv import init_normal
from gflv2.models.dense_head import CLASS_PRIOR_BIAS, HeadOutput
from gflv2.models.gfl_head import GFLHead
from gflv2.models.shufflenet import SLOPE, depthwise, leaky
from gflv2.ops.checks import bad_value


class LightUnit(nn.Module):
    """Depthwise 3×3 → leaky ReLU → pointwise → leaky ReLU; biases, no norms (they are folded in)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = depthwise(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)
        for conv in (self.depthwise, self.pointwise):
            nn.init.kaiming_normal_(conv.weight, a=SLOPE)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return leaky(self.pointwise(leaky(self.depthwise(x))))


class NanoDetHead(GFLHead):
    """One tower for each level, shared by classes and boxes, then a pointwise convolution for each of the two.

    Losses, targets and decoding are those of GFLV1 (J = σ(c)). Points lie in the middle of their cells by the count of
    pixel centres, at i·stride + (stride − 1)/2; the assignment's anchors have a side of 5 strides (``GRIDS``).

    Args: as ``GFLHead``; ``feat_channels`` and ``stacked_convs`` are width and depth of a tower.
    """

    grid = GRIDS["nanodet"]

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 96,
        *,
        feat_channels: int = 96,
        stacked_convs: int = 2,
        reg_max: int = 7,
        strides: Sequence[int] = (8, 16, 32),
        **common: Any,
    ) -> None:
        # No towers and no layers that all levels share: what the parent would make of them is replaced below.
        super().__init__(
            num_classes, in_channels, stacked_convs=0, reg_max=reg_max, strides=strides, quality=None, **common
        )
        self.scales = nn.ModuleList()
        inputs = [in_channels] + [feat_channels] * (stacked_convs - 1)
        self.cls_convs = nn.ModuleList(
            nn.Sequential(*(LightUnit(inputs[place], feat_channels) for place in range(stacked_convs))) for _ in strides
        )
        self.tower_channels = feat_channels if stacked_convs else in_channels
        self.gfl_cls, self.gfl_reg = (
            nn.ModuleList(nn.Conv2d(self.tower_channels, outputs, 1) for _ in strides)
            for outputs in (num_classes, 4 * (reg_max + 1))
        )
        init_normal(self.gfl_cls, bias=CLASS_PRIOR_BIAS)
        init_normal(self.gfl_reg)
        self.register_buffer("_ones", torch.ones(len(strides)), persistent=False)

    def level_scales(self) -> Tensor:
        """(L,) ones: each level has a layer of its own, and so no factor."""
        return self._ones

    def forward(self, features: Sequence[Tensor]) -> HeadOutput:
        """L levels (B, in_channels, H_l, W_l) → logits."""
        if len(features) != len(self.strides):
            bad_value(
                "features", f"{len(self.strides)} levels, one for each of the strides {self.strides}", list(features)
            )
        towers = [tower(feature) for tower, feature in zip(self.cls_convs, features, strict=True)]
        return HeadOutput(
            [layer(tower) for layer, tower in zip(self.gfl_cls, towers, strict=True)],
            [layer(tower) for layer, tower in zip(self.gfl_reg, towers, strict=True)],
            self.level_scales(),
        )
