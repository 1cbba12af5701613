"""NanoDet's path aggregation (after arXiv 1803.01534): up and down between the levels without a convolution."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from gflv2.models.conv import ConvUnit
from gflv2.ops.checks import bad_value


class PAN(nn.Module):
    """C3, C4, C5 → as many levels of ``channels`` channels.

    Lateral 1×1 convolutions with bias; then every level is added, bilinearly resized, to the next finer one; then, from
    the finest on, to the next coarser one. Nothing is learned but the lateral convolutions.

    Args:
        in_channels: channels of the backbone's levels, fine to coarse.
        channels: channels of every output level.
        levels: number of output levels: that of the backbone's.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, levels: int) -> None:
        super().__init__()
        if levels != len(in_channels):
            bad_value("neck.levels", f"{len(in_channels)}, the number of backbone levels, for neck.kind 'pan'", levels)
        self.in_channels = tuple(in_channels)
        self.lateral_convs = nn.ModuleList(ConvUnit(inputs, channels, 1) for inputs in in_channels)
        for unit in self.lateral_convs:
            nn.init.xavier_uniform_(unit.conv.weight)
            nn.init.zeros_(unit.conv.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        if len(features) != len(self.in_channels):
            bad_value("features", f"{len(self.in_channels)} levels", list(features))
        merged = [conv(feature) for conv, feature in zip(self.lateral_convs, features, strict=True)]
        for level in range(len(merged) - 1, 0, -1):
            merged[level - 1] = merged[level - 1] + _resized(merged[level], merged[level - 1])
        for level in range(1, len(merged)):
            merged[level] = merged[level] + _resized(merged[level - 1], merged[level])
        return merged


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear")
