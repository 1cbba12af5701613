"""Decoupled distillation focal loss of D-FINE (arXiv 2410.13842, equation 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from gflv2.ops.checks import compute_dtype
from gflv2.ops.reference.distribution_kl import distribution_kl_rows


def shares(matched: Tensor, balance: tuple[Tensor | float, Tensor | float] | None, dtype: torch.dtype) -> Tensor:
    """(N,) factor of each row in the loss: how much its mean counts, divided by the number of rows of that mean."""
    counts = torch.stack([matched.sum(), (~matched).sum()]).to(dtype)
    if balance is None:
        counted = counts.sqrt()
    else:
        # A number is written there by a kernel: a copy would wait for the device.
        numbers = [part.detach().to(counts) if isinstance(part, Tensor) else part for part in balance]
        counted = torch.stack([part if isinstance(part, Tensor) else counts.new_full((), part) for part in numbers])
    total = counted.sum()
    # Where nothing counts the loss is 0, without a question to the device.
    first, second = (counted / torch.where(total == 0, 1.0, total) / counts.clamp(min=1)).unbind()
    return torch.where(matched, first, second)


def ddf(
    logits: Tensor,
    teacher_logits: Tensor,
    matched: Tensor,
    *,
    weight: Tensor,
    temperature: float = 5.0,
    balance: tuple[Tensor | float, Tensor | float] | None = None,
) -> Tensor:
    """(a·mean of the matched rows + b·mean of the others) / (a + b) of weight·T²·KL(P_t ‖ P_s).

    Args and result: as `gflv2.ops.ddf`.
    """
    dtype = compute_dtype(logits.dtype)
    rows = weight.detach().to(dtype) * distribution_kl_rows(logits, teacher_logits, temperature) * logits.shape[1]
    return (rows * shares(matched, balance, dtype)).sum()
