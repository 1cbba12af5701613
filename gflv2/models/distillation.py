"""Localisation distillation (LD, arXiv 2102.12252): a student's box distributions learn those of a trained teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from gflv2.config import DistillConfig
from gflv2.models.dense_head import DenseHead, HeadOutput, shapes_of
from gflv2.nn.valuable_region import valuable_region
from gflv2.ops import Assignment, GFLTargets, distribution_kl
from gflv2.ops.reference.rows import box_rows


class Teaching(NamedTuple):
    """What a teacher says of a batch; constants.

    Attributes:
        box_logits: L tensors (B, 4·R, H_l, W_l), before the level's scale, like the student's.
        scales: (L,) the teacher's.
        settings: temperature, weights and region.
    """

    box_logits: list[Tensor]
    scales: Tensor
    settings: DistillConfig


def distillation(
    head: DenseHead,
    student: HeadOutput,
    teaching: Teaching,
    assignment: Assignment,
    targets: GFLTargets,
    boxes: Sequence[Tensor] | Tensor,
    padded_sizes: Sequence[tuple[int, int]] | None = None,
    counts: Tensor | None = None,
) -> dict[str, Tensor]:
    """The sums of ``distribution_kl`` over points, each the mean of its four sides, before they are divided by N_pos.

    ``loss_ld``: positive points, weighted as the other box losses are. ``loss_ld_region``: points of
    ``valuable_region``, weighted by it and by ``region_weight``; absent where that is 0. The losses are those of the
    paper's own code but for their divisor: there it is a constant, here N_pos, as for QFL, so that neither the batch
    nor the number of devices changes their share. (Not Σw, as for GIoU and DFL: with a student that is sure of nothing
    yet it is near 0, and the region, which has weights of its own, would be all that is learnt.) Arguments as
    ``GFLHead.losses``.
    """
    settings, logits = teaching.settings, student.box_logits
    weights = {"loss_ld": targets.weights}
    if settings.region_weight:
        weights["loss_ld_region"] = settings.region_weight * valuable_region(
            assignment,
            head.on_grid(boxes),
            shapes_of(logits),
            head.strides,
            low=settings.region_low,
            topk=head.assigner.topk,
            padded_sizes=padded_sizes,
            counts=counts,
            offset=head.grid.offset,
            anchor_scale=head.grid.anchor_scale,
        )
    mine = box_rows(logits, student.scales)
    theirs = box_rows(teaching.box_logits, teaching.scales).detach()
    options: dict[str, Any] = {"temperature": settings.temperature, "reduction": "none"}
    losses = distribution_kl(mine.flatten(0, 2), theirs.flatten(0, 2), **options).view(mine.shape[:3]).mean(2)
    return {name: settings.loss_weight * (weight * losses).sum() for name, weight in weights.items()}
