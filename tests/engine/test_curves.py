"""Precision-recall curves and the confusion matrix: by hand, against the evaluator's numbers, and as files."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from gflv2.engine.confusion import confusion_matrix
from gflv2.engine.curves import precision_recall, write_curves
from gflv2.engine.evaluate import evaluate_detections
from tests.engine.test_evaluate import CONFIG, Oracle, engine, sample_set, square, truth  # noqa: F401
from tests.shared import data


def counts(gt, found, **options):
    return confusion_matrix(gt, found, **options).counts.tolist()


# ---- confusion ----------------------------------------------------------------


def test_right_taken_for_another_missed_and_seen_where_nothing_is() -> None:
    gt = truth(square(1, 10), square(1, 60, category=11), square(1, 110, category=11), images=2)
    found = [
        square(1, 10, score=0.9),  # a as a
        square(1, 62, score=0.8),  # b as a, IoU .90
        square(2, 10, category=11, score=0.7),  # nothing as b
        square(1, 110, category=11, score=0.2),  # below the score: its object is missed
    ]
    matrix = confusion_matrix(gt, found)
    assert matrix.labels == ["a", "b", "background"] and matrix.category_ids == [1, 11]
    assert matrix.counts.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert counts(gt, found, score_thr=0.1) == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert counts(gt, found, iou_thr=0.95) == [[1, 0, 0], [0, 0, 2], [1, 1, 0]]
    assert counts(gt, found, image_ids=[2]) == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_each_object_is_taken_once_and_the_better_score_chooses_first() -> None:
    gt = truth(square(1, 10), square(1, 20), images=1)
    # The first one overlaps both, the second object more; the other finds the first object at IoU .6 all the same.
    found = [square(1, 18, score=0.9), square(1, 10, score=0.8, category=11), square(1, 10, score=0.7)]
    assert counts(gt, found) == [[1, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_what_lies_on_a_crowd_is_neither_right_nor_wrong() -> None:
    gt = truth(square(1, 10), square(1, 100, 80, iscrowd=1), images=1)
    matrix = confusion_matrix(gt, [square(1, 10, score=0.5), square(1, 110, 20, score=0.9, category=11)])
    assert matrix.counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]] and matrix.left_out == 1


def test_the_matrix_adds_up() -> None:
    folder = data("coco_evalcheck")
    found = json.loads((folder / "cocoapi_results.json").read_text())
    matrix = confusion_matrix(folder / "sampled_gts_bbox_area.json", found, score_thr=0.3)
    result = evaluate_detections(folder / "sampled_gts_bbox_area.json", found)
    counted = sum(record["score"] >= 0.3 for record in found)
    assert matrix.counts[:-1].sum() == result.boxes and matrix.counts[:, :-1].sum() == counted - matrix.left_out
    assert np.trace(matrix.counts) > 0.5 * result.boxes and matrix.counts.shape == (81, 81)


@pytest.mark.parametrize(("options", "text"), [({"iou_thr": 0}, "an IoU above 0"), ({"score_thr": 2}, "from 0 to 1")])
def test_thresholds_are_checked(options, text) -> None:
    with pytest.raises(ValueError, match=text):
        confusion_matrix(truth(), [], **options)


# ---- curves ----------------------------------------------------------------


def test_the_mean_of_a_curve_is_the_ap(engine) -> None:  # noqa: F811
    folder = data("coco_evalcheck")
    files = folder / "sampled_gts_bbox_area.json", folder / "cocoapi_results.json"
    result = evaluate_detections(*files, engine=engine)
    curves = precision_recall(result)
    assert len(curves["recall"]) == 101 and curves["recall"][-1] == 1.0
    for name, metric in (("0.50", "AP50"), ("0.75", "AP75"), ("0.50:0.95", "AP")):
        assert np.mean(curves["mean"][name]) == pytest.approx(result[metric], abs=1e-12)
    for entry in curves["classes"]:
        if entry["precision"] is None:
            assert entry["AP"] is None and entry["score"] is None
        else:
            assert np.mean(entry["precision"]["0.50"]) == pytest.approx(entry["AP50"], abs=1e-12)
            assert np.mean(entry["precision"]["0.50:0.95"]) == pytest.approx(entry["AP"], abs=1e-12)
    ids = {row["id"] for row in json.loads(files[0].read_text())["categories"]}
    assert {entry["category_id"] for entry in curves["classes"]} == ids


def test_a_known_curve() -> None:
    """Two objects; right, wrong, right: precision 1 up to recall 1/2, then 2/3; the scores that reach them."""
    gt = truth(square(1, 10), square(1, 140), images=1, categories=("a", "b"))
    found = [square(1, 10, score=0.9), square(1, 70, score=0.8), square(1, 140, score=0.7)]
    a, b = precision_recall(evaluate_detections(gt, found))["classes"]
    assert a["precision"]["0.50"] == pytest.approx([1] * 51 + [2 / 3] * 50)
    assert a["score"] == pytest.approx([0.9] * 51 + [0.7] * 50)
    assert b["precision"] is None and b["name"] == "b" and b["category_id"] == 11


# ---- files ----------------------------------------------------------------


@pytest.mark.parametrize("case", ["some", "no objects", "many classes"])
def test_files_and_pictures(tmp_path, case) -> None:
    names = [f"class {i}" for i in range(40)] if case == "many classes" else ["a", 'quoted, "b"']
    objects = [] if case == "no objects" else [square(1, 10), square(2, 100, category=11)]
    gt = truth(*objects, categories=names)
    found = [square(1, 10, score=0.9), square(2, 100, score=0.8)]
    paths = write_curves(tmp_path / "new", evaluate_detections(gt, found), confusion_matrix(gt, found))
    kinds = [
        f"{name}.{suffix}" for name in ("precision_recall", "confusion_matrix") for suffix in ("json", "csv", "png")
    ]
    assert [path.name for path in paths] == kinds and all(path.stat().st_size > 0 for path in paths)
    matrix = json.loads(paths[3].read_text())
    rows = list(csv.reader(paths[4].read_text().splitlines()))
    assert rows[0][1:] == matrix["labels"] and [row[0] for row in rows[1:]] == matrix["labels"]
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == matrix["counts"]
    assert (matrix["iou_thr"], matrix["score_thr"]) == (0.5, 0.3)
    table = list(csv.DictReader(paths[1].read_text().splitlines()))
    known = 0 if case == "no objects" else 2
    assert len(table) == 3 * 101 * (known + 1) * (known > 0)
    if known:
        assert {row["class"] for row in table} == {"mean over classes", *names[:2]}
        assert {row["category_id"] for row in table} == {"", "1", "11"}
    for path in (paths[2], paths[5]):
        picture = np.asarray(Image.open(path).convert("L"))
        assert min(picture.shape) > 200 and picture.std() > 5


def test_evaluation_writes_them(sample_set, tmp_path) -> None:  # noqa: F811
    from gflv2.data import CocoDetection
    from gflv2.engine.evaluate import evaluate

    dataset = CocoDetection(sample_set.val, config=CONFIG)
    result = evaluate(Oracle(dataset), dataset, batch_size=6, progress=False, output=tmp_path / "out")
    matrix = json.loads((tmp_path / "out" / "confusion_matrix.json").read_text())
    assert np.trace(matrix["counts"]) == np.sum(matrix["counts"]) == result.boxes
    curves = json.loads((tmp_path / "out" / "precision_recall.json").read_text())
    assert [entry["category_id"] for entry in curves["classes"]] == dataset.category_ids == matrix["category_ids"]
    assert result.to_dict()["category_ids"] == dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    with pytest.raises(ValueError, match="confusion matrix: expected an IoU above 0"):
        evaluate(Oracle(dataset), dataset, progress=False, output=tmp_path / "out", confusion_iou=0)
