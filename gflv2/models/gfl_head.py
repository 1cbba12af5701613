"""The GFLV2 head (arXiv 2011.12885); without its quality predictor it is the head of GFLV1 (arXiv 2006.04388)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gflv2.models.conv import init_normal
from gflv2.models.dense_head import (
    CLASS_PRIOR_BIAS,
    TEST,
    DenseHead,
    HeadOutput,
    LossSums,
    shapes_of,
    split_levels,
    to_original,
)
from gflv2.models.distillation import Teaching, distillation
from gflv2.nn import Integral
from gflv2.nn.quality import QualityPredictor, sample_statistics, statistics_width, without_topk
from gflv2.ops import (
    Assignment,
    Decoded,
    GFLTargets,
    Predictor,
    decode,
    dgqp,
    dgqp_statistics,
    gfl_loss,
    gfl_targets,
    normalisers,
)
from gflv2.ops.checks import bad_value, check_choice
from gflv2.ops.reference.boxes import CLAMPED, boxes_to_distances, cells_of_levels, pad_boxes, strides_of_points


class GFLHead(DenseHead):
    """Classes, box distributions and localisation quality on every level of a pyramid.

    ::

        c   = gfl_cls(class tower)                        class logits
        z_l = scale_l · gfl_reg(box tower)                4·R box logits, R = reg_max + 1 bins for each side
        F   = [top-k of softmax(z), their mean, …]        statistics of the four distributions
        r   = reg_conf(F)                                 quality logit
        J   = σ(c) · σ(r)                                 joint score

    The module returns logits (c, z before its scale, and r where it does not come from statistics); J is formed by the
    loss and by the decoder, in log space where gradients need it.

    Args:
        num_classes: C.
        in_channels: channels of the pyramid.
        reg_max: n; distances from 0 to n strides.
        quality: where r comes from: ``"statistics"`` (GFLV2); ``"cls"``, ``"reg"``, ``"both"``: the last features of
            the class tower, of the box tower, of both; None: no r, J = σ(c) (GFLV1).
        composition: ``"product"`` as above; ``"composed"``: no r, c is computed from [class tower, F] instead.
        reg_topk, add_topk, add_mean, add_variance: the statistics: the k largest probabilities, the mean and the
            variance of these k. ``reg_channels``: hidden width of ``reg_conf``, ``quality_init`` its start.
        legacy_background: one more class channel, trained towards 0 and dropped after NMS, as in the authors' files.
        beta: exponent of QFL.
        common: of every dense head. ``feat_channels``, ``stacked_convs``, ``gn_groups``, ``depthwise``: width, depth,
            norm groups and form of the towers. ``strides``: pixels per cell, one a level. ``atss_topk``,
            ``ignore_iof_thr``: see ``gflv2.ops.atss``. ``loss_weights``: QFL, GIoU, DFL. ``weight_floor``: see
            ``gflv2.ops.normalisers``.
    """

    loss_names = "QFL, GIoU, DFL"
    divided_by = {"loss_qfl": 0, "loss_giou": 1, "loss_dfl": 1, "loss_ld": 0, "loss_ld_region": 0}

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 256,
        *,
        reg_max: int = 16,
        reg_topk: int = 4,
        add_mean: bool = True,
        add_variance: bool = False,
        add_topk: bool = True,
        reg_channels: int = 64,
        quality_init: str = "normal",
        legacy_background: bool = False,
        quality: str | None = "statistics",
        composition: str = "product",
        beta: float = 2.0,
        **common: Any,
    ) -> None:
        super().__init__(num_classes, in_channels, **common)
        check_choice(quality, "head.quality", ("statistics", "cls", "reg", "both", None))
        check_choice(composition, "head.composition", ("product", "composed"))
        if composition == "composed" and quality != "statistics":
            bad_value("head.quality", "'statistics', since head.composition is 'composed'", quality)
        self.reg_max = reg_max
        self.reg_topk, self.add_topk, self.add_mean, self.add_variance = reg_topk, add_topk, add_mean, add_variance
        self.quality, self.composition = quality, composition
        self.legacy_background = legacy_background
        self.beta = beta

        width = self.tower_channels
        statistics, chosen = 0, {"add_topk": add_topk, "add_mean": add_mean, "add_variance": add_variance}
        if quality == "statistics":
            statistics = statistics_width(reg_max=reg_max, topk=reg_topk, **chosen)
        composed = composition == "composed"
        self.gfl_cls = nn.Conv2d(width + statistics * composed, num_classes + legacy_background, 3, padding=1)
        self.gfl_reg = nn.Conv2d(width, 4 * (reg_max + 1), 3, padding=1)
        init_normal(self.gfl_cls, bias=CLASS_PRIOR_BIAS)
        init_normal(self.gfl_reg)
        if quality is not None and not composed:
            inputs = {"statistics": statistics, "cls": width, "reg": width, "both": 2 * width}[quality]
            samples = None
            if quality == "statistics" and quality_init == "hinge":
                samples = sample_statistics(reg_max=reg_max, topk=reg_topk, **chosen)
            self.reg_conf = QualityPredictor(inputs, reg_channels, quality_init, samples)
        self.integral = Integral(reg_max)

    def forward(self, features: Sequence[Tensor]) -> HeadOutput:
        """L levels (B, in_channels, H_l, W_l) → logits."""
        pairs = self.towers(features)
        box_logits = [self.gfl_reg(boxes) for _, boxes in pairs]
        scales = self.level_scales()
        if self.composition == "composed":
            statistics = split_levels(self._statistics(box_logits, scales), box_logits)
            towers = [torch.cat([c, s.to(c.dtype)], dim=1) for (c, _), s in zip(pairs, statistics, strict=True)]
            return HeadOutput([self.gfl_cls(tower) for tower in towers], box_logits, scales)
        class_logits = [self.gfl_cls(classes) for classes, _ in pairs]
        if self.quality == "statistics":
            return HeadOutput(class_logits, box_logits, scales, predictor=self._predictor())
        if self.quality is None:
            return HeadOutput(class_logits, box_logits, scales)
        pick = {"cls": lambda c, b: c, "reg": lambda c, b: b, "both": lambda c, b: torch.cat([c, b], dim=1)}[
            self.quality
        ]
        quality = torch.cat([self.reg_conf(pick(*pair)).flatten(1) for pair in pairs], dim=1)
        return HeadOutput(class_logits, box_logits, scales, quality_logits=quality)

    def _predictor(self) -> Predictor:
        """The tensors of ``reg_conf`` for the fused operations, whose statistics always begin with the k largest."""
        first, _, second = self.reg_conf
        weight = first.weight
        if not self.add_topk:
            # Zero columns for the top-k that this predictor does not read.
            weight = F.pad(weight.flatten(1).unflatten(1, (4, -1)), (self.reg_topk, 0)).flatten(1)
        return Predictor(
            weight, first.bias, second.weight, second.bias, self.reg_topk, self.add_mean, self.add_variance
        )

    def _statistics(self, box_logits: list[Tensor], scales: Tensor) -> Tensor:
        """(B, A, F) the chosen statistics."""
        rows = dgqp_statistics(
            box_logits, scales=scales, topk=self.reg_topk, mean=self.add_mean, variance=self.add_variance
        )
        return rows if self.add_topk else without_topk(rows, self.reg_topk)

    def _arguments(self, output: HeadOutput) -> dict:
        """The keyword arguments that targets, loss and decoder share."""
        return {
            "strides": self.strides,
            "scales": output.scales,
            "projection": self.integral.project,
            "predictor": output.predictor,
            "quality_logits": output.quality_logits,
            "offset": self.grid.offset,
        }

    def joint_scores(self, output: HeadOutput) -> list[Tensor]:
        """J of all points and class channels, L tensors (B, C, H_l, W_l); with ``legacy_background`` C + 1 of them."""
        quality = output.quality_logits
        if output.predictor is not None:
            weights, options = output.predictor[:4], output.predictor._asdict()
            options = {name: options[name] for name in ("topk", "mean", "variance")}
            quality = dgqp(output.box_logits, *weights, scales=output.scales, **options)
        scores = [level.sigmoid() for level in output.class_logits]
        if quality is None:
            return scores
        levels = split_levels(quality.unsqueeze(2), output.class_logits)
        return [score * level.sigmoid() for score, level in zip(scores, levels, strict=True)]

    def targets(
        self,
        output: HeadOutput,
        assignment: Assignment,
        boxes: Sequence[Tensor] | Tensor,
        padded_sizes: Sequence[tuple[int, int]] | None = None,
        counts: Tensor | None = None,
    ) -> GFLTargets:
        """IoU targets and weights of all points, constants; ``assignment`` is of ``assign``, the rest as ``loss``."""
        return gfl_targets(
            output.class_logits,
            output.box_logits,
            assignment,
            self.on_grid(boxes),
            counts=counts,
            padded_sizes=padded_sizes,
            **self._arguments(output),
        )

    def losses(
        self, output: HeadOutput, assignment: Assignment, *truth: Any, teaching: Teaching | None = None
    ) -> dict[str, Tensor]:
        """QFL, GIoU and DFL of an assignment, with a teacher also those of `distillation`; arguments as ``targets``."""
        targets = self.targets(output, assignment, *truth)
        norms = normalisers(targets.sums, weight_floor=self.weight_floor)
        losses = self._divided(output, targets, norms)
        if teaching is not None:
            taught = distillation(self, output, teaching, assignment, targets, *truth)
            losses |= {name: total / norms[self.divided_by[name]] for name, total in taught.items()}
        return losses

    def loss_sums(
        self, output: HeadOutput, assignment: Assignment, *truth: Any, teaching: Teaching | None = None
    ) -> LossSums:
        """The same for a part of a batch, not yet divided; see ``combine``."""
        targets = self.targets(output, assignment, *truth)
        losses = self._divided(output, targets, torch.ones_like(targets.sums))
        if teaching is not None:
            losses |= distillation(self, output, teaching, assignment, targets, *truth)
        return LossSums(losses, targets.sums)

    def _divided(self, output: HeadOutput, targets: GFLTargets, norms: Tensor) -> dict[str, Tensor]:
        losses = gfl_loss(
            output.class_logits,
            output.box_logits,
            targets,
            norms,
            beta=self.beta,
            loss_weights=self.loss_weights,
            **self._arguments(output),
        )
        return {"loss_qfl": losses.qfl, "loss_giou": losses.giou, "loss_dfl": losses.dfl}

    @torch.no_grad()
    def clamped_sides(
        self, output: HeadOutput, assignment: Assignment, boxes: Sequence[Tensor] | Tensor
    ) -> Tensor | None:
        """As ``DenseHead.clamped_sides``."""
        padded, _ = pad_boxes(self.on_grid(boxes))
        if not padded.shape[1]:
            return padded.new_zeros(2)
        shapes = shapes_of(output.class_logits)
        kind = {"device": padded.device, "dtype": padded.dtype}
        positive = assignment.index > 0
        number = (assignment.index - 1).clamp(min=0)[..., None].expand(-1, -1, 4)
        found = padded.gather(1, number) / strides_of_points(shapes, self.strides, **kind)[:, None]
        distances = boxes_to_distances(cells_of_levels(shapes, offset=self.grid.offset, **kind), found)
        beyond = (distances > self.reg_max - CLAMPED) & positive[..., None]
        return torch.stack([beyond.sum(), 4 * positive.sum()]).to(padded.dtype)

    def decode(
        self,
        output: HeadOutput,
        image_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        scale_factors: Tensor | None = None,
        *,
        pre_topk: int = TEST.pre_topk,
        score_thr: float = TEST.score_thr,
        return_distributions: bool = False,
    ) -> Decoded:
        """Candidates of each image before NMS.

        Args:
            output: of ``forward``.
            image_sizes: (height, width) of each resized, unpadded image, to which boxes are clipped; None: no clipping.
            scale_factors: (B, 2) resized / original (width, height), by which boxes are divided; None: no change.
            pre_topk: points kept on each level. score_thr: scores must exceed it.
            return_distributions: also return the four distributions of each box.
        """
        shift = self.grid.shift
        found = decode(
            output.class_logits,
            output.box_logits,
            image_sizes=None if shift else image_sizes,
            scale_factors=None if shift else scale_factors,
            pre_topk=pre_topk,
            score_thr=score_thr,
            legacy_background=self.legacy_background,
            return_distributions=return_distributions,
            **self._arguments(output),
        )
        return found._replace(boxes=to_original(found.boxes + shift, image_sizes, scale_factors)) if shift else found
