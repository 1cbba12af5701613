"""mmdet's assigners by predictions, and RTMDet's losses: mmdet's own code with and without ours."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import HorizontalBoxes, bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor

from gflv2.integrations.mmdet import accelerate, assigners, modules, restore, rtmdet
from tests.integrations import noise
from tests.integrations.mmdet.detectors import batch, build, detect

CLASSES, SIZE, STRIDES = 6, 192, (8, 16, 32)
KINDS = {
    "DynamicSoftLabelAssigner": (assigners, "dynamic_soft_label", {"topk": 13}),
    "SimOTAAssigner": (assigners, "dynamic_soft_label", {"center_radius": 2.5}),
    "TaskAlignedAssigner": (assigners, "task_aligned", {"topk": 13}),
}


def priors(kind: str) -> Tensor:
    """(A, 4): points with their strides, or anchors."""
    levels = []
    for stride in STRIDES:
        axis = torch.arange(SIZE // stride) * float(stride) + (stride / 2 if kind == "SimOTAAssigner" else 0)
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        point = torch.stack([x, y], -1).view(-1, 2)
        side = torch.full_like(point, stride)
        levels.append(
            torch.cat([point - 4 * side, point + 4 * side] if kind == "TaskAlignedAssigner" else [point, side], 1)
        )
    return torch.cat(levels)


def scene(kind: str, boxes: int, seed: int) -> tuple[InstanceData, InstanceData]:
    """Predictions that fit the boxes more or less, and the boxes."""
    draw = torch.Generator().manual_seed(seed)
    given = priors(kind)
    centre = (given[:, :2] + given[:, 2:]) / 2 if kind == "TaskAlignedAssigner" else given[:, :2]
    sides = SIZE * torch.exp(torch.rand(boxes, 2, generator=draw) * -2.5)
    low = torch.rand(boxes, 2, generator=draw) * (SIZE - sides)
    truth = InstanceData(
        bboxes=torch.cat([low, low + sides], 1), labels=torch.randint(0, CLASSES, (boxes,), generator=draw)
    )
    own = torch.cat([centre - 20, centre + 20], 1)
    if boxes:
        inside = ((centre[:, None] > low) & (centre[:, None] < low + sides)).all(-1)
        own = torch.where(inside.any(1, keepdim=True), truth.bboxes[inside.float().argmax(1)], own)
    predicted = own + torch.randn(own.shape, generator=draw) * 8
    logits = torch.randn(len(given), CLASSES, generator=draw) - 1
    scores = logits if kind == "DynamicSoftLabelAssigner" else logits.sigmoid()
    return InstanceData(scores=scores, bboxes=predicted, priors=given), truth


def pair(kind: str, **settings):
    """mmdet's assigner and ours."""
    settings = {"type": kind, **KINDS[kind][2], **settings}
    theirs = TASK_UTILS.build(settings)
    accelerate()
    ours = TASK_UTILS.build(settings)
    restore()
    assert type(ours).__module__ == assigners.__name__ and type(theirs).__module__.startswith("mmdet.")
    return theirs, ours


def assert_same(found: AssignResult, wanted: AssignResult) -> None:
    """Bit-equal assignments, in mmdet's dtypes; overlaps to rounding."""
    assert found.num_gts == wanted.num_gts
    for name in ("gt_inds", "labels"):
        one, other = getattr(found, name), getattr(wanted, name)
        assert one.dtype == other.dtype and torch.equal(one, other), name
    assert found.max_overlaps.dtype == wanted.max_overlaps.dtype
    torch.testing.assert_close(found.max_overlaps, wanted.max_overlaps, rtol=1e-5, atol=1e-6)
    if hasattr(wanted, "assign_metrics"):
        torch.testing.assert_close(found.assign_metrics, wanted.assign_metrics, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("boxes", [0, 1, 12, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_assignments(kind, boxes):
    theirs, ours = pair(kind)
    for seed in range(3):
        found, wanted = (one.assign(*scene(kind, boxes, seed)) for one in (ours, theirs))
        assert_same(found, wanted)
        assert int((found.gt_inds > 0).sum()) >= boxes // 2


@pytest.mark.parametrize(
    "kind, settings, call",
    [
        ("DynamicSoftLabelAssigner", {"topk": 5, "iou_weight": 1.5, "soft_center_radius": 2.0}, {}),
        ("SimOTAAssigner", {"candidate_topk": 4, "iou_weight": 2.0, "cls_weight": 0.5, "center_radius": 1.5}, {}),
        ("TaskAlignedAssigner", {"topk": 4}, {"alpha": 0.5, "beta": 3}),
    ],
)
def test_settings(kind, settings, call):
    theirs, ours = pair(kind, **settings)
    assert_same(*(one.assign(*scene(kind, 12, 3), **call) for one in (ours, theirs)))


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_that_hold_no_point(kind):
    theirs, ours = pair(kind)
    predicted, truth = scene(kind, 2, 0)
    truth.bboxes = truth.bboxes + 10 * SIZE
    assert_same(*(one.assign(predicted, truth) for one in (ours, theirs)))


@pytest.mark.parametrize("change", ["boxes", "masks", "calculator"])
def test_what_mmdet_does_itself(change, monkeypatch):
    settings = {"iou_calculator": {"type": "BboxOverlaps2D", "scale": 2.0, "dtype": "fp16"}}
    theirs, ours = pair("DynamicSoftLabelAssigner", **(settings if change == "calculator" else {}))
    predicted, truth = scene("DynamicSoftLabelAssigner", 5, 0)
    if change == "boxes":
        theirs, ours = pair("DynamicSoftLabelAssigner")
        truth = InstanceData(bboxes=HorizontalBoxes(truth.bboxes), labels=truth.labels)
    if change == "masks":
        masks = torch.zeros(5, SIZE, SIZE)
        masks[:, 40:80, 60:90] = 1
        truth = InstanceData(bboxes=truth.bboxes, labels=truth.labels, masks=masks)
    monkeypatch.setattr(assigners, "dynamic_soft_label", lambda *_, **__: pytest.fail("not ours"))
    found, wanted = (one.assign(predicted, truth) for one in (ours, theirs))
    assert torch.equal(found.gt_inds, wanted.gt_inds)


def results(model, boxes, *, noisy: bool = False, amp: bool = False) -> list[Tensor]:
    """Losses, each the sum over the levels, and the gradients."""
    images, samples = batch(boxes)
    model.train().zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        losses = model.loss(noise.disturbed(images) if noisy else images, samples)
    losses = [sum(value) if isinstance(value, list) else value for value in losses.values()]
    sum(losses).backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None]
    return [torch.stack([value.detach() for value in losses]), *gradients]


@pytest.mark.parametrize("boxes", [(4, 2), (3, 0), (30, 20)])
@pytest.mark.parametrize("kind", ["RTMDet", "TOOD", "YOLOX"])
def test_within_mmdets_own_noise(kind, boxes):
    model = build(kind)
    wanted, disturbed = results(model, boxes), results(model, boxes, noisy=True)
    accelerate(model)
    found = results(model, boxes)
    for part in (slice(0, 1), slice(1, None)):
        noise.check(found[part], wanted[part], disturbed[part], name=lambda index: f"{kind} {index}")


def test_mixed_precision():
    """bfloat16: the losses are within the distance of mmdet's from float32."""
    model = build("RTMDet")
    exact, wanted = results(model, (4, 2)), results(model, (4, 2), amp=True)
    accelerate(model)
    found = results(model, (4, 2), amp=True)
    error, own = ((one[0].float() - exact[0]).abs().max() for one in (found, wanted))
    assert error <= 2 * own + 1e-3 * exact[0].max()
    assert all(torch.isfinite(one).all() for one in found)


def apart(found: InstanceData, wanted: InstanceData) -> float:
    """Of each detection that is wanted, what its nearest of the same class lacks in overlap and score; the mean."""
    overlap = bbox_overlaps(wanted.bboxes, found.bboxes)
    best = torch.where(wanted.labels[:, None] == found.labels, overlap, 0.0).max(1)
    return float((1 - best.values + (wanted.scores - found.scores[best.indices]).abs()).mean())


@pytest.mark.parametrize("kind", ["RTMDet", "TOOD"])
def test_ten_steps_and_what_is_detected_then(kind):
    """The order of detections, and which survive, may change with rounding: mmdet's own do so for TOOD."""

    def run(ours: bool, noisy: bool = False) -> tuple[Tensor, list[InstanceData]]:
        torch.manual_seed(0)  # of the backbone
        model, rows = build(kind), []
        if ours:
            accelerate(model)
        optimiser = torch.optim.SGD(model.parameters(), lr=5e-4, momentum=0.9)
        for _ in range(10):
            rows.append(results(model, (4, 2), noisy=noisy)[0])
            optimiser.step()
        return torch.stack(rows), detect(model, score_thr=0.0, max_per_img=20)

    (wanted, stock), (found, ours), (disturbed, others) = run(False), run(True), run(False, noisy=True)
    assert (wanted[-1] - wanted[0]).abs().max() > 0.01 * wanted[0].max()
    noise.check([found], [wanted], [disturbed])
    for image, own, other in zip(stock, ours, others, strict=True):
        assert len(image) == len(own) == 20
        assert apart(own, image) <= 3 * apart(other, image) + 1e-4


def test_the_batch_is_assigned_once(monkeypatch):
    model, calls, original = build("RTMDet"), [], assigners.dynamic_soft_label
    monkeypatch.setattr(assigners, "dynamic_soft_label", lambda *a, **k: calls.append(1) or original(*a, **k))
    accelerate(model)
    assert type(model.bbox_head) is rtmdet.RTMDetHead
    results(model, (4, 2))
    assert len(calls) == 1


@pytest.mark.parametrize("ours", [True, False])
def test_an_infinite_box_of_background_costs_nothing(ours):
    model = build("RTMDet")
    if ours:
        accelerate(model)
    images, samples = batch((4, 2))
    truths, metas = [one.gt_instances for one in samples], [one.metainfo for one in samples]
    with torch.no_grad():
        levels = [list(level) for level in model.bbox_head(model.extract_feat(images))]
    wanted = model.bbox_head.loss_by_feat(*levels, truths, metas)
    levels[1][0][:, :, 0, 0] = torch.inf
    levels[1][0].requires_grad_()
    found = model.bbox_head.loss_by_feat(*levels, truths, metas)
    for name, value in wanted.items():
        torch.testing.assert_close(sum(found[name]), sum(value))
    assert sum(found["loss_bbox"]) > 0
    assert torch.autograd.grad(sum(found["loss_bbox"]), levels[1][0])[0].isfinite().all()


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda head: setattr(head.loss_bbox, "reduction", "sum"), "loss_bbox.reduction: expected 'mean', got 'sum'"),
        (lambda head: head.train_cfg.update(pos_weight=2.0), "train_cfg.pos_weight: expected -1, got 2.0"),
        (lambda head: head.train_cfg.update(allowed_border=0), "train_cfg.allowed_border: expected -1, got 0"),
        (lambda head: setattr(head.loss_cls, "activated", True), "loss_cls.activated: expected False, got True"),
    ],
)
def test_settings_of_the_head_that_mmdet_does_itself(change, text):
    model = build("RTMDet")
    accelerate(model)
    change(model.bbox_head)
    with pytest.raises(ValueError, match=text):
        rtmdet.check_parts(model.bbox_head)
    assert not modules.covered(model.bbox_head, rtmdet.check_parts)
    why = {one.what: one.why for one in accelerate(model).stayed}
    assert why["bbox_head (RTMDetHead)"].startswith("its losses one by one, in mmdet's loop: ")


def test_a_class_derived_from_ours():
    class Mine(rtmdet.RTMDetHead):
        pass

    model = build("RTMDet")
    accelerate(model)
    wanted = results(model, (4, 2))
    model.bbox_head.__class__ = Mine
    for one, other in zip(results(model, (4, 2)), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(wanted[0].max()))
    assert type(model.bbox_head.assigner) is assigners.DynamicSoftLabelAssigner
    assert type(model.bbox_head.loss_cls) is modules.QualityFocalLoss
