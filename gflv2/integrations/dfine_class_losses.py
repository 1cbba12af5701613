"""The class losses of D-FINE's and DEIM's criteria, in the authors' repositories and in transformers.

``loss_labels_vfl`` is varifocal loss with a detached weight, ``loss_labels_mal`` matchability-aware loss
(`gflv2.ops.focal`). Theirs form one-hot targets and weights, (B, L, C) each, and the IoU of every matched prediction
with every matched box, (M, M), of which they take the diagonal; here it is one IoU a pair, one label and one score a
query. Nothing waits for the device.

Where results differ from the package's, beyond rounding:

* losses are float32 also for half-precision outputs, and so are the scores;
* a pair of boxes without an area has the IoU 0; theirs makes the whole loss no number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gflv2.integrations.dfine_losses import SMALLEST_AREA, corners
from gflv2.integrations.methods import Method, always, average_factor
from gflv2.ops.focal import matchability_aware, varifocal
from gflv2.ops.giou import iou


def methods_of(criterion: type) -> list[str]:
    """Which of ``METHODS`` a class has."""
    return [name for name in METHODS if hasattr(criterion, name)]


def _loss_vfl(self: Any, outputs: dict, targets: list, indices: list, num_boxes: Any, values: Any = None) -> dict:
    logits, target = _rows(self, outputs, targets, indices, values)
    options = {"alpha": self.alpha, "gamma": self.gamma, "detach": True}
    return {"loss_vfl": varifocal(logits, target, **options, avg_factor=average_factor(num_boxes, logits))}


def _loss_mal(self: Any, outputs: dict, targets: list, indices: list, num_boxes: Any, values: Any = None) -> dict:
    logits, target = _rows(self, outputs, targets, indices, values)
    options = {"alpha": self.mal_alpha, "gamma": self.gamma}
    return {"loss_mal": matchability_aware(logits, target, **options, avg_factor=average_factor(num_boxes, logits))}


def _rows(self: Any, outputs: dict, targets: list, indices: list, values: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """(B·L, C) logits, (B·L,) labels and scores.

    Args:
        values: scores of the matched queries, (M,), where the authors' criterion has them already. (transformers has
            another argument in this place, a flag without effect.)
    """
    authors = "pred_logits" in outputs  # and transformers call the same things by two names
    logits = outputs["pred_logits" if authors else "logits"]
    index = (self._get_src_permutation_idx if authors else self._get_source_permutation_idx)(indices)
    name = "labels" if authors else "class_labels"
    found = torch.cat([target[name][places] for target, (_, places) in zip(targets, indices, strict=True)])
    if not isinstance(values, Tensor):
        wanted = torch.cat([target["boxes"][places] for target, (_, places) in zip(targets, indices, strict=True)])
        values = iou(corners(outputs["pred_boxes"][index].detach()), corners(wanted), eps=SMALLEST_AREA)
    labels = torch.full(logits.shape[:2], -1, device=logits.device)
    scores = torch.zeros(logits.shape[:2], device=logits.device)
    labels[index] = found
    scores[index] = values.detach().float()
    return logits.flatten(0, 1), (labels.flatten(), scores.flatten())


_PARAMETERS = ("outputs", "targets", "indices", "num_boxes")
METHODS = {
    "loss_labels_vfl": Method("loss_labels_vfl", _PARAMETERS, always(_loss_vfl)),
    "loss_labels_mal": Method("loss_labels_mal", _PARAMETERS, always(_loss_mal)),
}
