"""Quality focal loss, distribution focal loss and GIoU loss as modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gflv2.ops import dfl, distribution_kl, giou, qfl
from gflv2.ops.checks import bad_value, check_choice, check_number, check_tensor, is_number
from gflv2.ops.reduction import REDUCTIONS

AVERAGE_EPS = torch.finfo(torch.float32).eps  # mmdet adds it to an average factor, which may then be 0


def as_factors(weight: Any) -> Any:
    """Integers and booleans as float32: a mask, say; the packages multiply by whatever they get."""
    integers = isinstance(weight, Tensor) and not (weight.is_floating_point() or weight.is_complex())
    return weight.float() if integers else weight


class _Loss(nn.Module):
    """Reduction, weight and average factor, which all three have in common."""

    def __init__(self, reduction: str, loss_weight: float) -> None:
        super().__init__()
        self.reduction = check_choice(reduction, "reduction", REDUCTIONS)
        self.loss_weight = check_number(loss_weight, "loss_weight")

    def _reduced(self, weight: Tensor | None, avg_factor: Any, reduction_override: str | None) -> dict[str, Any]:
        """The three arguments as the operations take them."""
        if reduction_override is not None:
            check_choice(reduction_override, "reduction_override", (None, *REDUCTIONS))
        if isinstance(avg_factor, Tensor) and avg_factor.numel() == 1:
            avg_factor = avg_factor.reshape(()).float() + AVERAGE_EPS
        elif is_number(avg_factor):
            if not avg_factor >= 0:
                bad_value("avg_factor", "a number ≥ 0", avg_factor)
            avg_factor = float(avg_factor) + AVERAGE_EPS
        return {
            "weight": as_factors(weight),
            "avg_factor": avg_factor,
            "reduction": reduction_override or self.reduction,
        }


class QualityFocalLoss(_Loss):
    """Quality Focal Loss (arXiv 2006.04388, equation 5): Σ over classes of BCE(J, y)·|y − J|^β.

    Args:
        use_sigmoid: True: inputs are logits. False, as in the configurations of GFLV2's authors: probabilities.
        beta: exponent β ≥ 0.
        reduction: "none", "mean" (over rows, not over classes) or "sum".
        loss_weight: factor of the result.
        activated: mmdet 3's way to say that inputs are probabilities.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        beta: float = 2.0,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__(reduction, loss_weight)
        self.use_sigmoid, self.beta, self.activated = use_sigmoid, beta, activated

    def forward(
        self,
        pred: Tensor,
        target: tuple[Tensor, Tensor] | Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
        *,
        quality_logits: Tensor | None = None,
    ) -> Tensor:
        """The loss of N rows.

        Args:
            pred: (N, C) logits, or probabilities where the module was built for them.
            target: (labels, scores), both (N,): y is the score at the label's class, 0 elsewhere; labels outside
                [0, C) are background. Or the dense y, (N, C).
            weight: (N,).
            avg_factor: a number or a tensor of one.
            quality_logits: (N,) r of J = sigmoid(pred)·sigmoid(r), GFLV2's joint score; only with logits.

        Returns:
            (N,) for "none", else 0-d.

        Raises:
            TypeError, ValueError: a wrong shape, dtype or device, or a reduction that does not exist.
        """
        options = self._reduced(weight, avg_factor, reduction_override)
        probable = self.activated or not self.use_sigmoid
        if quality_logits is not None and probable:
            bad_value("quality_logits", "None where the predictions are probabilities", quality_logits)
        form = "probabilities" if probable else "logits" if quality_logits is None else "class_logits"
        loss = qfl(target, **{form: pred}, quality_logits=quality_logits, beta=self.beta, **options)
        return self.loss_weight * loss


class _PairLoss(_Loss):
    """A loss of N predictions and as many targets of their kind."""

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """The loss of N rows; the class says what ``pred``, ``target`` and ``weight`` hold.

        Args:
            avg_factor: a number or a tensor of one.

        Returns:
            (N,) for "none", else 0-d.

        Raises:
            TypeError, ValueError: a wrong shape, dtype or device, or a reduction that does not exist.
        """
        return self.loss_weight * self._loss(pred, target, **self._reduced(weight, avg_factor, reduction_override))


class DistributionFocalLoss(_PairLoss):
    """Distribution Focal Loss (arXiv 2006.04388, equation 6) of N box sides.

    ``pred``: (N, n + 1) logits of the bins. ``target``: (N,) distances in bins, in [0, n]; others are clamped to it
    (mmdet needs [0, n)). ``weight``: (N,).

    Args:
        reduction: "none", "mean" or "sum". loss_weight: factor of the result.
    """

    def __init__(self, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        super().__init__(reduction, loss_weight)

    def _loss(self, pred: Tensor, target: Tensor, **options: Any) -> Tensor:
        return dfl(pred, target, **options)


class BoxLoss(_PairLoss):
    """An operation over N pairs of boxes as a loss of mmdet's kind: one with an ``eps``, and weights of sides."""

    operation: Callable[..., Tensor]

    def __init__(self, eps: float = 1e-6, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        super().__init__(reduction, loss_weight)
        self.eps = eps

    def _loss(self, pred: Tensor, target: Tensor, *, weight: Tensor | None, **options: Any) -> Tensor:
        if isinstance(weight, Tensor) and weight.dim() == 2:
            check_tensor(pred, "pred", shape=(None, 4))
            if weight.shape != pred.shape:
                bad_value("weight", f"shape ({len(pred)},) or {tuple(pred.shape)}", weight)
            weight = weight.mean(1)
        return self.operation(pred, target, eps=self.eps, weight=weight, **options)


class GIoULoss(BoxLoss):
    """1 − GIoU (arXiv 1902.09630) of N pairs of boxes.

    ``pred``, ``target``: (N, 4) boxes (x1, y1, x2, y2). ``weight``: (N,), or (N, 4), whose mean over the sides counts.
    (For weights that are all 0 mmdet asks the device, and returns a 0-d 0 also for "none".)

    Args:
        eps: least area of union and enclosing box, in the square of the boxes' unit.
        reduction: "none", "mean" or "sum". loss_weight: factor of the result.
    """

    operation = staticmethod(giou)


class KnowledgeDistillationKLDivLoss(_PairLoss):
    """T²/R · KL(teacher ‖ student) of N box sides (LD, arXiv 2102.12252), both softened by the temperature T.

    ``pred``: (N, R) logits of the student. ``target``: (N, R) of the teacher, constants. ``weight``: (N,).

    Args:
        reduction: "none", "mean" or "sum". loss_weight: factor of the result. T: temperature.
    """

    def __init__(self, reduction: str = "mean", loss_weight: float = 1.0, T: float = 10) -> None:  # noqa: N803
        super().__init__(reduction, loss_weight)
        self.T = T

    def _loss(self, pred: Tensor, target: Tensor, **options: Any) -> Tensor:
        return distribution_kl(pred, target, temperature=self.T, **options)
