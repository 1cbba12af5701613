"""Points of the feature maps, and the two ways between boxes and distances.

A box is (x1, y1, x2, y2); distances are (left, top, right, bottom) from a point to the sides. Any unit, the same for
both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CLAMPED = 0.1  # the losses clamp a target distance to reg_max − 0.1 bins


def level_shapes_of(levels: Sequence[Tensor]) -> list[tuple[int, int]]:
    """[(H_l, W_l), …] of L tensors (B, channels, H_l, W_l)."""
    return [(level.shape[2], level.shape[3]) for level in levels]


def cells_of_levels(
    shapes: Sequence[tuple[int, int]],
    *,
    offset: float = 0.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Positions (A, 2) of all points in units of the stride: (j + offset, i + offset) for cell (i, j)."""
    parts = []
    for height, width in shapes:
        ys = torch.arange(height, device=device, dtype=dtype) + offset
        xs = torch.arange(width, device=device, dtype=dtype) + offset
        grid = torch.stack([xs.expand(height, width), ys[:, None].expand(height, width)], dim=-1)
        parts.append(grid.reshape(height * width, 2))
    return torch.cat(parts)


def strides_of_points(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[float],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The stride (A,) of every point, in pixels."""
    pairs = zip(shapes, strides, strict=True)
    return torch.cat(
        [torch.full((height * width,), float(stride), device=device, dtype=dtype) for (height, width), stride in pairs]
    )


def points_of_levels(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[float],
    *,
    offset: float = 0.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Positions (A, 2) of all points in pixels: ((j + offset)·s, (i + offset)·s); level-major, then row-major."""
    cells = cells_of_levels(shapes, offset=offset, device=device, dtype=dtype)
    return cells * strides_of_points(shapes, strides, device=device, dtype=dtype)[:, None]


def distances_to_boxes(points: Tensor, distances: Tensor, max_shape: tuple[float, float] | None = None) -> Tensor:
    """(…, 2) points and (…, 4) distances → boxes (x − l, y − t, x + r, y + b).

    Args:
        max_shape: (height, width) to clip to: x in [0, width], y in [0, height]; None keeps the boxes as they are.
    """
    boxes = torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)
    if max_shape is None:
        return boxes
    height, width = max_shape
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], dim=-1)


def boxes_to_distances(
    points: Tensor, boxes: Tensor, max_distance: float | None = None, eps: float = CLAMPED
) -> Tensor:
    """(…, 2) points and (…, 4) boxes → distances (x − x1, y − y1, x2 − x, y2 − y), negative where a point lies outside.

    Args:
        max_distance: if given, distances are clamped to [0, max_distance − eps].
    """
    distances = torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)
    return distances if max_distance is None else distances.clamp(0.0, max_distance - eps)


def pad_boxes(boxes: Sequence[Tensor] | Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Boxes of a batch as one tensor (B, G, 4), and which of them exist, (B, G) bool.

    Args:
        boxes: B tensors (G_i, 4), or one padded tensor (B, G, 4).
        counts: (B,) number of real boxes in each row of a padded tensor; None: all of them.
    """
    if isinstance(boxes, Tensor):
        exists = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
        if counts is not None:
            exists = torch.arange(boxes.shape[1], device=boxes.device) < counts[:, None]
        return boxes, exists
    # Sizes are known on the host and masks are filled on the device: nothing waits for the device here.
    exists = [torch.ones(len(image), dtype=torch.bool, device=image.device) for image in boxes]
    return (
        torch.nn.utils.rnn.pad_sequence(list(boxes), batch_first=True),
        torch.nn.utils.rnn.pad_sequence(exists, batch_first=True),
    )


def valid_cells(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[float],
    padded_sizes: Sequence[tuple[float, float]] | None,
    *,
    batch: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Cells (B, A) bool whose index is below ceil(side / stride) of their own image's padded size (h, w) in pixels."""
    total = sum(height * width for height, width in shapes)
    if padded_sizes is None:
        return torch.ones(batch, total, dtype=torch.bool, device=device)
    valid = torch.zeros(batch, total, dtype=torch.bool, device=device)
    for image, (image_height, image_width) in enumerate(padded_sizes):
        start = 0
        for (height, width), stride in zip(shapes, strides, strict=True):
            rows, columns = int(-(-image_height // stride)), int(-(-image_width // stride))
            valid[image, start : start + height * width].view(height, width)[:rows, :columns] = True
            start += height * width
    return valid
