"""Backbone and pyramid of the official detectors, and the whole R50 with gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.models.fill import detector_of, fill_detector, without_gradient
from tests.shared import golden, golden_cases


def _filled(case):
    model = detector_of(case.name)
    fill_detector(model, case.meta["weight_seed"])
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", golden_cases("forward_*"))
def test_forward(name):
    case = golden(name)
    # In training mode, where BatchNorm must still use its running statistics: the golden forward is that of eval mode.
    model = _filled(case).train()
    seen = {}
    for stage in range(1, 5):
        layer = getattr(model.backbone, f"layer{stage}")
        layer.register_forward_hook(lambda _, __, result, level=f"C{stage + 1}": seen.__setitem__(level, result))
    x = case["x"].requires_grad_("grad_x" in case)
    with torch.set_grad_enabled(x.requires_grad):
        pyramid = model.features(x)
        output = model.bbox_head(pyramid)
    seen |= {f"P{level + 3}": feature for level, feature in enumerate(pyramid)}
    for level in [f"{letter}{i}" for letter in "CP" for i in range(2, 8)]:
        if level in case:
            case.compare(level, seen[level])
        if level in case.meta["abs_mean"]:
            assert seen[level].abs().mean().item() == pytest.approx(case.meta["abs_mean"][level], rel=1e-5), level
    if "cls_score.0" in case:
        scores = model.bbox_head.joint_scores(output)
        for level, (score, box, scale) in enumerate(zip(scores, output.box_logits, output.scales, strict=True)):
            case.compare(f"cls_score.{level}", score)
            case.compare(f"bbox_pred.{level}", box * scale)
    if "grad_x" in case:
        _check_gradients(case, model, x, pyramid)


def _check_gradients(case, model, x, pyramid):
    total = 0.0
    for level, feature in enumerate(pyramid):
        generator = np.random.RandomState(case.meta["seed"] + 5 + level)
        cotangent = torch.from_numpy(generator.standard_normal(tuple(feature.shape))).to(feature.dtype)
        total = total + (feature * cotangent).sum()
    total.backward()
    case.compare("grad_x", x.grad)
    parameters = dict(model.named_parameters())
    for key in case:
        if key.startswith("grad."):
            case.compare(key, parameters[key.removeprefix("grad.")].grad)
    norms = case.meta["grad_norms_f32"]
    trained = {key for key, p in parameters.items() if p.grad is not None}
    assert trained == set(norms)
    assert not [key for key in without_gradient(model) if not key.startswith("bbox_head.")]
    for key, norm in norms.items():
        # The largest relative float32 round-off of the stored gradients is 1e-5 of their scale.
        assert parameters[key].grad.norm().item() == pytest.approx(norm, rel=1e-4), key
