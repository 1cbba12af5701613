"""Gradients of the definitions against finite differences, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from gflv2.ops.reference.dfl import dfl
from gflv2.ops.reference.dgqp import dgqp, dgqp_statistics
from gflv2.ops.reference.gfl_loss import gfl_loss, gfl_targets
from gflv2.ops.reference.giou import giou, iou
from gflv2.ops.reference.integral import integral
from gflv2.ops.reference.qfl import qfl
from tests.ops.random_head import RandomHead

BETAS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]


def leaf(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).requires_grad_()


@pytest.mark.parametrize("boxes", [False, True])
def test_integral_levels(boxes: bool) -> None:
    def run(first: Tensor, second: Tensor, projection: Tensor, scales: Tensor) -> Tensor:
        return integral([first, second], projection, scales=scales, strides=[8, 16] if boxes else None, offset=0.5)

    assert gradcheck(run, (leaf(2, 20, 2, 3), leaf(2, 20, 1, 2, seed=1), leaf(5, seed=2), leaf(2, seed=3)))


def test_integral_rows() -> None:
    points, strides = leaf(3, 2, seed=4).detach(), torch.tensor([8.0, 8.0, 16.0])
    assert gradcheck(lambda z: integral(z, points=points, strides=strides), leaf(3, 4, 5))


@pytest.mark.parametrize(
    ("topk", "mean", "variance"), [(1, False, False), (3, True, False), (3, True, True), (5, False, True)]
)
def test_dgqp(topk: int, mean: bool, variance: bool) -> None:
    settings = {"topk": topk, "mean": mean, "variance": variance}
    features = 4 * (topk + mean + variance)
    levels = leaf(2, 20, 2, 2), leaf(2, 20, 1, 1, seed=1)
    scales = leaf(2, seed=2)
    layers = leaf(6, features, seed=3), leaf(6, seed=4), leaf(1, 6, seed=5), leaf(1, seed=6)

    def statistics(first: Tensor, second: Tensor, scales: Tensor) -> Tensor:
        return dgqp_statistics([first, second], scales=scales, **settings)

    def quality(first: Tensor, second: Tensor, scales: Tensor, *layers: Tensor) -> Tensor:
        return dgqp([first, second], *layers, scales=scales, **settings)

    assert gradcheck(statistics, (*levels, scales))
    assert gradcheck(quality, (*levels, scales, *layers))
    assert gradcheck(lambda rows, *layers: dgqp(rows, *layers, **settings), (leaf(3, 4, 5, seed=7), *layers))


def qfl_target(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(rows) % (classes + 1) - (torch.arange(rows) % 5 == 4).long()
    return labels, torch.linspace(0.05, 0.95, rows, dtype=torch.float64)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_qfl(beta: float, reduction: str) -> None:
    target = qfl_target(7, 3)
    options = {"beta": beta, "reduction": reduction, "weight": torch.linspace(0, 2, 7, dtype=torch.float64)}
    c, r = leaf(7, 3, scale=2), leaf(7, seed=1, scale=2)
    p = leaf(7, 3, seed=2).sigmoid().detach().requires_grad_()
    assert gradcheck(lambda c: qfl(target, logits=c, **options), c)
    assert gradcheck(lambda c, r: qfl(target, class_logits=c, quality_logits=r, **options), (c, r))
    assert gradcheck(lambda p: qfl(target, probabilities=p, **options), p)


@pytest.mark.parametrize("beta", [1.5, 2.0])
def test_qfl_second_derivative(beta: float) -> None:
    """The reference allows it; the kernels refuse."""
    target = qfl_target(5, 3)
    c, r = leaf(5, 3), leaf(5, seed=1)
    assert gradgradcheck(lambda c, r: qfl(target, class_logits=c, quality_logits=r, beta=beta), (c, r))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_dfl(reduction: str) -> None:
    target = torch.tensor([0.0, 0.3, 2.0, 3.999, 4.0])
    assert gradcheck(lambda z: dfl(z, target, reduction=reduction), leaf(5, 5))


def test_giou_and_iou() -> None:
    corner, size = leaf(8, 2, scale=3).detach(), leaf(8, 2, seed=1).detach().abs() + 0.5
    pred = torch.cat([corner, corner + size], 1).requires_grad_()
    target = pred.detach() + leaf(8, 4, seed=2, scale=0.7).detach()
    assert gradcheck(lambda a: giou(a, target, reduction="none"), pred)
    assert gradcheck(lambda a, b: iou(a, b), (pred, target.requires_grad_()))


def test_gfl_loss() -> None:
    """With targets and normalisers given: they are constants of the definition."""
    head = RandomHead(dtype=torch.float64)
    cls, box, options = head.arguments()
    targets = gfl_targets(cls, box, head.assign(), head.boxes, **options)
    assert (targets.index > 0).sum() >= 4
    norms = torch.tensor([5.0, 1.7], dtype=torch.float64)
    place = 2 * len(cls) + 1  # of the projection among the leaves
    grid = head.projection.detach().clone()

    def losses(*leaves: Tensor) -> Tensor:
        cls, box, options = head.rebuild(*leaves[:place], grid, *leaves[place:])
        return torch.stack(gfl_loss(cls, box, targets, norms, **options))

    assert gradcheck(losses, [*head.leaves[:place], *head.leaves[place + 1 :]])

    # The projection decodes the boxes; the grid of the DFL targets, which it also sets, is a constant.
    def giou_of_projection(projection: Tensor) -> Tensor:
        return gfl_loss(cls, box, targets, norms, **{**options, "projection": projection}).giou

    assert gradcheck(giou_of_projection, head.projection)


def test_gfl_loss_with_given_quality_and_without() -> None:
    head = RandomHead(dtype=torch.float64)
    cls, box, _ = head.arguments()
    options = {"strides": [8, 16], "scales": head.scales}
    r = leaf(2, 30, seed=9)
    for quality in (r, None):
        targets = gfl_targets(cls, box, head.assign(), head.boxes, quality_logits=quality, **options)
        norms = torch.ones(2, dtype=torch.float64)

        def run(c0, c1, *rest, targets=targets, norms=norms):
            given = rest[0] if rest else None
            return sum(gfl_loss([c0, c1], box, targets, norms, quality_logits=given, **options))

        assert gradcheck(run, (*cls, *([] if quality is None else [quality])))
