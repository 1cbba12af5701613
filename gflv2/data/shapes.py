"""A generated sample set: coloured shapes on textured backgrounds, some of whose box sides cannot be seen exactly.

Objects overlap, fade out towards one side, disappear behind panels, or are blurred by motion or defocus. Their boxes
are those of the whole shape, so that a side which the picture does not show is truly ambiguous: something that a
detector with learned distributions can be unsure about. The annotations' extra field ``ambiguous`` lists such sides.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from gflv2.sides import SIDES

CLASS_NAMES = ("ellipse", "rectangle", "triangle", "star", "cross")
LEAST_SIDE = 64  # pixels of an image

_FINE = 4  # masks are drawn this many times larger and averaged: smooth edges, and boxes exact to a quarter of a pixel
_BAND = 0.15  # the part of the box next to a side that has to be visible for the side to be seen
_SEEN = 0.35  # the least visible share of that band
_LEAST_VISIBLE = 0.45  # no object is covered beyond this share of its area
_BLURRED = 0.12  # motion over more than this share of the box makes the sides in its direction ambiguous


class SampleSet(NamedTuple):
    """Paths of a generated set: COCO annotation files and the image folders that belong to them."""

    train: Path
    val: Path
    train_images: Path
    val_images: Path


def generate(
    folder: str | Path, *, seed: int = 0, train: int = 200, val: int = 50, size: int | tuple[int, int] = 256
) -> SampleSet:
    """Write a sample set: ``train/``, ``val/`` with JPEG images and ``annotations/instances_{train,val}.json``.

    The same arguments give the same files. Image i of a split depends on ``seed``, the split, i and ``size`` only, so a
    larger set begins with the images of a smaller one.

    Args:
        folder: created where missing; files of an earlier set are overwritten.
        seed: non-negative.
        train, val: numbers of images.
        size: side of the square images, or (height, width); at least 64 pixels.

    Returns:
        The paths of what was written.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < LEAST_SIDE:
        raise ValueError(f"size: expected at least {LEAST_SIDE} pixels, got {size!r}")
    if seed < 0 or train < 1 or val < 1:
        raise ValueError(f"expected seed ≥ 0, train ≥ 1 and val ≥ 1, got seed={seed}, train={train}, val={val}")
    folder = Path(folder)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate((("train", train), ("val", val))):
        (folder / split).mkdir(exist_ok=True)
        images, annotations = [], []
        for i in range(count):
            picture, objects = draw(np.random.default_rng([seed, number, i]), height, width)
            name = f"{i + 1:06d}.jpg"
            Image.fromarray(picture).save(folder / split / name, quality=92)
            images.append({"id": i + 1, "file_name": name, "width": width, "height": height})
            for item in objects:
                annotations.append({"id": len(annotations) + 1, "image_id": i + 1, **item})
        content = {
            "info": {"description": f"shapes: generated sample set, {split}, seed {seed}"},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASS_NAMES)],
        }
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    names = ("annotations/instances_train.json", "annotations/instances_val.json", "train", "val")
    return SampleSet(*(folder / name for name in names))


@dataclass
class _Object:
    """A drawn object; the maps have the size of the picture, values 0 to 1."""

    category: int
    box: tuple[float, float, float, float]  # x1 y1 x2 y2 of the whole shape inside the picture
    shape: np.ndarray  # the sharp shape
    visible: np.ndarray  # what later layers have left of it
    blurred: tuple[str, ...]  # sides blurred by motion


def draw(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, list[dict]]:
    """One picture (height, width, 3) uint8 and its objects: ``category_id``, ``bbox``, ``area``, ``ambiguous``."""
    palette = rng.uniform(20, 235, (3, 3)).astype(np.float32)
    canvas = _texture(rng, height, width, palette)
    _clutter(rng, canvas)
    objects: list[_Object] = []
    wanted = int(rng.integers(2, 8))
    for _ in range(3 * wanted):
        if len(objects) < wanted:
            _place(rng, canvas, objects, palette)
    if rng.random() < 0.3:
        canvas = _blur(canvas, rng.uniform(0.4, 0.9))
    canvas += rng.normal(0, rng.uniform(1, 5), canvas.shape).astype(np.float32)
    return canvas.clip(0, 255).astype(np.uint8), [_annotation(item) for item in objects]


def _annotation(item: _Object) -> dict:
    x1, y1, x2, y2 = item.box
    return {
        "category_id": item.category + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": round(float(item.shape.sum()), 2),
        "iscrowd": 0,
        "ambiguous": [side for side in SIDES if side in item.blurred or _is_hidden(item, side)],
    }


def _is_hidden(item: _Object, side: str) -> bool:
    """Whether little of the shape is visible in the band of its box next to ``side``."""
    x1, y1, x2, y2 = item.box
    dx, dy = _BAND * (x2 - x1), _BAND * (y2 - y1)
    band = {
        "left": (x1, y1, x1 + dx, y2),
        "top": (x1, y1, x2, y1 + dy),
        "right": (x2 - dx, y1, x2, y2),
        "bottom": (x1, y2 - dy, x2, y2),
    }[side]
    window = (slice(int(band[1]), math.ceil(band[3])), slice(int(band[0]), math.ceil(band[2])))
    return bool(item.visible[window].sum() < _SEEN * item.shape[window].sum())


def _place(rng: np.random.Generator, canvas: np.ndarray, objects: list[_Object], palette: np.ndarray) -> None:
    """Draw one more object, unless it would hide another one too much."""
    height, width = canvas.shape[:2]
    radius = 0.5 * min(height, width) * math.exp(rng.uniform(math.log(0.08), math.log(0.5)))
    category = int(rng.integers(len(CLASS_NAMES)))
    corners = _outline(rng, CLASS_NAMES[category]) * radius
    extent = np.abs(corners).max(axis=0)
    # Up to a third of some objects lies outside the picture; their boxes end at its edge.
    margin = extent * (0.35 if rng.random() < 0.15 else 1.02)
    if (margin * 2 >= (width, height)).any():
        return
    corners += rng.uniform(margin, np.array([width, height]) - margin)
    shape, box = _rasterise(corners, height, width)
    if box is None:
        return
    effect = rng.choice(["none", "fade", "panel", "motion", "defocus"], p=[0.5, 0.16, 0.16, 0.1, 0.08])
    alpha, blurred = shape, ()
    if effect == "fade":
        alpha = shape * _ramp(rng, box, height, width)
    elif effect == "motion":
        alpha, blurred = _motion(rng, shape, box)
    elif effect == "defocus":
        alpha = _blur(shape * 255, rng.uniform(0.02, 0.06) * (box[2] - box[0] + box[3] - box[1]) / 2) / 255
    panel = _panel(rng, box, height, width) if effect == "panel" else None
    cover = alpha if panel is None else np.maximum(alpha, panel)
    if any((item.visible * (1 - cover)).sum() < _LEAST_VISIBLE * item.shape.sum() for item in objects):
        return
    visible = np.minimum(alpha, shape) if panel is None else np.minimum(alpha, shape) * (1 - panel)
    if visible.sum() < _LEAST_VISIBLE * shape.sum():
        return
    around = canvas[shape > 0.5]
    _blend(canvas, alpha, _texture(rng, height, width, _contrasting(rng, around.mean(axis=0)), coarse=True))
    if panel is not None:
        _blend(canvas, panel, _texture(rng, height, width, palette * rng.uniform(0.6, 1.3)))
    for item in objects:
        item.visible = item.visible * (1 - cover)
    objects.append(_Object(category, box, shape, visible, blurred))


def _outline(rng: np.random.Generator, name: str) -> np.ndarray:
    """Corners (n, 2) of a shape of radius about 1 round the origin, stretched and turned at random."""
    if name == "ellipse":
        radii, count = np.array([1.0]), 72
    elif name == "triangle":
        radii, count = np.array([1.0]), 3
    elif name == "star":
        radii, count = np.array([1.0, 0.42]), 10
    else:
        radii, count = None, 0
    if radii is not None:
        angles = np.arange(count) * (2 * math.pi / count)
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.resize(radii, count)[:, None]
    elif name == "rectangle":
        corners = 0.8 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=float)
    else:  # cross
        a = 0.3
        arm = np.array([[-a, -1], [a, -1], [a, -a]])
        quarters = ([[1, 0], [0, 1]], [[0, 1], [-1, 0]], [[-1, 0], [0, -1]], [[0, -1], [1, 0]])
        corners = np.concatenate([arm @ np.array(turn, dtype=float) for turn in quarters])
    stretch = math.exp(rng.uniform(-0.35, 0.35))
    corners = corners * (stretch, 1 / stretch)
    # Rectangles and crosses are turned little, so that many box sides coincide with an edge.
    angle = rng.uniform(-0.3, 0.3) if name in ("rectangle", "cross") else rng.uniform(0, 2 * math.pi)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return corners @ turn.T


def _rasterise(corners: np.ndarray, height: int, width: int) -> tuple[np.ndarray, tuple | None]:
    """Coverage (height, width) of a polygon and the box of its part inside the picture."""
    fine = Image.new("L", (width * _FINE, height * _FINE))
    ImageDraw.Draw(fine).polygon([(float(x) * _FINE, float(y) * _FINE) for x, y in corners], fill=255)
    extent = fine.getbbox()
    coverage = np.asarray(fine.reduce(_FINE), dtype=np.float32) / 255
    return coverage, None if extent is None else tuple(side / _FINE for side in extent)


def _ramp(rng: np.random.Generator, box: tuple, height: int, width: int) -> np.ndarray:
    """Opacity (height, width) that rises from 0 at one side of the box to 1 within it."""
    x1, y1, x2, y2 = box
    side = SIDES[int(rng.integers(4))]
    if side in ("left", "right"):
        along = ((np.arange(width, dtype=np.float32) + 0.5 - x1) / (x2 - x1))[None, :]
    else:
        along = ((np.arange(height, dtype=np.float32) + 0.5 - y1) / (y2 - y1))[:, None]
    if side in ("right", "bottom"):
        along = 1 - along
    start, end = rng.uniform(0.05, 0.2), rng.uniform(0.45, 0.75)
    rise = ((along - start) / (end - start)).clip(0, 1)
    return np.broadcast_to(rise * rise * (3 - 2 * rise), (height, width))


def _motion(rng: np.random.Generator, shape: np.ndarray, box: tuple) -> tuple[np.ndarray, tuple[str, ...]]:
    """The shape smeared along a straight path around its position, and the sides that this makes ambiguous."""
    axis = int(rng.integers(2))  # 0: up and down, 1: sideways
    extent = (box[3] - box[1], box[2] - box[0])[axis]
    share = rng.uniform(0.08, 0.3)
    half = max(1, round(0.5 * share * extent))
    # A padded copy is shifted: emptiness moves in over the picture's edge, and nothing comes in from the other side.
    padding = [(half, half) if i == axis else (0, 0) for i in range(2)]
    padded = np.pad(shape, padding)
    total = np.cumsum(np.concatenate([np.zeros_like(padded.take([0], axis)), padded], axis), axis, dtype=np.float32)
    length, size = 2 * half + 1, shape.shape[axis]
    smeared = (total.take(range(length, length + size), axis) - total.take(range(size), axis)) / length
    sides = (("top", "bottom"), ("left", "right"))[axis]
    return smeared.clip(0, 1), sides if share > _BLURRED else ()


def _panel(rng: np.random.Generator, box: tuple, height: int, width: int) -> np.ndarray:
    """Coverage of an upright panel in front of one side of the box, reaching over it."""
    x1, y1, x2, y2 = box
    w, h = x2 - x1, y2 - y1
    depth, beyond, slack = rng.uniform(0.2, 0.45), rng.uniform(0.1, 0.4), rng.uniform(0.05, 0.3)
    left, top, right, bottom = {
        "left": (x1 - beyond * w, y1 - slack * h, x1 + depth * w, y2 + slack * h),
        "top": (x1 - slack * w, y1 - beyond * h, x2 + slack * w, y1 + depth * h),
        "right": (x2 - depth * w, y1 - slack * h, x2 + beyond * w, y2 + slack * h),
        "bottom": (x1 - slack * w, y2 - depth * h, x2 + slack * w, y2 + beyond * h),
    }[SIDES[int(rng.integers(4))]]
    panel = np.zeros((height, width), dtype=np.float32)
    panel[max(int(top), 0) : max(int(bottom), 0), max(int(left), 0) : max(int(right), 0)] = 1
    return panel


def _texture(
    rng: np.random.Generator, height: int, width: int, colours: np.ndarray, *, coarse: bool = False
) -> np.ndarray:
    """A picture (height, width, 3) float32 that mixes three colours by noise, and sometimes stripes or a gradient."""
    mix = np.zeros((height, width), dtype=np.float32)
    # Noise of several grain sizes; the finest is what gives a background its texture.
    for cells, weight in ((3, 1.0), (8, 0.6)) if coarse else ((3, 1.0), (9, 0.6), (28, 0.45), (80, 0.35)):
        noise = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        mix += weight * np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))
    kind = rng.choice(["noise", "stripes", "gradient"])
    if kind != "noise":
        angle = rng.uniform(0, math.pi)
        y, x = np.mgrid[:height, :width].astype(np.float32) / min(height, width)
        along = x * math.cos(angle) + y * math.sin(angle)
        wave = np.sin(along * rng.uniform(25, 110)) * 0.5 + 0.5
        mix += (wave if kind == "stripes" else 2 * along) * rng.uniform(0.4, 1.0)
    low, high = np.quantile(mix[::4, ::4], (0.02, 0.98))
    mix = ((mix - low) / max(high - low, 1e-6)).clip(0, 1)[..., None] * 2
    return np.where(
        mix < 1, colours[0] + (colours[1] - colours[0]) * mix, colours[1] + (colours[2] - colours[1]) * (mix - 1)
    )


def _contrasting(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """Three similar colours (3, 3) that differ from ``colour``: the farthest of a few random ones, varied a little."""
    candidates = rng.uniform(10, 245, (4, 3))
    chosen = candidates[np.abs(candidates - colour).sum(axis=1).argmax()]
    return (chosen + rng.normal(0, 22, (3, 3))).clip(0, 255).astype(np.float32)


def _clutter(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Thin lines that belong to no class."""
    height, width = canvas.shape[:2]
    layer = Image.new("L", (width, height))
    pen = ImageDraw.Draw(layer)
    for _ in range(int(rng.integers(0, 5))):
        points = rng.uniform(0, (width, height), (int(rng.integers(2, 5)), 2))
        pen.line(
            [(float(x), float(y)) for x, y in points], fill=int(rng.integers(90, 220)), width=int(rng.integers(1, 4))
        )
    coverage = np.asarray(layer.filter(ImageFilter.GaussianBlur(0.7)), dtype=np.float32) / 255
    _blend(canvas, coverage, rng.uniform(0, 255, 3).astype(np.float32))


def _blend(canvas: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> None:
    canvas += alpha[..., None] * (colour - canvas)


def _blur(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of values 0 to 255, through Pillow's 8-bit filter."""
    image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(sigma)), dtype=np.float32)
