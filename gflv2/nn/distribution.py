"""Distances of a box's sides from their distributions."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor, nn

from gflv2.ops import integral
from gflv2.ops.checks import bad_type, bad_value, check_number


class Integral(nn.Module):
    """Softmax over the bins of each side and the expectation of 0, 1, …, n (arXiv 2006.04388, equation 5).

    Args:
        reg_max: n; there are n + 1 bins.

    Attributes:
        project: (n + 1,) buffer, the values of the bins. Another vector, also a non-uniform one, may be put in.
    """

    project: Tensor

    def __init__(self, reg_max: int = 16) -> None:
        super().__init__()
        self.reg_max = whole_number(reg_max, "reg_max")
        self.register_buffer("project", torch.linspace(0, reg_max, reg_max + 1))

    def forward(self, x: Tensor) -> Tensor:
        """(…, 4·(n + 1)) logits, side-major → (rows, 4) distances, all leading dimensions in one; float32.

        Raises:
            TypeError, ValueError: no float tensor, or a last dimension that is not 4·(n + 1).
        """
        bins = self.reg_max + 1
        if not isinstance(x, Tensor):
            bad_type("x", f"a tensor (…, {4 * bins})", x)
        if x.dim() == 0 or x.shape[-1] != 4 * bins:
            bad_value("x", f"{4 * bins} = 4·(reg_max + 1) logits in the last dimension", x)
        return integral(x.reshape(-1, 4, bins), self.project)


def whole_number(value: Any, name: str) -> int:
    """Check an integer ≥ 1, NumPy's too, and return it."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        bad_type(name, "an integer", value)
    return check_number(value, name, least=1)
