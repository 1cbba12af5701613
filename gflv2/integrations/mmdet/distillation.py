"""mmdet's loss of Localization Distillation (arXiv 2102.12252) on `gflv2.ops.distribution_kl`."""

from __future__ import annotations

from typing import Any

from mmdet.models.losses import KnowledgeDistillationKLDivLoss as MmdetKnowledgeDistillationKLDivLoss
from torch import Tensor

from gflv2 import nn
from gflv2.ops.levels import BINS_LIMITS


class KnowledgeDistillationKLDivLoss(nn.KnowledgeDistillationKLDivLoss, MmdetKnowledgeDistillationKLDivLoss):
    def forward(self, pred: Tensor, soft_label: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Arguments and result are mmdet's; of rows too long for the operation (classes, say), by mmdet's own code."""
        few = isinstance(pred, Tensor) and pred.dim() == 2 and BINS_LIMITS[0] <= pred.shape[1] <= BINS_LIMITS[1]
        if not few:
            return MmdetKnowledgeDistillationKLDivLoss.forward(self, pred, soft_label, *args, **kwargs)
        return nn.KnowledgeDistillationKLDivLoss.forward(self, pred, soft_label, *args, **kwargs)
