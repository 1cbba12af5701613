"""The convolution unit that the neck and the towers are made of, and their initialisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvUnit(nn.Module):
    """[depthwise 3×3 →] convolution [→ GroupNorm → ReLU].

    With ``norm_groups`` the convolution has no bias and GroupNorm and ReLU follow (the towers); without, it has a bias
    and nothing follows (the neck). ``depthwise`` splits a k×k convolution into a depthwise k×k and a pointwise one, for
    light models. Child names are ``conv``, ``gn`` and, only where split, ``depthwise``.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        norm_groups: int | None = None,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        split = depthwise and kernel > 1
        spatial = {"kernel_size": kernel, "stride": stride, "padding": kernel // 2}
        self.depthwise = nn.Conv2d(inputs, inputs, groups=inputs, bias=False, **spatial) if split else None
        if split:
            spatial = {"kernel_size": 1}
        self.conv = nn.Conv2d(inputs, outputs, bias=norm_groups is None, **spatial)
        self.gn = None if norm_groups is None else nn.GroupNorm(norm_groups, outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.depthwise is not None:
            x = self.depthwise(x)
        x = self.conv(x)
        return x if self.gn is None else F.relu(self.gn(x))


class Scale(nn.Module):
    """One learnable factor, used by the head for the box logits of one level (a 0-d parameter, initially 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def init_normal(module: nn.Module, std: float = 0.01, bias: float = 0.0) -> None:
    """Every convolution inside ``module``: weights ~ N(0, std), bias constant. Norms keep 1 and 0."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            # A depthwise kernel has 9 inputs only: with std 0.01 the signal would vanish before the pointwise
            # convolution.
            if child.groups > 1:
                nn.init.kaiming_normal_(child.weight, nonlinearity="linear")
            else:
                nn.init.normal_(child.weight, std=std)
            if child.bias is not None:
                nn.init.constant_(child.bias, bias)
