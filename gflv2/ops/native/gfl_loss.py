"""The native box losses of ``gfl_loss``, called with torch tensors.

S below is the dtype of the arithmetic: float32, or float64 where the logits are float64.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gflv2.ops.box_losses import SavedBoxLoss
from gflv2.ops.native.tensors import native


@native
def box_loss_forward(
    box_logits: Sequence[Tensor],
    boxes: Tensor,
    weights: Tensor,
    normalisers: Tensor,
    strides: Sequence[float],
    scales: Tensor | None,
    projection: Tensor,
    offset: float,
    factors: tuple[float, float],
    sides: Tensor,
    giou: Tensor,
    dfl: Tensor,
) -> None:
    """GIoU loss and DFL of a batch, written to ``giou`` and ``dfl``, and what their gradient needs, to ``sides``.

    Args:
        box_logits: L levels (B, 4·R, H_l, W_l), any strides.
        boxes: (B, A, 4) S in pixels, weights: (B, A) S, contiguous. Points with a weight of 0 do not count.
        normalisers: (2,) S: N_pos and W.
        factors: Σ weight·(1 − GIoU) and Σ weight·DFL, over points and sides, are multiplied by them and divided by W.
        sides: (B, A, 4, 2) S, as `SavedBoxLoss` has them. giou, dfl: () S. Contiguous.
    """


@native
def box_loss_backward(
    grad_quality: Tensor | None,
    box_logits: Sequence[Tensor],
    predictor: Sequence[Tensor],
    scales: Tensor | None,
    topk: int,
    mean: bool,
    variance: bool,
    grad_logits: Sequence[Tensor],
    grad_predictor: Sequence[Tensor],
    grad_scales: Tensor | None,
    box: SavedBoxLoss,
) -> None:
    """The gradient of the box logits, by way of the box losses and of the quality predictor, in one pass.

    Args:
        grad_quality: gradient of the quality logits; None without a predictor.
        box: what forward kept, and the upstream gradients.
        The rest: as in `gflv2.ops.native.dgqp.dgqp_backward`.
    """
