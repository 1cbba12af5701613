"""Wrong arguments: every error names the argument, what was expected and what came."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gflv2
from gflv2 import ops
from gflv2.ops import backends
from tests.ops.random_head import SHAPES, STRIDES, RandomHead

ROWS = torch.zeros(3, 4, 5)
LAYERS = [torch.zeros(6, 20), torch.zeros(6), torch.zeros(1, 6), torch.zeros(1)]
LOGITS = torch.zeros(4, 3)
TARGET = (torch.zeros(4, dtype=torch.int64), torch.zeros(4))
BOXES = [torch.zeros(2, 4), torch.zeros(0, 4)]
LABELS = [torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)]
ELSEWHERE = [image.to("meta") for image in BOXES]


def layers(index: int, value: Any) -> list:
    return [value if k == index else layer for k, layer in enumerate(LAYERS)]


def head_call(op: str, **changes: Any) -> Callable[[], Any]:
    def call() -> Any:
        head = RandomHead()
        cls, box, options = head.arguments()
        arguments = {"class_logits": cls, "box_logits": box, **options}
        if op == "decode":
            return ops.decode(**{**arguments, **changes})
        assignment = head.assign()
        if op == "gfl_targets":
            return ops.gfl_targets(**{**arguments, "assignment": assignment, "boxes": head.boxes, **changes})
        targets = ops.gfl_targets(assignment=assignment, boxes=head.boxes, **arguments)
        return ops.gfl_loss(**{**arguments, "targets": targets, "normalisers": torch.ones(2), **changes})

    return call


def atss_call(**changes: Any) -> Callable[[], Any]:
    arguments = {"boxes": BOXES, "labels": LABELS, "level_shapes": SHAPES, "strides": STRIDES}
    return lambda: ops.atss(**{**arguments, **changes})


def aligned_call(**changes: Any) -> Callable[[], Any]:
    arguments = {
        **{"scores": torch.zeros(2, 5, 3), "boxes": torch.zeros(2, 5, 4), "points": torch.zeros(5, 2)},
        **{"gt_boxes": BOXES, "gt_labels": LABELS},
    }
    return lambda: ops.task_aligned(**{**arguments, **changes})


PADDED = {"boxes": torch.zeros(2, 3, 4), "labels": torch.zeros(2, 3, dtype=torch.int64)}
CASES = {
    # task_aligned
    "task_aligned scores of one image": (aligned_call(scores=torch.zeros(5, 3)), ValueError, "scores.*(5, 3)"),
    "task_aligned boxes": (aligned_call(boxes=torch.zeros(2, 4, 4)), ValueError, "boxes.*(2, 5, 4).*(2, 4, 4)"),
    "task_aligned points": (aligned_call(points=torch.zeros(4, 2)), ValueError, "points.*(5, 2).*(4, 2)"),
    "task_aligned images": (aligned_call(gt_boxes=BOXES[:1]), ValueError, "gt_boxes.*2 images"),
    "task_aligned labels": (aligned_call(gt_labels=LABELS[:1]), ValueError, "gt_labels.*2 tensors"),
    "task_aligned elsewhere": (aligned_call(gt_boxes=ELSEWHERE), ValueError, "gt_boxes.*cpu.*meta"),
    "task_aligned no candidate": (aligned_call(topk=0), ValueError, "topk.*1.*0"),
    "task_aligned none remain": (aligned_call(final_topk=0), ValueError, "final_topk.*1.*0"),
    "task_aligned overlap": (aligned_call(overlap="giou"), ValueError, "overlap.*'ciou', 'iou'.*'giou'"),
    "task_aligned candidates": (aligned_call(candidates="near"), ValueError, "candidates.*'inside', 'all'.*'near'"),
    "task_aligned contest": (aligned_call(contest="none"), ValueError, "contest.*'containing', 'claiming'.*'none'"),
    "task_aligned exponent": (aligned_call(alpha=-1), ValueError, "alpha.*0.*-1"),
    "task_aligned no eps": (aligned_call(eps=0), ValueError, "eps.*> 0.*0"),
    "task_aligned zeros": (
        aligned_call(zeros=torch.tensor([True, False])),
        ValueError,
        "zeros.*True, False.*bool tensor",
    ),
    "task_aligned one zeros": (aligned_call(zeros=torch.tensor(True)), ValueError, "zeros.*True, False.*bool tensor"),
    "task_aligned bool topk": (aligned_call(topk=True), TypeError, "topk.*integer.*True"),
    "task_aligned margin": (aligned_call(margin=-1e-9), ValueError, "margin.*0"),
    "task_aligned min_side": (aligned_call(min_side=float("inf")), ValueError, "min_side.*inf"),
    # dgqp
    "dgqp rows of the wrong shape": (
        lambda: ops.dgqp_statistics(torch.zeros(3, 20)),
        ValueError,
        "box_logits.*(3, 20)",
    ),
    "dgqp too many": (lambda: ops.dgqp_statistics(ROWS, topk=6), ValueError, "topk.*1 to 5.*6"),
    "dgqp none": (lambda: ops.dgqp_statistics(ROWS, topk=0), ValueError, "topk.*0"),
    "dgqp half": (lambda: ops.dgqp_statistics(ROWS, topk=2.0), TypeError, "topk.*integer.*2.0"),
    "dgqp mean": (lambda: ops.dgqp_statistics(ROWS, mean=1), TypeError, "mean.*True or False.*1"),
    "dgqp weight1": (lambda: ops.dgqp(ROWS, *layers(0, torch.zeros(6, 16))), ValueError, "weight1.*20.*(6, 16)"),
    "dgqp no hidden unit": (
        lambda: ops.dgqp(ROWS, torch.zeros(0, 20), torch.zeros(0), torch.zeros(1, 0), torch.zeros(1)),
        ValueError,
        "weight1.*at least one hidden unit.*(0, 20)",
    ),
    "dgqp bias1": (lambda: ops.dgqp(ROWS, *layers(1, torch.zeros(5))), ValueError, "bias1.*(6).*(5,)"),
    "dgqp weight2": (lambda: ops.dgqp(ROWS, *layers(2, torch.zeros(6, 1))), ValueError, "weight2.*(1, 6).*(6, 1)"),
    "dgqp bias2": (lambda: ops.dgqp(ROWS, *layers(3, torch.zeros(()))), ValueError, "bias2.*(1)"),
    "dgqp scales": (lambda: ops.dgqp(ROWS, *LAYERS, scales=torch.ones(2)), ValueError, "scales.*(2,)"),
    "dgqp device": (
        lambda: ops.dgqp(ROWS, *layers(1, torch.zeros(6, device="meta"))),
        ValueError,
        "bias1.*cpu.*meta",
    ),
    # qfl
    "qfl no form": (lambda: ops.qfl(TARGET), ValueError, "exactly one of logits.*none of them"),
    "qfl two forms": (
        lambda: ops.qfl(TARGET, logits=LOGITS, probabilities=LOGITS),
        ValueError,
        "logits, probabilities",
    ),
    "qfl quality missing": (lambda: ops.qfl(TARGET, class_logits=LOGITS), ValueError, "quality_logits.*None"),
    "qfl quality too much": (
        lambda: ops.qfl(TARGET, logits=LOGITS, quality_logits=torch.zeros(4)),
        ValueError,
        "quality_logits.*None with logits",
    ),
    "qfl quality shape": (
        lambda: ops.qfl(TARGET, class_logits=LOGITS, quality_logits=torch.zeros(4, 1)),
        ValueError,
        "quality_logits.*(4).*(4, 1)",
    ),
    "qfl logits shape": (lambda: ops.qfl(TARGET, logits=torch.zeros(4)), ValueError, "logits.*(4,)"),
    "qfl integer logits": (lambda: ops.qfl(TARGET, logits=torch.zeros(4, 3).long()), TypeError, "logits.*int64"),
    "qfl positional": (lambda: ops.qfl(TARGET, LOGITS), TypeError, "positional"),
    "qfl target": (lambda: ops.qfl(TARGET[0], logits=LOGITS), TypeError, "target.*int64"),
    "qfl target type": (lambda: ops.qfl(1.0, logits=LOGITS), TypeError, "target.*1.0"),
    "qfl labels": (lambda: ops.qfl((TARGET[1], TARGET[1]), logits=LOGITS), TypeError, "labels.*int64.*float32"),
    "qfl scores": (lambda: ops.qfl((TARGET[0], torch.zeros(5)), logits=LOGITS), ValueError, "scores.*(4).*(5,)"),
    "qfl beta": (lambda: ops.qfl(TARGET, logits=LOGITS, beta=-1), ValueError, "beta.*-1"),
    "qfl beta type": (lambda: ops.qfl(TARGET, logits=LOGITS, beta=torch.ones(())), TypeError, "beta"),
    "qfl reduction": (lambda: ops.qfl(TARGET, logits=LOGITS, reduction="avg"), ValueError, "reduction.*'mean'.*'avg'"),
    "qfl factor with sum": (
        lambda: ops.qfl(TARGET, logits=LOGITS, reduction="sum", avg_factor=2.0),
        ValueError,
        "avg_factor.*sum.*2.0",
    ),
    "qfl factor true": (lambda: ops.qfl(TARGET, logits=LOGITS, avg_factor=True), TypeError, "avg_factor.*number.*True"),
    "focal alpha": (
        lambda: ops.sigmoid_focal(LOGITS, TARGET[0], alpha=1.5),
        ValueError,
        "alpha: expected a finite number of at most 1, got 1.5",
    ),
    "focal exponent": (
        lambda: ops.iou_aware_bce(LOGITS, TARGET, alpha=1.5),
        ValueError,
        "alpha: expected a number in [0, 1], got 1.5".replace("[", r"\["),
    ),
    "qfl factor zero": (lambda: ops.qfl(TARGET, logits=LOGITS, avg_factor=0), ValueError, "avg_factor.*positive.*0"),
    "qfl factor shape": (
        lambda: ops.qfl(TARGET, logits=LOGITS, avg_factor=torch.ones(1)),
        ValueError,
        "avg_factor.*0-d.*(1,)",
    ),
    "qfl weight": (lambda: ops.qfl(TARGET, logits=LOGITS, weight=torch.ones(4, 3)), ValueError, "weight.*(4).*(4, 3)"),
    # dfl, giou, iou
    "dfl logits": (lambda: ops.dfl(torch.zeros(4, 1), torch.zeros(4)), ValueError, "logits.*2 to 65.*(4, 1)"),
    "dfl target": (lambda: ops.dfl(torch.zeros(4, 5), torch.zeros(4, 1)), ValueError, "target.*(4).*(4, 1)"),
    "dfl target type": (lambda: ops.dfl(torch.zeros(4, 5), torch.zeros(4).long()), TypeError, "target.*int64"),
    "giou pred": (lambda: ops.giou(torch.zeros(3, 5), torch.zeros(3, 4)), ValueError, "pred.*(3, 5)"),
    "giou target": (lambda: ops.giou(torch.zeros(3, 4), torch.zeros(1, 4)), ValueError, "target.*(3, 4).*(1, 4)"),
    "giou eps": (lambda: ops.giou(torch.zeros(3, 4), torch.zeros(3, 4), eps=0), ValueError, "eps.*number > 0.*0"),
    "iou pred": (lambda: ops.iou([[0, 0, 1, 1]], torch.zeros(1, 4)), TypeError, "pred.*a tensor"),
    # atss
    "atss boxes": (atss_call(boxes=[torch.zeros(2, 5), torch.zeros(0, 4)]), ValueError, r"boxes\[0\].*(2, 5)"),
    "atss no image": (atss_call(boxes=[], labels=[]), ValueError, "boxes.*at least one image"),
    "atss boxes type": (atss_call(boxes=None), TypeError, "boxes.*None"),
    "atss labels": (atss_call(labels=LABELS[:1]), ValueError, "labels.*2 tensors"),
    "atss label count": (atss_call(labels=[LABELS[1], LABELS[1]]), ValueError, r"labels\[0\].*(2).*(0,)"),
    "atss label type": (atss_call(labels=[torch.zeros(2), LABELS[1]]), TypeError, r"labels\[0\].*int64.*float32"),
    "atss strides": (atss_call(strides=[8]), ValueError, "strides.*2 numbers"),
    "atss stride zero": (atss_call(strides=[8, 0]), ValueError, "strides.1..*number > 0.*0"),
    "atss shapes": (atss_call(level_shapes=None), ValueError, "level_shapes.*None"),
    "atss sizes": (atss_call(padded_sizes=[(10, 10)]), ValueError, "padded_sizes.*2 (height, width)"),
    "atss topk": (atss_call(topk=0), ValueError, "topk.*0"),
    "atss anchor": (atss_call(anchor_scale=0), ValueError, "anchor_scale.*0"),
    "atss counts with lists": (atss_call(counts=torch.zeros(2).long()), ValueError, "counts.*None with boxes"),
    "atss counts": (
        atss_call(boxes=torch.zeros(2, 3, 4), labels=torch.zeros(2, 3).long(), counts=torch.zeros(3).long()),
        ValueError,
        "counts.*(2).*(3,)",
    ),
    "atss points": (atss_call(points=torch.zeros(3, 2), level_shapes=None), ValueError, "points.*list"),
    "atss points and sizes": (
        atss_call(points=[torch.zeros(3, 2)] * 2, padded_sizes=[(8, 8)] * 2),
        ValueError,
        "padded_sizes.*None with points",
    ),
    "atss ignore": (atss_call(ignore_boxes=[torch.zeros(1, 4)]), ValueError, "ignore_boxes.*2 images"),
    "atss ignore elsewhere": (
        atss_call(ignore_boxes=ELSEWHERE),
        ValueError,
        "^ignore_boxes: expected boxes of 2 images on cpu like boxes, got [^\n]* on meta]$",
    ),
    "atss ignore elsewhere, one": (
        atss_call(ignore_boxes=[BOXES[0], ELSEWHERE[1]]),
        ValueError,
        r"^ignore_boxes.1.: expected a tensor on cpu [^\n]* on meta$",
    ),
    "atss ignore elsewhere, padded": (
        atss_call(**PADDED, ignore_boxes=PADDED["boxes"].to("meta")),
        ValueError,
        "^ignore_boxes: expected boxes of 2 images on cpu like boxes, got [^\n]* on meta$",
    ),
    # the heads
    "targets boxes elsewhere": (
        head_call("gfl_targets", boxes=ELSEWHERE),
        ValueError,
        "^boxes: expected boxes of 2 images on cpu like the logits, got [^\n]* on meta]$",
    ),
    "targets counts elsewhere": (
        head_call("gfl_targets", boxes=PADDED["boxes"], counts=torch.ones(2, dtype=torch.int64, device="meta")),
        ValueError,
        "^counts: expected a tensor on cpu [^\n]* on meta$",
    ),
    "targets rows": (head_call("gfl_targets", box_logits=ROWS), TypeError, "box_logits.*list of level tensors"),
    "targets classes": (
        head_call("gfl_targets", class_logits=[torch.zeros(2, 3, 4, 6)]),
        ValueError,
        "class_logits.*2",
    ),
    "targets assignment": (head_call("gfl_targets", assignment=(1, 2, 3)), TypeError, "assignment.*Assignment"),
    "targets boxes": (head_call("gfl_targets", boxes=BOXES[:1]), ValueError, "boxes.*2 images"),
    "targets predictor": (head_call("gfl_targets", predictor=tuple(LAYERS)), TypeError, "predictor.*Predictor"),
    "targets predictor shape": (
        head_call("gfl_targets", predictor=ops.Predictor(*LAYERS, topk=3)),
        ValueError,
        "predictor.weight1.*(hidden, 16).*(6, 20)",
    ),
    "targets both qualities": (
        head_call("gfl_targets", quality_logits=torch.zeros(2, 30)),
        ValueError,
        "quality_logits.*None with a predictor",
    ),
    "loss targets": (head_call("gfl_loss", targets=None), TypeError, "targets.*GFLTargets.*None"),
    "loss normalisers": (head_call("gfl_loss", normalisers=torch.ones(3)), ValueError, "normalisers.*(2).*(3,)"),
    "loss beta": (head_call("gfl_loss", beta=-0.5), ValueError, "beta.*-0.5"),
    "loss weights": (head_call("gfl_loss", loss_weights=(1, 2)), ValueError, "loss_weights.*three.*(1, 2)"),
    "loss projection": (head_call("gfl_loss", projection=torch.arange(5.0)), ValueError, "projection.*(6).*(5,)"),
    "loss quality": (
        head_call("gfl_loss", predictor=None, quality_logits=torch.zeros(2, 29)),
        ValueError,
        "quality_logits.*(2, 30).*(2, 29)",
    ),
    # numbers and pairs
    "loss weights none": (head_call("gfl_loss", loss_weights=None), ValueError, "loss_weights.*three.*None"),
    "loss weights text": (head_call("gfl_loss", loss_weights=("a", 1, 2)), TypeError, r"loss_weights.0..*number.*'a'"),
    "loss offset": (head_call("gfl_loss", offset="x"), TypeError, "offset.*number.*'x'"),
    "targets offset": (head_call("gfl_targets", offset=float("nan")), ValueError, "offset.*finite.*nan"),
    "strides text": (head_call("gfl_loss", strides=["a", *STRIDES[1:]]), TypeError, r"strides.0..*number > 0.*'a'"),
    "strides nan": (atss_call(strides=[float("nan"), *STRIDES[1:]]), ValueError, r"strides.0..*number > 0.*nan"),
    "padded flat": (head_call("gfl_targets", padded_sizes=[3, 4]), ValueError, r"padded_sizes.*height, width.*.3, 4"),
    "padded text": (atss_call(padded_sizes=[(3, 4), ("a", 4)]), ValueError, "padded_sizes.*height, width.*'a'"),
    "sizes flat": (head_call("decode", image_sizes=[3, 4]), ValueError, r"image_sizes.*2 pairs.*.3, 4"),
    "shapes flat": (atss_call(level_shapes=[3, 4]), ValueError, r"level_shapes.*H, W.*.3, 4"),
    "anchor scale": (atss_call(anchor_scale=None), TypeError, "anchor_scale.*number > 0.*None"),
    "ignore share": (atss_call(ignore_iof_thr="x"), TypeError, "ignore_iof_thr.*number.*'x'"),
    "threshold text": (head_call("decode", score_thr="x"), TypeError, r"score_thr.*number in .0, 1.*'x'"),
    "giou eps text": (lambda: ops.giou(BOXES[0], BOXES[0], eps="x"), TypeError, "eps.*number > 0.*'x'"),
    "floor text": (
        lambda: ops.normalisers(torch.ones(2), weight_floor="x"),
        TypeError,
        "weight_floor.*number > 0.*'x'",
    ),
    "norms": (lambda: ops.normalisers(torch.ones(3)), ValueError, "sums.*(2).*(3,)"),
    "norms floor": (lambda: ops.normalisers(torch.ones(2), weight_floor=0.0), ValueError, "weight_floor.*> 0.*0.0"),
    "decode sizes": (head_call("decode", image_sizes=[(10, 10)]), ValueError, "image_sizes.*2 pairs"),
    "decode factors": (
        head_call("decode", scale_factors=torch.ones(2, 4)),
        ValueError,
        "scale_factors.*(2, 2).*(2, 4)",
    ),
    "decode topk": (head_call("decode", pre_topk=0), ValueError, "pre_topk.*0"),
    "decode threshold": (head_call("decode", score_thr=1.5), ValueError, "score_thr.*1.5"),
    "decode legacy": (
        head_call("decode", class_logits=[torch.zeros(2, 1, *shape) for shape in SHAPES], legacy_background=True),
        ValueError,
        "class_logits.*legacy_background",
    ),
    "nms decoded": (lambda: ops.batched_nms((1, 2)), TypeError, "decoded.*Decoded"),
    "nms iou": (lambda: ops.batched_nms(decoded(), iou_thr=2.0), ValueError, "iou_thr.*2.0"),
    "nms score": (lambda: ops.batched_nms(decoded(), score_thr=-1), ValueError, "score_thr.*-1"),
    "nms count": (lambda: ops.batched_nms(decoded(), max_detections=0), ValueError, "max_detections.*0"),
}


def decoded() -> ops.Decoded:
    rows = torch.zeros(1, 1, dtype=torch.int64)
    return ops.Decoded(torch.zeros(1, 1, 4), torch.zeros(1, 1, 2), rows, rows[:, 0])


@pytest.mark.parametrize("name", CASES)
def test_message(name: str) -> None:
    call, kind, text = CASES[name]
    text = re.sub(r"(?<!\\)([()])", r"\\\1", text)  # shapes in the patterns are meant literally
    with pytest.raises(kind, match=text):
        call()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ops.qfl(TARGET, probabilities=torch.full((4, 3), 1.5)), "probabilities.*1.5"),
        (lambda: ops.qfl((TARGET[0], torch.full((4,), -0.5)), logits=LOGITS), "target.*-0.5"),
        (lambda: ops.dfl(torch.zeros(2, 5), torch.tensor([0.0, 4.5])), "target.*4.5"),
        (head_call("gfl_loss", projection=torch.tensor([0.0, 1, 2, 4, 8, 16])), "projection.*equal steps"),
        (
            lambda: ops.ddf(
                *[torch.zeros(4, 5)] * 2,
                torch.ones(4, dtype=torch.bool),
                weight=torch.ones(4),
                balance=(torch.tensor(1.0), torch.tensor(-1.0)),
            ),
            "balance.*-1.0",
        ),
    ],
)
def test_values_are_checked_on_request(call: Callable, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GFLV2_CHECK", raising=False)
    call()
    monkeypatch.setenv("GFLV2_CHECK", "1")
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("op", ["task_aligned", "dynamic_soft_label"])
def test_labels_and_counts_are_checked_on_request(op: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every backend; but not those of padding: beyond the counts, and with a NaN, which has no points."""
    scores, boxes, points = torch.zeros(2, 5, 3), torch.zeros(2, 5, 4), torch.zeros(5, 2)
    more = (torch.ones(5),) if op == "dynamic_soft_label" else ()
    truth = torch.tensor([0.0, 0, 8, 8]).repeat(2, 3, 1)
    truth[1, 1] = torch.nan
    labels = torch.tensor([[0, 2, 3], [1, -1, 7]])

    def call(counts: list[int]) -> None:
        getattr(ops, op)(scores, boxes, points, *more, truth, labels, counts=torch.tensor(counts))

    with gflv2.use_backend(backend):
        call([3, 2])
        monkeypatch.setenv("GFLV2_CHECK", "1")
        call([2, 2])
        with pytest.raises(ValueError, match=r"gt_labels: expected numbers from 0 to 2, got \[0, 2, 3, 1\]"):
            call([3, 2])
        with pytest.raises(ValueError, match=r"counts: expected numbers from 0 to 3, got \[2, 4\]"):
            call([2, 4])


@pytest.mark.parametrize("op", sorted(set(backends.operations()) - {"integral"}))
def test_a_backend_without_the_operation_is_an_error(op: str) -> None:
    missing = [name for name in backends.BACKENDS if name not in backends._refusals[op]]
    for name in missing:
        call = backends.Call(torch.device("cpu"), torch.float32, {})
        with gflv2.use_backend(name), pytest.raises(backends.BackendError, match=f"{op}.*{name}"):
            backends.select(op, call)


def test_explain_knows_every_public_function_that_runs_an_operation() -> None:
    labels = (TARGET[0], torch.zeros(4))
    for name in ("varifocal", "matchability_aware", "iou_aware_bce"):
        assert list(gflv2.explain(getattr(ops, name), LOGITS, labels)) == list(
            gflv2.explain("focal", LOGITS, labels, kind=name)
        )
    assert any(row.chosen for row in gflv2.explain(ops.sigmoid_focal, LOGITS, labels=TARGET[0], alpha=0.5))
    with pytest.raises(ValueError, match="op: expected one of .*varifocal"):
        gflv2.explain("varifocals", LOGITS)
    functions = {name for name in ops.__all__ if name[0].islower()}
    assert functions - {"batched_nms", "bin_positions", "normalisers"} == {*backends.operations(), *backends._aliases}


def test_integers_of_numpy_are_integers() -> None:
    three = np.int64(3)
    box_logits = torch.randn(4, 4, 5)
    calls = [
        (lambda k: ops.dgqp_statistics(box_logits, topk=k)),
        (lambda k: aligned_call(topk=k, final_topk=k)().index),
        (lambda k: ops.atss(BOXES, LABELS, SHAPES, STRIDES, topk=k).index),
    ]
    for backend in ("cpu", "reference"):
        with gflv2.use_backend(backend):
            for call in calls:
                assert torch.equal(call(three), call(3))


def test_explain_says_who_runs() -> None:
    for op, arguments, options in [
        ("dgqp", (ROWS, *LAYERS), {}),
        ("dgqp_statistics", (ROWS,), {"topk": 2}),
        ("qfl", (TARGET,), {"logits": LOGITS}),
        ("dfl", (torch.zeros(4, 5), torch.zeros(4)), {}),
        ("giou", (BOXES[0], BOXES[0]), {}),
        ("iou", (BOXES[0], BOXES[0]), {}),
        ("atss", (BOXES, LABELS, SHAPES, STRIDES), {}),
    ]:
        rows = gflv2.explain(op, *arguments, **options)
        assert sum(choice.chosen for choice in rows) == 1
        assert all(choice.reason for choice in rows if not choice.chosen)
    head = RandomHead()
    cls, box, options = head.arguments()
    for op in ("gfl_loss", "gfl_targets", "decode"):
        assert any(choice.chosen for choice in gflv2.explain(op, cls, box, **options))
