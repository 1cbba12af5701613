"""The ``forward`` of the losses that NanoDet and DAMO-YOLO both took over from GFocalV2, by our operations.

Each is a method of the package's own module and reads its attributes. What they share with the originals: ``weight``
has one factor a row, (N,), of any dtype; "mean" divides by ``avg_factor`` where there is one, a number or a tensor of
one element; ``loss_weight`` multiplies. What differs:
results are float32, weights, average factors and targets are constants, nothing waits for the device, a loss of no rows
is 0 where the originals' mean is NaN, and a GIoU loss whose weights are all 0 has the shape that its reduction says.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gflv2.integrations.methods import Method, always, average_factor
from gflv2.nn.losses import as_factors
from gflv2.ops.dfl import dfl
from gflv2.ops.giou import giou
from gflv2.ops.qfl import qfl


def _quality_focal_loss(
    self: Any,
    pred: Tensor,
    target: tuple[Tensor, Tensor],
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction_override: str | None = None,
) -> Tensor:
    """(N, C) logits, or probabilities where ``use_sigmoid`` is false, and (labels, scores); label C is background."""
    form = "logits" if self.use_sigmoid else "probabilities"
    options = _reduced(self, pred, weight, avg_factor, reduction_override)
    return self.loss_weight * qfl(target, **{form: pred}, beta=self.beta, **options)


def _distribution_focal_loss(
    self: Any,
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction_override: str | None = None,
) -> Tensor:
    """(N, n + 1) logits and (N,) distances in bins."""
    return self.loss_weight * dfl(pred, target, **_reduced(self, pred, weight, avg_factor, reduction_override))


def _giou_loss(
    self: Any,
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction_override: str | None = None,
) -> Tensor:
    """(N, 4) boxes; a weight (N, 4) counts by its mean over the sides."""
    options = _reduced(self, pred, weight, avg_factor, reduction_override)
    if weight is not None and weight.dim() > 1:
        options["weight"] = options["weight"].mean(-1)
    return self.loss_weight * giou(pred, target, eps=self.eps, **options)


def _reduced(
    self: Any, pred: Tensor, weight: Tensor | None, avg_factor: Any, reduction_override: str | None
) -> dict[str, Any]:
    """Weight, average factor and reduction as the operations take them."""
    factor = average_factor(avg_factor, pred)
    return {"weight": as_factors(weight), "avg_factor": factor, "reduction": reduction_override or self.reduction}


_PARAMETERS = ("pred", "target", "weight", "avg_factor", "reduction_override")
METHODS = {
    "quality_focal_loss": Method("forward", _PARAMETERS, always(_quality_focal_loss)),
    "distribution_focal_loss": Method("forward", _PARAMETERS, always(_distribution_focal_loss)),
    "giou_loss": Method("forward", _PARAMETERS, always(_giou_loss)),
}
