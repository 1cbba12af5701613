"""Other packages, where they are installed, compute what they are compared with, or differ as said here."""

from __future__ import annotations

import pytest
import torch

from benchmarks import atss, ciou, detect, dfl, distribution_kl, dynamic_soft_label, focal, giou, head, peers, qfl
from benchmarks.harness.candidates import gradients
from benchmarks.harness.cases import TINY, Case
from benchmarks.harness.operation import Operation

CPU = torch.device("cpu")
CASE = TINY.but(size=(128, 160), boxes=6, reg_max=16)


def build(operation: Operation, name: str, case: Case):
    try:
        return operation.peers[name](case)
    except peers.Absent as reason:
        pytest.skip(f"{name}: {reason}")


@pytest.mark.parametrize(
    "module, name, case",
    [
        (dfl, "mmdet", CASE),
        (dfl, "ultralytics", CASE),
        (distribution_kl, "mmdet", CASE),
        (giou, "mmdet", CASE),
        (ciou, "ultralytics", CASE),
        (giou, "torchvision", CASE),
        (qfl, "mmdet", CASE.but(form="logits")),
        (focal, "mmdet", CASE.but(form="varifocal")),
        (focal, "mmdet", CASE.but(form="sigmoid_focal")),
        (focal, "torchvision", CASE.but(form="sigmoid_focal")),
    ],
)
def test_losses(module, name: str, case: Case) -> None:
    operation = module.OPERATION
    call = build(operation, name, case)
    inputs = operation.inputs(case, CPU, 0)
    if module is qfl:  # background is the label C there, and other labels are not allowed
        (labels, scores), *_ = inputs.args
        inputs.args = ((torch.where(labels < 0, case.classes, labels), scores),)
    wanted, found = operation.reference(*inputs.args, **inputs.kwargs), call(*inputs.args, **inputs.kwargs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(gradients(operation, found, inputs), gradients(operation, wanted, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-7)


def test_assignment() -> None:
    call = build(atss.OPERATION, "mmdet", CASE)
    inputs = atss.OPERATION.inputs(CASE, CPU, 0)
    wanted, found = atss.OPERATION.reference(*inputs.args), call(*inputs.args)
    assert torch.equal(torch.stack([image.gt_inds for image in found]), wanted.index)
    assert torch.equal(torch.stack([image.labels for image in found]), wanted.labels)


def test_dynamic_assignment() -> None:
    operation = dynamic_soft_label.OPERATION
    call, inputs = build(operation, "mmdet", CASE), operation.inputs(CASE, CPU, 0)
    wanted, found = operation.reference(*inputs.args), call(*inputs.args)
    assert torch.equal(torch.stack([image.gt_inds for image in found]), wanted.index)
    assert torch.equal(torch.stack([image.labels for image in found]), wanted.labels)


def test_head_without_quality() -> None:
    """mmdet's head is GFLV1: equal where the quality is 1. It clamps Σw at 1, which plays no part here."""
    call = build(head.OPERATION, "mmdet (GFLV1)", CASE)
    inputs = head.OPERATION.inputs(CASE, CPU, 0)
    class_logits = [(level.detach() + 3).requires_grad_() for level in inputs.args[0]]  # so that Σw > 1
    inputs.args = (class_logits, *inputs.args[1:])
    found = call(*inputs.args, **inputs.kwargs)
    inputs.kwargs["predictor"] = None
    torch.testing.assert_close(found, head.OPERATION.reference(*inputs.args, **inputs.kwargs), rtol=1e-4, atol=1e-4)


def test_detections() -> None:
    call = build(detect.OPERATION, "mmdet (GFLV1)", CASE)
    inputs = detect.OPERATION.inputs(CASE, CPU, 0)
    found = call(*inputs.args, **inputs.kwargs)
    inputs.kwargs["predictor"] = None
    for ours, theirs in zip(found, detect.OPERATION.reference(*inputs.args, **inputs.kwargs), strict=True):
        torch.testing.assert_close(ours.bboxes, theirs.boxes, rtol=1e-4, atol=1e-2)
        assert torch.equal(ours.labels, theirs.labels)


def test_a_form_that_others_lack_is_left_out() -> None:
    assert peers.torchvision.sigmoid_focal_loss(CASE) is None
