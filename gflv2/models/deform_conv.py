"""Deformable convolution, versions 1 and 2 (arXiv 1703.06211, 1811.11168), on torchvision's operator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gflv2.extras import missing_package
from gflv2.ops.checks import bad_value, check_choice

try:
    from torchvision.ops import deform_conv2d
except ModuleNotFoundError as error:
    raise missing_package(error, "Deformable convolution") from error


class DeformConv2d(nn.Conv2d):
    """A convolution whose taps move by learned offsets; a drop-in for the ``nn.Conv2d`` of the same arguments.

    ``conv_offset`` is an ungrouped convolution of the same kernel, stride, padding and dilation, with bias, initially
    zero, so that the module starts as the plain convolution (version 2: with every tap at half its weight). Its output
    channels for kernel size K = kh·kw, one deformable group:

    * version 1: 2K, the offsets interleaved (y, x) for each tap;
    * version 2: 3K; the first 2K are the offsets as above, the last K pass a sigmoid and weight the taps.
    """

    def __init__(self, *args, version: int = 1, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.version = check_choice(version, "deform.version", (1, 2))
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            bad_value("padding", "explicit zero padding", (self.padding, self.padding_mode))
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.conv_offset = nn.Conv2d(
            self.in_channels,
            (1 + version) * taps,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, version: int) -> DeformConv2d:
        """A deformable convolution that takes over the weights of ``conv``."""
        made = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            version=version,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        made.weight, made.bias = conv.weight, conv.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        offset = self.conv_offset(x)
        mask = None
        if self.version == 2:
            taps = self.kernel_size[0] * self.kernel_size[1]
            offset, mask = offset[:, : 2 * taps], torch.sigmoid(offset[:, 2 * taps :])
        return deform_conv2d(
            x,
            offset,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mask=mask,
        )
