"""``decode``: the inference head up to NMS, in fixed shapes; and ``batched_nms``, torchvision's NMS on its result."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.autograd import no_vmap
from gflv2.ops.checks import bad_type, bad_value, check_count, check_number, check_pairs, check_tensor, compute_dtype
from gflv2.ops.dgqp import Predictor, dgqp
from gflv2.ops.gfl_loss import check_head
from gflv2.ops.implementation import implementation
from gflv2.ops.levels import BoxLogits, check_projection
from gflv2.ops.reference import decode as reference
from gflv2.ops.reference.decode import Decoded

__all__ = ["Decoded", "Detections", "batched_nms", "decode"]

# On a GPU the points that a level keeps are sorted by one block, in its shared memory.
MAX_SORTED = 4096

_library = torch.library.Library("gflv2", "FRAGMENT")
_library.define(
    "decode(Tensor[] class_logits, Tensor[] box_logits, Tensor? quality_logits, Tensor projection, Tensor? scales, "
    "Tensor? image_sizes, Tensor? scale_factors, float[] strides, int pre_topk, float score_thr, float offset, "
    "bool distributions, str backend) -> Tensor[]"
)


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
    call, box = _check(
        class_logits,
        box_logits,
        strides=strides,
        scales=scales,
        projection=projection,
        predictor=predictor,
        quality_logits=quality_logits,
        pre_topk=pre_topk,
        score_thr=score_thr,
        offset=offset,
        legacy_background=legacy_background,
    )
    batch = box.tensors[0].shape[0]
    image_sizes = _pairs(image_sizes, "image_sizes", batch, box.device)
    scale_factors = _pairs(scale_factors, "scale_factors", batch, box.device)
    strides, score_thr, offset = [float(stride) for stride in strides], float(score_thr), float(offset)
    backend = backends.select("decode", call)
    if backend == "reference":
        with nullcontext() if backends.exporting() else torch.no_grad():
            return reference.decode(
                class_logits,
                box_logits,
                strides=strides,
                scales=scales,
                projection=projection,
                predictor=predictor,
                quality_logits=quality_logits,
                image_sizes=image_sizes,
                scale_factors=scale_factors,
                pre_topk=pre_topk,
                score_thr=score_thr,
                offset=offset,
                legacy_background=legacy_background,
                return_distributions=return_distributions,
            )
    with torch.no_grad():
        if predictor is not None:
            statistics = {"topk": predictor.topk, "mean": predictor.mean, "variance": predictor.variance}
            quality_logits = dgqp(box_logits, *predictor[:4], scales=scales, **statistics)
        results = torch.ops.gflv2.decode(
            [level.detach() for level in class_logits],
            [level.detach() for level in box_logits],
            quality_logits,
            check_projection(projection, box),
            scales,
            image_sizes,
            scale_factors,
            strides,
            pre_topk,
            score_thr,
            offset,
            return_distributions,
            backend,
        )
    return Decoded(*results[:4], results[4] if return_distributions else None, legacy_background)


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
    check_number(iou_thr, "iou_thr", least=0, most=1)
    check_number(score_thr, "score_thr", least=0)
    if max_detections is not None and max_detections < 1:
        bad_value("max_detections", "at least 1, or None", max_detections)
    try:
        from torchvision.ops import batched_nms as nms
    except ImportError as error:
        raise ImportError('batched_nms: NMS is torchvision\'s: pip install "gflv2[train]", or torchvision') from error
    results = []
    for image, (boxes, scores) in enumerate(zip(decoded.boxes, decoded.scores, strict=True)):
        rows, labels = (scores > score_thr).nonzero(as_tuple=True)
        kept = scores[rows, labels]
        order = nms(boxes[rows], kept, labels, iou_thr)[:max_detections]
        if decoded.legacy_background:
            order = order[labels[order] < scores.shape[1] - 1]
        rows = rows[order]
        distributions = None if decoded.distributions is None else decoded.distributions[image][rows]
        points = decoded.points[image][rows]
        results.append(Detections(boxes[rows], kept[order], labels[order], rows, points, distributions))
    return results


def _pairs(value: Any, name: str, batch: int, device: torch.device) -> Tensor | None:
    """(B, 2) float32 tensor from a tensor or a list of pairs; a list is copied without waiting for the device."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        dtypes = (torch.float32, torch.float64, torch.int64, torch.int32)
        return check_tensor(value, name, shape=(batch, 2), dtypes=dtypes, device=device)
    check_pairs(value, name, f"{batch} pairs of numbers, or a tensor of shape ({batch}, 2)", batch)
    return torch.tensor([[float(a), float(b)] for a, b in value]).to(device, non_blocking=True)


def _check(
    class_logits: Any,
    box_logits: Any,
    *,
    strides: Any,
    scales: Any = None,
    projection: Any = None,
    predictor: Any = None,
    quality_logits: Any = None,
    pre_topk: Any = 1000,
    score_thr: Any = 0.05,
    offset: Any = 0.0,
    legacy_background: bool = False,
    **_: Any,
) -> tuple[backends.Call, BoxLogits]:
    call, box = check_head(class_logits, box_logits, strides, scales, projection, predictor, quality_logits)
    classes = class_logits[0].shape[1]
    check_count(pre_topk, "pre_topk")
    check_number(score_thr, "score_thr", least=0, most=1)
    check_number(offset, "offset")
    if legacy_background and classes < 2:
        bad_value(
            "class_logits", "at least 2 channels with legacy_background, the last one the background", class_logits[0]
        )
    # Asked only where it matters: a graph of variable sizes would be bound to the answer.
    too_many = pre_topk > MAX_SORTED and any(level.shape[2] * level.shape[3] > pre_topk for level in box.tensors)
    call.facts.update(pre_topk=pre_topk, too_many=too_many)
    return call, box


def _describe(*arguments: Any, **options: Any) -> backends.Call:
    return _check(*arguments, **options)[0]


def _refuse_mixed(call: backends.Call) -> str | None:
    if (call.dtype == torch.float64) != (call.facts["class_dtype"] == torch.float64):
        return "class_logits and box_logits are not both float64"
    return None


def _refuse_on_gpu(call: backends.Call) -> str | None:
    if call.facts["too_many"]:
        return f"pre_topk is {call.facts['pre_topk']}: at most {MAX_SORTED} points of a level are sorted"
    return backends.refuse_double(call) or _refuse_mixed(call)


backends.register(
    "decode", {"cuda": _refuse_on_gpu, "triton": _refuse_on_gpu, "cpu": _refuse_mixed, "reference": None}, _describe
)


def _new_outputs(
    class_logits: list[Tensor], box_logits: list[Tensor], pre_topk: int, distributions: bool
) -> list[Tensor]:
    batch, channels = box_logits[0].shape[:2]
    rows = sum(torch.sym_min(pre_topk, level.shape[2] * level.shape[3]) for level in class_logits)
    kind = {"dtype": compute_dtype(box_logits[0].dtype), "device": box_logits[0].device}
    boxes = torch.empty(batch, rows, 4, **kind)
    scores = torch.empty(batch, rows, class_logits[0].shape[1], **kind)
    points = boxes.new_empty(batch, rows, dtype=torch.int64)
    outputs = [boxes, scores, points, points.new_empty(batch)]
    if distributions:
        outputs.append(torch.empty(batch, rows, 4, channels // 4, **kind))
    return outputs


def _forward(
    class_logits, box_logits, quality_logits, projection, scales, image_sizes, scale_factors, strides, *settings
) -> list[Tensor]:
    *settings, distributions, backend = settings
    outputs = _new_outputs(class_logits, box_logits, settings[0], distributions)
    boxes, _, _, counts, *_ = outputs
    if not boxes.numel():
        counts.zero_()
        return outputs
    small = (quality_logits, projection, scales, image_sizes, scale_factors)
    dense = [None if tensor is None else tensor.to(boxes.dtype).contiguous() for tensor in small]
    missing = [] if distributions else [None]
    implementation("decode", backend).decode(class_logits, box_logits, *dense, strides, *settings, *outputs, *missing)
    return outputs


for _key in ("CPU", "CUDA"):
    _library.impl("decode", _forward, _key)
no_vmap("decode", _library)


@torch.library.register_fake("gflv2::decode", lib=_library)
def _(class_logits, box_logits, quality_logits, projection, scales, sizes, factors, strides, *settings) -> list[Tensor]:
    pre_topk, _, _, distributions, _ = settings
    return _new_outputs(class_logits, box_logits, pre_topk, distributions)
