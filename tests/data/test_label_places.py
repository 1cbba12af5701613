"""Labels of boxes: none covers another one, and none lies outside of the picture."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gflv2.data import image, pictures
from gflv2.data.label_places import label_places


def places(boxes, sizes, picture=(200, 100)) -> np.ndarray:
    return label_places(np.array(boxes, dtype=float), np.array(sizes, dtype=float), picture)


def crossing(rectangles: np.ndarray) -> int:
    """Pairs of rectangles (N, 4) that share an area."""
    x1, y1, x2, y2 = rectangles.T[..., None]
    width = np.minimum(x2, x2.T) - np.maximum(x1, x1.T)
    height = np.minimum(y2, y2.T) - np.maximum(y1, y1.T)
    return int(np.triu((width > 0) & (height > 0), 1).sum())


def test_where_a_label_goes():
    size = [[40, 10]]
    assert places([[20, 30, 120, 80]], size).tolist() == [[20, 20]]  # above
    found = places([[20, 30, 120, 80]] * 5, size * 5)  # then inside, below, inside, and up to the right edge
    assert found.tolist() == [[20, 20], [20, 30], [20, 80], [20, 70], [80, 20]]
    assert places([[190, 4, 198, 80]], size).tolist() == [[160, 0]]  # shifted into the picture
    assert places([[20, 30, 120, 80]], [[500, 300]]).tolist() == [[0, 0]]  # larger than the picture


def test_the_first_choose_first_and_the_rest_have_none(caplog, monkeypatch):
    monkeypatch.setattr(image, "_said", set())
    with caplog.at_level(logging.WARNING, "gflv2"):
        found = places([[0, 0, 200, 10]] * 3, [[200, 10]] * 3, (200, 20))
        places([[0, 0, 200, 10]] * 3, [[200, 10]] * 3, (200, 20))
    assert found[:2].tolist() == [[0, 0], [0, 10]] and np.isnan(found[2]).all()
    assert [record.getMessage().startswith("1 of the 3 boxes") for record in caplog.records] == [True]
    assert places(np.empty((0, 4)), np.empty((0, 2))).shape == (0, 2)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 100), st.floats(5, 300), st.floats(5, 300))
def test_no_two_share_an_area(seed, count, width, height):
    random = np.random.default_rng(seed)
    corner = random.uniform(-20, [width, height], (count, 2))
    boxes = np.concatenate([corner, corner + random.uniform(0, 150, (count, 2))], axis=1)
    sizes = random.uniform([20, 9], [120, 30], (count, 2))
    found = label_places(boxes, sizes, (width, height))
    placed = ~np.isnan(found[:, 0])
    rectangles = np.concatenate([found, found + sizes], axis=1)[placed]
    assert crossing(rectangles) == 0
    assert (rectangles[:, :2] >= 0).all()
    assert (rectangles[:, 2:] <= np.maximum((width, height), sizes[placed]) + 1e-9).all()
    assert placed[:1].all()


def test_the_page_of_a_data_set_writes_names_side_by_side(monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "label_places", lambda *given: drawn.append(label_places(*given)) or drawn[-1])
    boxes = np.array([[10.0, 40.0, 90.0, 90.0]] * 3)
    picture = Image.new("RGB", (100, 100), "white")
    pictures._draw(picture, boxes, np.array([0, 1, -1]), ["cup", "шар"])
    (found,) = drawn
    assert len({tuple(place) for place in found.tolist()}) == 3
    pixels = np.asarray(picture)
    for (x, y), colour in zip(
        found.astype(int), (pictures._COLOURS[0], pictures._COLOURS[1], pictures._CROWD), strict=True
    ):
        assert "#" + bytes(pixels[y, x]).hex() == colour


def test_crossing_sees_what_crosses():
    assert crossing(np.array([[0, 0, 2, 2], [1, 1, 3, 3], [2, 2, 4, 4]])) == 2
    with pytest.raises(ValueError):
        crossing(np.zeros((3, 2)))
