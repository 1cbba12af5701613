"""Values of the definitions at the edges: extreme logits, no positives, no rows, half precision, other layouts."""

from __future__ import annotations

import itertools

import pytest
import torch

import gflv2
from gflv2 import ops
from gflv2.ops import GFLTargets
from tests.ops.random_head import SHAPES, STRIDES, RandomHead

EXTREMES = [-1e4, -200.0, -30.0, 0.0, 30.0, 200.0, 1e4]


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_qfl_is_finite_at_extreme_logits(beta: float, dtype: torch.dtype) -> None:
    pairs = list(itertools.product(EXTREMES, EXTREMES, [0.0, 0.3, 1.0]))
    c, r, y = (torch.tensor(column, dtype=dtype) for column in zip(*pairs, strict=True))
    c, r = c[:, None].requires_grad_(), r.requires_grad_()
    loss = ops.qfl(y[:, None], class_logits=c, quality_logits=r, beta=beta, reduction="none")
    loss.sum().backward()
    assert torch.isfinite(loss).all() and (loss >= 0).all()
    assert torch.isfinite(c.grad).all() and torch.isfinite(r.grad).all()
    alone = c.detach().requires_grad_()
    loss = ops.qfl(y[:, None], logits=alone, beta=beta, reduction="none")
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(alone.grad).all()


def test_qfl_keeps_its_gradient_where_probabilities_lose_it() -> None:
    """At c = r = 40, y = 0: J is 1 to the last bit, 1 − J = 2·exp(−40), and dL/dc → 1/2 each."""
    c, r = torch.full((1, 1), 40.0, requires_grad=True), torch.full((1,), 40.0, requires_grad=True)
    target = torch.tensor([-1]), torch.zeros(1)
    loss = ops.qfl(target, class_logits=c, quality_logits=r, reduction="sum")
    loss.backward()
    torch.testing.assert_close(loss, 40 - torch.log(torch.tensor(2.0)))
    torch.testing.assert_close(c.grad.flatten(), torch.tensor([0.5]))
    torch.testing.assert_close(r.grad, torch.tensor([0.5]))


def test_qfl_against_the_probability_form() -> None:
    torch.manual_seed(0)
    c, r = torch.randn(50, 4, dtype=torch.float64) * 2, torch.randn(50, dtype=torch.float64) * 2
    target = torch.randint(-1, 6, (50,)), torch.rand(50, dtype=torch.float64)
    for beta in (0.0, 0.7, 2.0):
        joint = c.sigmoid() * r.sigmoid()[:, None]
        expected = ops.qfl(target, probabilities=joint, beta=beta, reduction="none")
        found = ops.qfl(target, class_logits=c, quality_logits=r, beta=beta, reduction="none")
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        expected = ops.qfl(target, probabilities=c.sigmoid(), beta=beta, reduction="none")
        torch.testing.assert_close(
            ops.qfl(target, logits=c, beta=beta, reduction="none"), expected, rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.9])
def test_qfl_slope_at_the_target_is_zero_for_small_beta(beta: float) -> None:
    """J = y exactly: |y − J|^β has an infinite slope there for 0 < β < 1, which is defined as 0."""
    c = torch.zeros(1, 1, requires_grad=True)
    ops.qfl(torch.full((1, 1), 0.5), logits=c, beta=beta, reduction="sum").backward()
    assert c.grad.item() == 0.0


def test_integral_dgqp_and_dfl_at_extreme_logits() -> None:
    rows = (
        torch.tensor(list(itertools.product(EXTREMES, repeat=4)))[:, None, :].expand(-1, 4, -1).clone().requires_grad_()
    )
    layers = [torch.ones(3, 12), torch.zeros(3), torch.ones(1, 3), torch.zeros(1)]
    for values in (
        ops.integral(rows),
        ops.dgqp_statistics(rows, topk=2, variance=True),
        ops.dgqp(rows, *layers, topk=2),
    ):
        rows.grad = None
        values.sum().backward()
        assert torch.isfinite(values).all() and torch.isfinite(rows.grad).all()
    flat = rows.detach()[:, 0].clone().requires_grad_()
    loss = ops.dfl(flat, torch.linspace(0, 3, len(flat)), reduction="none")
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(flat.grad).all()


def test_dfl_reads_inside_the_row_whatever_the_target() -> None:
    logits = torch.randn(5, 4)
    loss = ops.dfl(logits, torch.tensor([-3.0, 3.0, 7.0, 1e30, -1e30]), reduction="none")
    ends = -logits.log_softmax(1)
    torch.testing.assert_close(loss, torch.stack([ends[0, 0], ends[1, 3], ends[2, 3], ends[3, 3], ends[4, 0]]))


def test_giou_of_touching_and_degenerate_boxes() -> None:
    pred = torch.tensor([[0.0, 0, 1, 1], [0, 0, 0, 0], [2, 2, 1, 1], [0, 0, 1, 1]], requires_grad=True)
    target = torch.tensor([[1.0, 0, 2, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]])
    loss = ops.giou(pred, target, reduction="none")
    loss.sum().backward()
    # The touching pair: IoU 0, enclosing = union. Two points in one place: union and enclosing are floored alike.
    torch.testing.assert_close(loss[[0, 1, 3]], torch.tensor([1.0, 1.0, 0.0]))
    assert torch.isfinite(pred.grad).all()
    assert torch.equal(ops.iou(pred, target)[:3].detach(), torch.zeros(3))


def test_mean_and_variance_are_of_the_top_k() -> None:
    rows = torch.log(torch.tensor([0.4, 0.1, 0.2, 0.3])).expand(1, 4, 4)
    found = ops.dgqp_statistics(rows, topk=2, mean=True, variance=True).reshape(4, 4)
    torch.testing.assert_close(found, torch.tensor([0.4, 0.3, 0.35, 0.0025]).expand(4, 4))


def test_of_equal_probabilities_the_lower_bin_gets_the_gradient() -> None:
    rows = torch.zeros(1, 4, 5, requires_grad=True)
    cotangent = torch.tensor([3.0, 2.0]).repeat(4)
    (ops.dgqp_statistics(rows, topk=2, mean=False)[0] * cotangent).sum().backward()
    p, upstream = torch.full((5,), 0.2), torch.tensor([3.0, 2.0, 0, 0, 0])
    torch.testing.assert_close(rows.grad[0, 0], p * (upstream - (p * upstream).sum()))


def test_no_positives_give_zero_box_losses_and_finite_gradients() -> None:
    empty = [torch.zeros(0, 4), torch.zeros(0, 4)]
    head = RandomHead(boxes=empty, labels=[torch.zeros(0, dtype=torch.int64)] * 2)
    cls, box, options = head.arguments()
    targets = ops.gfl_targets(cls, box, head.assign(), head.boxes, **options)
    assert targets.sums.tolist() == [2.0, 0.0]
    losses = ops.gfl_loss(cls, box, targets, ops.normalisers(targets.sums), **options)
    assert losses.giou.item() == 0.0 and losses.dfl.item() == 0.0 and losses.qfl.item() > 0
    sum(losses).backward()
    for tensor in head.leaves:  # every parameter has an edge, so that no rank of a distributed run waits for ever
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all()
    assert not head.projection.grad.any()


def test_ignored_points_and_padding_have_no_class_loss() -> None:
    head = RandomHead()
    cls, box, options = head.arguments()
    sizes = [(32, 48), (20, 30)]
    assignment = head.assign(padded_sizes=sizes)
    index = assignment.index.clone()
    index[0, 5] = -1
    targets = ops.gfl_targets(cls, box, assignment._replace(index=index), head.boxes, padded_sizes=sizes, **options)
    expected = torch.ones(2, 30)
    expected[0, 5] = 0
    inside = torch.zeros(4, 6)
    inside[:3, :4] = 1  # ceil(20 / 8), ceil(30 / 8)
    coarse = torch.ones(2, 3)
    coarse[:, 2] = 0  # ceil(30 / 16) = 2 of 3 columns
    expected[1] = torch.cat([inside.flatten(), coarse.flatten()])
    assert torch.equal(targets.label_weights, expected)
    sum(ops.gfl_loss(cls, box, targets, torch.ones(2), **options)).backward()
    weightless = (targets.label_weights == 0).split([24, 6], 1)
    for level, mask in zip(cls, weightless, strict=True):
        gradient = level.grad.flatten(2).transpose(1, 2)
        assert not gradient[mask].any() and gradient[~mask].any(-1).all()


def test_targets_of_one_positive_by_hand() -> None:
    """One box, one point: y is its IoU in units of the stride, w the best joint score, DFL's target the distances."""
    head = RandomHead(seed=3)
    cls, box, options = head.arguments()
    index = torch.zeros(2, 30, dtype=torch.int64)
    index[0, 8] = 1  # level 0, cell (1, 2): the point (16, 8)
    labels = torch.full_like(index, -1)
    labels[0, 8] = 2
    boxes = [torch.tensor([[6.0, 4.0, 30.0, 26.0]]), torch.zeros(0, 4)]
    targets = ops.gfl_targets(cls, box, ops.Assignment(index, torch.zeros(2, 30), labels), boxes, **options)
    decoded = ops.integral(box, head.projection, scales=head.scales, strides=STRIDES)[0, 8]
    joint = cls[0][0, :, 1, 2].sigmoid() * ops.dgqp(box, *head.layers, scales=head.scales, topk=3)[0, 8].sigmoid()
    torch.testing.assert_close(targets.scores[0, 8], ops.iou(decoded[None], boxes[0])[0].detach())
    torch.testing.assert_close(targets.weights[0, 8], joint.max().detach())
    torch.testing.assert_close(targets.sums, torch.stack([torch.tensor(2.0), joint.max().detach()]))
    losses = ops.gfl_loss(cls, box, targets, torch.tensor([1.0, 1.0]), loss_weights=(0.0, 1.0, 1.0), **options)
    weight = joint.max().detach()
    torch.testing.assert_close(losses.giou, weight * ops.giou(decoded[None] / 8, boxes[0] / 8)[()])
    distances = torch.tensor([10.0, 4.0, 14.0, 18.0]) / 8
    rows = box[0][0, :, 1, 2].reshape(4, 6) * head.scales[0]
    torch.testing.assert_close(losses.dfl, weight * ops.dfl(rows, distances))


def test_target_distances_are_clamped_below_the_last_bin() -> None:
    """A box wider than the bins reach: DFL learns n − 0.1, GIoU the whole box."""
    head = RandomHead()
    cls, box, _ = head.arguments()
    index = torch.zeros(2, 30, dtype=torch.int64)
    index[0, 8] = 1
    boxes = [torch.tensor([[-400.0, 4.0, 400.0, 26.0]]), torch.zeros(0, 4)]
    labels = torch.where(index > 0, 0, -1)
    options = {"strides": STRIDES}
    targets = ops.gfl_targets(cls, box, ops.Assignment(index, torch.zeros(2, 30), labels), boxes, **options)
    losses = ops.gfl_loss(cls, box, targets, torch.ones(2), loss_weights=(1, 1, 1), **options)
    rows = box[0][0, :, 1, 2].reshape(4, 6)
    clamped = torch.tensor([4.9, 0.5, 4.9, 2.25])
    torch.testing.assert_close(losses.dfl, targets.weights[0, 8] * ops.dfl(rows, clamped))
    decoded = ops.integral(box, strides=STRIDES)[0, 8]
    torch.testing.assert_close(losses.giou, targets.weights[0, 8] * ops.giou(decoded[None] / 8, boxes[0] / 8))


def test_dfl_of_the_head_works_in_bins_of_a_uniform_projection() -> None:
    """Bins of half a stride that start at 1: distance d is bin (d − 1)/0.5."""
    head = RandomHead()
    cls, box, _ = head.arguments()
    index = torch.zeros(2, 30, dtype=torch.int64)
    index[0, 8] = 1
    boxes = [torch.tensor([[16.0 - 12, 8.0 - 16, 16.0 + 20, 8.0 + 4]]), torch.zeros(0, 4)]
    assignment = ops.Assignment(index, torch.zeros(2, 30), torch.where(index > 0, 0, -1))
    options = {"strides": STRIDES, "projection": 1 + 0.5 * torch.arange(6)}
    targets = ops.gfl_targets(cls, box, assignment, boxes, **options)
    losses = ops.gfl_loss(cls, box, targets, torch.ones(2), loss_weights=(1, 1, 1), **options)
    bins = torch.tensor([1.0, 2.0, 3.0, 0.0])  # of the distances 1.5, 2, 2.5 and 0.5 strides
    expected = targets.weights[0, 8] * ops.dfl(box[0][0, :, 1, 2].reshape(4, 6), bins)
    torch.testing.assert_close(losses.dfl, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    """The same numbers as float32 on the rounded inputs, and gradients of the input's dtype."""
    half, full = RandomHead(dtype=dtype), RandomHead()
    for a, b in zip(half.leaves, full.leaves, strict=True):
        b.data.copy_(a.detach().float())
    found = []
    for head in (half, full):
        cls, box, options = head.arguments()
        targets = ops.gfl_targets(cls, box, head.assign(), head.boxes, **options)
        losses = ops.gfl_loss(cls, box, targets, ops.normalisers(targets.sums), **options)
        sum(losses).backward()
        found.append((targets, losses))
    for a, b in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)
    for a, b in zip(half.leaves, full.leaves, strict=True):
        assert a.grad.dtype == dtype
        torch.testing.assert_close(a.grad.float(), b.grad, rtol=1e-2, atol=1e-3)


def test_autocast_changes_nothing() -> None:
    head = RandomHead()
    cls, box, options = head.arguments()
    assignment = head.assign()

    def run() -> tuple[GFLTargets, ops.GFLLosses, ops.Decoded]:
        targets = ops.gfl_targets(cls, box, assignment, head.boxes, **options)
        losses = ops.gfl_loss(cls, box, targets, ops.normalisers(targets.sums), **options)
        return targets, losses, ops.decode(cls, box, **options)

    plain = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run()
    for a, b in zip(plain, mixed, strict=True):
        for x, y in zip(a, b, strict=True):
            assert not isinstance(x, torch.Tensor) or torch.equal(x, y)


def test_channels_last_and_slices_give_the_same() -> None:
    head = RandomHead()
    cls, box, options = head.arguments()
    wide = [torch.cat([level.detach(), level.detach()], 1)[:, : level.shape[1]] for level in box]
    other = [level.detach().to(memory_format=torch.channels_last) for level in cls]
    assert not wide[0].is_contiguous() and not other[0].is_contiguous()
    a = ops.decode(cls, box, **options)
    b = ops.decode(other, wide, **options)
    for x, y in zip(a[:4], b[:4], strict=True):
        torch.testing.assert_close(x, y)


def test_inputs_are_left_alone() -> None:
    head = RandomHead()
    cls, box, options = head.arguments()
    before = [tensor.detach().clone() for tensor in head.leaves]
    boxes = [tensor.clone() for tensor in head.boxes]
    targets = ops.gfl_targets(cls, box, head.assign(), head.boxes, **options)
    sums = targets.sums.clone()
    ops.gfl_loss(cls, box, targets, ops.normalisers(targets.sums), **options)
    ops.batched_nms(ops.decode(cls, box, image_sizes=[(10, 10), (20, 20)], scale_factors=[(2, 2), (1, 1)], **options))
    assert all(torch.equal(a, b) for a, b in zip(before, head.leaves, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(boxes, head.boxes, strict=True))
    assert torch.equal(sums, targets.sums)


def test_empty_rows() -> None:
    assert ops.integral(torch.zeros(0, 4, 5)).shape == (0, 4)
    assert ops.dgqp_statistics(torch.zeros(0, 4, 5)).shape == (0, 20)
    layers = [torch.ones(3, 20), torch.zeros(3), torch.ones(1, 3), torch.zeros(1)]
    assert ops.dgqp(torch.zeros(0, 4, 5), *layers).shape == (0,)
    none = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    for reduction in ("sum", "mean"):
        z = torch.zeros(0, 5, requires_grad=True)
        loss = ops.dfl(z, torch.zeros(0), reduction=reduction)
        loss.backward()
        assert loss.item() == 0.0 and z.grad.shape == (0, 5)
        assert ops.qfl(none, logits=torch.zeros(0, 3), reduction=reduction).item() == 0.0
        assert ops.giou(torch.zeros(0, 4), torch.zeros(0, 4), reduction=reduction).item() == 0.0
    assert ops.dfl(torch.zeros(0, 5), torch.zeros(0), reduction="none").shape == (0,)
    assert ops.iou(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize("positive", [[True, False, True], [False] * 3])
def test_rows_whose_number_depends_on_data_compile(positive: list[bool]) -> None:
    """With an average factor on the device, in one graph; of no rows the loss is 0."""

    def loss(logits: torch.Tensor, chosen: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return ops.dfl(logits[chosen], chosen[chosen].float(), avg_factor=factor)

    arguments = torch.zeros(3, 4), torch.tensor(positive), torch.tensor(float(sum(positive)))
    shapes_from_data = torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
    with gflv2.use_backend("reference"), shapes_from_data:
        torch._dynamo.reset()
        found = torch.compile(loss, fullgraph=True, backend="eager")(*arguments)
    torch.testing.assert_close(found, torch.tensor(4.0).log() if any(positive) else torch.tensor(0.0))


def test_reductions_and_average_factor() -> None:
    logits, target, weight = torch.randn(6, 4), torch.rand(6) * 3, torch.rand(6)
    rows = ops.dfl(logits, target, reduction="none")
    torch.testing.assert_close(ops.dfl(logits, target), rows.mean())
    torch.testing.assert_close(ops.dfl(logits, target, reduction="sum"), rows.sum())
    torch.testing.assert_close(ops.dfl(logits, target, weight=weight, reduction="none"), rows * weight)
    for factor in (2.5, torch.tensor(2.5)):
        torch.testing.assert_close(
            ops.dfl(logits, target, weight=weight, avg_factor=factor), (rows * weight).sum() / 2.5
        )
        torch.testing.assert_close(ops.dfl(logits, target, avg_factor=factor, reduction="none"), rows)


def test_scaling_the_loss_scales_the_gradient() -> None:
    gradients = []
    for factor in (1.0, 4.0):
        head = RandomHead()
        cls, box, options = head.arguments()
        targets = ops.gfl_targets(cls, box, head.assign(), head.boxes, **options)
        (factor * sum(ops.gfl_loss(cls, box, targets, ops.normalisers(targets.sums), **options))).backward()
        gradients.append([tensor.grad for tensor in head.leaves])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(4 * a, b, rtol=1e-6, atol=1e-9)


def test_twice_the_same_call_gives_the_same_bits() -> None:
    runs = []
    for _ in range(2):
        head = RandomHead()
        cls, box, options = head.arguments()
        targets = ops.gfl_targets(cls, box, head.assign(), head.boxes, **options)
        losses = ops.gfl_loss(cls, box, targets, ops.normalisers(targets.sums), **options)
        sum(losses).backward()
        runs.append([*targets, *losses, *(tensor.grad for tensor in head.leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_the_training_head_compiles_into_one_graph() -> None:
    head = RandomHead()
    cls, box, options = head.arguments()

    def step(cls, box, boxes, labels):
        assignment = ops.atss(boxes, labels, SHAPES, STRIDES, anchor_scale=3.0)
        targets = ops.gfl_targets(cls, box, assignment, boxes, **options)
        return sum(ops.gfl_loss(cls, box, targets, ops.normalisers(targets.sums), **options))

    expected = step(cls, box, head.boxes, head.labels)
    expected.backward()
    gradients = [tensor.grad.clone() for tensor in head.leaves]
    for tensor in head.leaves:
        tensor.grad = None
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(cls, box, head.boxes, head.labels)
    found.backward()
    torch.testing.assert_close(found, expected)
    for tensor, gradient in zip(head.leaves, gradients, strict=True):
        torch.testing.assert_close(tensor.grad, gradient)
