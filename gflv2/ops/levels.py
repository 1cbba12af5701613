"""The two forms in which box logits arrive: a list of feature levels, or rows.

* levels: L tensors (B, 4·R, H_l, W_l), channel = side·R + bin, sides in the order left, top, right, bottom,
  any strides;
* rows: one tensor (M, 4, R), any strides.

Results over levels are concatenated: A = Σ H_l·W_l points, level-major, then row-major (y·W + x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gflv2.ops.checks import FLOATS, bad_type, bad_value, check_number, check_tensor, compute_dtype

MAX_LEVELS = 8
BINS_LIMITS = (2, 65)


@dataclass
class BoxLogits:
    """Checked box logits: the tensors, and what their shapes mean."""

    tensors: list[Tensor]
    rows: bool
    bins: int

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors[0].dtype

    def result_shape(self, last: int) -> tuple[int, ...]:
        """(M, last) for rows, (B, A, last) for levels."""
        if self.rows:
            return (self.tensors[0].shape[0], last)
        return (self.tensors[0].shape[0], points_of(self.tensors), last)


def check_levels(
    value: Any, name: str, channels: int | None = None, like: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Check a list of level tensors (B, channels, H_l, W_l): same batch, channels, dtype and device.

    Args:
        like: another list of levels whose batch, H_l, W_l and device these must share.
    """
    if isinstance(value, Tensor) or not isinstance(value, (list, tuple)):
        bad_type(name, "a list of level tensors (B, channels, H, W)", value)
    if not 1 <= len(value) <= MAX_LEVELS:
        bad_value(name, f"1 to {MAX_LEVELS} levels", len(value))
    levels = list(value)
    for index, level in enumerate(levels):
        where = f"{name}[{index}]"
        if not isinstance(level, Tensor):
            bad_type(where, "a tensor", level)
        if level.dtype not in FLOATS:
            bad_type(where, "a float32, float16, bfloat16 or float64 tensor", level)
        if level.dim() != 4:
            bad_value(where, "a tensor of shape (B, channels, H, W)", level)
        first = levels[0]
        if level.dtype != first.dtype:
            bad_type(where, f"dtype {first.dtype} like level 0", level)
        if level.device != first.device:
            bad_value(where, f"a tensor on {first.device} like level 0", level)
        if level.shape[0] != first.shape[0] or level.shape[1] != first.shape[1]:
            bad_value(where, f"batch {first.shape[0]} and {first.shape[1]} channels like level 0", level)
    if channels is not None and levels[0].shape[1] != channels:
        bad_value(name, f"{channels} channels", levels[0])
    if like is not None:
        if len(levels) != len(like):
            bad_value(name, f"{len(like)} levels like the other arguments", len(levels))
        for index, (level, other) in enumerate(zip(levels, like, strict=True)):
            if level.shape[0] != other.shape[0] or level.shape[2:] != other.shape[2:]:
                shape = (other.shape[0], "*", other.shape[2], other.shape[3])
                bad_value(f"{name}[{index}]", f"shape {shape} like the other arguments", level)
            if level.device != other.device:
                bad_value(f"{name}[{index}]", f"a tensor on {other.device} like the other arguments", level)
    return levels


def read_box_logits(value: Any, name: str = "box_logits") -> BoxLogits:
    """Check box logits given as levels or rows.

    Raises:
        TypeError, ValueError: neither form; the message names the argument and the shapes.
    """
    if isinstance(value, Tensor):
        if value.dim() != 3 or value.shape[1] != 4:
            bad_value(name, "rows of shape (M, 4, R), or a list of levels (B, 4·R, H, W)", value)
        check_tensor(value, name)
        box = BoxLogits([value], True, value.shape[2])
    else:
        tensors = check_levels(value, name)
        if tensors[0].shape[1] % 4:
            bad_value(name, "4·R channels in each level", tensors[0])
        box = BoxLogits(tensors, False, tensors[0].shape[1] // 4)
    low, high = BINS_LIMITS
    if not low <= box.bins <= high:
        bad_value(name, f"{low} to {high} bins a side", value)
    return box


def check_scales(scales: Any, box: BoxLogits) -> Tensor | None:
    """``scales``: None, or a float tensor with one factor a level (rows: one factor), on the logits' device."""
    if scales is None:
        return None
    check_tensor(scales, "scales", device=box.device)
    count = 1 if box.rows else len(box.tensors)
    if scales.numel() != count or scales.dim() > 1:
        bad_value("scales", f"a tensor of shape ({count},), one factor a level", scales)
    return scales.reshape(count).to(compute_dtype(box.dtype))


def check_projection(projection: Any, box: BoxLogits) -> Tensor:
    """``projection`` (R,) in the dtype of the arithmetic; None: 0, 1, …, R − 1."""
    dtype = compute_dtype(box.dtype)
    if projection is None:
        return torch.arange(box.bins, dtype=dtype, device=box.device)
    check_tensor(projection, "projection", shape=(box.bins,), device=box.device)
    return projection.to(dtype)


def check_strides(strides: Any, count: int) -> list[float]:
    """``strides``: one positive number a level, in pixels."""
    if isinstance(strides, Tensor) or not isinstance(strides, (list, tuple)):
        bad_type("strides", f"a list of {count} numbers", strides)
    if len(strides) != count:
        bad_value("strides", f"{count} numbers, one a level", strides)
    return [float(check_number(stride, f"strides[{level}]", above=0)) for level, stride in enumerate(strides)]


def points_of(levels: Sequence[Tensor]) -> int:
    """A = Σ H_l·W_l."""
    return sum(height * width for height, width in (level.shape[2:] for level in levels))


def flatten_levels(levels: Sequence[Tensor]) -> Tensor:
    """L tensors (B, channels, H_l, W_l) → (B, A, channels), level-major then row-major."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
