"""``dynamic_soft_label``: which point learns which box, by the cost of what the network predicts (RTMDet, SimOTA)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.atss import as_list, check_assigned_values, check_boxes, check_labels
from gflv2.ops.checks import bad_value, check_choice, check_count, check_number, check_tensor, values_are_checked
from gflv2.ops.reference import dynamic_soft_label as reference
from gflv2.ops.reference.dynamic_soft_label import COSTS, DynamicAssignment
from gflv2.ops.registration import Operation

__all__ = ["DynamicAssignment", "dynamic_soft_label"]

MAX_TOPK = {"cuda": 32, "triton": 32}  # the lists of a box lie in shared memory (cuda), or are tiles (triton)


def dynamic_soft_label(
    logits: Tensor,
    boxes: Tensor,
    points: Tensor,
    strides: Tensor,
    gt_boxes: Sequence[Tensor] | Tensor,
    gt_labels: Sequence[Tensor] | Tensor,
    *,
    counts: Tensor | None = None,
    topk: int | None = None,
    iou_weight: float = 3.0,
    class_weight: float = 1.0,
    center_radius: float | None = None,
    cost: str = "rtmdet",
) -> DynamicAssignment:
    """Say for every point which box of its image it learns, if any, by what the network predicts there.

    1. A point inside some box (all four distances > 0) is a candidate of every box of its image; with ``simota`` and
       ``align_ota`` also one less than ``center_radius`` strides from some centre on both axes.
    2. cost(point, box) = ``class_weight`` · class cost + ``iou_weight`` · −log(IoU + 1e-7) + centre term.
    3. A box takes its k candidates of lowest cost, k = max(1, ⌊Σ of its ``topk`` highest IoUs⌋): a float32 sum from the
       highest down. Of equal costs the lower point index is taken.
    4. A point taken by several boxes goes to the one of lowest cost among all boxes of the image, also to one that did
       not take it; of equal costs to the lower box.

    ``cost`` names the package whose costs are used; y is the IoU at the box's label and 0 at the other classes:

    ============= ======================================= ================================== ======= ================
    cost          of                                      class cost                         topk    centre term
    ============= ======================================= ================================== ======= ================
    ``rtmdet``    mmdet ``DynamicSoftLabelAssigner``      Σ BCE(σ(x), y)·(y − σ(x))²         13      10^(d − radius)
    ``nanodet``   NanoDet-Plus' assigner of that name     the same                           13      none
    ``simota``    mmdet ``SimOTAAssigner`` (YOLOX)        Σ BCE(x, 1 at the label, else 0)   10      1e5 or 0
    ``align_ota`` DAMO-YOLO ``AlignOTAAssigner``          Σ BCE(x, y)·(y − x)²               10      1e8 or 0
    ============= ======================================= ================================== ======= ================

    d is the distance of the point from the box's centre in its own strides. The last two costs take probabilities x;
    their centre term is for a point that is not both inside the box and less than ``center_radius`` strides from its
    centre on both axes. It is added in float32, as in the packages: 1e8 leaves of the other terms multiples of 8.

    As in the packages, a box without a point of its own still takes at least one candidate of its image, however high
    the cost; without any candidate in the image nothing is positive. Unlike there, what is not finite (probabilities:
    not in [0, 1]) takes no part, be it the logits or the predicted box of a point, or a box; nor does a box whose label
    is no class (under ``GFLV2_CHECK=1`` an error). Arithmetic is float32, whatever the dtype.

    What this operation does not know: boxes to be ignored (mmdet's two assigners and AlignOTA do not look at them;
    NanoDet-Plus does where ``ignore_iof_thr`` > 0, by default it is −1); mmdet's box classes, for which a point on a
    side is inside, where it is outside for plain tensors and here; the centre of a mask, as RTMDet-Ins takes it.

    Args:
        logits: (B, A, C) class logits (``simota``, ``align_ota``: probabilities), any strides. float32, float16,
            bfloat16 or float64.
        boxes: (B, A, 4) predicted boxes, (x1, y1, x2, y2) in pixels.
        points: (A, 2) positions in pixels.
        strides: (A,) stride of each point, in pixels.
        gt_boxes: B tensors (G_i, 4), (x1, y1, x2, y2) in pixels; or one padded tensor (B, G, 4) with ``counts``.
        gt_labels: B tensors (G_i,), or (B, G); integers in [0, C).
        counts: (B,) integers, number of boxes in each row of padded boxes; None: all of them.
        topk: how many IoUs are summed, so that k ≤ ``topk``; None: the package's default, as in the table.
        iou_weight, class_weight: factors of the costs.
        center_radius: in strides; None: the package's default, 3.0 (``rtmdet``) or 2.5. Not for ``nanodet``.
        cost: "rtmdet", "nanodet", "simota" or "align_ota".

    Returns:
        DynamicAssignment(index, iou, labels), each (B, A). Nothing is differentiable.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    options = {
        "counts": counts,
        "topk": topk,
        "iou_weight": iou_weight,
        "class_weight": class_weight,
        "center_radius": center_radius,
        "cost": cost,
    }
    call = _describe(logits, boxes, points, strides, gt_boxes, gt_labels, **options)
    backend = backends.select("dynamic_soft_label", call)
    if values_are_checked():
        check_assigned_values(gt_labels, gt_boxes, counts, logits.shape[2])
    if backend == "reference":
        options["topk"] = call.facts["topk"]
        with torch.no_grad():
            return reference.dynamic_soft_label(logits, boxes, points, strides, gt_boxes, gt_labels, **options)
    radius = COSTS[cost].center_radius if center_radius is None else center_radius
    # A k above the number of points is all of them.
    settings = (min(call.facts["topk"], max(logits.shape[1], 1)), float(iou_weight), float(class_weight))
    tensors = (logits, boxes, points, strides, as_list(gt_boxes), as_list(gt_labels), counts)
    return DynamicAssignment(*_dynamic_soft_label.constant(tensors, (*settings, float(radius or 0.0), cost, backend)))


def _describe(
    logits: Any,
    boxes: Any,
    points: Any,
    strides: Any,
    gt_boxes: Any,
    gt_labels: Any,
    *,
    counts: Any = None,
    topk: Any = None,
    iou_weight: Any = 3.0,
    class_weight: Any = 1.0,
    center_radius: Any = None,
    cost: Any = "rtmdet",
) -> backends.Call:
    check_tensor(logits, "logits", shape=(None, None, None))
    batch, total, classes = logits.shape
    if classes < 1:
        bad_value("logits", "at least one class", logits)
    check_tensor(boxes, "boxes", shape=(batch, total, 4), device=logits.device)
    check_tensor(points, "points", shape=(total, 2), device=logits.device)
    check_tensor(strides, "strides", shape=(total,), device=logits.device)
    images, device = check_boxes(gt_boxes, counts, name="gt_boxes")
    if images != batch or device != logits.device:
        bad_value("gt_boxes", f"boxes of {batch} images on {logits.device} like logits", gt_boxes)
    check_labels(gt_labels, gt_boxes, device, name="gt_labels", like="gt_boxes")
    check_choice(cost, "cost", tuple(COSTS))
    if topk is not None:
        check_count(topk, "topk")
    check_number(iou_weight, "iou_weight", least=0)
    check_number(class_weight, "class_weight", least=0)
    if center_radius is not None:
        if COSTS[cost].center_radius is None:
            bad_value("center_radius", f"None with cost={cost!r}, which has no centre term", center_radius)
        check_number(center_radius, "center_radius", least=0)
    return backends.Call(device, logits.dtype, {"topk": COSTS[cost].topk if topk is None else int(topk)})


def _refusal(backend: str) -> Callable[[backends.Call], str | None]:
    def refuse(call: backends.Call) -> str | None:
        if call.facts["topk"] > MAX_TOPK[backend]:
            return f"topk is more than {MAX_TOPK[backend]}"
        return backends.refuse_double(call)

    return refuse


def _new_results(logits: Tensor, boxes: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    index = boxes.new_empty(boxes.shape[:2], dtype=torch.int64)
    return index, boxes.new_empty(boxes.shape[:2], dtype=torch.float32), torch.empty_like(index)


_dynamic_soft_label = Operation(
    "dynamic_soft_label",
    describe=_describe,
    refusals={**{name: _refusal(name) for name in MAX_TOPK}, "cpu": None, "reference": None},
    tensors="Tensor logits, Tensor boxes, Tensor points, Tensor strides, Tensor[] gt_boxes, Tensor[] gt_labels, "
    "Tensor? counts",
    settings="int topk, float iou_weight, float class_weight, float center_radius, str cost",
    new_results=_new_results,
    results=("index", "iou", "labels"),
    returns="(Tensor, Tensor, Tensor)",
    small=("boxes", "points", "strides", "gt_boxes"),
    indices=("gt_labels", "counts"),
    arithmetic=lambda _: torch.float32,
)
