"""``decode``: the inference head up to NMS, in fixed shapes; and ``batched_nms``, torchvision's NMS on its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.checks import bad_type, bad_value, check_tensor
from gflv2.ops.dgqp import Predictor
from gflv2.ops.gfl_loss import check_head
from gflv2.ops.reference import decode as reference
from gflv2.ops.reference.decode import Decoded

__all__ = ["Decoded", "Detections", "batched_nms", "decode"]


class Detections(NamedTuple):
    """Detections of one image, best first.

    Attributes:
        boxes: (K, 4), (x1, y1, x2, y2) in the unit of the candidates.
        scores: (K,) joint scores.
        labels: (K,) int64 classes.
        rows: (K,) int64, which candidate (of N) each one is; `Decoded.distributions[image, rows]` are its
            distributions.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    rows: Tensor


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
    lower index first. All cells count, those of the padding too.

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
        score_thr: scores not above it become 0.
        offset: the point of cell (i, j) is ((j + offset)·stride, (i + offset)·stride).
        legacy_background: the last class channel is the authors' unused background class. It takes part in everything
            here and in the NMS; `batched_nms` drops its detections at the very end.
        return_distributions: also return the sides' probabilities.

    Returns:
        Decoded: boxes (B, N, 4), scores (B, N, C), points (B, N), counts (B,), with N = Σ_l min(pre_topk, H_l·W_l);
            float32
        (float64 for float64 box logits).

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    call, box = check_head(class_logits, box_logits, strides, scales, projection, predictor, quality_logits)
    batch = box.tensors[0].shape[0]
    image_sizes = _pairs(image_sizes, "image_sizes", batch, box.device)
    scale_factors = _pairs(scale_factors, "scale_factors", batch, box.device)
    if isinstance(pre_topk, bool) or not isinstance(pre_topk, int):
        bad_type("pre_topk", "an integer", pre_topk)
    if pre_topk < 1:
        bad_value("pre_topk", "at least 1", pre_topk)
    if not 0 <= score_thr <= 1:
        bad_value("score_thr", "a number in [0, 1]", score_thr)
    if legacy_background and class_logits[0].shape[1] < 2:
        bad_value(
            "class_logits", "at least 2 channels with legacy_background, the last one the background", class_logits[0]
        )
    backends.select("decode", call)
    return reference.decode(
        class_logits,
        box_logits,
        strides=[float(stride) for stride in strides],
        scales=scales,
        projection=projection,
        predictor=predictor,
        quality_logits=quality_logits,
        image_sizes=image_sizes,
        scale_factors=scale_factors,
        pre_topk=pre_topk,
        score_thr=float(score_thr),
        offset=offset,
        legacy_background=legacy_background,
        return_distributions=return_distributions,
    )


def batched_nms(
    decoded: Decoded,
    *,
    iou_thr: float = 0.6,
    score_thr: float = 0.0,
    max_detections: int | None = 100,
) -> list[Detections]:
    """Class-wise non-maximum suppression of every image, by torchvision: a box is suppressed by a better one of its
    class at IoU > ``iou_thr``.

    Zero-area boxes survive. With ``decoded.legacy_background`` the background class takes part and fills slots of
    ``max_detections``; only then is it dropped.

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
    if not 0 <= iou_thr <= 1:
        bad_value("iou_thr", "a number in [0, 1]", iou_thr)
    if score_thr < 0:
        bad_value("score_thr", "a number ≥ 0", score_thr)
    if max_detections is not None and max_detections < 1:
        bad_value("max_detections", "at least 1, or None", max_detections)
    try:
        from torchvision.ops import batched_nms as nms
    except ImportError as error:
        raise ImportError('batched_nms: NMS is torchvision\'s: pip install "gflv2[train]", or torchvision') from error
    results = []
    for boxes, scores in zip(decoded.boxes, decoded.scores, strict=True):
        rows, labels = (scores > score_thr).nonzero(as_tuple=True)
        kept = scores[rows, labels]
        order = nms(boxes[rows], kept, labels, iou_thr)[:max_detections]
        if decoded.legacy_background:
            order = order[labels[order] < scores.shape[1] - 1]
        results.append(Detections(boxes[rows[order]], kept[order], labels[order], rows[order]))
    return results


def _pairs(value: Any, name: str, batch: int, device: torch.device) -> Tensor | None:
    """(B, 2) float32 tensor from a tensor or a list of pairs; a list is copied without waiting for the device."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        dtypes = (torch.float32, torch.float64, torch.int64, torch.int32)
        return check_tensor(value, name, shape=(batch, 2), dtypes=dtypes, device=device)
    if not isinstance(value, (list, tuple)) or len(value) != batch or any(len(pair) != 2 for pair in value):
        bad_value(name, f"{batch} pairs of numbers, or a tensor of shape ({batch}, 2)", value)
    return torch.tensor([[float(a), float(b)] for a, b in value]).to(device, non_blocking=True)


def _describe(
    class_logits: Any,
    box_logits: Any,
    *_: Any,
    strides: Any,
    scales: Any = None,
    projection: Any = None,
    predictor: Any = None,
    quality_logits: Any = None,
    **__: Any,
) -> backends.Call:
    return check_head(class_logits, box_logits, strides, scales, projection, predictor, quality_logits)[0]


backends.register("decode", {"reference": None}, _describe)
