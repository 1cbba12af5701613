"""mmdet's FocalLoss and VarifocalLoss, with and without ours, beside the noise of mmdet's own."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.losses import FocalLoss, VarifocalLoss
from torch import Tensor

from benchmarks.harness.probes import syncs
from gflv2.integrations.mmdet import class_losses
from tests.integrations.mmdet.detectors import CLASSES

ROWS = 400
OURS = {FocalLoss: class_losses.FocalLoss, VarifocalLoss: class_losses.VarifocalLoss}
ONE_HOT = {FocalLoss: lambda labels, scores: labels, VarifocalLoss: lambda labels, scores: dense(labels, scores)}


def dense(labels: Tensor, scores: Tensor) -> Tensor:
    return (labels[:, None] == torch.arange(CLASSES)) * scores[:, None]


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Which of our operations were called."""
    found: list[str] = []

    def counted(name: str):
        function = getattr(class_losses, name)
        return lambda *args, **options: found.append(name) or function(*args, **options)

    for name in ("sigmoid_focal", "varifocal"):
        monkeypatch.setattr(class_losses, name, counted(name))
    return found


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=draw)
    labels = labels.where(torch.rand(ROWS, generator=draw) < 0.3, CLASSES)
    scores = torch.rand(ROWS, generator=draw).where(torch.arange(ROWS) % 11 > 0, 0.0)  # a score of 0 is a negative
    return 2 * torch.randn(ROWS, CLASSES, generator=draw) - 2, labels, scores


def result(loss: torch.nn.Module, pred: Tensor, target: Tensor, **options) -> tuple[Tensor, Tensor]:
    pred = pred.detach().requires_grad_()
    found = loss(pred, target, **options)
    return found.detach(), torch.autograd.grad(found.sum(), pred)[0]


def off(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> list[float]:
    """Largest difference of loss and gradient, by the largest value."""
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True)]


WEIGHT = torch.rand(ROWS, 1, generator=torch.Generator().manual_seed(3))
CASES = [
    (FocalLoss, {}, {"avg_factor": 31.0}),
    (FocalLoss, {"gamma": 1.5, "alpha": 0.4, "loss_weight": 2.0}, {"avg_factor": torch.tensor([31.0])}),
    (FocalLoss, {}, {"weight": WEIGHT[:, 0], "avg_factor": 0}),
    (FocalLoss, {"reduction": "sum"}, {"weight": WEIGHT}),
    (FocalLoss, {}, {}),
    (VarifocalLoss, {}, {"avg_factor": 31.0}),
    (VarifocalLoss, {"iou_weighted": False, "gamma": 1.0, "alpha": 0.4, "loss_weight": 2.0}, {"weight": WEIGHT}),
    (VarifocalLoss, {}, {"reduction_override": "sum"}),
]


@pytest.mark.parametrize(("kind", "settings", "options"), CASES)
def test_within_the_noise_of_mmdets_own(kind, settings, options, calls):
    pred, labels, scores = inputs()
    target = ONE_HOT[kind](labels, scores)
    stock = result(kind(**settings), pred, target, **options)
    noise = off(result(kind(**settings), pred * (1 + 1e-7), target, **options), stock)
    assert not calls
    found = off(result(OURS[kind](**settings), pred, target, **options), stock)
    assert len(calls) == 1
    assert all(ours <= max(4 * theirs, 1e-6) for ours, theirs in zip(found, noise, strict=True)), (found, noise)


@pytest.mark.parametrize(
    ("kind", "settings", "options"),
    [
        (FocalLoss, {}, {"reduction_override": "none"}),
        (FocalLoss, {}, {"weight": torch.ones(ROWS, CLASSES), "avg_factor": 3.0}),
        (FocalLoss, {"alpha": -1.0}, {"avg_factor": 3.0}),
        (FocalLoss, {"activated": True}, {"avg_factor": 3.0}),
        (VarifocalLoss, {}, {"reduction_override": "none"}),
        (VarifocalLoss, {}, {"weight": torch.ones(ROWS, CLASSES)}),
    ],
)
def test_what_the_operation_lacks_is_mmdets(kind, settings, options, calls):
    pred, labels, scores = inputs()
    pred = pred.sigmoid() if settings.get("activated") else pred
    target = ONE_HOT[kind](labels, scores)
    wanted = result(kind(**settings), pred, target, **options)
    assert all(map(torch.equal, result(OURS[kind](**settings), pred, target, **options), wanted))
    assert not calls


def test_one_hot_labels_are_mmdets(calls):
    pred, labels, _ = inputs()
    target = dense(labels, torch.ones(ROWS))
    wanted = result(FocalLoss(), pred, target, avg_factor=3.0)
    assert all(map(torch.equal, result(class_losses.FocalLoss(), pred, target, avg_factor=3.0), wanted))
    assert not calls


@pytest.mark.parametrize("rows", [ROWS, 1, 0])
@pytest.mark.parametrize("weighted", [False, True])
def test_varifocal_loss_never_looks_at_the_device(weighted, rows, calls):
    """Not even to find out whether a row has scores in several classes."""
    pred, labels, scores = (tensor[:rows] for tensor in inputs())
    target = dense(labels, scores)
    target[:, 1] = scores / 2  # beside the score of the label
    options = {"weight": WEIGHT[:rows], "avg_factor": torch.tensor(31.0)} if weighted else {"avg_factor": 31.0}
    wanted = result(VarifocalLoss(), pred, target, **options)

    loss = class_losses.VarifocalLoss()
    assert syncs(lambda: loss(pred.clone().requires_grad_(), target, **options), pred.device) == 0
    found = result(loss, pred, target, **options)
    assert calls == ["varifocal"] * 2
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_varifocal_loss_of_one_hot_labels(dtype, calls):
    """mmdet converts them."""
    pred, labels, _ = inputs()
    target = dense(labels, torch.ones(ROWS)).to(dtype)
    wanted = result(VarifocalLoss(), pred, target, avg_factor=3.0)
    found = result(class_losses.VarifocalLoss(), pred, target, avg_factor=3.0)
    assert calls == ["varifocal"]
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-5, atol=1e-8)


def test_a_score_that_is_no_number_is_seen():
    pred, labels, scores = inputs()
    target = dense(labels, scores)
    target[3, 2] = torch.nan
    for loss in (VarifocalLoss(), class_losses.VarifocalLoss()):
        assert result(loss, pred, target, avg_factor=3.0)[0].isnan()


def test_a_negative_score_is_background():
    pred, labels, scores = inputs()
    target = dense(labels, scores)
    wanted = result(class_losses.VarifocalLoss(), pred, target.clone(), avg_factor=3.0)
    target[target == 0] = -0.25
    assert all(map(torch.equal, result(class_losses.VarifocalLoss(), pred, target, avg_factor=3.0), wanted))


def test_a_sum_with_an_average_factor_is_mmdets_error():
    pred, labels, _ = inputs()
    with pytest.raises(ValueError, match="avg_factor"):
        class_losses.FocalLoss(reduction="sum")(pred, labels, avg_factor=3.0)


def test_why_a_loss_stays():
    assert class_losses.why_not(class_losses.FocalLoss()) is None
    assert "probabilities" in class_losses.why_not(class_losses.FocalLoss(activated=True))
    assert "alpha" in class_losses.why_not(class_losses.FocalLoss(alpha=2.0))
    assert "gamma" in class_losses.why_not(class_losses.VarifocalLoss(gamma=-1.0))
