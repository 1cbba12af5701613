"""mmdet's FocalLoss and VarifocalLoss on `gflv2.ops.focal`, subclasses of mmdet's: its heads ask with isinstance().

What the operation does not compute, mmdet's own code does: elements one by one (reduction "none", as PAA's positive
losses have it), probabilities (``activated``, as TOOD's first loss), weights of single elements, and one-hot targets of
FocalLoss.
"""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.losses import FocalLoss as MmdetFocalLoss
from mmdet.models.losses import VarifocalLoss as MmdetVarifocalLoss
from torch import Tensor

from gflv2.nn.losses import AVERAGE_EPS
from gflv2.ops.focal import sigmoid_focal, varifocal
from gflv2.ops.reduction import INTEGERS


class FocalLoss(MmdetFocalLoss):
    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Arguments and result are mmdet's, for labels (N,); a label outside [0, C) is background."""
        options = _options(self, pred, weight, avg_factor, reduction_override)
        labels = isinstance(target, Tensor) and target.shape == pred.shape[:1] and target.dtype in INTEGERS
        if options is None or not labels:
            return super().forward(pred, target, weight, avg_factor, reduction_override)
        return self.loss_weight * sigmoid_focal(pred, target, alpha=self.alpha, gamma=self.gamma, **options)


class VarifocalLoss(MmdetVarifocalLoss):
    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Arguments and result are mmdet's, but for a negative score, which is background."""
        options = None
        if weight is None or weight.dim() == 2:  # (N,) would be one factor a class
            options = _options(self, pred, weight, avg_factor, reduction_override)
        if options is None or not isinstance(target, Tensor) or target.shape != pred.shape:
            return super().forward(pred, target, weight, avg_factor, reduction_override)
        # Every element is a point of its own, of one class: a row may have scores in several, and nobody has to ask the
        # device whether one does. A NaN is no background, and stays one.
        scores = target.detach().reshape(1, -1)
        if not scores.is_floating_point():  # one-hot labels
            scores = scores.to(pred.dtype)
        if options["weight"] is not None:
            options["weight"] = options["weight"][:, None].expand_as(pred).reshape(1, -1)
        options |= {"alpha": self.alpha, "gamma": self.gamma, "iou_weighted": self.iou_weighted}
        points = [pred.reshape(1, 1, 1, -1)]
        return self.loss_weight * varifocal(points, (torch.where(scores <= 0, -1, 0), scores), **options)


def why_not(loss: Any) -> str | None:
    """Why a loss of these classes runs mmdet's own code, whatever it gets; None: it does not."""
    if getattr(loss, "activated", False):
        return "mmdet's own code: its inputs are probabilities"
    if isinstance(loss, FocalLoss) and not 0 <= loss.alpha <= 1:
        return "mmdet's own code: alpha is outside [0, 1]"
    return "mmdet's own code: gamma is negative" if loss.gamma < 0 else None


def _options(
    loss: Any, pred: Any, weight: Any, avg_factor: Any, reduction_override: str | None
) -> dict[str, Any] | None:
    """Weight, average factor and reduction as the operation takes them; None: it does not."""
    if not isinstance(pred, Tensor) or pred.dim() != 2 or not pred.is_floating_point() or why_not(loss) is not None:
        return None
    reduction = reduction_override or loss.reduction
    if reduction not in ("mean", "sum") or (reduction == "sum" and avg_factor is not None):
        return None  # "sum" with an average factor: mmdet's error
    if weight is not None:
        if weight.shape not in (pred.shape[:1], (len(pred), 1)) or not weight.is_floating_point():
            return None
        weight = weight.reshape(-1)
    if reduction == "mean" and avg_factor is None:
        avg_factor = float(max(pred.numel(), 1))
    elif isinstance(avg_factor, Tensor):
        if avg_factor.numel() != 1:
            return None
        avg_factor = avg_factor.reshape(()).float() + AVERAGE_EPS
    elif avg_factor is not None:
        avg_factor = float(avg_factor) + AVERAGE_EPS
        if not avg_factor > 0:
            return None
    return {"weight": weight, "avg_factor": avg_factor, "reduction": reduction}
