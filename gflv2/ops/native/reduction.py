"""A `Reduction` as the native losses take it, and the memory of their sums on a GPU."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gflv2.ops.native.tensors import pointer
from gflv2.ops.reduction import Reduction


def describe_reduction(module: ModuleType, reduction: Reduction, out: Tensor | None, grad: Tensor | None) -> Any:
    """The library's own object. The tensors must outlive it.

    Args:
        out: the result: of a forward pass, and of a backward pass that computes both.
        grad: its gradient, for a backward pass; None: 1.
    """
    total, divisor, tensors = reduction.total, reduction.divisor, (reduction.factor, out, grad)
    return module.Reduction(total, pointer(reduction.weight), divisor, *map(pointer, tensors))


def row_workspace(
    module: ModuleType, op: str, device: int, backward: bool, reduction: Reduction, rows: Tensor
) -> Tensor | None:
    """Memory for the partial sums of a total over rows, where the call runs in blocks on a GPU."""
    if device < 0 or backward or not reduction.total:
        return None
    size = getattr(module, f"{op}_workspace")(rows.shape[0])
    return torch.empty(size, dtype=torch.uint8, device=rows.device)
