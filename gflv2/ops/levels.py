"""The two forms in which box logits arrive: a list of feature levels, or rows.

* levels: L tensors (B, 4·R, H_l, W_l), channel = side·R + bin, sides in the order left, top, right, bottom,
  any strides;
* rows: one tensor (M, 4, R), any strides.

Results over levels are concatenated: A = Σ H_l·W_l points, level-major, then row-major (y·W + x).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from gflv2.ops.checks import FLOATS, bad_type, bad_value, check_number, check_tensor, compute_dtype

MAX_LEVELS = 8
BINS_LIMITS = (2, 65)


class BoxLogits(NamedTuple):
    """Checked box logits: the tensors, and what their shapes mean."""

    tensors: list[Tensor]
    rows: bool
    bins: int
    device: torch.device
    dtype: torch.dtype


def rows_of(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Shape of one number a row: (N,) for rows, (B, A) for levels."""
    first = tensors[0].shape
    return (first[0], points_of(tensors)) if len(first) == 4 else (first[0],)


def check_levels(value: Any, name: str, like: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Check a list of level tensors (B, channels, H_l, W_l): same batch, channels, dtype and device.

    Args:
        like: another list of levels whose batch, H_l, W_l and device these must share.
    """
    if not _are_levels(value):
        _refuse_levels(value, name)
    levels = list(value)
    if like is not None:
        if len(levels) != len(like):
            bad_value(name, f"{len(like)} levels like the other arguments", len(levels))
        for index, (level, other) in enumerate(zip(levels, like)):  # noqa: B905 (strict= costs time in every call)
            have, want = level.shape, other.shape
            if have[0] != want[0] or have[2] != want[2] or have[3] != want[3]:
                shape = (other.shape[0], "*", other.shape[2], other.shape[3])
                bad_value(f"{name}[{index}]", f"shape {shape} like the other arguments", level)
        # Within a list all levels lie on one device.
        if levels[0].device != like[0].device:
            bad_value(f"{name}[0]", f"a tensor on {like[0].device} like the other arguments", levels[0])
    return levels


def _are_levels(value: Any) -> bool:
    """The checks of `check_levels` in few steps; why they fail is `_refuse_levels`'s."""
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= MAX_LEVELS:
        return False
    first = value[0]
    if not isinstance(first, Tensor) or first.dim() != 4 or first.dtype not in FLOATS:
        return False
    batch, channels, _, _ = first.shape
    dtype, device = first.dtype, first.device
    for level in value[1:]:
        if not isinstance(level, Tensor) or level.dtype != dtype or level.device != device:
            return False
        sizes = level.shape
        if len(sizes) != 4 or sizes[0] != batch or sizes[1] != channels:
            return False
    return True


def _refuse_levels(value: Any, name: str) -> NoReturn:
    """Say what is wrong with a list of levels."""
    if isinstance(value, Tensor) or not isinstance(value, (list, tuple)):
        bad_type(name, "a list of level tensors (B, channels, H, W)", value)
    if not 1 <= len(value) <= MAX_LEVELS:
        bad_value(name, f"1 to {MAX_LEVELS} levels", len(value))
    first = value[0]
    for index, level in enumerate(value):
        where = f"{name}[{index}]"
        if not isinstance(level, Tensor):
            bad_type(where, "a tensor", level)
        if level.dtype not in FLOATS:
            bad_type(where, "a float32, float16, bfloat16 or float64 tensor", level)
        if level.dim() != 4:
            bad_value(where, "a tensor of shape (B, channels, H, W)", level)
        if level.dtype != first.dtype:
            bad_type(where, f"dtype {first.dtype} like level 0", level)
        if level.device != first.device:
            bad_value(where, f"a tensor on {first.device} like level 0", level)
        if level.shape[0] != first.shape[0] or level.shape[1] != first.shape[1]:
            bad_value(where, f"batch {first.shape[0]} and {first.shape[1]} channels like level 0", level)
    raise AssertionError(f"{name}: _are_levels and _refuse_levels disagree")


def read_box_logits(value: Any, name: str = "box_logits") -> BoxLogits:
    """Check box logits given as levels or rows.

    Raises:
        TypeError, ValueError: neither form; the message names the argument and the shapes.
    """
    rows = isinstance(value, Tensor)
    if rows:
        if value.dim() != 3 or value.shape[1] != 4:
            bad_value(name, "rows of shape (M, 4, R), or a list of levels (B, 4·R, H, W)", value)
        check_tensor(value, name)
        tensors, bins = [value], value.shape[2]
    else:
        tensors = check_levels(value, name)
        channels = tensors[0].shape[1]
        bins = channels // 4
        if channels % 4:
            bad_value(name, "4·R channels in each level", tensors[0])
    low, high = BINS_LIMITS
    if not low <= bins <= high:
        bad_value(name, f"{low} to {high} bins a side", value)
    return BoxLogits(tensors, rows, bins, tensors[0].device, tensors[0].dtype)


def check_bins(logits: Any, name: str = "logits") -> None:
    """Check logits with one row a box side, (N, R)."""
    check_tensor(logits, name, shape=(None, None))
    low, high = BINS_LIMITS
    if not low <= logits.shape[1] <= high:
        bad_value(name, f"{low} to {high} bins a row", logits)


def check_scales(scales: Any, box: BoxLogits) -> Tensor | None:
    """``scales``: None, or a float tensor with one factor a level (rows: one factor), on the logits' device."""
    if scales is None:
        return None
    check_tensor(scales, "scales", device=box.device)
    count = 1 if box.rows else len(box.tensors)
    if scales.dim() > 1 or scales.numel() != count:
        bad_value("scales", f"a tensor of shape ({count},), one factor a level", scales)
    return scales


def check_projection(projection: Any, box: BoxLogits) -> Tensor:
    """``projection`` (R,); None: 0, 1, …, R − 1 in the dtype of the arithmetic."""
    if projection is None:
        return torch.arange(box.bins, dtype=compute_dtype(box.dtype), device=box.device)
    return check_tensor(projection, "projection", shape=(box.bins,), device=box.device)


def check_strides(strides: Any, count: int) -> list[float]:
    """``strides``: one positive number a level, in pixels."""
    if isinstance(strides, Tensor) or not isinstance(strides, (list, tuple)):
        bad_type("strides", f"a list of {count} numbers", strides)
    if len(strides) != count:
        bad_value("strides", f"{count} numbers, one a level", strides)
    for level, stride in enumerate(strides):
        # The name is formed only for an error.
        if type(stride) not in (int, float) or not 0 < stride < math.inf:
            check_number(stride, f"strides[{level}]", above=0)
    return [float(stride) for stride in strides]


def points_of(levels: Sequence[Tensor]) -> int:
    """A = Σ H_l·W_l."""
    total = 0
    for level in levels:
        sizes = level.shape
        total = total + sizes[2] * sizes[3]
    return total


def flatten_levels(levels: Sequence[Tensor]) -> Tensor:
    """L tensors (B, channels, H_l, W_l) → (B, A, channels), level-major then row-major."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
