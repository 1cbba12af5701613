"""A page of pictures: some images of a data set with their boxes."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gflv2.data.dataset import CocoDetection
from gflv2.data.fonts import drawable, runs_of
from gflv2.data.label_places import label_places
from gflv2.data.positives import spread

_COLOURS = "#e8590c #1971c2 #2f9e44 #9c36b5 #e03131 #0c8599 #f08c00 #6741d9 #c2255c #5c940d".split()
_CROWD = "#868e96"
_GAP = 6
_TEXT = 12  # height of a label's letters, pixels


def draw_page(dataset: CocoDetection, *, images: int = 20, columns: int = 5, side: int = 320) -> Image.Image:
    """Some images, evenly spread over those with boxes, each with its boxes and class names; crowds are grey.

    No name covers another one: a box whose name finds no place has none (see ``label_places``).

    A class whose name no installed font can draw is called by its number (see ``fonts.drawable``).

    Args:
        images: at most so many.
        side: of a picture's place, in pixels.
    """
    with_boxes = [item for item in range(len(dataset)) if len(dataset.annotations(item)[0])] or range(len(dataset))
    chosen = [with_boxes[i] for i in spread(len(with_boxes), images)]
    pictures = [_picture(dataset, item, side) for item in chosen]
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in row) + _GAP for row in rows]
    page = Image.new("RGB", (len(rows[0]) * (side + _GAP) + _GAP, sum(heights) + _GAP), "white")
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            page.paste(picture, (_GAP + column * (side + _GAP), _GAP + sum(heights[:number])))
    return page


def _picture(dataset: CocoDetection, item: int, side: int) -> Image.Image:
    tensor, boxes, labels = dataset.raw(item)
    picture = Image.fromarray(tensor.permute(1, 2, 0).numpy())
    scale = side / max(picture.size)
    picture = picture.resize([max(1, round(length * scale)) for length in picture.size])
    _draw(picture, boxes * scale, labels, drawable(dataset.class_names))
    return picture


def _draw(picture: Image.Image, boxes: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
    pen = ImageDraw.Draw(picture)
    colours = [_COLOURS[label % len(_COLOURS)] if label >= 0 else _CROWD for label in labels.tolist()]
    for (x1, y1, x2, y2), colour in zip(boxes.tolist(), colours, strict=True):
        pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colour, width=2)
    texts = [
        [(part, _font(path)) for part, path in runs_of(names[label] if label >= 0 else "crowd")]
        for label in labels.tolist()
    ]
    widths = [sum(pen.textlength(part, font=font) for part, font in parts) + 4 for parts in texts]
    sizes = np.array([(width, _TEXT + 3) for width in widths]).reshape(-1, 2)
    for (left, top), width, parts, colour in zip(
        label_places(boxes, sizes, picture.size), widths, texts, colours, strict=True
    ):
        if np.isnan(left):
            continue
        left, top = float(left), float(top)
        pen.rectangle((left, top, left + width - 1, top + _TEXT + 2), fill=colour)
        for part, font in parts:
            pen.text((left + 2, top + _TEXT), part, fill="white", font=font, anchor="ls")
            left += pen.textlength(part, font=font)


@cache
def _font(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, _TEXT)
