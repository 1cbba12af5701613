"""``decode``: the inference head up to NMS, in fixed shapes; and ``batched_nms``, torchvision's NMS of each class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.checks import (
    bad_type,
    bad_value,
    check_count,
    check_number,
    check_pairs,
    check_tensor,
    compute_dtype,
)
from gflv2.ops.dgqp import Predictor
from gflv2.ops.head import ROWS, Head, read_head, refuse_mixed
from gflv2.ops.reference import decode as reference
from gflv2.ops.reference.decode import Decoded
from gflv2.ops.registration import Operation

__all__ = ["Decoded", "Detections", "batched_nms", "decode"]

# On a GPU the points that a level keeps are sorted by one block, in its shared memory.
MAX_SORTED = 4096
_MOST_POINTS = 2**31 - 1  # of a level; more to keep is all of them


class Detections(NamedTuple):
    """Detections of one image, best first.

    Attributes:
        boxes: (K, 4), (x1, y1, x2, y2) in the unit of the candidates.
        scores: (K,) joint scores.
        labels: (K,) int64 classes.
        rows: (K,) int64, which candidate (of N) each one is.
        points: (K,) int64, flat index of the point that gave each box.
        distributions: (K, 4, R) probabilities of the bins of each side (left, top, right, bottom), or None.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    rows: Tensor
    points: Tensor
    distributions: Tensor | None = None


def decode(
    class_logits: Sequence[Tensor],
    box_logits: Sequence[Tensor],
    *,
    strides: Sequence[float],
    scales: Tensor | None = None,
    projection: Tensor | None = None,
    predictor: Predictor | None = None,
    quality_logits: Tensor | None = None,
    image_sizes: Tensor | Sequence[tuple[float, float]] | None = None,
    scale_factors: Tensor | Sequence[tuple[float, float]] | None = None,
    pre_topk: int = 1000,
    score_thr: float = 0.05,
    offset: float = 0.0,
    legacy_background: bool = False,
    return_distributions: bool = False,
) -> Decoded:
    """Joint scores J, the ``pre_topk`` points of each level with the highest max J over the classes, and their boxes.

    A level that has no more points than that keeps its raster order; a larger one is sorted, of equal scores the
    lower index first. All cells count, those of the padding too. Nothing of the result is differentiable, and no
    backend waits for the device. (A list of ``image_sizes`` or ``scale_factors`` is copied to it: give a tensor where
    the call is captured in a CUDA graph.)

    Args:
        class_logits: L levels (B, C, H_l, W_l).
        box_logits: L levels (B, 4·R, H_l, W_l), channel = side·R + bin, before ``scales``.
        strides: one number a level, in pixels.
        scales: one factor of the box logits a level, (L,); None: 1.
        projection: the value of each bin in strides, (R,); None: 0, 1, …, R−1.
        predictor: gives the quality logits r from the distributions: J = sigmoid(c)·sigmoid(r). Or
        quality_logits: r itself, (B, A). Neither: J = sigmoid(c).
        image_sizes: (height, width) of each resized, unpadded image, (B, 2): boxes are clipped to it. None: no
            clipping.
        scale_factors: (width, height) factors of the resize, (B, 2): boxes are divided by them, after clipping.
        pre_topk: points kept on each level.
            At most 4096 on a GPU where a level has more of them.
        score_thr: scores not above it become 0.
        offset: the point of cell (i, j) is ((j + offset)·stride, (i + offset)·stride).
        legacy_background: the last class channel is the authors' unused background class. It takes part in everything
            here and in the NMS; `batched_nms` drops its detections at the very end.
        return_distributions: also return the sides' probabilities.

    Returns:
        Decoded: boxes (B, N, 4), scores (B, N, C), points (B, N), counts (B,), with N = Σ_l min(pre_topk, H_l·W_l);
            float32 (float64 for float64 box logits), and int64. A point with a logit that is not a number comes first
            where its level is sorted; a score that is none becomes 0.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    selection: dict[str, Any] = {"pre_topk": pre_topk, "score_thr": score_thr, "legacy_background": legacy_background}
    given = (class_logits, box_logits, strides, scales, projection, predictor, quality_logits, offset)
    head, call = _read(*given, **selection)
    selection["pre_topk"] = pre_topk = int(pre_topk)  # NumPy's too
    batch = head.points[0]
    image_sizes = _pairs(image_sizes, "image_sizes", batch, head.box.device)
    scale_factors = _pairs(scale_factors, "scale_factors", batch, head.box.device)
    backend = backends.select("decode", call)
    if backend == "reference":
        options = {**head.options(projection), **selection, "score_thr": float(score_thr)}
        options |= {"image_sizes": image_sizes, "scale_factors": scale_factors}
        with nullcontext() if backends.exporting() else torch.no_grad():
            return reference.decode(class_logits, box_logits, **options, return_distributions=return_distributions)
    tensors = (*head.rows(head.quality_logits(backend)), image_sizes, scale_factors)
    settings = (head.strides, min(pre_topk, _MOST_POINTS), float(score_thr), head.offset, return_distributions, backend)
    results = _decode.constant(tensors, settings)
    return Decoded(*results[:4], results[4] if return_distributions else None, legacy_background)


def batched_nms(
    decoded: Decoded,
    *,
    iou_thr: float = 0.6,
    score_thr: float = 0.0,
    max_detections: int | None = 100,
) -> list[Detections]:
    """Class-wise non-maximum suppression of every image, by torchvision: a box is suppressed by a better one of its
    class at IoU > ``iou_thr``. Of equal scores the lower row comes first.

    The result is that of each class alone, for any number of classes and any size of image. Zero-area boxes survive.
    With ``decoded.legacy_background`` the background class takes part and fills slots of ``max_detections``; only then
    is it dropped.

    Args:
        decoded: of `decode`.
        score_thr: only scores above it take part; `decode` has set those not above its own threshold to 0 already.
        max_detections: the best so many of an image; None: all.

    Returns:
        One `Detections` an image, best first.

    Raises:
        TypeError, ValueError: wrong arguments; the message names them.
        ImportError: torchvision is not installed.
    """
    if not isinstance(decoded, Decoded):
        bad_type("decoded", "a gflv2.ops.Decoded, as decode returns it", decoded)
    check_number(iou_thr, "iou_thr", least=0, most=1)
    check_number(score_thr, "score_thr", least=0)
    if max_detections is not None and max_detections < 1:
        bad_value("max_detections", "at least 1, or None", max_detections)
    try:
        from torchvision.ops import nms
    except ImportError as error:
        raise ImportError('batched_nms: NMS is torchvision\'s: pip install "gflv2[train]", or torchvision') from error
    results = []
    for image, (boxes, scores) in enumerate(zip(decoded.boxes, decoded.scores, strict=True)):
        rows, labels = (scores > score_thr).nonzero(as_tuple=True)
        kept = scores[rows, labels]
        order = _nms_of_classes(nms, boxes[rows], kept, labels, iou_thr)[:max_detections]
        if decoded.legacy_background:
            order = order[labels[order] < scores.shape[1] - 1]
        rows = rows[order]
        distributions = None if decoded.distributions is None else decoded.distributions[image][rows]
        points = decoded.points[image][rows]
        results.append(Detections(boxes[rows], kept[order], labels[order], rows, points, distributions))
    return results


# Up to so many boxes one call that compares all with all is faster than a call a class: measured on a CPU with 80
# classes. A GPU waits for each call; its number was not measured.
_ONE_CALL = {False: 1000, True: 20_000}


def _nms_of_classes(
    nms: Callable[[Tensor, Tensor, float], Tensor], boxes: Tensor, scores: Tensor, labels: Tensor, iou_thr: float
) -> Tensor:
    """(K, 4), (K,), (K,) → indices of the survivors, best first.

    Few boxes take one call, with the classes moved apart in float64. (In float32, as torchvision's ``batched_nms`` has
    it, that rounds the boxes: by a pixel where the last of 1203 classes has been moved by 1203 times the image.) Many
    take one a class, because a call compares all its boxes with each other.
    """
    order = scores.sort(descending=True, stable=True).indices
    if len(order) <= _ONE_CALL[boxes.is_cuda]:
        wide, apart = boxes[order].double(), labels[order, None].double()
        wide += apart * (2 * wide.abs().amax() + 1 if len(order) else 1.0)
        return order[nms(wide, -torch.arange(len(order), dtype=wide.dtype, device=wide.device), iou_thr)]
    labels, by_class = labels[order].sort(stable=True)
    rows = order[by_class]
    boxes, scores = boxes[rows], scores[rows]
    kept = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    first = 0
    for size in torch.unique_consecutive(labels, return_counts=True)[1].tolist():
        last = first + size
        if size == 1:
            kept[first] = True
        else:
            kept[first + nms(boxes[first:last], scores[first:last], iou_thr)] = True
        first = last
    survives = torch.empty_like(kept)
    survives[rows] = kept
    return order[survives[order]]


def _pairs(value: Any, name: str, batch: int, device: torch.device) -> Tensor | None:
    """(B, 2) float32 tensor from a tensor or a list of pairs; a list is copied without waiting for the device."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        dtypes = (torch.float32, torch.float64, torch.int64, torch.int32)
        return check_tensor(value, name, shape=(batch, 2), dtypes=dtypes, device=device)
    check_pairs(value, name, f"{batch} pairs of numbers, or a tensor of shape ({batch}, 2)", batch)
    return torch.tensor([[float(a), float(b)] for a, b in value]).to(device, non_blocking=True)


def _read(*arguments: Any, **options: Any) -> tuple[Head, backends.Call]:
    """The checked head, and what decides who can take the call."""
    head = read_head(*arguments, **options)
    pre_topk = options.get("pre_topk", 1000)
    check_count(pre_topk, "pre_topk")
    check_number(options.get("score_thr", 0.05), "score_thr", least=0, most=1)
    first = head.class_logits[0]
    if options.get("legacy_background") and first.shape[1] < 2:
        bad_value("class_logits", "at least 2 channels with legacy_background, the last one the background", first)
    # Asked only where it matters: a graph of variable sizes would be bound to the answer.
    too_many = pre_topk > MAX_SORTED and any(level.shape[2] * level.shape[3] > pre_topk for level in head.box.tensors)
    call = head.call()
    call.facts.update(pre_topk=pre_topk, too_many=too_many)
    return head, call


def _describe(*arguments: Any, **options: Any) -> backends.Call:
    return _read(*arguments, **options)[1]


def _refuse_on_gpu(call: backends.Call) -> str | None:
    if call.facts["too_many"]:
        return f"pre_topk is {call.facts['pre_topk']}: at most {MAX_SORTED} points of a level are sorted"
    return backends.refuse_double(call) or refuse_mixed(call)


def _new_results(class_logits, box_logits, *settings: Any) -> list[Tensor]:
    """Boxes, scores, points, counts, and distributions where they are wanted."""
    pre_topk, _, _, with_distributions = settings[-4:]
    first, dtype = box_logits[0], compute_dtype(box_logits[0].dtype)
    batch, channels = first.shape[:2]
    rows = sum(torch.sym_min(pre_topk, level.shape[2] * level.shape[3]) for level in class_logits)
    boxes = first.new_empty((batch, rows, 4), dtype=dtype)
    scores = first.new_empty((batch, rows, class_logits[0].shape[1]), dtype=dtype)
    points = first.new_empty((batch, rows), dtype=torch.int64)
    results = [boxes, scores, points, points.new_empty(batch)]
    if with_distributions:
        results.append(first.new_empty((batch, rows, 4, channels // 4), dtype=dtype))
    return results


_decode = Operation(
    "decode",
    describe=_describe,
    refusals={"cuda": _refuse_on_gpu, "triton": _refuse_on_gpu, "cpu": refuse_mixed, "reference": None},
    tensors=f"{ROWS}, Tensor? image_sizes, Tensor? scale_factors",
    settings="float[] strides, int pre_topk, float score_thr, float offset, bool with_distributions",
    of_results=("with_distributions",),
    new_results=_new_results,
    results=("boxes", "scores", "points", "counts", "distributions"),
    returns="Tensor[]",
    small=("quality", "scales", "projection", "image_sizes", "scale_factors"),
)
