"""Test-time augmentation: an image in several sizes and mirrored, whose candidates share one class-wise NMS.

The views are resized from the image itself, as at training. ``config.test.tta`` says which there are; ``evaluate`` and
``predict`` use it. The evaluations inside a training run, ``detect`` and captured inference do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflv2.data import Batch, CocoDetection, make_loader
from gflv2.models.dense_head import DenseHead, shapes_of
from gflv2.models.detector import SingleStageDetector
from gflv2.ops import Decoded, Detections, batched_nms

_MIRRORED_SIDES = [2, 1, 0, 3]  # of left, top, right, bottom


class Origins(NamedTuple):
    """Where the detections of an image, or the candidates of a batch, were predicted; in pixels of the original images.

    Attributes:
        points: (…, N, 2) feature points (x, y).
        strides: (…, N, 2) of their levels, along x and y.
        levels: (…, N) int64.
    """

    points: Tensor
    strides: Tensor
    levels: Tensor


def detect_views(
    model: SingleStageDetector,
    batches: Sequence[Batch],
    *,
    flip: bool,
    iou_thr: float,
    max_detections: int,
    **options: Any,
) -> tuple[list[Detections], list[Origins]]:
    """Detections of each image from all its views, best first, and their origins.

    Args:
        model: in evaluation mode.
        batches: the same images in each size, on the model's device.
        flip: mirror each of them, too.
        iou_thr, max_detections: of the NMS.
        options: as ``GFLHead.decode``.

    Returns:
        The detections, whose ``rows`` count the candidates of all views, view by view.
    """
    limits = {"iou_thr": iou_thr, "max_detections": max_detections}
    if len(batches) == 1 and not flip:
        batch, head = batches[0], model.bbox_head
        output = model(batch.images)
        found = head.detect(output, batch.image_sizes, batch.scale_factors, **limits, **options)
        shapes = shapes_of(output.class_logits)
        factors = batch.scale_factors
        return found, [_origins(f.points, shapes, head, xy) for f, xy in zip(found, factors, strict=True)]
    views = [_view(model, batch, mirrored, options) for batch in batches for mirrored in (False, True)[: 1 + flip]]
    parts = [decoded for decoded, _ in views]
    tensors = [torch.cat(values, dim=1) for values in zip(*((p.boxes, p.scores, p.points) for p in parts), strict=True)]
    counts = torch.stack([part.counts for part in parts]).sum(0)
    bins = None if parts[0].distributions is None else torch.cat([part.distributions for part in parts], dim=1)
    found = batched_nms(Decoded(*tensors, counts, bins, parts[0].legacy_background), **limits)
    places = [torch.cat(values, dim=1) for values in zip(*(origins for _, origins in views), strict=True)]
    return found, [Origins(*(v[image][f.rows] for v in places)) for image, f in enumerate(found)]


def _view(model: SingleStageDetector, batch: Batch, mirrored: bool, options: dict) -> tuple[Decoded, Origins]:
    """The candidates of one view, in pixels of the original images as they are."""
    output = model(_mirror(batch) if mirrored else batch.images)
    decoded = model.bbox_head.decode(output, batch.image_sizes, batch.scale_factors, **options)
    shapes, factors = shapes_of(output.class_logits), batch.scale_factors[:, None]
    origins = _origins(decoded.points, shapes, model.bbox_head, factors)
    if mirrored:
        boxes, points = decoded.boxes, origins.points
        sizes = [[float(width)] for _, width in batch.original_sizes]
        widths = torch.tensor(sizes, dtype=boxes.dtype, device=boxes.device)
        x1, y1, x2, y2 = boxes.unbind(-1)
        decoded = decoded._replace(boxes=torch.stack([widths - x2, y1, widths - x1, y2], dim=-1))
        origins = origins._replace(points=torch.stack([widths - points[..., 0], points[..., 1]], dim=-1))
        if decoded.distributions is not None:
            decoded = decoded._replace(distributions=decoded.distributions[:, :, _MIRRORED_SIDES])
    return decoded, origins


def _origins(flat: Tensor, shapes: list[tuple[int, int]], head: DenseHead, factors: Tensor) -> Origins:
    """Flat point indices (…, N) → their origins; ``factors``: (…, 1, 2) or (2,) resized / original (width, height)."""
    device = flat.device
    ends = torch.tensor(list(accumulate(height * width for height, width in shapes)), device=device)
    levels = torch.bucketize(flat, ends, right=True)
    widths = torch.tensor([width for _, width in shapes], device=device)[levels]
    cells = flat - torch.cat([ends.new_zeros(1), ends])[levels]
    stride = torch.tensor([float(value) for value in head.strides], device=device)[levels]
    points = torch.stack([cells % widths, cells // widths], dim=-1) + head.grid.offset
    points = points * stride[..., None] + head.grid.shift
    return Origins(points / factors, stride[..., None] / factors, levels)


def _mirror(batch: Batch) -> Tensor:
    """The images with left and right exchanged; the padding stays on the right."""
    mirrored = torch.zeros_like(batch.images)
    for target, image, (height, width) in zip(mirrored, batch.images, batch.image_sizes, strict=True):
        target[:, :height, :width] = image[:, :height, :width].flip(-1)
    return mirrored


def batches_of_views(loader: torch.utils.data.DataLoader, scales: Sequence[float]) -> Iterator[list[Batch]]:
    """The batches of a loader of evaluation, each as a list of itself in these sizes.

    Raises:
        ValueError: the loader has an order of its own.
    """
    dataset: CocoDetection = loader.dataset
    size = getattr(loader.batch_sampler, "batch_size", None) or 1
    options = {"train": False, "workers": loader.num_workers}
    loaders = [loader if s == 1 else make_loader(dataset.at_scale(s), size, **options) for s in scales]
    for batches in zip(*loaders, strict=True):
        if any(batch.image_ids != batches[0].image_ids for batch in batches):
            raise ValueError("data: test.tta.scales needs a loader in the order of its data set, as make_loader's")
        yield list(batches)
