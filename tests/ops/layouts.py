"""Every memory layout in which box logits may come, for the tests of the operations that read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

LEVEL_LAYOUTS = ("nchw", "channels_last", "sliced", "transposed", "expanded")
CROPPED = "channels_last sliced"  # channels side by side, but rows of cells with a gap between them, of any alignment
ROW_LAYOUTS = ("rows", "rows sliced", "rows bins apart", "rows transposed")
# Several blocks in the first level, one in the others; a level of one cell, an odd width, and a level of no cell.
SIZES = ((23, 29), (8, 5), (0, 4), (1, 1))


class Shapes(Protocol):
    """What of a case says how its logits lie in memory."""

    layout: str
    bins: int
    batch: int
    rows: int


def level_tensor(
    case: Shapes, height: int, width: int, logits: Callable[..., Tensor], channels: int | None = None
) -> Tensor:
    """One level (B, channels, H, W), by default 4·R channels, of the values that ``logits(*shape)`` draws."""
    batch, channels = case.batch, 4 * case.bins if channels is None else channels
    if case.layout == "channels_last":
        return logits(batch, channels, height, width).contiguous(memory_format=torch.channels_last)
    if case.layout == "sliced":  # nothing contiguous, and a first element that is not aligned
        return logits(batch + 1, channels + 3, height + 1, 2 * width + 1)[1:, 3:, 1:, 1::2]
    if case.layout == CROPPED:
        whole = logits(batch + 1, channels + 3, height + 1, 2 * width + 1)
        return whole.contiguous(memory_format=torch.channels_last)[1:, 3:, 1:, 1::2]
    if case.layout == "transposed":
        return logits(batch, channels, width, height).transpose(2, 3)
    if case.layout == "expanded":
        return logits(1, channels, height, width).expand(batch, -1, -1, -1)
    return logits(batch, channels, height, width)


def row_tensor(case: Shapes, logits: Callable[..., Tensor]) -> Tensor:
    """Rows (M, 4, R) of the values that ``logits(*shape)`` draws."""
    count, bins = case.rows, case.bins
    if case.layout == "rows sliced":  # the box part of a longer prediction row
        return logits(count, 4 * bins + 5)[:, 5:].unflatten(1, (4, bins))
    if case.layout == "rows bins apart":
        return logits(count, bins, 4).transpose(1, 2)
    if case.layout == "rows transposed":  # (4·R, M), as detectors that flatten NCHW have it
        return logits(4 * bins, count).unflatten(0, (4, bins)).permute(2, 0, 1)
    return logits(count, 4, bins)
