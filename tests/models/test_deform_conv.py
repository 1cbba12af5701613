"""Deformable convolution: what the offsets and masks mean, and where it goes in a backbone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gflv2.config import BackboneConfig, DeformConfig
from gflv2.models.backbones import build_backbone
from gflv2.models.deform_conv import DeformConv2d
from tests.models.fill import on_meta


def conv(groups=1, stride=1):
    torch.manual_seed(0)
    return nn.Conv2d(8, 8, 3, stride=stride, padding=1, groups=groups, bias=False)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("version", [1, 2])
def test_starts_as_the_plain_convolution(version, groups, stride):
    plain = conv(groups, stride)
    deformable = DeformConv2d.from_conv(plain, version)
    assert deformable.conv_offset.weight.shape == ((1 + version) * 9, 8, 3, 3)  # ungrouped
    x = torch.randn(2, 8, 9, 7)
    # Version 2 starts with every mask at sigmoid(0).
    torch.testing.assert_close(deformable(x), plain(x) / version)
    assert set(dict(deformable.named_parameters())) == {"weight", "conv_offset.weight", "conv_offset.bias"}


@pytest.mark.parametrize("version", [1, 2])
def test_offsets_are_interleaved_y_x(version):
    deformable = DeformConv2d.from_conv(conv(), version)
    with torch.no_grad():
        deformable.conv_offset.bias[0:18:2] = 1.0  # every tap one row down
        deformable.conv_offset.bias[1:18:2] = -2.0  # and two columns left
    x = torch.randn(1, 8, 12, 12)
    moved = F.pad(x, (2, 0, 0, 1))[:, :, 1:, :12]  # moved[i, j] = x[i + 1, j − 2]
    inner = (..., slice(1, 10), slice(3, 11))  # away from the borders, where padding differs
    expected = F.conv2d(moved, deformable.weight, padding=1) / version
    torch.testing.assert_close(deformable(x)[inner], expected[inner])


def test_masks_weight_their_tap():
    deformable = DeformConv2d.from_conv(conv(), 2)
    with torch.no_grad():
        deformable.conv_offset.bias[18:] = -30.0
        deformable.conv_offset.bias[18 + 4] = 30.0  # the middle tap alone
    x = torch.randn(1, 8, 6, 6)
    torch.testing.assert_close(deformable(x), F.conv2d(x, deformable.weight[:, :, 1:2, 1:2]))


def test_gradients_reach_offsets_and_weights():
    deformable = DeformConv2d.from_conv(conv(), 2)
    deformable(torch.randn(1, 8, 6, 6)).square().sum().backward()
    for parameter in deformable.parameters():
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "stages", "version", "count"),
    [("resnet50", [3, 4, 5], 1, 13), ("resnext50_32x4d", [5], 2, 3), ("res2net50d", [4, 5], 1, 27)],
)
def test_replaced_in_whole_stages(name, stages, version, count):
    settings = BackboneConfig(name=name, deform=DeformConfig(stages=stages, version=version))
    backbone = on_meta(lambda: build_backbone(settings))
    modules = {key: module for key, module in backbone.named_modules() if isinstance(module, DeformConv2d)}
    assert len(modules) == count
    assert {int(key[5]) + 1 for key in modules} == set(stages)
    assert all(module.kernel_size == (3, 3) and module.version == version for module in modules.values())
    # No 3×3 convolution of these stages is left plain.
    for key, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and "conv_offset" not in key:
            assert isinstance(module, DeformConv2d) == (key.startswith("layer") and int(key[5]) + 1 in stages), key


@pytest.mark.parametrize(
    ("name", "deform", "message"),
    [
        ("resnet18", DeformConfig([5]), "bottleneck blocks"),
        ("tf_efficientnet_lite0", DeformConfig([5]), "bottleneck blocks"),
        ("resnet50", DeformConfig([6]), "backbone.deform.stages"),
        ("resnet50", DeformConfig([5], version=3), "deform.version"),
    ],
)
def test_errors(name, deform, message):
    with pytest.raises(ValueError, match=message):
        on_meta(lambda: build_backbone(BackboneConfig(name=name, deform=deform)))
