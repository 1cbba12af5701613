"""``task_aligned``: task-aligned assignment (TOOD, arXiv 2108.07755; every Ultralytics detector) for a whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.atss import as_list, check_assigned_values, check_boxes, check_labels
from gflv2.ops.checks import bad_value, check_choice, check_count, check_number, check_tensor, values_are_checked
from gflv2.ops.reference import task_aligned as reference
from gflv2.ops.reference.task_aligned import TaskAlignment
from gflv2.ops.registration import Operation

__all__ = ["TaskAlignment", "task_aligned"]

MAX_TOPK = {"cuda": 32, "triton": 32}  # a warp holds the list of a box, one candidate a lane
_MOST = 2**31 - 1  # points of an image; more candidates are all of them


def task_aligned(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    gt_boxes: Sequence[Tensor] | Tensor,
    gt_labels: Sequence[Tensor] | Tensor,
    *,
    counts: Tensor | None = None,
    topk: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
    overlap: str = "ciou",
    candidates: str = "inside",
    margin: float = 1e-9,
    min_side: float | None = None,
    zeros: bool = True,
    contest: str = "containing",
    final_topk: int | None = None,
    normalize: bool = True,
    eps: float = 1e-9,
) -> TaskAlignment:
    """Say for every point which box it learns, by its own predictions, and how high its score shall be.

    1. Metric of a point and a box: score^``alpha`` · overlap^``beta``, with the point's score for the box's class and
       the overlap of the point's predicted box with it.
    2. The ``topk`` points of highest metric are a box's candidates; of equal ones the lower point. It chooses those
       that lie inside it.
    3. A point that several boxes choose goes to the highest overlap; of equal ones to the lower box.
    4. Target of a positive point: metric · (highest overlap of its box's points) / (highest metric of them + ``eps``).

    Two packages differ in the details. ``TaskAlignedAssigner`` of Ultralytics: the defaults, with
    ``min_side=strides[1]``, and with ``final_topk`` where its ``topk2`` is not its ``topk``. That of mmdet (TOOD):
    ``topk=13, alpha=1, beta=6, overlap="iou", candidates="all", margin=0.01, zeros=False, contest="claiming",
    normalize=False``; its head normalises the metrics itself. The positive points are the packages' own, but for equal
    metrics, which torch orders as it likes.

    Args:
        scores: (B, A, C) probabilities of the classes, float32, float16, bfloat16 or float64, of any strides.
        boxes: (B, A, 4) predicted boxes (x1, y1, x2, y2), in any unit.
        points: (A, 2) positions (x, y) of the points in that unit.
        gt_boxes: B tensors (G_i, 4), (x1, y1, x2, y2) in that unit; or one padded tensor (B, G, 4) with ``counts``. A
            box with a NaN has no points.
        gt_labels: B tensors (G_i,), or (B, G); integers. A box with a label outside [0, C) has no points
            (under ``GFLV2_CHECK=1`` an error).
        counts: (B,) integers, number of boxes in each row of padded boxes; None: all of them.
        topk: candidates of a box.
        alpha, beta: exponents, ≥ 0. 0.5 and whole numbers are the fast ones.
        overlap: "ciou" (complete IoU, not below 0) or "iou".
        candidates: "inside": the ``topk`` highest of the points inside the box. "all": of all points, of which those
            inside remain.
        margin: a point is inside where it is farther than that from every side.
        min_side: for the test of what is inside, sides shorter than that are lengthened to it about the box's centre.
            None: the boxes as they are.
        zeros: whether a candidate with metric 0 may be chosen. The points of the image that have metric 0, outside ones
            included, follow behind the others in their order, so that only the first ``topk`` points of the image can
            be such candidates.
        contest: who competes for a point that several boxes chose: "containing": all boxes that it lies inside of, or
            "claiming": the boxes that chose it.
        final_topk: of the points that a box has won, at most that many remain; the highest metrics. None: all of them.
        normalize: False: the result's ``scores`` are the metrics.
        eps: > 0, in the denominator of the target.

    Returns:
        TaskAlignment(index, iou, labels, scores), each (B, A). Nothing is differentiable. A point with a NaN or an
        infinite number among its score and its box is never positive.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    options: dict[str, Any] = {
        "counts": counts,
        "topk": topk,
        "alpha": alpha,
        "beta": beta,
        "overlap": overlap,
        "candidates": candidates,
        "margin": margin,
        "min_side": min_side,
        "zeros": zeros,
        "contest": contest,
        "final_topk": final_topk,
        "normalize": normalize,
        "eps": eps,
    }
    call = _describe(scores, boxes, points, gt_boxes, gt_labels, **options)
    backend = backends.select("task_aligned", call)
    if values_are_checked():
        check_assigned_values(gt_labels, gt_boxes, counts, scores.shape[2])
    options["topk"] = topk = int(topk)
    options["final_topk"] = final_topk = None if final_topk is None else int(final_topk)
    if backend == "reference":
        with torch.no_grad():
            return reference.task_aligned(scores, boxes, points, gt_boxes, gt_labels, **options)
    tensors = (scores, boxes, points, as_list(gt_boxes), as_list(gt_labels), counts)
    settings = (
        *(min(topk, _MOST), float(alpha), float(beta), overlap == "ciou", candidates == "inside", float(margin)),
        *(-1.0 if min_side is None else float(min_side), zeros, contest == "containing"),
        *(0 if final_topk is None else min(final_topk, _MOST), normalize, float(eps)),
    )
    return TaskAlignment(*_task_aligned.constant(tensors, (*settings, backend)))


def _describe(
    scores: Any,
    boxes: Any,
    points: Any,
    gt_boxes: Any,
    gt_labels: Any,
    *,
    counts: Any = None,
    topk: Any = 10,
    alpha: Any = 0.5,
    beta: Any = 6.0,
    overlap: Any = "ciou",
    candidates: Any = "inside",
    margin: Any = 1e-9,
    min_side: Any = None,
    zeros: Any = True,
    contest: Any = "containing",
    final_topk: Any = None,
    normalize: Any = True,
    eps: Any = 1e-9,
) -> backends.Call:
    check_tensor(scores, "scores", shape=(None, None, None))
    batch, total, _ = scores.shape
    device = scores.device
    check_tensor(boxes, "boxes", shape=(batch, total, 4), device=device)
    check_tensor(points, "points", shape=(total, 2), device=device)
    images, where = check_boxes(gt_boxes, counts, name="gt_boxes")
    if images != batch or where != device:
        bad_value("gt_boxes", f"boxes of {batch} images on {device} like scores", gt_boxes)
    check_labels(gt_labels, gt_boxes, device, name="gt_labels")
    check_count(topk, "topk")
    if final_topk is not None:
        check_count(final_topk, "final_topk")
    check_number(alpha, "alpha", least=0)
    check_number(beta, "beta", least=0)
    check_number(margin, "margin", least=0)
    check_number(eps, "eps", above=0)
    if min_side is not None:
        check_number(min_side, "min_side", least=0)
    check_choice(overlap, "overlap", ("ciou", "iou"))
    check_choice(candidates, "candidates", ("inside", "all"))
    check_choice(contest, "contest", ("containing", "claiming"))
    check_choice(zeros, "zeros", (True, False))
    check_choice(normalize, "normalize", (True, False))
    simple = reference.is_simple(alpha) and reference.is_simple(beta)
    facts = {"topk": max(int(topk), int(final_topk or 1)), "exponents": simple}
    return backends.Call(device, torch.float32, facts)


def _refusal(backend: str) -> Callable[[backends.Call], str | None]:
    def refuse(call: backends.Call) -> str | None:
        if call.facts["topk"] > MAX_TOPK[backend]:
            return f"topk is more than {MAX_TOPK[backend]}"
        if backend == "triton" and not call.facts["exponents"]:
            return "alpha or beta is neither 0.5 nor a whole number to 16"
        return None

    return refuse


def _new_results(scores: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    size = scores.shape[:2]
    index = scores.new_empty(size, dtype=torch.int64)
    iou = scores.new_empty(size, dtype=torch.float32)
    return index, iou, torch.empty_like(index), torch.empty_like(iou)


# `min_side` is negative and `final_topk` 0 where there is none.
_task_aligned = Operation(
    "task_aligned",
    describe=_describe,
    refusals={"cuda": _refusal("cuda"), "triton": _refusal("triton"), "cpu": None, "reference": None},
    tensors="Tensor scores, Tensor boxes, Tensor points, Tensor[] gt_boxes, Tensor[] gt_labels, Tensor? counts",
    settings="int topk, float alpha, float beta, bool ciou, bool inside, float margin, float min_side, bool zeros, "
    "bool containing, int final_topk, bool normalize, float eps",
    new_results=_new_results,
    results=("index", "iou", "assigned_labels", "targets"),
    returns="(Tensor, Tensor, Tensor, Tensor)",
    small=("boxes", "points", "gt_boxes"),
    indices=("gt_labels", "counts"),
    arithmetic=lambda _: torch.float32,
)
