"""`qfl`, `dfl`, `giou` and `iou` against the authors' losses: every reduction, weights, average factor, gradients.

And `ciou` against what Ultralytics and mmdet gave.
"""

from __future__ import annotations

import pytest
import torch

from gflv2.ops import ciou, dfl, giou, iou, qfl
from gflv2.ops.reference.boxes import boxes_to_distances, distances_to_boxes
from tests.ops.golden_losses import check_variants
from tests.ops.under_test import backends_of, running
from tests.shared import golden, golden_cases


@pytest.mark.parametrize("backend", backends_of("qfl", every_set=True))
@pytest.mark.parametrize("dense", [False, True], ids=["labels", "dense"])
@pytest.mark.parametrize("case", golden_cases("qfl_*"))
def test_qfl(case: str, dense: bool, backend: str) -> None:
    arrays = golden(case)
    form = "logits" if arrays.meta["use_sigmoid"] else "probabilities"
    with running(backend) as device:
        labels, scores = arrays["label"].to(device), arrays["score"].to(device)
        target = (labels, scores)
        if dense:
            hit = labels[:, None] == torch.arange(arrays.meta["channels"], device=device)
            target = hit * scores[:, None]

        def loss(pred, **options):
            return qfl(target, **{form: pred}, beta=arrays.meta["beta"], **options)

        check_variants(arrays, device, loss, arrays["pred"], arrays.meta["loss_weight"], average_on_device=dense)


@pytest.mark.parametrize("backend", backends_of("dfl", every_set=True))
@pytest.mark.parametrize("case", golden_cases("dfl_*"))
def test_dfl(case: str, backend: str) -> None:
    arrays = golden(case)
    with running(backend) as device:
        target = arrays["target"].to(device)

        def loss(pred, **options):
            return dfl(pred, target, **options)

        check_variants(arrays, device, loss, arrays["pred"], arrays.meta["loss_weight"], average_on_device=True)


@pytest.mark.parametrize("backend", backends_of("giou", every_set=True))
@pytest.mark.parametrize("case", golden_cases("giou*"))
def test_giou(case: str, backend: str) -> None:
    arrays = golden(case)
    with running(backend) as device:
        target = arrays["target"].to(device)

        def loss(pred, **options):
            return giou(pred, target, **options)

        check_variants(arrays, device, loss, arrays["pred"], arrays.meta["loss_weight"], average_on_device=False)


@pytest.mark.parametrize("backend", backends_of("iou", every_set=True))
@pytest.mark.parametrize("case", golden_cases("giou*"))
def test_iou(case: str, backend: str) -> None:
    arrays = golden(case)
    with running(backend) as device:
        values = iou(arrays["pred"].to(device), arrays["target"].to(device))
    arrays.compare("iou_aligned", values)


@pytest.mark.parametrize("backend", backends_of("ciou", every_set=True))
@pytest.mark.parametrize("convention", ["ultralytics", "mmdet"])
def test_ciou(convention: str, backend: str) -> None:
    arrays = golden(f"ciou_{convention}")
    with running(backend) as device:
        pred, target = (arrays[name].to(device).requires_grad_() for name in ("pred", "target"))
        loss = ciou(pred, target, reduction="none", eps=arrays.meta["eps"], convention=convention)
        gradients = torch.autograd.grad((loss * arrays["cot"].to(device)).sum(), (pred, target))
    arrays.compare("loss", loss)
    arrays.compare("grad_pred", gradients[0])
    arrays.compare("grad_target", gradients[1])


@pytest.mark.parametrize("case", golden_cases("distance_*"))
def test_distances_and_boxes(case: str) -> None:
    arrays = golden(case)
    points, distances, boxes = arrays["points"], arrays["dist"], arrays["boxes"]
    arrays.compare("decoded", distances_to_boxes(points, distances))
    arrays.compare("decoded_clamped", distances_to_boxes(points, distances, arrays.meta["max_shape"]))
    arrays.compare("encoded", boxes_to_distances(points, boxes, arrays.meta["reg_max"], arrays.meta["eps"]))
    arrays.compare("encoded_unbounded", boxes_to_distances(points, boxes))
