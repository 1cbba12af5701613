"""The pyramid: sizes, order of operations, initialisation."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gflv2.models.fpn import FPN


def features(sizes=((20, 25), (10, 13), (5, 7))):
    torch.manual_seed(0)
    return [torch.randn(2, channels, *size) for channels, size in zip((8, 16, 32), sizes, strict=True)]


def test_levels_and_their_meaning():
    neck = FPN([8, 16, 32], 12)
    outputs = neck(features())
    assert [tuple(o.shape) for o in outputs] == [
        (2, 12, 20, 25),
        (2, 12, 10, 13),
        (2, 12, 5, 7),
        (2, 12, 3, 4),
        (2, 12, 2, 2),
    ]
    lateral = [conv.conv(f) for conv, f in zip(neck.lateral_convs, features(), strict=True)]
    middle = lateral[1] + F.interpolate(lateral[2], size=(10, 13))
    torch.testing.assert_close(outputs[1], neck.fpn_convs[1].conv(middle))
    p6 = neck.fpn_convs[3].conv(outputs[2])
    torch.testing.assert_close(outputs[3], p6)
    assert (p6 < 0).any()
    torch.testing.assert_close(outputs[4], neck.fpn_convs[4].conv(p6))  # no ReLU between


def test_inputs_are_left_alone():
    inputs = features()
    kept = [f.clone() for f in inputs]
    FPN([8, 16, 32], 12)(inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, kept, strict=True))


def test_initialisation():
    neck = FPN([64, 128, 256], 128)
    for name, parameter in neck.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            fan = parameter[0].numel() + parameter.shape[0] * parameter.shape[2] * parameter.shape[3]
            assert parameter.abs().max() <= (6 / fan) ** 0.5
            assert parameter.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05)


def test_fewer_levels_and_depthwise():
    outputs = FPN([8, 16, 32], 12, levels=3)(features())
    assert len(outputs) == 3
    neck = FPN([8, 16, 32], 12, depthwise=True)
    assert neck.fpn_convs[0].depthwise.weight.shape == (12, 1, 3, 3)
    assert neck.lateral_convs[0].depthwise is None
    assert [o.shape for o in neck(features())] == [o.shape for o in FPN([8, 16, 32], 12)(features())]


def test_one_column_in_mixed_precision_has_gradients():
    neck = FPN([8, 16, 32], 16)
    inputs = features(sizes=((8, 4), (4, 2), (2, 1)))
    wanted = neck(inputs)
    for _ in range(40):
        junk = [torch.full((size,), float("nan")) for size in (64, 512, 4096, 20_000, 100_000)]
        del junk  # memory that a careless kernel would read
        neck.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = neck(inputs)
        sum(output.float().sum() for output in outputs).backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in neck.parameters())
    for output, value in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(output.float(), value, atol=0.05, rtol=0.05)


def test_errors():
    with pytest.raises(ValueError, match="neck.levels"):
        FPN([8, 16, 32], 12, levels=2)
    with pytest.raises(ValueError, match="features: expected 3 levels"):
        FPN([8, 16, 32], 12)(features()[:2])
