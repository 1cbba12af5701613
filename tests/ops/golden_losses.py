"""What the golden loss cases have in common: every reduction, with weights and average factor, and its gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.shared import Golden

# name in the case, is the weight given, is the average factor given, reduction
VARIANTS = [
    ("none", False, False, "none"),
    ("sum_w", True, False, "sum"),
    ("mean_w_avg", True, True, "mean"),
    ("mean", False, False, "mean"),
]


def check_variants(
    arrays: Golden,
    device: torch.device,
    loss: Callable[..., Tensor],
    pred: Tensor,
    scale: float,
    *,
    average_on_device: bool,
) -> None:
    """Compare value and gradient of each variant.

    Args:
        loss: takes the prediction and the keywords weight, avg_factor, reduction.
        scale: the loss weight that the golden numbers contain.
    """
    for name, weighted, averaged, reduction in VARIANTS:
        leaf = pred.to(device).clone().requires_grad_()
        factor = arrays.meta["avg_factor"] if averaged else None
        if factor is not None and average_on_device:
            factor = torch.tensor(factor, device=device)
        weight = arrays["weight"].to(device) if weighted else None
        value = loss(leaf, weight=weight, avg_factor=factor, reduction=reduction) * scale
        total = (value * arrays["cot"].to(device)).sum() if reduction == "none" else value
        total.backward()
        arrays.compare(f"loss_{name}", value)
        arrays.compare(f"grad_{name}", leaf.grad)
