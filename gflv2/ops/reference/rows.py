"""Levels and rows brought to one form, and the precision in which everything is computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gflv2.ops.checks import compute_dtype
from gflv2.ops.levels import flatten_levels


def box_rows(box_logits: Sequence[Tensor] | Tensor, scales: Tensor | None = None) -> Tensor:
    """Scaled box logits with the bins last: levels → (B, A, 4, R), rows → (M, 4, R), in float32 (or float64).

    Args:
        box_logits: L tensors (B, 4·R, H_l, W_l), channel = side·R + bin; or one tensor (M, 4, R).
        scales: (L,) factors, one a level (rows: one factor), or None. The product is formed in float32.
    """
    if isinstance(box_logits, Tensor):
        rows = box_logits.to(compute_dtype(box_logits.dtype))
        return rows if scales is None else rows * scales.to(rows.dtype).reshape(())
    dtype = compute_dtype(box_logits[0].dtype)
    levels = [level.to(dtype) for level in box_logits]
    if scales is not None:
        levels = [level * scale for level, scale in zip(levels, scales.to(dtype).reshape(-1).unbind(), strict=True)]
    flat = flatten_levels(levels)
    return flat.unflatten(2, (4, flat.shape[2] // 4))


def class_rows(class_logits: Sequence[Tensor]) -> Tensor:
    """L tensors (B, C, H_l, W_l) → (B, A, C) in float32 (or float64)."""
    return flatten_levels([level.to(compute_dtype(level.dtype)) for level in class_logits])


def project(probabilities: Tensor, projection: Tensor | None) -> Tensor:
    """Expectation over the last dimension: Σ_b P_b · projection_b, with projection 0, 1, …, R − 1 by default."""
    if projection is None:
        bins = probabilities.shape[-1]
        projection = torch.arange(bins, dtype=probabilities.dtype, device=probabilities.device)
    # A product and a sum instead of a matrix product: autocast would compute that in half precision.
    return (probabilities * projection.to(probabilities.dtype)).sum(-1)
