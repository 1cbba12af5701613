"""``decode``: scores, the best points of each level, boxes, clipped to the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.eager.dgqp import over_levels
from benchmarks.eager.dgqp_statistics import by_peeling, by_rows, by_topk
from gflv2.ops import Decoded, Predictor

PRE_TOPK, SCORE_THR = 1000, 0.05


def _late(quality: Callable[..., Tensor]) -> Callable[..., Decoded]:
    def form(
        class_logits: Sequence[Tensor],
        box_logits: Sequence[Tensor],
        *,
        strides: Sequence[float],
        scales: Tensor,
        predictor: Predictor,
        image_sizes: Tensor,
    ) -> Decoded:
        """Only the highest class logit of a point decides; classes and boxes of the others are never formed."""
        weights = predictor[:4]
        parts, start = [], 0
        for index, (classes, sides) in enumerate(zip(class_logits, box_logits, strict=True)):
            height, width = classes.shape[2:]
            scale, stride = scales[index], float(strides[index])
            r = quality([sides], *weights, scales=scale[None], topk=predictor.topk).sigmoid()  # (B, H·W)
            classes, sides = classes.flatten(2), sides.flatten(2)
            points = torch.arange(height * width, device=r.device).expand(len(r), -1)
            if height * width > PRE_TOPK:
                best = classes.amax(1).float().sigmoid() * r
                points = best.topk(PRE_TOPK, dim=1).indices
                r = r.gather(1, points)
                classes, sides = (
                    rows.gather(2, points[:, None].expand(-1, rows.shape[1], -1)) for rows in (classes, sides)
                )
            joint = classes.float().sigmoid() * r[:, None]  # (B, C, n)
            probabilities = (sides.float() * scale).unflatten(1, (4, -1)).softmax(2)
            bins = torch.arange(probabilities.shape[2], dtype=torch.float32, device=r.device)
            left, top, right, bottom = ((probabilities * bins[:, None]).sum(2) * stride).unbind(1)
            x, y = (points % width) * stride, (points // width) * stride
            boxes = torch.stack([x - left, y - top, x + right, y + bottom], dim=-1)
            parts.append((boxes, joint.transpose(1, 2), points + start))
            start += height * width
        boxes, scores, points = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        limit = image_sizes.to(boxes.dtype).flip(1).repeat(1, 2)[:, None]
        boxes = torch.minimum(boxes.clamp(min=0), limit)
        scores = torch.where(scores > SCORE_THR, scores, 0.0)
        return Decoded(boxes, scores, points, (scores.amax(-1) > 0).sum(1))

    return form


FORMS = {
    name: _late(over_levels(statistics))
    for name, statistics in (("topk", by_topk), ("rows", by_rows), ("peeling", by_peeling))
}
