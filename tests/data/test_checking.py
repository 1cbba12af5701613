import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gflv2.config import load_config
from gflv2.data import CocoDetection, check
from gflv2.data.checking import MOST_CLAMPED, quick_notes
from gflv2.data.positives import positives, spread
from tests.data.generated import annotation, write_set

SETTINGS = {"data.long_side": 256, "data.short_side": [256, 256], "data.test_short_side": 256}
CONFIG = load_config("gflv2_lite0", SETTINGS)


def test_counts_sizes_and_classes(tmp_path):
    rows = [
        annotation(1, (10, 10, 20, 20)),
        annotation(1, (50, 50, 60, 60), 3),
        annotation(2, (0, 0, 120, 128), 3),
        annotation(2, (5, 5, 50, 50), iscrowd=1),
        annotation(2, (5, 5, 0, 50)),
        annotation(1, (10, 10, 20, 20)),
    ]
    path = write_set(tmp_path, [(256, 256), (128, 160), (96, 64)], rows, categories={1: "a", 2: "b", 3: "c"})
    report = check(path, config=CONFIG)
    assert (report.images, report.empty_images, report.boxes, report.crowds) == (3, 1, 4, 1)
    assert report.classes["a"] == {"boxes": 2, "images": 1} and report.classes["c"] == {"boxes": 2, "images": 2}
    assert report.widths == (64, 160, 256) and report.heights == (96, 128, 256)
    assert report.areas == {"small": 2, "medium": 1, "large": 1}
    ((kind, row),) = report.problems.items()
    assert "a side of 0 or below" in kind and row["count"] == 1 and "annotation 5 of image 2" in row["examples"][0]
    assert report.doubled == 1 and any("1 boxes stand in their image a second time" in note for note in report.notes)
    assert any("classes without a box, 1 of 3: ['b']" in note for note in report.notes)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["boxes"] == 4
    text = str(report)
    assert "3 images (1 without boxes), 4 boxes and 1 crowds" in text and "annotation 5 of image 2" in text


def test_objects_that_no_point_learns_are_counted_and_a_size_recommended(tmp_path):
    rows = [annotation(1, (i * 20 + 3, 99, 2, 2)) for i in range(10)] + [annotation(1, (100, 120, 60, 60))]
    path = write_set(tmp_path, [(256, 256)], rows)
    report = check(path, config=CONFIG)
    assert report.objects == 11 and report.without_positive == 10
    assert report.without_sizes == (2, 2, 2)
    assert "0001.png: thing [3.0, 99.0, 5.0, 101.0], 2.0 × 2.0 px" in report.without_examples[0]
    assert any("10 of 11 objects are never learnt" in note for note in report.notes)
    assert report.recommended_short_side > 256 and report.without_there < 10 / 11
    dataset = CocoDetection(path, config=CONFIG.data)
    larger = positives(dataset, CONFIG, [0], scale=report.recommended_short_side / 256)
    assert larger.share_without() == report.without_there


def test_the_recommended_size_is_one_that_training_takes(tmp_path):
    """Wide images reach the long side first: a larger short side alone would change nothing."""
    sizes = {"data.long_side": 320, "data.short_side": [192, 256], "data.test_short_side": 192}
    config = load_config("gflv2_lite0", sizes)
    path = write_set(tmp_path, [(270, 480)], [annotation(1, (i * 40 + 5, 99, 6, 6)) for i in range(10)])
    report = check(path, config=config)
    settings = report.recommended_settings
    scale = settings["data.long_side"] / 320
    assert scale > 1 and report.recommended_long_side == 320 * scale and report.recommended_short_side == 224 * scale
    wanted = {"data.short_side": [192 * scale, 256 * scale], "data.test_short_side": 192 * scale}
    assert {key: settings[key] for key in wanted} == wanted
    line = str(report).splitlines()[-1 - len(report.notes)]
    least, most, long = (round(side * scale) for side in (192, 256, 320))
    assert f"--data.short_side [{least},{most}] --data.long_side {long} --data.test_short_side {least}," in line
    larger = load_config("gflv2_lite0", {**sizes, **settings})
    dataset = CocoDetection(path, config=larger.data, train=True)  # training refuses a short side above the long one
    share = positives(dataset, larger, [0]).share_without()
    assert share == report.without_there < report.without_positive / report.objects


def test_targets_beyond_the_bins_are_measured_and_a_reg_max_recommended(tmp_path):
    rows = [annotation(1, (4, 20, 240, 40)), annotation(1, (20, 100, 40, 40))]
    path = write_set(tmp_path, [(256, 256)], rows)
    few = load_config("gflv2_lite0", {**SETTINGS, "model.head.reg_max": 4})
    report = check(path, config=few)
    assert report.clamped > MOST_CLAMPED and report.recommended_reg_max > 4
    assert any(f"model.head.reg_max {report.recommended_reg_max} holds them" in note for note in report.notes)
    found = positives(CocoDetection(path, config=few.data), few, [0])
    assert found.share_beyond(report.recommended_reg_max) <= MOST_CLAMPED < found.share_beyond(4)
    assert report.recommended_reg_max == 5 or found.share_beyond(report.recommended_reg_max - 2) > MOST_CLAMPED
    counts = [level.positives for level in report.levels]
    assert counts == [len(targets) for targets in found.targets] and sum(counts) > 0
    for level, targets in zip(report.levels, found.targets, strict=True):
        assert (targets > 0).all(), "a positive point lies inside its box"
        if level.positives:
            # Left and right add up to the box's width, in strides.
            widths = np.unique((targets[:, 0] + targets[:, 2]).round(3))
            assert set(widths) <= {240 / level.stride, 40 / level.stride}


def test_the_size_of_the_network_input_decides_not_that_of_the_file(tmp_path):
    path = write_set(tmp_path, [(512, 512)], [annotation(1, (100, 100, 4, 4))])
    report = check(path, config=CONFIG)
    assert report.without_positive == 1 and report.without_sizes == (2, 2, 2)


def test_a_page_of_pictures_is_drawn(tmp_path):
    rows = [
        annotation(1, (10, 10, 20, 20)),
        annotation(2, (50, 50, 10, 20), 2),
        annotation(2, (5, 5, 50, 50), iscrowd=1),
    ]
    path = write_set(tmp_path, [(64, 128), (128, 64)], rows, categories={1: "a", 2: "盒子"})
    file = tmp_path / "not there yet" / "page.png"
    check(path, config=CONFIG, page=file)
    page = np.asarray(Image.open(file))
    assert page.shape == (320 + 12, 2 * 326 + 6, 3)
    coloured = (np.ptp(page.astype(int), axis=2) > 100).sum()
    assert coloured > 500, "boxes and names are drawn in colour"


def test_evenly_spread_items():
    assert spread(10, 100) == list(range(10))
    assert spread(101, 3) == [0, 50, 100]
    assert spread(0, 3) == []


def test_what_training_says_first(tmp_path):
    categories = {1: "a", 2: "b"}
    rows = [annotation(1, (10, 10, 60, 60)), annotation(2, (5, 9, 2, 2))]
    train = write_set(tmp_path / "train", [(256, 256), (256, 256)], rows, categories=categories)
    val = write_set(tmp_path / "val", [(256, 256)], [annotation(1, (10, 10, 60, 60), 2)], categories=categories)
    train_set = CocoDetection(train, config=CONFIG.data, train=True)
    notes = quick_notes(CONFIG, train_set, CocoDetection(val, config=CONFIG.data))
    assert notes[:2] == [
        "classes without a training box, 1 of 2: ['b']",
        "classes without a validation box, 1 of 2: ['a']",
    ]
    assert "1 of 2 objects in 2 images get no positive point and are not learnt (longer side up to 2 px" in notes[2]
    assert len(notes) == 3
    same = quick_notes(CONFIG, train_set, CocoDetection(train, config=CONFIG.data))
    assert any("2 of 2 validation images are training images too; first: " in note for note in same)


def test_images_of_both_sets_are_found_through_links_by_one_question_a_folder(tmp_path, monkeypatch):
    rows = [annotation(i, (10, 10, 60, 60)) for i in (1, 2, 3)]
    train = CocoDetection(write_set(tmp_path / "train", [(96, 96)] * 3, rows), config=CONFIG.data)
    (tmp_path / "link").symlink_to(tmp_path / "train")
    val = CocoDetection(tmp_path / "link" / train.annotation_file.relative_to(tmp_path / "train"), config=CONFIG.data)
    assert train.path(0) != val.path(0)
    asked, resolve = [], Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda self, *rest: (asked.append(self), resolve(self, *rest))[1])
    notes = quick_notes(CONFIG, train, val)
    assert f"3 of 3 validation images are training images too; first: {train.path(0)}" in notes
    assert sorted(asked) == sorted([train.path(0).parent, val.path(0).parent])


def test_a_validation_set_without_boxes_is_said_to_measure_nothing(tmp_path):
    train = CocoDetection(write_set(tmp_path / "a", [(256, 256)], [annotation(1, (9, 9, 60, 60))]), config=CONFIG.data)
    crowd = [annotation(1, (9, 9, 60, 60), iscrowd=1)]
    val = CocoDetection(write_set(tmp_path / "b", [(256, 256)], crowd), config=CONFIG.data)
    assert quick_notes(CONFIG, train, val) == ["the validation data has no box; AP cannot be measured"]


def test_nothing_is_said_of_a_good_set(tmp_path):
    sets = [
        CocoDetection(write_set(tmp_path / name, [(256, 256)], [annotation(1, (10, 10, 60, 60))]), config=CONFIG.data)
        for name in ("a", "b")
    ]
    assert quick_notes(CONFIG, *sets) == []
    report = check(sets[0], config=CONFIG)
    assert report.notes == ["classes with fewer than 20 boxes, 1 of 1: ['thing']"] and not report.problems


def test_a_folder_of_images_is_counted(tmp_path):
    write_set(tmp_path, [(256, 256), (64, 96)], [])
    report = check(tmp_path / "images", config=CONFIG, page=tmp_path / "page.png")
    assert (report.images, report.boxes, report.classes, report.objects) == (2, 0, {}, 0)
    assert report.recommended_short_side is report.recommended_reg_max is report.recommended_settings is None
    assert report.clamped == 0 and "recommended:" not in str(report)
    assert report.notes == ["no box in the 2 images looked at; reg_max and size cannot be recommended"]


def test_data_that_cannot_be_used_is_refused(tmp_path):
    path = write_set(tmp_path, [(64, 64)], [annotation(1, (1, 1, 9, 9), 7)])
    with pytest.raises(ValueError, match="category_id 7 is not among the categories"):
        check(path)
