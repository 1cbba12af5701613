import json
import time

import numpy as np
import pytest
from PIL import Image

from gflv2.config import DataConfig
from gflv2.data import CocoDetection, load_coco, shapes


@pytest.fixture(scope="module")
def sample_set(tmp_path_factory):
    return shapes.generate(tmp_path_factory.mktemp("shapes"), seed=3, train=40, val=6, size=(160, 192))


def test_the_same_seed_gives_the_same_files(sample_set, tmp_path):
    again = shapes.generate(tmp_path, seed=3, train=5, val=2, size=(160, 192))
    for folder in ("train_images", "val_images"):
        for path in sorted(getattr(again, folder).iterdir()):
            assert path.read_bytes() == (getattr(sample_set, folder) / path.name).read_bytes()
    few, many = (json.loads(files.train.read_text())["annotations"] for files in (again, sample_set))
    assert few == many[: len(few)]
    other = shapes.generate(tmp_path / "other", seed=4, train=1, val=1, size=(160, 192))
    assert (other.train_images / "000001.jpg").read_bytes() != (again.train_images / "000001.jpg").read_bytes()


def test_the_files_are_ordinary_coco(sample_set):
    dataset = CocoDetection(sample_set.train, config=DataConfig(long_side=192, short_side=[160, 160]), train=True)
    assert tuple(dataset.class_names) == shapes.CLASS_NAMES and len(dataset) >= 38
    assert dataset.image_dir.samefile(sample_set.train_images)
    assert dataset[0].original_size == (160, 192)
    assert CocoDetection(sample_set.val).image_dir.samefile(sample_set.val_images)


def test_objects_are_many_kinds_and_sizes_and_inside_the_picture(sample_set):
    index = load_coco(sample_set.train)
    rows = list(index.anns.values())
    boxes = np.array([row["bbox"] for row in rows])
    assert len(rows) > 80 and {row["category_id"] for row in rows} == set(range(1, len(shapes.CLASS_NAMES) + 1))
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= (192, 160)).all()
    sides = np.sqrt(boxes[:, 2] * boxes[:, 3])
    assert sides.min() < 20 and sides.max() > 60
    assert all(0 < row["area"] <= row["bbox"][2] * row["bbox"][3] + 1 for row in rows)


def test_some_sides_are_ambiguous_and_most_are_not(sample_set):
    rows = load_coco(sample_set.train).anns.values()
    found = [side for row in rows for side in row["ambiguous"]]
    assert set(found) == set(shapes.SIDES)
    assert 0.05 < len(found) / (4 * len(rows)) < 0.4


def drawn(seed, height=160, width=160):
    return shapes.draw(np.random.default_rng(seed), height, width)


def test_boxes_surround_what_is_drawn_and_ambiguous_sides_do_not_show():
    """With and without an object the picture differs inside its box only, up to the reach of a blur."""
    rng = np.random.default_rng(0)
    background = np.full((120, 120, 3), 100, dtype=np.float32)
    effects = 0
    for _ in range(60):
        canvas, objects = background.copy(), []
        shapes._place(rng, canvas, objects, np.full((3, 3), 100, dtype=np.float32))
        if not objects:
            continue
        (item,) = objects
        (x1, y1, x2, y2), row = item.box, shapes._annotation(item)
        changed = np.abs(canvas - 100).max(axis=2) > 25
        changed &= item.visible > 0.3  # not the panel in front
        ys, xs = changed.nonzero()
        if len(ys) == 0:
            continue
        assert xs.min() >= x1 - 1 and xs.max() + 1 <= x2 + 1 and ys.min() >= y1 - 1 and ys.max() + 1 <= y2 + 1
        gaps = dict(
            zip(shapes.SIDES, (xs.min() - x1, ys.min() - y1, x2 - xs.max() - 1, y2 - ys.max() - 1), strict=True)
        )
        hidden = {side for side in shapes.SIDES if shapes._is_hidden(item, side)}
        effects += bool(hidden)
        for side in hidden:
            extent = (x2 - x1) if side in ("left", "right") else (y2 - y1)
            assert gaps[side] > 0.02 * extent, (side, gaps, row)
    assert effects > 3


def test_pictures_have_texture_and_vary():
    pictures = [drawn(seed)[0] for seed in range(4)]
    for picture in pictures:
        assert picture.dtype == np.uint8 and picture.shape == (160, 160, 3)
        assert picture.astype(float).std() > 10
    means = np.array([picture.mean(axis=(0, 1)) for picture in pictures])
    assert np.ptp(means, axis=0).max() > 20


def test_it_is_fast_enough_for_a_demonstration(tmp_path):
    start = time.process_time()
    shapes.generate(tmp_path, train=15, val=1)
    assert (time.process_time() - start) / 16 < 0.2, "seconds for each picture of 256 pixels"


@pytest.mark.parametrize("wrong", [{"size": 40}, {"size": (200, 40)}, {"seed": -1}, {"train": 0}, {"val": 0}])
def test_impossible_arguments_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="expected"):
        shapes.generate(tmp_path, **wrong)


def test_images_are_readable_rgb(sample_set):
    with Image.open(sample_set.val_images / "000001.jpg") as image:
        assert image.mode == "RGB" and image.size == (192, 160)
