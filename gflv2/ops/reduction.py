"""What the losses share: weight, average factor and reduction, with mmdet's meaning."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflv2.ops.checks import bad_type, bad_value, check_choice, check_tensor, compute_dtype

REDUCTIONS = ("none", "sum", "mean")
INTEGERS = (torch.int64, torch.int32)


def check_reduction(
    weight: Any, avg_factor: Any, reduction: Any, *, shape: Sequence[int], device: torch.device
) -> tuple[Tensor | None, float | Tensor | None, str]:
    """Check the three arguments for rows of a shape, (N,) or (B, A).

    Raises:
        TypeError, ValueError: a wrong type or shape; an average factor with reduction "sum"; a factor that is not
            positive.
    """
    check_choice(reduction, "reduction", REDUCTIONS)
    if weight is not None:
        check_tensor(weight, "weight", shape=shape, device=device)
    if avg_factor is None:
        return weight, None, reduction
    if reduction == "sum":
        bad_value("avg_factor", 'None with reduction="sum"', avg_factor)
    if isinstance(avg_factor, Tensor):
        if avg_factor.dim() != 0:
            bad_value("avg_factor", "a number or a 0-d tensor", avg_factor)
        if avg_factor.is_complex():
            bad_type("avg_factor", "a number or a 0-d tensor of real numbers", avg_factor)
        if avg_factor.device != device:
            bad_value("avg_factor", f"a 0-d tensor on {device} like the other arguments", avg_factor)
    elif isinstance(avg_factor, (int, float)) or isinstance(avg_factor, numbers.Real):
        if not avg_factor > 0:
            bad_value("avg_factor", "a positive number", avg_factor)
        avg_factor = float(avg_factor)  # NumPy's too
    else:
        bad_type("avg_factor", "a number or a 0-d tensor", avg_factor)
    return weight, avg_factor, reduction


# The same three as arguments of a registered operation.
TENSORS, SETTINGS = "Tensor? weight, Tensor? factor", "float divisor, str reduction"


class Reduction(NamedTuple):
    """How a registered operation reduces the losses of its rows.

    Attributes:
        weight: of each row, or None.
        factor: () on the device: the total is divided by it; or None.
        divisor: a number that the total is divided by.
        reduction: "none"; "sum"; "mean": the total is also divided by the number of rows, which the operation knows
            (passed as a number, another image size would be another graph).
    """

    weight: Tensor | None
    factor: Tensor | None
    divisor: float
    reduction: str

    @property
    def total(self) -> bool:
        return self.reduction != "none"

    def over(self, rows: Sequence[int]) -> Reduction:
        """As the kernels take it: the mean is a sum with a divisor."""
        weight, factor, divisor, reduction = self
        if reduction == "mean":
            divisor, reduction = divisor * max(math.prod(rows), 1), "sum"
        return Reduction(weight, factor, divisor, reduction)

    def new_result(self, rows: Sequence[int], like: Tensor) -> Tensor:
        return like.new_empty(rows if not self.total else (), dtype=compute_dtype(like.dtype))


def resolve(weight: Tensor | None, avg_factor: float | Tensor | None, reduction: str) -> Reduction:
    """Checked arguments as those of a registered operation; weight and average factor are constants."""
    weight = None if weight is None else weight.detach()
    if reduction == "none" or avg_factor is None:
        return Reduction(weight, None, 1.0, reduction)
    if isinstance(avg_factor, Tensor):
        return Reduction(weight, avg_factor.detach(), 1.0, "sum")
    return Reduction(weight, None, float(avg_factor), "sum")
