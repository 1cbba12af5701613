"""What the losses share: weight, average factor and reduction, with mmdet's meaning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflv2.ops.checks import bad_type, bad_value, check_choice, check_tensor, compute_dtype, is_number
from gflv2.ops.levels import rows_of
from gflv2.ops.one_pass import one_pass
from gflv2.ops.registration import Argument, Operation, constant, first_of, has_elements

REDUCTIONS = ("none", "sum", "mean")
INTEGERS = (torch.int64, torch.int32)


class Reduction(NamedTuple):
    """How a registered operation reduces the losses of its rows.

    Attributes:
        weight: of each row, or None.
        factor: () on the device: the total is divided by it; or None.
        divisor: a number that the total is divided by.
        reduction: "none"; "sum"; "mean": the total is also divided by the number of rows, which the operation knows
            (passed as a number, another image size would be another graph). To the kernels a mean is a sum with a
            divisor.
    """

    weight: Tensor | None
    factor: Tensor | None
    divisor: float
    reduction: str

    @property
    def total(self) -> bool:
        return self.reduction != "none"


UNREDUCED = Reduction(None, None, 1.0, "none")


def read_reduction(
    weight: Any, avg_factor: Any, reduction: Any, *, shape: Sequence[int], device: torch.device
) -> Reduction:
    """Check the three arguments for rows of a shape, (N,) or (B, A); weight and average factor are constants.

    Raises:
        TypeError, ValueError: a wrong type or shape; an average factor with reduction "sum"; a factor that is not
            positive.
    """
    check_choice(reduction, "reduction", REDUCTIONS)
    if weight is not None:
        weight = constant(check_tensor(weight, "weight", shape=shape, device=device))
    if avg_factor is None:
        return Reduction(weight, None, 1.0, reduction)
    if reduction == "sum":
        bad_value("avg_factor", 'None with reduction="sum"', avg_factor)
    factor, divisor = None, 1.0
    if isinstance(avg_factor, Tensor):
        if avg_factor.dim() != 0:
            bad_value("avg_factor", "a number or a 0-d tensor", avg_factor)
        if avg_factor.is_complex():
            bad_type("avg_factor", "a number or a 0-d tensor of real numbers", avg_factor)
        if avg_factor.device != device:
            bad_value("avg_factor", f"a 0-d tensor on {device} like the other arguments", avg_factor)
        factor = constant(avg_factor)
    elif is_number(avg_factor):
        if not avg_factor > 0:
            bad_value("avg_factor", "a positive number", avg_factor)
        divisor = float(avg_factor)  # NumPy's too
    else:
        bad_type("avg_factor", "a number or a 0-d tensor", avg_factor)
    if reduction == "none":
        return Reduction(weight, None, 1.0, reduction)
    return Reduction(weight, factor, divisor, "sum")


class Loss(Operation):
    """An operation that gives a loss of each row of its first tensor, (N,) or (B, A), or their total.

    A call has a `Reduction` among its arguments: weight and factor end the tensors, divisor and reduction the settings.
    The kernels get it as one. On a CPU value and gradient come from one pass (`gflv2.ops.one_pass`).
    """

    def __init__(self, name: str, *, tensors: str, settings: str = "", small: Sequence[str] = (), **rest: Any) -> None:
        """Register it: the arguments are those of `Operation`, without the reduction and the result."""
        super().__init__(
            name,
            tensors=f"{tensors}, Tensor? weight, Tensor? factor",
            settings=", ".join(part for part in (settings, "float divisor, str reduction") if part),
            small=(*small, "weight", "factor"),
            new_results=self._new_result,
            **rest,
        )

    def of(self, tensors: Sequence[Argument], settings: Sequence[Any], how: Reduction, backend: str) -> Tensor:
        """Run it."""
        return self((*tensors, how.weight, how.factor), (*settings, how.divisor, how.reduction, backend))

    def in_one_pass(self, settings: Sequence[Any], tensors: Sequence[Argument]) -> bool:
        # All levels of a list have one dtype.
        return one_pass(settings[-1], settings[-2], [first_of(tensors[place]) for place, _ in self.layouts])

    def _new_result(self, first: Argument, *rest: Argument) -> Tensor:
        tensor = first_of(first)
        shape = self._rows(first) if rest[-1] == "none" else ()
        return tensor.new_empty(shape, dtype=compute_dtype(tensor.dtype))

    def _fields(self, arguments: Sequence[Argument]) -> dict[str, Argument]:
        fields = dict(zip(self._names, arguments))  # noqa: B905 (strict= costs time in every call)
        divisor, reduction = fields.pop("divisor"), fields["reduction"]
        if reduction == "mean":
            divisor, reduction = divisor * max(math.prod(self._rows(arguments[0])), 1), "sum"
        fields["reduction"] = Reduction(fields.pop("weight"), fields.pop("factor"), divisor, reduction)
        return fields

    @staticmethod
    def _rows(first: Argument) -> tuple[int, ...]:
        return rows_of(first) if isinstance(first, (list, tuple)) else first.shape[:1]

    def _is_empty(self, results: Any, arguments: Sequence[Argument]) -> bool:
        return not has_elements(arguments[0])
