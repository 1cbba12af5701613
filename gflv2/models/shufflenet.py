"""ShuffleNetV2 1.0x (arXiv 1807.11164) as NanoDet-m has it: leaky ReLUs, and the norms folded into the convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.nn import functional as F

from gflv2.ops.checks import bad_value

NAME = "shufflenet_v2_x1_0"  # of ``model.backbone.name``; timm has none of this family
SLOPE = 0.1  # of the leaky ReLUs
_STEM = 24
_STAGES = ((4, 116), (8, 232), (4, 464))  # (blocks, channels) of stages 2, 3 and 4


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def depthwise(channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3×3 convolution of each channel by itself."""
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels)


class Block(nn.Module):
    """Half of the channels pass, the other half through pointwise → depthwise → pointwise; then both are interleaved.

    With stride 2 the first half comes from a depthwise → pointwise branch, and both branches see all channels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.reduces = stride > 1
        if self.reduces:
            self.branch1 = nn.Sequential(depthwise(inputs, stride), nn.Conv2d(inputs, half, 1), nn.LeakyReLU(SLOPE))
        self.branch2 = nn.Sequential(
            nn.Conv2d(inputs if self.reduces else half, half, 1),
            nn.LeakyReLU(SLOPE),
            depthwise(half, stride),
            nn.Conv2d(half, half, 1),
            nn.LeakyReLU(SLOPE),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.reduces:
            kept, seen = self.branch1(x), x
        else:
            kept, seen = x.chunk(2, dim=1)
        both = torch.cat([kept, self.branch2(seen)], dim=1)
        return both.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleNetV2(nn.Module):
    """(B, 3, H, W) → the chosen feature levels: 0 and 1 are the stem's (strides 2 and 4), 2 to 4 the stages' (8 to 32).

    Its convolutions have biases and no BatchNorm follows: the published weights hold folded norms. It is made to be
    fine-tuned from them; a start from random weights would miss the norms.
    """

    def __init__(self, out_indices: Sequence[int] = (2, 3, 4)) -> None:
        super().__init__()
        levels = [{"num_chs": _STEM, "reduction": 2, "module": "conv1"}]
        levels += [{"num_chs": _STEM, "reduction": 4, "module": "maxpool"}]
        self.conv1 = nn.Conv2d(3, _STEM, 3, stride=2, padding=1)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = _STEM
        for number, (blocks, outputs) in enumerate(_STAGES, 2):
            sizes = [channels] + [outputs] * (blocks - 1)
            stage = [Block(size, outputs, stride=2 if place == 0 else 1) for place, size in enumerate(sizes)]
            setattr(self, f"stage{number}", nn.Sequential(*stage))
            levels.append({"num_chs": outputs, "reduction": 2 ** (number + 1), "module": f"stage{number}"})
            channels = outputs
        if not set(out_indices) <= set(range(len(levels))):
            bad_value("backbone.out_indices", f"numbers from 0 to {len(levels) - 1}", list(out_indices))
        self.out_indices = tuple(out_indices)
        self.feature_info = FeatureInfo(levels, self.out_indices)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [leaky(self.conv1(x))]
        levels.append(self.maxpool(levels[-1]))
        for stage in (self.stage2, self.stage3, self.stage4):
            levels.append(stage(levels[-1]))
        return [levels[index] for index in self.out_indices]
