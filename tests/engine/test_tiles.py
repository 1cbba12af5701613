"""Tiles cover an image, and their merged result is that of the whole image where an object lies inside one of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gflv2.cli import main
from gflv2.data import read_image
from gflv2.engine.predict import predict
from gflv2.engine.results import Result
from gflv2.engine.tiles import Tile, merge, tiles_of
from tests.shared import data


@pytest.mark.parametrize("size", [(50, 60), (64, 64), (65, 200), (1000, 333)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.9])
def test_tiles_cover_the_image_and_overlap(size: tuple[int, int], overlap: float) -> None:
    tiles = tiles_of(*size, 64, overlap)
    covered = torch.zeros(1, *size)
    for tile in tiles:
        tile.of(covered)[:] = 1
        assert tile.x2 - tile.x1 == min(64, size[1]) and tile.y2 - tile.y1 == min(64, size[0])
    assert covered.all() and len(set(tiles)) == len(tiles)
    columns = sorted({(tile.x1, tile.x2) for tile in tiles})
    for left, right in zip(columns, columns[1:], strict=False):
        assert left[1] - right[0] >= int(64 * overlap)


@pytest.mark.parametrize("side, overlap, name", [(10, 0.2, "tiles"), (64, 1.0, "overlap"), (64, -0.1, "overlap")])
def test_wrong_tiles(side: int, overlap: float, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        tiles_of(100, 100, side, overlap)


def part(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Result:
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    return Result(torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels), ("a", "b"), image)


def test_boxes_are_moved_and_those_cut_by_an_edge_dropped() -> None:
    tiles = [Tile(0, 0, 100, 100), Tile(60, 0, 160, 100)]
    # An object from 70 to 130, of which the left tile sees the part up to 100; one at the left edge of the image, which
    # is no cut; one that is cut in the left tile, of another class; one in both tiles.
    left = part(
        [[70, 10, 100, 60], [0, 0, 20, 20], [90, 70, 100, 90], [65, 80, 95, 98]], [0.9, 0.8, 0.7, 0.6], [0, 0, 1, 0]
    )
    right = part([[10, 10, 70, 60], [5, 80, 35, 98]], [0.5, 0.65], [0, 0])
    image = np.zeros((100, 160, 3), dtype=np.uint8)
    found = merge([left, right], tiles, image, None, iou_thr=0.6, max_detections=10)
    assert found.boxes.tolist() == [[0, 0, 20, 20], [90, 70, 100, 90], [65, 80, 95, 98], [70, 10, 130, 60]]
    assert found.scores.tolist() == pytest.approx([0.8, 0.7, 0.65, 0.5]) and found.size == (100, 160)
    assert len(merge([left, right], tiles, image, None, iou_thr=0.6, max_detections=2)) == 2
    nothing = merge([part([], [], []), part([], [], [])], tiles, image, None, iou_thr=0.6, max_detections=2)
    assert len(nothing) == 0 and nothing.boxes.shape == (0, 4)


def test_the_same_boxes_as_of_the_whole_image(tmp_path) -> None:
    """NanoDet's COCO weights on a row of two photographs that are not resized, tile by tile and as one image."""
    from gflv2 import GFLV2

    weights = data("nanodet_m") / "nanodet_m_320.onnx"
    settings = {"data__long_side": 640, "data__test_short_side": 320}
    model = GFLV2("gflv2_nanodet_m", weights=weights, **settings).eval()
    photographs = sorted((data("coco_mini") / "images").glob("*.jpg"))
    photographs = [image for image in map(read_image, photographs) if min(image.shape[1:]) >= 420][:2]
    row = torch.cat([image[:, 40:360, 40:360] for image in photographs], dim=2)
    whole = predict(model, row, score_thr=0.4)
    model.config.data.long_side = 320
    tiled = predict(model, row, score_thr=0.3, tiles=320, overlap=0.5)
    assert tiled.size == whole.size == (320, 640)
    places, compared = tiles_of(320, 640, 320, 0.5), 0
    for box, label in zip(whole.boxes, whole.labels, strict=True):
        if any(box[0] > tile.x1 + 40 and box[2] < tile.x2 - 40 for tile in places):
            same = tiled.boxes[tiled.labels == label]
            assert len(same) and (same - box).abs().amax(1).min() < 8, (box, same)
            compared += 1
    assert compared >= 2
    assert tiled.distributions.shape[0] == tiled.points.shape[0] == len(tiled)
    # The point of a box lies in it, or a cell beside it, where the whole image has it too.
    inside = (tiled.points + 32 > tiled.boxes[:, :2]) & (tiled.points - 32 < tiled.boxes[:, 2:])
    assert inside.all()


def test_the_option_of_the_command_line(tmp_path, capsys) -> None:
    assert main(["predict", "x.jpg", "--tiles", "0"]) == 2
    assert "argument --tiles: expected an integer ≥ 1" in capsys.readouterr().err
