"""The operations as plain modules with mmdet's argument names, for any detector; torch alone is needed.

    loss_cls = gflv2.nn.QualityFocalLoss(loss_weight=1.0)
    loss = loss_cls(logits, (labels, ious), weight=label_weights, avg_factor=num_positive)

What mmdet 3 means by its arguments holds here too: a reduction is "none", "mean" or "sum", for one call
``reduction_override``; ``weight`` has one factor a row; with "mean" the sum is divided by ``avg_factor`` + 1.2e-7, else
by the number of rows; ``loss_weight`` multiplies the result. Different from mmdet: results are float32 (float64 for
float64 input), weights and average factors are constants without gradients, an average factor may be a tensor on the
device, and nothing waits for the device.
"""

from gflv2.nn.assigner import AssignResult, ATSSAssigner
from gflv2.nn.distribution import Integral
from gflv2.nn.losses import DistributionFocalLoss, GIoULoss, KnowledgeDistillationKLDivLoss, QualityFocalLoss
from gflv2.nn.quality import DGQP

__all__ = [
    "ATSSAssigner",
    "AssignResult",
    "DGQP",
    "DistributionFocalLoss",
    "GIoULoss",
    "Integral",
    "KnowledgeDistillationKLDivLoss",
    "QualityFocalLoss",
]
