"""Checks that the losses share: weight, average factor and reduction, with mmdet's meaning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gflv2.ops.checks import bad_type, bad_value, check_choice, check_tensor

REDUCTIONS = ("none", "sum", "mean")
INTEGERS = (torch.int64, torch.int32)


def check_reduction(
    weight: Any, avg_factor: Any, reduction: Any, *, count: int, device: torch.device
) -> tuple[Tensor | None, float | Tensor | None, str]:
    """Check the three arguments for ``count`` rows.

    Raises:
        TypeError, ValueError: a wrong type or shape; an average factor with reduction "sum"; a factor that is not
            positive.
    """
    check_choice(reduction, "reduction", REDUCTIONS)
    if weight is not None:
        check_tensor(weight, "weight", shape=(count,), device=device)
    if avg_factor is None:
        return weight, None, reduction
    if reduction == "sum":
        bad_value("avg_factor", 'None with reduction="sum"', avg_factor)
    if isinstance(avg_factor, Tensor):
        if avg_factor.dim() != 0:
            bad_value("avg_factor", "a number or a 0-d tensor", avg_factor)
        if avg_factor.device != device:
            bad_value("avg_factor", f"a 0-d tensor on {device} like the other arguments", avg_factor)
    elif isinstance(avg_factor, (int, float)):
        if not avg_factor > 0:
            bad_value("avg_factor", "a positive number", avg_factor)
    else:
        bad_type("avg_factor", "a number or a 0-d tensor", avg_factor)
    return weight, avg_factor, reduction
