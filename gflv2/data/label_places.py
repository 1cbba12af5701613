"""Where the labels of boxes go in a picture, so that none covers the text of another one."""

from __future__ import annotations

import numpy as np

from gflv2.data.image import say_once


def label_places(boxes: np.ndarray, sizes: np.ndarray, picture: tuple[float, float]) -> np.ndarray:
    """A place for each label, or none. The first boxes choose first.

    Tried in this order: above the box, inside at its top, below it, inside at its bottom, each from the left edge on
    and then up to the right one; then beside the box, and one label's height farther off. A label that would reach over
    an edge of the picture is shifted into it; one that is larger than the picture begins at its upper left corner.

    Args:
        boxes: (N, 4), x1, y1, x2, y2 in pixels of the picture.
        sizes: (N, 2), width and height of the labels in the same pixels.
        picture: width and height.

    Returns:
        (N, 2), the upper left corners; NaN where every place that was tried is taken. How many these are is said once,
        of the first picture that has any.
    """
    corners = np.full((len(boxes), 2), np.nan)
    taken = np.empty((0, 4))
    for number, (box, (width, height)) in enumerate(zip(boxes, sizes, strict=True)):
        tried = _candidates(*box, width, height)
        tried = np.clip(tried, 0, np.maximum(np.subtract(picture, (width, height)), 0))
        x, y = tried.T[:, :, None]
        x1, y1, x2, y2 = taken.T
        free = ((x >= x2) | (x1 >= x + width) | (y >= y2) | (y1 >= y + height)).all(1)
        if free.any():
            x, y = corners[number] = tried[free.argmax()]
            taken = np.append(taken, [[x, y, x + width, y + height]], axis=0)
    without = int(np.isnan(corners[:, 0]).sum())
    if without:
        text = (
            f"{without} of the {len(boxes)} boxes in a picture are drawn without their text, which would cover others"
        )
        say_once("labels without a place", text)
    return corners


def _candidates(x1: float, y1: float, x2: float, y2: float, width: float, height: float) -> np.ndarray:
    right = x2 - width
    rows = (y1 - height, y1, y2, y2 - height)
    beside = [(x2, y1), (x1 - width, y1), (x2, y2 - height), (x1 - width, y2 - height)]
    farther = (y1 - 2 * height, y1 + height, y2 + height, y2 - 2 * height)
    return np.array([*((x, y) for x in (x1, right) for y in rows), *beside, *((x1, y) for y in farther)], dtype=float)
