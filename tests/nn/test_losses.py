"""The loss modules: mmdet's arguments, and the authors' numbers for the two forms of QFL."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gflv2 import ops
from gflv2.nn import DistributionFocalLoss, GIoULoss, KnowledgeDistillationKLDivLoss, QualityFocalLoss
from gflv2.nn.losses import AVERAGE_EPS
from tests.shared import golden


def rows(count: int = 6):
    draw = torch.Generator().manual_seed(0)
    corners = torch.rand(2, count, 4, generator=draw) * 20
    boxes = torch.cat([corners[..., :2], corners[..., :2] + 1 + corners[..., 2:]], dim=-1)
    return {
        QualityFocalLoss: (
            torch.randn(count, 4, generator=draw),
            (torch.randint(0, 5, (count,), generator=draw), torch.rand(count, generator=draw)),
        ),
        DistributionFocalLoss: (torch.randn(count, 9, generator=draw), torch.rand(count, generator=draw) * 8),
        GIoULoss: tuple(boxes),
        KnowledgeDistillationKLDivLoss: tuple(30 * torch.randn(2, count, 9, generator=draw)),
    }


MODULES = list(rows())


def each(module, pred, target):
    """The unreduced loss, from the definition in mmdet's words."""
    if module is QualityFocalLoss:
        labels, scores = target
        dense = F.one_hot(labels, 5)[:, :4] * scores[:, None]
        factor = (dense - pred.sigmoid()).abs() ** 2
        return (F.binary_cross_entropy_with_logits(pred, dense, reduction="none") * factor).sum(1)
    if module is DistributionFocalLoss:
        left = target.floor().long()
        lower, upper = (F.cross_entropy(pred, bin, reduction="none") for bin in (left, left + 1))
        return lower * (left + 1 - target) + upper * (target - left)
    if module is KnowledgeDistillationKLDivLoss:
        # In double: the terms of the sum over the bins cancel in part.
        student, teacher = pred.double() / 10, target.double() / 10
        divergence = F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="none").mean(1)
        return (divergence * 10**2).to(pred.dtype)
    low, high = torch.maximum(pred[:, :2], target[:, :2]), torch.minimum(pred[:, 2:], target[:, 2:])
    inner = (high - low).clamp(min=0).prod(1)
    union = (pred[:, 2:] - pred[:, :2]).prod(1) + (target[:, 2:] - target[:, :2]).prod(1) - inner
    outer = (torch.maximum(pred[:, 2:], target[:, 2:]) - torch.minimum(pred[:, :2], target[:, :2])).prod(1)
    return 1 - (inner / union - (outer - union) / outer)


@pytest.mark.parametrize("module", MODULES)
def test_reductions_and_weights(module):
    pred, target = rows()[module]
    weight, factor = torch.rand(len(pred)), 2.5
    plain, loss = each(module, pred, target), module(loss_weight=0.25)
    expected = {
        ("mean", None, None): plain.mean(),
        ("sum", None, None): plain.sum(),
        ("none", None, None): plain,
        ("mean", weight, None): (plain * weight).mean(),
        ("mean", weight, factor): (plain * weight).sum() / factor,
        ("none", weight, factor): plain * weight,
    }
    for (reduction, weights, average), value in expected.items():
        found = module(reduction=reduction, loss_weight=0.25)(pred, target, weights, average)
        torch.testing.assert_close(found, 0.25 * value)
        override = loss(pred, target, weight=weights, avg_factor=average, reduction_override=reduction)
        assert torch.equal(override, found)
    # On the device, and with a dimension as a sum over ranks may have it.
    torch.testing.assert_close(loss(pred, target, avg_factor=torch.tensor([factor])), 0.25 * plain.sum() / factor)


@pytest.mark.parametrize("module", MODULES)
def test_an_average_factor_of_zero_divides_by_mmdets_eps(module):
    pred, target = rows()[module]
    for zero in (0, 0.0, torch.tensor(0)):
        found = module()(pred, target, avg_factor=zero)
        torch.testing.assert_close(found, each(module, pred, target).sum() / AVERAGE_EPS)
        assert torch.isfinite(found)


@pytest.mark.parametrize("module", MODULES)
def test_no_rows(module):
    pred, target = rows()[module]
    target = tuple(part[:0] for part in target) if isinstance(target, tuple) else target[:0]
    leaf = pred[:0].requires_grad_()
    loss = module()(leaf, target, weight=pred.new_zeros(0), avg_factor=1.0)
    loss.backward()
    assert loss.item() == 0.0


@pytest.mark.parametrize("module", MODULES)
def test_errors_name_the_argument(module):
    pred, target = rows()[module]
    with pytest.raises(ValueError, match="reduction: expected one of 'none', 'sum', 'mean', got 'avg'"):
        module(reduction="avg")
    with pytest.raises(ValueError, match="reduction_override: .* got 'avg'"):
        module()(pred, target, reduction_override="avg")
    with pytest.raises(ValueError, match='avg_factor: expected None with reduction="sum"'):
        module()(pred, target, avg_factor=2.0, reduction_override="sum")
    with pytest.raises(ValueError, match="weight: expected"):
        module()(pred, target, weight=torch.ones(len(pred) + 1))
    with pytest.raises(TypeError, match="avg_factor: expected a number or a 0-d tensor, got 'three'"):
        module()(pred, target, avg_factor="three")
    with pytest.raises(TypeError, match=r"avg_factor: expected a number or a 0-d tensor, got True \(bool\)"):
        module()(pred, target, avg_factor=True)
    with pytest.raises(ValueError, match=r"avg_factor: expected a number ≥ 0, got -1 \(int\)"):
        module()(pred, target, avg_factor=-1)
    with pytest.raises(TypeError, match="weight: expected a tensor, got "):
        module()(pred, target, weight=[1.0] * len(pred))
    with pytest.raises(TypeError, match="loss_weight: expected a finite number, got 'a'"):
        module(loss_weight="a")


@pytest.mark.parametrize("module", MODULES)
def test_average_factors_of_numpy(module):
    pred, target = rows()[module]
    for factor in (np.int64(3), np.float32(3), np.float64(3)):
        assert torch.equal(module()(pred, target, avg_factor=factor), module()(pred, target, avg_factor=3))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64], ids=str)
@pytest.mark.parametrize("module", MODULES)
def test_a_mask_as_weights(module, dtype):
    pred, target = rows()[module]
    mask = torch.arange(len(pred)) % 2
    found = module()(pred, target, mask.to(dtype), 2.0)
    assert found > 0 and torch.equal(found, module()(pred, target, mask.float(), 2.0))


def test_giou_weights_of_the_sides():
    pred, target = rows()[GIoULoss]
    sides = torch.rand(len(pred), 4)
    assert torch.equal(GIoULoss()(pred, target, sides), GIoULoss()(pred, target, sides.mean(1)))
    with pytest.raises(ValueError, match=r"weight: expected shape \(6,\) or \(6, 4\)"):
        GIoULoss()(pred, target, sides[:, :3])
    with pytest.raises(TypeError, match="pred: expected a tensor, got "):
        GIoULoss()(pred.tolist(), target, sides)


def test_dense_targets_and_joint_scores():
    pred, (labels, scores) = rows()[QualityFocalLoss]
    dense = F.one_hot(labels, 5)[:, :4] * scores[:, None]
    torch.testing.assert_close(QualityFocalLoss()(pred, dense), QualityFocalLoss()(pred, (labels, scores)))
    quality = torch.linspace(-1, 1, len(pred))
    joint = pred.sigmoid() * quality.sigmoid()[:, None]
    of_logits = QualityFocalLoss()(pred, (labels, scores), quality_logits=quality)
    for probable in (QualityFocalLoss(use_sigmoid=False), QualityFocalLoss(activated=True)):
        torch.testing.assert_close(probable(joint, (labels, scores)), of_logits)
        with pytest.raises(ValueError, match="quality_logits: expected None where the predictions are probabilities"):
            probable(joint, (labels, scores), quality_logits=quality)


@pytest.mark.parametrize("name", ["qfl_sig_b1.5_ch7", "qfl_prob_b1.5_ch8"])
def test_the_authors_numbers(name):
    case = golden(name)
    loss = QualityFocalLoss(use_sigmoid=case.meta["use_sigmoid"], beta=case.meta["beta"], reduction="none")
    expected = ops.qfl(
        (case["label"], case["score"]),
        **{"logits" if case.meta["use_sigmoid"] else "probabilities": case["pred"]},
        beta=case.meta["beta"],
        reduction="none",
    )
    assert torch.equal(loss(case["pred"], (case["label"], case["score"])), expected)
    case.compare("loss_none", expected)
