"""The head against the authors' numbers: forward, targets, losses level by level, gradients, detections."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from gflv2.models.dense_head import HeadOutput
from gflv2.models.gfl_head import GFLHead
from gflv2.ops import gfl_loss, normalisers
from tests.models.fill import without_gradient
from tests.shared import Golden, golden, golden_cases, head_weights, rounding_of_scale

CASES = golden_cases("head_*")
WITH_BOXES = [name for name in CASES if name != "head_all_empty"]


@functools.lru_cache(maxsize=2)
def load(name: str) -> Golden:
    return golden(name)


def build(case: Golden) -> GFLHead:
    meta = case.meta
    weights = meta["loss_weights"]
    head = GFLHead(
        meta["num_classes"],
        meta["in_channels"],
        feat_channels=meta["feat_channels"],
        stacked_convs=meta["stacked_convs"],
        strides=meta["strides"],
        reg_max=meta["reg_max"],
        reg_topk=meta["reg_topk"],
        add_mean=meta["add_mean"],
        reg_channels=meta["reg_channels"],
        gn_groups=meta["gn_groups"],
        legacy_background=meta["cls_out_channels"] == meta["num_classes"] + 1,
        beta=meta["beta"],
        loss_weights=(weights["cls"], weights["bbox"], weights["dfl"]),
        atss_topk=meta["atss_topk"],
    )
    head.load_state_dict(head_weights(case))
    return head


def run(case: Golden, head: GFLHead):
    dtype = next(head.parameters()).dtype
    features = [feature.to(dtype).requires_grad_() for feature in case.levels("feat")]
    return features, head(features)


# The arrays' tolerance is the round-off of one float32 convolution library, on one processor. Another one rounds
# otherwise, and where an activation is nearly 0, a ReLU then opens or closes: float64 knows no such difference and is
# held to the arrays' own tolerance; float32 may be off by a thousandth of the largest value more.
each_precision = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def flips(case: Golden, key: str, dtype: torch.dtype) -> float:
    return 0.0 if dtype == torch.float64 else 1e-3 * float(np.abs(case.array(key)).max(initial=0.0))


def truth(case: Golden):
    sizes = [tuple(image["pad_shape"][:2]) for image in case.meta["img_metas"]]
    return case.levels("gt_bboxes"), case.levels("gt_labels"), sizes


def losses_by_level(head: GFLHead, output: HeadOutput, targets) -> dict[str, list[torch.Tensor]]:
    """The losses with all levels but one silenced, for every level; their sum is the loss of the batch."""
    norms = normalisers(targets.sums)
    sizes = [level.shape[2] * level.shape[3] for level in output.class_logits]
    found = {"loss_cls": [], "loss_bbox": [], "loss_dfl": []}
    for level in range(len(sizes)):
        chosen = torch.cat([torch.full((size,), float(i == level)) for i, size in enumerate(sizes)])
        only = targets._replace(
            weights=targets.weights * chosen,
            label_weights=targets.label_weights * chosen,
            index=targets.index * chosen.long(),
        )
        losses = gfl_loss(
            output.class_logits,
            output.box_logits,
            only,
            norms,
            strides=head.strides,
            scales=output.scales,
            predictor=output.predictor,
            beta=head.beta,
            loss_weights=head.loss_weights,
        )
        for name, value in zip(found, losses, strict=True):
            found[name].append(value)
    return found


@pytest.mark.parametrize("name", CASES)
def test_forward(name):
    case = load(name)
    head = build(case)
    _, output = run(case, head)
    for level, scores in enumerate(head.joint_scores(output)):
        case.compare(f"cls_score.{level}", scores)
        case.compare(f"bbox_pred.{level}", output.box_logits[level] * output.scales[level])


@pytest.mark.parametrize("name", CASES)
def test_targets(name):
    case = load(name)
    head = build(case)
    boxes, labels, sizes = truth(case)
    _, output = run(case, head)
    targets = head.targets(output, head.assign(output, boxes, labels, sizes), boxes, sizes)
    background = case.meta["num_classes"]
    expected = torch.cat(case.levels("labels"), dim=1)
    found = torch.where(targets.labels < 0, background, targets.labels)
    assert torch.equal(found, expected)
    assert torch.equal(targets.label_weights, torch.cat(case.levels("label_weights"), dim=1))
    assert torch.equal(targets.boxes, torch.cat(case.levels("bbox_targets"), dim=1))
    # The authors count one positive for an image without any.
    assert targets.sums[0].item() == case.meta["num_total_pos"]
    assert (expected < background).sum(1).clamp(min=1).sum().item() == case.meta["num_total_pos"]


@each_precision
@pytest.mark.parametrize("name", CASES)
def test_losses(name, dtype):
    case = load(name)
    head = build(case).to(dtype)
    boxes, labels, sizes = truth(case)
    _, output = run(case, head)
    targets = head.targets(output, head.assign(output, boxes, labels, sizes), boxes, sizes)
    levels = losses_by_level(head, output, targets)
    losses = head.loss(output, boxes, labels, sizes)
    for ours, theirs in (("loss_qfl", "loss_cls"), ("loss_giou", "loss_bbox"), ("loss_dfl", "loss_dfl")):
        assert losses[ours].item() == pytest.approx(sum(levels[theirs]).item(), rel=1e-5, abs=1e-7)
        if case.array(theirs).size and np.isfinite(case.array(theirs)).all():
            case.compare(theirs, torch.stack(levels[theirs]), extra=1e-2 * flips(case, theirs, dtype))
        else:  # without any box the authors divide 0 by 0
            assert name == "head_all_empty" and theirs != "loss_cls"
            assert losses[ours].item() == 0.0
    if name != "head_all_empty":
        case.compare("loss_total", sum(losses.values()), extra=1e-2 * flips(case, "loss_total", dtype))


@each_precision
@pytest.mark.parametrize("name", CASES)
def test_gradients(name, dtype):
    case = load(name)
    head = build(case).to(dtype)
    boxes, labels, sizes = truth(case)
    features, output = run(case, head)
    for level in output.box_logits:
        level.retain_grad()
    sum(head.loss(output, boxes, labels, sizes).values()).backward()
    assert not without_gradient(head)
    pairs = zip(output.box_logits, output.scales, strict=True)
    extra = {f"scales.{index}.scale": rounding_of_scale(*pair) for index, pair in enumerate(pairs)}
    # Without boxes the authors' whole gradient is NaN; theirs of the class loss alone is what ours must be, since the
    # box losses are constant 0 here.
    prefix = "clsonly_" if name == "head_all_empty" else ""
    checked = 0
    for level, feature in enumerate(features):
        key = f"{prefix}grad_feat.{level}"
        case.compare(key, feature.grad, extra=flips(case, key, dtype))
    for key, parameter in head.named_parameters():
        gradient = parameter.grad
        assert torch.isfinite(gradient).all(), key
        if f"{prefix}grad.{key}" in case:
            found = f"{prefix}grad.{key}"
            case.compare(found, gradient, extra=extra.get(key, 0.0) + flips(case, found, dtype))
            checked += 1
        elif f"grad_sub.{key}" in case:
            flat = gradient.flatten()
            sample = case.array(f"grad_sub.{key}")
            step = int(case.meta["arrays"][f"grad_sub.{key}"]["meaning"].split("every ")[1].split("-th")[0])
            assert len(flat[::step]) == len(sample)
            case.compare(f"grad_sub.{key}", flat[::step], extra=flips(case, f"grad_sub.{key}", dtype))
            rows = np.random.RandomState(case.meta["seed"] + 77).standard_normal((4, flat.numel()))
            projected = torch.from_numpy(rows @ flat.double().numpy())
            case.compare(f"grad_proj.{key}", projected, extra=flips(case, f"grad_proj.{key}", dtype))
            case.compare(f"grad_norm.{key}", flat.double().norm(), extra=flips(case, f"grad_norm.{key}", dtype))
            checked += 1
    assert checked == len(list(head.parameters()))


@pytest.mark.parametrize("name", WITH_BOXES)
def test_gradients_of_scores_and_boxes_as_leaves(name):
    """The authors' joint scores and scaled box logits as inputs: the loss alone, not through the statistics."""
    case = load(name)
    head = build(case)
    boxes, labels, sizes = truth(case)
    scores, box_logits = case.levels("cls_score"), [level.requires_grad_() for level in case.levels("bbox_pred")]
    logits = [score.double().logit().float().requires_grad_() for score in scores]
    output = HeadOutput(logits, box_logits, torch.ones(len(logits)))
    losses = head.loss(output, boxes, labels, sizes)
    sum(losses.values()).backward()
    for level, (score, logit, box) in enumerate(zip(scores, logits, box_logits, strict=True)):
        case.compare(f"grad_bbox_pred.{level}", box.grad)
        # dJ = J·(1 − J) dc.
        case.compare(f"grad_cls_score.{level}", logit.grad / (score * (1 - score)))


def _detect(case: Golden, head: GFLHead, *, pre_topk: int, rescale: bool):
    _, output = run(case, head)
    test = case.meta["test_cfg"]
    images = case.meta["img_metas"]
    factors = torch.tensor([image["scale_factor"][:2] for image in images]) if rescale else None
    return head.detect(
        output,
        [tuple(image["img_shape"][:2]) for image in images],
        factors,
        pre_topk=pre_topk,
        score_thr=test["score_thr"],
        iou_thr=test["iou_threshold"],
        max_detections=test["max_per_img"],
        return_distributions=True,
    )


@pytest.mark.parametrize("variant", ["nms", "nms_rescale", "pre"])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_detections(name, variant):
    case = load(name)
    head = build(case)
    pre_topk = case.meta["nms_pre_variant"] if variant == "pre" else case.meta["test_cfg"]["nms_pre"]
    found = _detect(case, head, pre_topk=pre_topk, rescale=variant == "nms_rescale")
    assert len(found) == len(case.meta["n_dets"][variant])
    for image, detections in enumerate(found):
        golden_labels, key = case[f"det_{variant}.labels.{image}"], f"det_{variant}.bboxes.{image}"
        # In the legacy mode ours drops the background at the end; the authors leave that to the evaluation.
        real = golden_labels < case.meta["num_classes"]
        golden_boxes = case[key][real]
        assert torch.equal(detections.labels, golden_labels[real])
        tolerance = case.tolerance(key)["atol"] if len(golden_boxes) else 0.0
        torch.testing.assert_close(detections.boxes, golden_boxes[:, :4], rtol=0, atol=tolerance)
        torch.testing.assert_close(detections.scores, golden_boxes[:, 4], rtol=0, atol=2e-6)
        assert detections.distributions.shape == (len(golden_boxes), 4, case.meta["reg_max"] + 1)
        torch.testing.assert_close(detections.distributions.sum(2), torch.ones(len(golden_boxes), 4))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_candidates_before_nms(name):
    case = load(name)
    head = build(case)
    _, output = run(case, head)
    sizes = [tuple(image["img_shape"][:2]) for image in case.meta["img_metas"]]
    decoded = head.decode(output, sizes, pre_topk=case.meta["test_cfg"]["nms_pre"], score_thr=0.0)
    for image in range(len(sizes)):
        boxes, scores = decoded.boxes[image], decoded.scores[image]
        padded = torch.cat([scores, scores.new_zeros(len(scores), 1)], dim=1)  # the authors append a column of zeros
        if any(note.startswith(f"raw_bboxes.{image}") for note in case.meta.get("raw_order_differs_in_f64", [])):
            _compare_as_sets(case, image, boxes, padded)
        else:
            case.compare(f"raw_bboxes.{image}", boxes)
            case.compare(f"raw_scores.{image}", padded)


def _compare_as_sets(case: Golden, image: int, boxes: torch.Tensor, scores: torch.Tensor) -> None:
    """Rows in any order: each one has a partner, found by nearest neighbour, and no partner serves two."""
    # No tolerance came with these two arrays: that of the other cases, in proportion to the image's side for the boxes.
    pixels, score = 5e-4, 2e-6
    ours = torch.cat([boxes / pixels, scores / score], dim=1).double()
    theirs = torch.cat([case[f"raw_bboxes.{image}"] / pixels, case[f"raw_scores.{image}"] / score], dim=1).double()
    assert ours.shape == theirs.shape
    distance, partner = torch.cdist(ours, theirs, p=float("inf")).min(1)
    assert distance.max() <= 1.0
    assert len(partner.unique()) == len(ours)
