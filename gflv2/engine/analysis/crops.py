"""The surroundings of an uncertain side: a crop of its image with the box and the bins drawn over it, as one SVG."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from gflv2.data import CocoDetection
from gflv2.engine.analysis.charts import line, svg
from gflv2.engine.analysis.observe import UncertainSide

_WIDTH, _HEIGHT = 260, 200
_NEGLIGIBLE = 0.02  # bins below this share of the probability do not widen the crop


def crop_of(side: UncertainSide, dataset: CocoDetection) -> str:
    """The box and what lies around it, the side's bins as lines, the more opaque the more probable."""
    item = dataset.image_ids.index(side.image_id)
    image = dataset.raw(item)[0].permute(1, 2, 0).numpy()
    upright = side.side in ("left", "right")
    seen = [position for position, share in zip(side.positions, side.probabilities, strict=True) if share > _NEGLIGIBLE]
    x1, y1, x2, y2 = side.box
    low, high = ([x1, *seen], [x2, *seen]) if upright else ([y1, *seen], [y2, *seen])
    if upright:
        x1, x2 = min(low), max(high)
    else:
        y1, y2 = min(low), max(high)
    x, y, width, height = _window((x1, y1, x2, y2), image.shape[:2])
    scale = _WIDTH / width
    parts = [f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#e9ecef"/>']  # what lies outside of the image
    parts += [_picture(image, (x, y, width, height), scale)]
    bx1, by1, bx2, by2 = ((value - (x if place % 2 == 0 else y)) * scale for place, value in enumerate(side.box))
    most = max(side.probabilities)
    for position, share in zip(side.positions, side.probabilities, strict=True):
        if share / most < _NEGLIGIBLE:
            continue
        place = (position - (x if upright else y)) * scale
        ends = (place, by1, place, by2) if upright else (bx1, place, bx2, place)
        parts.append(f'<g opacity="{0.15 + 0.85 * share / most:.2f}">{line(*ends, "#fa5252", 3)}</g>')
    box = f'x="{bx1:.1f}" y="{by1:.1f}" width="{bx2 - bx1:.1f}" height="{by2 - by1:.1f}" fill="none"'
    parts.append(f'<rect {box} stroke="white" stroke-width="3"/><rect {box} stroke="#212529" stroke-width="1.4"/>')
    return svg(_WIDTH, _HEIGHT, parts, f"a box whose {side.side} side is uncertain")


def _window(extent: tuple[float, ...], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """x, y, width, height around the extent, with a margin, in the picture's aspect; inside the image if it fits."""
    x1, y1, x2, y2 = extent
    margin = 0.15 * max(x2 - x1, y2 - y1, 8)
    width, height = x2 - x1 + 2 * margin, y2 - y1 + 2 * margin
    wide, tall = max(width, height * _WIDTH / _HEIGHT), max(height, width * _HEIGHT / _WIDTH)
    x, y = (x1 + x2 - wide) / 2, (y1 + y2 - tall) / 2
    x = min(max(x, 0), size[1] - wide) if wide <= size[1] else x
    y = min(max(y, 0), size[0] - tall) if tall <= size[0] else y
    return x, y, wide, tall


def _picture(image: np.ndarray, window: tuple[float, float, float, float], scale: float) -> str:
    """The part of the image that lies in the window, as an embedded JPEG at the size at which it is shown, twice."""
    x, y, width, height = window
    left, top = max(int(x), 0), max(int(y), 0)
    right, bottom = min(int(x + width) + 1, image.shape[1]), min(int(y + height) + 1, image.shape[0])
    if right <= left or bottom <= top:
        return ""
    part = Image.fromarray(np.ascontiguousarray(image[top:bottom, left:right]))
    limit = (2 * _WIDTH, 2 * _HEIGHT)
    part.thumbnail(limit)
    file = io.BytesIO()
    part.save(file, "JPEG", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    size = f'width="{(right - left) * scale:.1f}" height="{(bottom - top) * scale:.1f}" preserveAspectRatio="none"'
    place = f'x="{(left - x) * scale:.1f}" y="{(top - y) * scale:.1f}"'
    return f'<image {place} {size} href="data:image/jpeg;base64,{data}"/>'
