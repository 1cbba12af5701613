"""The training head: assignment, targets, the three losses → their weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.eager import atss, dgqp, qfl
from benchmarks.eager.dfl import one_logarithm
from gflv2.ops import Predictor
from gflv2.ops.reference import gfl_loss as reference
from gflv2.ops.reference.boxes import pad_boxes
from gflv2.ops.reference.giou import giou_rows, iou_rows

QFL, GIOU, DFL = 1.0, 2.0, 0.25  # weights of the losses


def _positives(assign: Callable, quality: Callable) -> Callable[..., Tensor]:
    def form(
        class_logits: Sequence[Tensor],
        box_logits: Sequence[Tensor],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        *,
        strides: Sequence[float],
        scales: Tensor,
        predictor: Predictor,
    ) -> Tensor:
        """The box losses see only the rows of the positive points; the QFL sees every level where it lies."""
        shapes = [tuple(level.shape[2:]) for level in class_logits]
        with torch.no_grad():
            found = assign(boxes, labels, shapes, strides)
        r = quality(box_logits, *predictor[:4], scales=scales, topk=predictor.topk)
        padded, _ = pad_boxes(boxes)

        # 1. Rows of the positive points.
        sides, best, units, places, wanted, at = [], [], [], [], [], []
        start = 0
        for index, (height, width) in enumerate(shapes):
            image, cell = (found.index[:, start : start + height * width] > 0).nonzero(as_tuple=True)
            sides.append(box_logits[index].flatten(2)[image, :, cell].float() * scales[index])
            best.append(class_logits[index].detach().flatten(2)[image, :, cell].float().amax(1))
            units.append(torch.full_like(best[-1], float(strides[index])))
            places.append(torch.stack([cell % width, cell // width], dim=-1).float())
            wanted.append(padded[image, found.index[image, cell + start] - 1])
            at.append(image * found.index.shape[1] + cell + start)
            start += height * width
        sides, best, units, places, wanted, at = (torch.cat(part) for part in (sides, best, units, places, wanted, at))

        # 2. Their boxes, IoUs and weights.
        logits = sides.unflatten(1, (4, -1))
        bins = logits.shape[2]
        distances = logits.softmax(-1) @ torch.arange(bins, dtype=torch.float32, device=logits.device)
        predicted = torch.cat([places - distances[:, :2], places + distances[:, 2:]], dim=1)
        target = wanted / units[:, None]
        weights = best.sigmoid() * r.detach().flatten()[at].sigmoid()
        scores = torch.zeros_like(r).flatten().index_put_((at,), iou_rows(predicted.detach(), target)).view_as(r)
        positives = (found.index > 0).sum(1).clamp(min=1).sum()
        total = weights.sum().clamp(min=1e-12)

        # 3. The losses.
        everywhere = torch.ones_like(scores)
        loss = QFL * qfl.gathered(
            (found.labels, scores), class_logits=class_logits, quality_logits=r, weight=everywhere, avg_factor=positives
        )
        loss = loss + GIOU * ((1 - giou_rows(predicted, target)) * weights).sum() / total
        aims = torch.cat([places - target[:, :2], target[:, 2:] - places], dim=1).clamp(0, bins - 1 - 0.1)
        rows = weights[:, None].expand(-1, 4).flatten()
        return loss + DFL * one_logarithm(logits.flatten(0, 1), aims.flatten(), weight=rows, avg_factor=4 * total)

    return form


def static(class_logits, box_logits, boxes, labels, *, strides, scales, predictor) -> Tensor:
    """Fixed shapes, which a compiler wants: every point has box losses, of weight 0 where it is not positive."""
    shapes = [tuple(level.shape[2:]) for level in class_logits]
    options = {"strides": strides, "scales": scales, "predictor": predictor}
    found = atss.window(boxes, labels, shapes, strides)
    targets = reference.gfl_targets(class_logits, box_logits, found, boxes, **options)
    floors = torch.stack([targets.sums[0].clamp(min=1.0), targets.sums[1].clamp(min=1e-12)])
    return torch.stack(list(reference.gfl_loss(class_logits, box_logits, targets, floors, **options))).sum()


def with_flat_weights(predictor: Predictor) -> Predictor:
    """A model's predictor, whose weights are those of convolutions, with matrices."""
    return predictor._replace(weight1=predictor.weight1.flatten(1), weight2=predictor.weight2.flatten(1))


FORMS = {
    "positives, topk": _positives(atss.window, dgqp.FORMS["topk"]),
    "positives, rows": _positives(atss.window, dgqp.FORMS["rows"]),
    "positives, peeling": _positives(atss.window, dgqp.FORMS["peeling"]),
    "static": static,
}
