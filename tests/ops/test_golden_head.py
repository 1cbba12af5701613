"""The functional training and inference head against the authors' head: targets, losses, gradients, detections."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from gflv2.ops import Decoded, GFLTargets, batched_nms, decode, dgqp, gfl_loss, integral, normalisers, qfl
from tests.ops.golden_head import Head, inference_head, run_head
from tests.ops.under_test import backends_of, few, running
from tests.shared import golden_cases, rounding_of_scale

CASES = golden_cases("head_*")
EMPTY = "head_all_empty"  # the authors' box losses are NaN there: ours are zero


def level_sizes(head: Head) -> list[int]:
    return [level.shape[2] * level.shape[3] for level in head.class_logits]


def of_level(targets: GFLTargets, sizes: list[int], level: int) -> GFLTargets:
    start = sum(sizes[:level])
    part = slice(start, start + sizes[level])
    return GFLTargets(*(value if name == "sums" else value[:, part] for name, value in targets._asdict().items()))


def quality(head: Head) -> Tensor:
    layers = head.predictor[:4]
    options = {"topk": head.predictor.topk, "mean": head.predictor.mean}
    return dgqp(head.box_logits, *layers, scales=head.scales, **options)


@pytest.mark.parametrize("case", CASES)
def test_scores(case: str) -> None:
    head = inference_head(case)
    parts = quality(head).split(level_sizes(head), dim=1)
    for level, (cls, box, r) in enumerate(zip(head.class_logits, head.box_logits, parts, strict=True)):
        head.arrays.compare(f"cls_score.{level}", cls.sigmoid() * r.sigmoid().reshape(len(cls), 1, *cls.shape[2:]))
        head.arrays.compare(f"bbox_pred.{level}", box * head.scales[level])


@pytest.mark.parametrize("backend", backends_of("gfl_targets", every_set=True))
@pytest.mark.parametrize("case", few(CASES))
def test_targets(case: str, backend: str) -> None:
    head = inference_head(case)
    with running(backend):
        targets = head.targets()
    sizes = level_sizes(head)
    for level in range(len(sizes)):
        found = of_level(targets, sizes, level)
        labels = torch.where(found.labels < 0, head.meta["num_classes"], found.labels)
        head.arrays.compare(f"labels.{level}", labels)
        head.arrays.compare(f"label_weights.{level}", found.label_weights)
        head.arrays.compare(f"bbox_targets.{level}", found.boxes)
    assert float(targets.sums[0]) == head.meta["num_total_pos"]
    positive = targets.index > 0
    assert torch.equal(positive, targets.labels >= 0)
    assert not targets.weights[~positive].any() and not targets.scores[~positive].any()
    if case == EMPTY:
        assert float(targets.sums[1]) == 0


@pytest.mark.parametrize("backend", backends_of("gfl_loss", every_set=True))
@pytest.mark.parametrize("case", few(CASES))
def test_losses_of_levels(case: str, backend: str) -> None:
    """Level by level, as the authors sum them, with the normalisers of the batch."""
    head = inference_head(case)
    with running(backend):
        targets = head.targets()
        norms = normalisers(targets.sums)
        sizes = level_sizes(head)
        rows = []
        for level in range(len(sizes)):
            options = {
                **head.options,
                "strides": [head.meta["strides"][level]],
                "scales": head.scales[level : level + 1],
            }
            part = of_level(targets, sizes, level)
            rows.append(gfl_loss([head.class_logits[level]], [head.box_logits[level]], part, norms, **options))
        losses = [torch.stack(values) for values in zip(*rows, strict=True)]
        whole = gfl_loss(head.class_logits, head.box_logits, targets, norms, **head.options)
    head.arrays.compare("loss_cls", losses[0])
    if case == EMPTY:
        assert not losses[1].any() and not losses[2].any()
    else:
        head.arrays.compare("loss_bbox", losses[1])
        head.arrays.compare("loss_dfl", losses[2])
        head.arrays.compare("loss_total", sum(whole))
    for total, levels in zip(whole, losses, strict=True):
        torch.testing.assert_close(total, levels.sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", backends_of("gfl_loss", every_set=True))
@pytest.mark.parametrize("case", few(CASES))
def test_gradients_through_the_head(case: str, backend: str) -> None:
    """Of the sum of all losses, for every parameter and feature: the way through the statistics included."""
    head = run_head(case)
    for level in head.box_logits:
        level.retain_grad()
    with running(backend):
        targets = head.targets()
        losses = gfl_loss(head.class_logits, head.box_logits, targets, normalisers(targets.sums), **head.options)
        sum(losses).backward()
    arrays = head.arrays
    pairs = zip(head.box_logits, head.scales, strict=True)
    extra = {f"scales.{index}.scale": rounding_of_scale(*pair) for index, pair in enumerate(pairs)}
    checked = 0
    for key, weight in head.weights.items():
        if key == "integral.project":
            continue
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        assert torch.isfinite(gradient).all(), key
        # In the case without boxes the authors' total is NaN; their class loss alone is what ours is.
        for name in (f"clsonly_grad.{key}",) if case == EMPTY else (f"grad.{key}",):
            if name in arrays:
                arrays.compare(name, gradient, extra=extra.get(key, 0.0))
                checked += 1
        checked += compare_large(arrays, key, gradient)
    for level, feature in enumerate(head.features):
        arrays.compare(f"clsonly_grad_feat.{level}" if case == EMPTY else f"grad_feat.{level}", feature.grad)
    assert checked == len(head.weights) - 1


def compare_large(arrays, key: str, gradient: Tensor) -> int:
    """Large gradients are stored as a strided sample, four seeded projections and the norm."""
    if f"grad_sub.{key}" not in arrays:
        return 0
    flat = gradient.flatten()
    meaning = arrays.meta["arrays"]
    step = int(re.search(r"every (\d+)-th", meaning[f"grad_sub.{key}"]["meaning"])[1])
    arrays.compare(f"grad_sub.{key}", flat[::step])
    seed = int(re.search(r"RandomState\((\d+)\)", meaning[f"grad_proj.{key}"]["meaning"])[1])
    directions = np.random.RandomState(seed).standard_normal((4, flat.numel()))
    arrays.compare(f"grad_proj.{key}", torch.from_numpy(directions) @ flat.double())
    arrays.compare(f"grad_norm.{key}", flat.double().norm())
    return 1


@pytest.mark.parametrize("backend", backends_of("gfl_loss", every_set=True))
@pytest.mark.parametrize("case", few([case for case in CASES if case != EMPTY], 1))
def test_gradient_of_box_logits_alone(case: str, backend: str) -> None:
    """The box logits as leaves, the quality held fixed: what the two box losses give them."""
    head = inference_head(case)
    leaves = [level.requires_grad_() for level in head.arrays.levels("bbox_pred")]
    with running(backend):
        targets = head.targets()
        options = {"strides": head.meta["strides"], "quality_logits": quality(head)}
        sum(gfl_loss(head.class_logits, leaves, targets, normalisers(targets.sums), **options)).backward()
    for level, leaf in enumerate(leaves):
        head.arrays.compare(f"grad_bbox_pred.{level}", leaf.grad)


@pytest.mark.parametrize("backend", backends_of("qfl", every_set=True))
@pytest.mark.parametrize("case", [case for case in CASES if case != EMPTY])
def test_gradient_of_joint_scores(case: str, backend: str) -> None:
    """The joint scores as leaves: what the Quality Focal Loss on probabilities gives them."""
    head = inference_head(case)
    leaves = [level.requires_grad_() for level in head.arrays.levels("cls_score")]
    targets = head.targets()
    norms = normalisers(targets.sums)
    with running(backend):
        scores = torch.cat([level.flatten(2).transpose(1, 2) for level in leaves], 1).flatten(0, 1)
        target = (targets.labels.flatten(), targets.scores.flatten())
        weight = targets.label_weights.flatten()
        qfl(target, probabilities=scores, weight=weight, avg_factor=norms[0], reduction="mean").backward()
    for level, leaf in enumerate(leaves):
        head.arrays.compare(f"grad_cls_score.{level}", leaf.grad)


@cache
def quality_on(case: str, backend: str) -> Tensor:
    """Once for all that decodes a case: it takes Triton's interpreter longer than the rest."""
    with running(backend):
        return quality(inference_head(case))


def decode_case(case: str, backend: str, *, rescale: bool = False, **options) -> Decoded:
    head = inference_head(case)
    images = head.meta["img_metas"]
    sizes = torch.tensor([image["img_shape"][:2] for image in images])
    factors = torch.tensor([image["scale_factor"][:2] for image in images]) if rescale else None
    with running(backend):
        return decode(
            head.class_logits,
            head.box_logits,
            strides=head.meta["strides"],
            scales=head.scales,
            quality_logits=quality_on(case, backend),
            image_sizes=sizes,
            scale_factors=factors,
            **options,
        )


@pytest.mark.parametrize("backend", backends_of("decode", every_set=True))
@pytest.mark.parametrize("case", CASES)
def test_candidates(case: str, backend: str) -> None:
    """All boxes and scores before the threshold."""
    head = inference_head(case)
    decoded = decode_case(case, backend, score_thr=0.0, return_distributions=True)
    with running(backend):
        everywhere = integral(head.box_logits, scales=head.scales, strides=head.meta["strides"])
    reordered = any("raw_" in note for note in head.meta.get("raw_order_differs_in_f64", []))
    for image in head.images:
        boxes, scores = decoded.boxes[image], decoded.scores[image]
        if reordered:  # near-equal scores: round-off decides their order, so match every row with its nearest
            both = torch.cat([boxes, scores * 1000], 1)
            expected = head.arrays[f"raw_bboxes.{image}"], head.arrays[f"raw_scores.{image}"][:, :-1]
            match = torch.cdist(torch.cat([expected[0], expected[1] * 1000], 1), both).argmin(1)
            assert match.unique().numel() == len(boxes)
            boxes, scores = boxes[match], scores[match]
        head.arrays.compare(f"raw_bboxes.{image}", boxes)
        padded = torch.cat([scores, torch.zeros(len(scores), 1)], 1)  # the golden array carries a zero column
        head.arrays.compare(f"raw_scores.{image}", padded)
    # The points say where each row comes from, the distributions what its box was made of.
    height, width = (
        torch.tensor(sizes) for sizes in zip(*[m["img_shape"][:2] for m in head.meta["img_metas"]], strict=True)
    )
    limit = torch.stack([width, height, width, height], 1)[:, None]
    clipped = torch.minimum(everywhere.clamp(min=0), limit)
    again = clipped.gather(1, decoded.points[..., None].expand(-1, -1, 4))
    torch.testing.assert_close(decoded.boxes, again, rtol=0, atol=1e-4)
    torch.testing.assert_close(decoded.distributions.sum(-1), torch.ones(decoded.distributions.shape[:-1]))


@pytest.mark.parametrize("backend", backends_of("decode", every_set=True))
@pytest.mark.parametrize("variant", ["nms", "nms_rescale", "pre"])
@pytest.mark.parametrize("case", CASES)
def test_detections(case: str, variant: str, backend: str) -> None:
    """Detections after NMS. The authors keep the unused class in their list: legacy mode drops it, and nothing else."""
    head = inference_head(case)
    options = {"pre_topk": head.meta["nms_pre_variant"]} if variant == "pre" else {}
    with_background = head.meta["cls_out_channels"] > head.meta["num_classes"]
    decoded = decode_case(case, backend, rescale=variant == "nms_rescale", **options)
    every, legacy = batched_nms(decoded), batched_nms(decoded._replace(legacy_background=True))
    for image in head.images:
        found = every[image]
        head.arrays.compare(f"det_{variant}.labels.{image}", found.labels)
        joined = torch.cat([found.boxes, found.scores[:, None]], 1)
        head.arrays.compare(f"det_{variant}.bboxes.{image}", joined)
        if with_background:
            kept = found.labels < head.meta["num_classes"]
            assert torch.equal(legacy[image].boxes, found.boxes[kept])
            assert torch.equal(legacy[image].labels, found.labels[kept])
            assert torch.equal(legacy[image].scores, found.scores[kept])
