"""mmdet's FocalLoss and VarifocalLoss on `gflv2.ops.focal`, subclasses of mmdet's: its heads ask with isinstance().

What the operation does not compute, mmdet's own code does: elements one by one (reduction "none", as PAA's positive
losses have it), probabilities (``activated``, as TOOD's first loss), weights or one-hot targets of single elements, and
a VarifocalLoss target with more than one class a row.
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
        """Arguments and result are mmdet's. It waits for the device once: has a row two classes with scores?"""
        options = None
        if weight is None or weight.dim() == 2:  # (N,) would be one factor a class
            options = _options(self, pred, weight, avg_factor, reduction_override)
        if options is not None and isinstance(target, Tensor) and target.shape == pred.shape and pred.shape[1] > 0:
            scores, labels = target.detach().max(1)
            positive = scores > 0
            # Several classes a row, a negative score, or none that is a number.
            if bool(torch.count_nonzero(target) == torch.count_nonzero(positive)):
                labels = torch.where(positive, labels, -1)
                options |= {"alpha": self.alpha, "gamma": self.gamma, "iou_weighted": self.iou_weighted}
                return self.loss_weight * varifocal(pred, (labels, scores), **options)
        return super().forward(pred, target, weight, avg_factor, reduction_override)


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
