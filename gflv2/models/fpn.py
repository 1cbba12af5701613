"""Feature pyramid (arXiv 1612.03144) with two extra levels as in RetinaNet's variant "on output"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gflv2.models.conv import ConvUnit
from gflv2.ops.checks import bad_value


class FPN(nn.Module):
    """C3, C4, C5 → P3 … P7.

    Lateral 1×1 convolutions with bias; nearest upsampling to the size of the finer level; 3×3 output convolutions with
    bias; no norm, no activation. Each extra level is a 3×3 stride-2 convolution of the level before it (P6 of P5's
    output, P7 of P6), without a ReLU between.

    Args:
        in_channels: channels of the backbone's levels, fine to coarse.
        channels: channels of every output level.
        levels: number of output levels, at least ``len(in_channels)``.
        depthwise: split the 3×3 convolutions into depthwise and pointwise ones.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int = 256, levels: int = 5, *, depthwise: bool = False
    ) -> None:
        super().__init__()
        if levels < len(in_channels):
            bad_value("neck.levels", f"at least {len(in_channels)}, the number of backbone levels", levels)
        self.in_channels = tuple(in_channels)
        self.lateral_convs = nn.ModuleList(ConvUnit(inputs, channels, 1) for inputs in in_channels)
        self.fpn_convs = nn.ModuleList(
            ConvUnit(channels, channels, 3, stride=1 if level < len(in_channels) else 2, depthwise=depthwise)
            for level in range(levels)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        if len(features) != len(self.in_channels):
            bad_value("features", f"{len(self.in_channels)} levels", list(features))
        merged = [conv(feature) for conv, feature in zip(self.lateral_convs, features, strict=True)]
        for level in range(len(merged) - 1, 0, -1):
            finer = merged[level - 1]
            merged[level - 1] = finer + F.interpolate(merged[level], size=finer.shape[-2:], mode="nearest")
        outputs = [self.fpn_convs[level](feature) for level, feature in enumerate(merged)]
        for conv in self.fpn_convs[len(merged) :]:
            outputs.append(conv(_two_columns(outputs[-1])))
        return outputs


def _two_columns(x: Tensor) -> Tensor:
    """A level of one column gets a second one of zeros where mixed precision runs on a CPU; the convolution's value is
    the same, since it pads with zeros anyway.

    There the weight gradient of a 3×3 convolution of stride 2 over one column reads memory that nobody wrote: of 100
    gradients 80 were NaN when the memory held NaN before (oneDNN in torch 2.14, bfloat16).
    """
    narrow = x.shape[-1] == 1 and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return F.pad(x, (0, 1)) if narrow else x
