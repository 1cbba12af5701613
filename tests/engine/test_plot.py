"""Pictures of results: what is drawn where."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from gflv2.engine import plot
from gflv2.engine.results import Result
from tests.data.test_label_places import crossing

HEIGHT, WIDTH, STRIDE, BINS = 150, 240, 8.0, 17


def make_result(count: int = 2, projection: torch.Tensor | None = None) -> Result:
    """A grey image; box 0 at (40, 30, 120, 100) with sharp sides, except the right one, which is spread evenly."""
    points = torch.tensor([[80.0, 64.0], [200.0, 100.0]])[:count]
    distributions = torch.zeros(count, 4, BINS)
    distributions[..., 5] = 1.0
    distributions[:, 2] = 1 / BINS
    distributions[:, 1, [4, 5]] = torch.tensor([0.75, 0.25])
    boxes = torch.tensor([[40.0, 30.0, 144.0, 104.0], [160.0, 66.0, 240.0, 140.0]])[:count]
    return Result(
        boxes=boxes,
        scores=torch.tensor([0.9, 0.2])[:count],
        labels=torch.tensor([0, 1])[:count],
        class_names=("cup", "Ünïcode – ☂"),
        image=np.full((HEIGHT, WIDTH, 3), 128, np.uint8),
        distributions=distributions,
        projection=torch.arange(float(BINS)) if projection is None else projection,
        points=points,
        strides=torch.full((count, 2), STRIDE),
        levels=torch.zeros(count, dtype=torch.int64),
    )


def sides_of(result: Result) -> list[plot.Side]:
    """Those of box 0."""
    bins = (result.points, result.bin_positions(), result.distributions)
    return plot.sides_of(*(tensor[0].double().numpy() for tensor in bins))


def differs(picture: Image.Image) -> np.ndarray:
    """(H, W) where the picture is not the grey of the image."""
    return (np.abs(np.asarray(picture).astype(int) - 128) > 20).any(-1)


def test_boxes_are_drawn_at_their_place():
    result = make_result()
    picture = result.plot()
    assert picture.size == (WIDTH, HEIGHT) and picture.mode == "RGB"
    drawn = differs(picture)
    # The four sides of box 0 …
    assert drawn[60, 39:42].any() and drawn[60, 143:146].any() and drawn[29:32, 100].any() and drawn[103:106, 100].any()
    # … nothing inside, and nothing of box 1, whose score is below the threshold.
    assert not drawn[50:95, 50:135].any() and not drawn[:, 160:].any()
    assert differs(result.plot(threshold=0.1))[100, 158:163].any()
    assert not differs(result.plot(threshold=0.95)).any()


@pytest.mark.parametrize("threshold", [0.3, 0.8])
def test_labels_do_not_cover_each_other(threshold, monkeypatch):
    monkeypatch.setattr(plot, "_render", lambda figure: figure.draw_without_rendering() or figure)
    random = np.random.default_rng(0)
    corner = random.uniform(0, 500, (100, 2))
    boxes = np.concatenate([corner, corner + random.uniform(5, 120, (100, 2))], axis=1)
    scores = random.uniform(0.3, 1, 100)
    best = 7
    boxes[best], scores[best] = (100.4, 200.4, 300, 400), 1
    names = random.choice(["cup", "Ünïcode – ☂", "a long name of a class"], 100).tolist()
    drawing = plot.Drawing(np.full((600, 600, 3), 128, np.uint8), boxes, scores, np.zeros(100, int), names)
    for picture in (
        plot.plot_boxes(drawing, threshold),
        plot.plot_distributions(drawing, best, boxes[best, :2] + 100, sides_of(make_result()), threshold),
    ):
        axes = picture.axes[0]
        texts, frame = axes.texts, axes.get_window_extent()
        extents = [text.get_bbox_patch().get_window_extent() for text in texts]
        places = np.array([(*extent.min, *extent.max) for extent in extents])
        assert 10 < len(places) <= (scores >= threshold).sum() == len(axes.patches) // 2
        assert crossing(places) == 0
        assert (places[:, :2] > frame.min - 1).all() and (places[:, 2:] < frame.max + 1).all()
        assert texts[0].get_text() == f"{names[best]} {scores[best]:.2f}"
        # Above its box, from its left edge on; in a figure y goes up.
        corner = axes.transData.transform(boxes[best, :2])
        assert places[0, :2] == pytest.approx(corner, abs=0.6)


def test_image_is_left_alone_and_shown_exactly():
    result = make_result()
    result.image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    before = result.image.copy()
    picture = np.asarray(result.plot(threshold=1.0))
    assert np.array_equal(result.image, before)
    assert np.array_equal(picture, before)
    result.plot(distributions=True)
    assert np.array_equal(result.image, before)


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (700, 20), (1500, 2100)])
def test_any_image_size(size):
    result = make_result()
    result.image = np.zeros((*size, 3), np.uint8)
    assert result.plot().size == size[::-1]
    assert result.plot(distributions=True).size[0] > 1000


def test_same_picture_twice():
    result = make_result()
    for options in ({}, {"distributions": True}):
        assert np.array_equal(np.asarray(result.plot(**options)), np.asarray(result.plot(**options)))


def test_which_box_the_panel_shows():
    result = make_result()
    best, second = result.plot(distributions=True), result.plot(distributions=1)
    assert np.array_equal(np.asarray(best), np.asarray(result.plot(distributions=0)))
    assert not np.array_equal(np.asarray(best), np.asarray(second))
    assert np.array_equal(np.asarray(second), np.asarray(result.plot(distributions=-1)))
    for index in (2, -3):
        with pytest.raises(IndexError, match="2 detections"):
            result.plot(distributions=index)


def test_no_detections():
    result = make_result(count=0)
    assert not differs(result.plot()).any()
    assert result.plot(distributions=True).size == (WIDTH, HEIGHT)


def test_numbers_of_the_sides():
    result = make_result()
    positions = result.bin_positions()
    assert positions.shape == (2, 4, BINS)
    assert positions[0, 0, :3].tolist() == [80, 72, 64] and positions[0, 2, :3].tolist() == [80, 88, 96]
    assert positions[0, 1, :3].tolist() == [64, 56, 48] and positions[0, 3, :3].tolist() == [64, 72, 80]
    left, top, right, bottom = sides_of(result)
    assert [side.mean for side in (left, top, right, bottom)] == pytest.approx([40, 30, 144, 104])
    uniform = 8 * np.sqrt((BINS**2 - 1) / 12)
    expected = [0, 8 * np.sqrt(0.75 * 0.25), uniform, 0]
    assert [side.spread for side in (left, top, right, bottom)] == pytest.approx(expected, abs=1e-6)
    assert result.spread()[0].tolist() == pytest.approx(expected, abs=1e-3)
    entropy = [0, -0.75 * np.log2(0.75) - 0.25 * np.log2(0.25), np.log2(BINS), 0]
    assert [side.entropy for side in (left, top, right, bottom)] == pytest.approx(entropy, abs=1e-6)
    assert result.entropy()[0].tolist() == pytest.approx(entropy, abs=1e-5)


def test_colour_tells_the_entropy():
    left, top, right, _ = sides_of(make_result())
    blueness = [side.color[2] - side.color[0] for side in (left, top, right)]
    assert blueness[0] == blueness[1] > 0 > blueness[2]


def test_bars_lie_at_the_bins():
    # Unequal bins: each bar reaches half-way to its neighbours.
    projection = torch.cat([torch.arange(9.0), torch.arange(10.0, 26.0, 2.0)])
    left, _, right, _ = sides_of(make_result(projection=projection))
    for side in (left, right):
        high = side.low + side.width
        assert (side.low < side.positions).all() and (side.positions < high).all()
        edges = np.sort(np.concatenate([side.low, high]))
        np.testing.assert_allclose(edges[1:-1:2], edges[2::2])  # no gap, no overlap
    assert right.width[3] == pytest.approx(STRIDE) and right.width[-1] == pytest.approx(2 * STRIDE)


def test_window_holds_the_box_and_every_bin_that_matters():
    result = make_result()
    sides = sides_of(result)
    x1, y1, x2, y2 = plot._window(result.boxes[0].double().numpy(), sides)
    assert x1 < 40 and y1 < 30 and y2 > 104
    assert x2 > 80 + 16 * STRIDE  # the evenly spread side reaches to the last bin
    sharp = make_result()
    sharp.distributions[:, 2] = sharp.distributions[:, 0]
    assert plot._window(sharp.boxes[0].double().numpy(), sides_of(sharp))[2] < x2


def test_save(tmp_path):
    result = make_result()
    path = result.save(tmp_path / "new" / "picture.jpg")
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.size == (WIDTH, HEIGHT)
    with Image.open(result.save(tmp_path / "panel.png", distributions=True)) as picture:
        assert picture.format == "PNG" and picture.size != (WIDTH, HEIGHT)


def test_no_global_matplotlib_state():
    # pyplot would choose a backend, keep every figure alive and be unsafe in threads.
    code = "import sys; import gflv2.engine.plot; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
