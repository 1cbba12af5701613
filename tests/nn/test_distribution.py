"""``Integral`` and ``DGQP`` against the authors' numbers, under their parameter names."""

from __future__ import annotations

import pytest
import torch

from gflv2.nn import DGQP, Integral
from tests.shared import golden


def test_integral():
    case = golden("integral_r7")
    module = Integral(case.meta["reg_max"])
    logits = case["logits"].requires_grad_()
    found = module(logits)
    (found * case["cot"]).sum().backward()
    case.compare("dist", found)
    case.compare("grad_logits", logits.grad)
    # Leading dimensions become rows, as a level permuted to (B, H, W, 4R) has them.
    assert torch.equal(module(case["logits"][:60].reshape(3, 4, 5, -1)), module(case["logits"][:60]))
    assert list(module.state_dict()) == ["project"]
    assert torch.equal(module.project, torch.arange(8.0))


def test_integral_of_other_bins():
    module = Integral(3)
    module.project = torch.tensor([0.0, 0.5, 2.0, 8.0])
    logits = torch.randn(5, 16)
    expected = logits.view(5, 4, 4).softmax(2) @ module.project
    torch.testing.assert_close(module(logits), expected)


@pytest.mark.parametrize("x", [torch.zeros(3, 32), torch.zeros(())])
def test_integral_of_a_wrong_width(x):
    with pytest.raises(ValueError, match=r"x: expected 68 = 4·\(reg_max \+ 1\) logits in the last dimension, got a "):
        Integral()(x)


def predictor() -> tuple:
    case = golden("dgqp_k8_mean_r7")
    meta = case.meta
    module = DGQP(meta["reg_max"], meta["reg_topk"], meta["reg_channels"], meta["add_mean"])
    keys = list(module.state_dict())
    module.load_state_dict({key: case[f"reg_conf.{key}"] for key in keys})
    return case, module


def test_dgqp():
    case, module = predictor()
    logits = case["bbox_pred"].requires_grad_()
    quality_logits = module([logits])
    quality_logits.retain_grad()
    quality = quality_logits.sigmoid().view(case["quality"].shape)
    (quality * case["cot_quality"]).sum().backward()
    case.compare("quality", quality)
    case.compare("gq_bbox_pred", logits.grad)
    # The last bias' gradient is a sum that cancels: see tests/ops/test_golden_dgqp.py.
    rounding = 3 * 2.0**-24 * float(quality_logits.grad.norm())
    for key, parameter in module.named_parameters():
        case.compare(f"gq_reg_conf.{key}", parameter.grad, extra=rounding if key == "2.bias" else 0.0)


def test_dgqp_of_rows_and_scales():
    case, module = predictor()
    level = case["bbox_pred"]
    rows = level.flatten(2).transpose(1, 2).reshape(-1, 4, 8)
    torch.testing.assert_close(module(rows), module((level,))[0])
    torch.testing.assert_close(module([level], torch.tensor([1.5])), module([level * 1.5]))


def test_dgqp_says_how_many_bins_there_are():
    with pytest.raises(ValueError, match="reg_topk: expected 1 to 17, the number of bins, got 18"):
        DGQP(reg_topk=18)


@pytest.mark.parametrize(
    "module, settings, message",
    [
        (Integral, {"reg_max": "16"}, "reg_max: expected an integer, got '16'"),
        (Integral, {"reg_max": -1}, "reg_max: expected a finite number ≥ 1, got -1"),
        (DGQP, {"reg_max": 16.0}, "reg_max: expected an integer, got 16.0"),
        (DGQP, {"reg_topk": "4"}, "reg_topk: expected an integer, got '4'"),
        (DGQP, {"reg_channels": "a"}, "reg_channels: expected an integer, got 'a'"),
        (DGQP, {"reg_channels": 0}, "reg_channels: expected a finite number ≥ 1, got 0"),
    ],
)
def test_settings_are_checked(module, settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        module(**settings)
