"""mmdet's losses, integral and assigner on this project's operations, each a subclass of mmdet's: its heads ask with
isinstance().
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from mmdet.models.dense_heads.gfl_head import Integral as MmdetIntegral
from mmdet.models.losses import CIoULoss as MmdetCIoULoss
from mmdet.models.losses import DistributionFocalLoss as MmdetDistributionFocalLoss
from mmdet.models.losses import GIoULoss as MmdetGIoULoss
from mmdet.models.losses import QualityFocalLoss as MmdetQualityFocalLoss
from mmdet.models.task_modules.assigners import AssignResult, BboxOverlaps2D
from mmdet.models.task_modules.assigners import ATSSAssigner as MmdetATSSAssigner
from mmdet.models.task_modules.samplers import PseudoSampler
from mmdet.structures.bbox import HorizontalBoxes
from torch import Tensor

from gflv2 import nn
from gflv2.nn.assigner import square_sides
from gflv2.nn.losses import BoxLoss
from gflv2.ops import ciou
from gflv2.ops.checks import bad_type, bad_value
from gflv2.ops.levels import BINS_LIMITS, MAX_LEVELS


class QualityFocalLoss(nn.QualityFocalLoss, MmdetQualityFocalLoss):
    def __init__(self, use_sigmoid: bool = True, *args: Any, **kwargs: Any) -> None:
        # mmdet's heads pass logits whatever it says; probabilities are ``activated``.
        if use_sigmoid is not True:
            bad_value("use_sigmoid", "True, the only one that mmdet has", use_sigmoid)
        super().__init__(use_sigmoid, *args, **kwargs)


class DistributionFocalLoss(nn.DistributionFocalLoss, MmdetDistributionFocalLoss):
    def forward(self, pred: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Arguments and result are mmdet's; of more bins than the operation takes, by mmdet's own code."""
        many = isinstance(pred, Tensor) and pred.dim() == 2 and _beyond(pred.shape[1])
        return (MmdetDistributionFocalLoss if many else nn.DistributionFocalLoss).forward(self, pred, *args, **kwargs)


class GIoULoss(nn.GIoULoss, MmdetGIoULoss):
    pass


class CIoULoss(BoxLoss, MmdetCIoULoss):
    operation = staticmethod(partial(ciou, convention="mmdet"))


class Integral(nn.Integral, MmdetIntegral):
    def forward(self, x: Tensor) -> Tensor:
        """Argument and result are mmdet's; of more bins than the operation takes, by mmdet's own code."""
        return (MmdetIntegral if _beyond(self.reg_max + 1) else nn.Integral).forward(self, x)


class ATSSAssigner(MmdetATSSAssigner):
    def assign(
        self,
        pred_instances: Any,
        num_level_priors: Sequence[int],
        gt_instances: Any,
        gt_instances_ignore: Any = None,
    ) -> AssignResult:
        """Arguments and result are mmdet's; what the operation does not cover, mmdet does itself."""
        priors, counts = _tensor(pred_instances.priors), [int(count) for count in num_level_priors]
        boxes = _tensor(gt_instances.bboxes)
        ignored = None if gt_instances_ignore is None else _tensor(gt_instances_ignore.bboxes)
        sides = None
        if self._covered(priors, boxes, ignored if self.ignore_iof_thr > 0 else boxes, counts):
            sides = square_sides(priors, counts)
        if sides is None:
            return super().assign(pred_instances, num_level_priors, gt_instances, gt_instances_ignore)
        assigner = nn.ATSSAssigner(self.topk, self.ignore_iof_thr)
        index, overlaps, labels = assigner.assign_squares(priors, counts, sides, boxes, gt_instances.labels, ignored)
        return AssignResult(len(boxes), index, overlaps, labels=labels)

    def _covered(self, priors: Any, boxes: Any, ignored: Any, counts: Sequence[int]) -> bool:
        """Whether the operation computes what mmdet would with these settings."""
        plain = plain_overlaps(self.iou_calculator)
        tensors = isinstance(priors, Tensor) and isinstance(boxes, Tensor) and isinstance(ignored, (Tensor, type(None)))
        return self.alpha is None and plain and tensors and len(priors) > 0 and 1 <= len(counts) <= MAX_LEVELS


def plain_overlaps(calculator: Any) -> bool:
    """Whether an assigner's calculator gives the IoU in the boxes' own dtype."""
    return type(calculator) is BboxOverlaps2D and calculator.dtype is None


def check_losses(head: Any, losses: Mapping[str, Sequence[type]]) -> None:
    """The losses of a head are what the fused operations compute.

    Args:
        losses: attribute of the head → mmdet's class and ours. A class derived from one may compute something else.

    Raises:
        TypeError, ValueError: they are not; the message names the setting.
    """
    for name, kinds in losses.items():
        loss = getattr(head, name)
        if type(loss) not in kinds:
            bad_type(name, f"a {kinds[0].__name__}, not a class derived from it", type(loss).__name__)
        if loss.reduction != "mean":
            bad_value(f"{name}.reduction", "'mean'", loss.reduction)
    if head.loss_cls.activated:
        bad_value("loss_cls.activated", "False", True)


def check_sampling(head: Any) -> None:
    """Every point counts, and counts once; raises as `check_losses`."""
    if type(head.sampler) is not PseudoSampler:
        bad_type("train_cfg.sampler", "none, or a PseudoSampler, not a class derived from it", head.sampler)
    if head.train_cfg.get("allowed_border", -1) >= 0:
        bad_value("train_cfg.allowed_border", "-1", head.train_cfg["allowed_border"])
    if head.train_cfg.get("pos_weight", -1) > 0:
        bad_value("train_cfg.pos_weight", "-1", head.train_cfg["pos_weight"])


def covered(head: Any, check: Callable[[Any], None]) -> bool:
    """Whether the operations compute what the head was built for; ``check`` raises where they do not."""
    try:
        check(head)
    except (TypeError, ValueError):
        return False
    return True


def _beyond(bins: int) -> bool:
    return bins > BINS_LIMITS[1]


def _tensor(boxes: Any) -> Any:
    """Axis-parallel boxes as a tensor; other kinds as they are."""
    return boxes.tensor if isinstance(boxes, HorizontalBoxes) else boxes
