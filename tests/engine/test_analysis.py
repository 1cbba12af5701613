"""analyze: correlations, the decomposition of errors, and the report."""

from __future__ import annotations

import csv
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from gflv2 import GFLV2
from gflv2.cli import main
from gflv2.data import CocoDetection, collate, load_coco
from gflv2.engine.analysis import analyze
from gflv2.engine.analysis.charts import distribution_chart
from gflv2.engine.analysis.errors import KINDS, decompose
from gflv2.engine.analysis.observe import _at_positives
from gflv2.engine.analysis.relations import relation
from gflv2.engine.evaluate import average_precisions, evaluate_detections
from gflv2.models.dense_head import shapes_of
from tests.engine.looking import FILE, NAMES, small_model, write_data
from tests.shared import data

# ---- relations ----------------------------------------------------------------


def test_a_relation_of_known_numbers():
    x = np.array([0.05, 0.15, 0.15, 0.95, 1.0])
    y = np.array([0.1, 0.2, 0.4, 0.9, 1.0])
    found = relation(x, y)
    assert found.samples == 5
    assert found.pearson == pytest.approx(np.cov(x, y)[0, 1] / math.sqrt(np.var(x, ddof=1) * np.var(y, ddof=1)))
    assert [row["samples"] for row in found.bins] == [1, 2, 2]
    assert found.bins[1]["mean_y"] == pytest.approx(0.3) and found.bins[1]["std_y"] == pytest.approx(0.1)
    assert found.gap == pytest.approx((0.05 * 1 + 0.15 * 2 + 0.025 * 2) / 5)
    assert found.counts.sum() == 5 and found.counts[-1, -1] == 1  # (1, 1) lies in the last cell
    assert relation(x, 1 - x).pearson == pytest.approx(-1)


@pytest.mark.parametrize("x, y", [([], []), ([0.5], [0.5]), ([0.5, 0.5], [0.1, 0.9]), ([0.1, 0.9], [0.5, 0.5])])
def test_a_correlation_that_is_not_defined(x, y):
    found = relation(np.array(x), np.array(y))
    assert math.isnan(found.pearson) and found.to_dict()["pearson"] is None
    json.dumps(found.to_dict(), allow_nan=False)


# ---- errors ----------------------------------------------------------------


def objects(*rows) -> dict:
    """(category, box, crowd) of one image."""
    names = ("category_id", "bbox", "iscrowd")
    return {1: [dict(zip(names, row, strict=True)) for row in rows]}


def found(*rows) -> list[dict]:
    """(category, box, score) of one image."""
    return [{"image_id": 1, "category_id": c, "bbox": box, "score": score} for c, box, score in rows]


def test_one_detection_of_each_kind():
    truth = objects((1, [0, 0, 10, 10], 0), (2, [50, 0, 10, 10], 0), (1, [0, 50, 10, 10], 0), (1, [50, 50, 40, 40], 1))
    truth[1].append({"category_id": 1, "bbox": [80, 0, 10, 10], "iscrowd": 0})  # nothing lies on it
    rows = [
        (1, [0, 0, 10, 10], 0.9, "right"),
        (1, [0, 1, 10, 10], 0.8, "duplicate"),
        (1, [50, 0, 10, 10], 0.7, "classification"),
        (1, [0, 56, 10, 10], 0.6, "localisation"),
        (2, [0, 7, 10, 10], 0.5, "both"),
        (2, [30, 30, 5, 5], 0.4, "background"),
        (1, [55, 55, 10, 10], 0.3, "on a crowd"),
    ]
    errors = decompose(truth, found(*(row[:3] for row in rows)), [1])
    assert errors.kinds == [row[3] for row in rows]
    assert errors.counts == dict.fromkeys(KINDS, 1)
    np.testing.assert_allclose(errors.overlaps, [1, 9 / 11, 0, 4 / 16, 0, 0, 0], atol=1e-12)


def test_what_mending_one_kind_gains():
    truth = objects((1, [0, 0, 10, 10], 0), (1, [50, 0, 10, 10], 0))
    right = (1, [0, 0, 10, 10], 0.5)
    half = 51 / 101  # of the 101 recalls, those up to one half
    # A better scored false alarm halves the precision.
    errors = decompose(truth, found(right, (1, [80, 80, 5, 5], 0.9)), [1])
    assert errors.ap50 == pytest.approx(half / 2)
    expected = {"background": half / 2, "missed": 0.5 - half / 2}
    assert errors.gains == pytest.approx({**dict.fromkeys(KINDS, 0.0), **expected})
    # A box of the wrong place becomes right; the object that it means is not missed.
    errors = decompose(truth, found(right, (1, [50, 7, 10, 10], 0.4)), [1])
    assert errors.gains == pytest.approx({**dict.fromkeys(KINDS, 0.0), "localisation": 1 - half})
    # One of two boxes that mean the same object finds it, the other is removed.
    three = objects(*(tuple(row.values()) for row in truth[1]), (1, [0, 80, 10, 10], 0))
    errors = decompose(three, found(right, (1, [50, 7, 10, 10], 0.4), (1, [50, 6, 10, 10], 0.6)), [1])
    assert errors.ap50 + errors.gains["localisation"] == pytest.approx(67 / 101)  # the recalls up to two thirds
    # A class without an object left is perfect if nothing wrong is left, too.
    truth = objects((1, [0, 0, 10, 10], 0))
    assert decompose(truth, [], [1]).gains["missed"] == 1
    assert decompose(truth, found((1, [80, 80, 5, 5], 0.9)), [1]).gains["missed"] == 0


def test_of_two_objects_alike_the_one_that_the_evaluation_takes():
    truth = objects((1, [0, 0, 10, 10], 0), (1, [4, 0, 10, 10], 0))
    rows = [{**row, "id": n, "image_id": 1, "area": 100} for n, row in enumerate(truth[1], 1)]
    records = found((1, [2, 0, 10, 10], 0.9), (1, [6, 0, 10, 10], 0.8))
    content = {"images": [{"id": 1, "height": 50, "width": 50, "file_name": "a.png"}], "annotations": rows}
    expected = evaluate_detections({**content, "categories": [{"id": 1, "name": "a"}]}, records)
    errors = decompose(truth, records, [1])
    assert errors.ap50 == pytest.approx(expected["AP50"], abs=1e-12) and errors.kinds == ["right", "duplicate"]


def test_no_objects_and_no_detections():
    errors = decompose({}, [], [1, 2])
    assert math.isnan(errors.ap50) and sum(errors.counts.values()) == 0


@pytest.mark.parametrize("seed", range(6))
def test_ap50_and_sizes_of_a_class_are_those_of_the_evaluation(seed):
    rng = np.random.default_rng(seed)
    rows, records = [], []
    for image in range(1, 9):
        for _ in range(rng.integers(0, 6)):
            box = [*rng.uniform(0, 60, 2), *rng.uniform(8, 120, 2)]
            crowd = int(rng.random() < 0.15)
            category = int(rng.integers(1, 4))
            rows.append({"id": len(rows) + 1, "image_id": image, "category_id": category, "bbox": box})
            rows[-1] |= {"area": box[2] * box[3], "iscrowd": crowd}
            for _ in range(rng.integers(0, 4)):
                moved = [value + rng.normal(0, 3) for value in box]
                moved[2:] = np.maximum(moved[2:], 1)
                label = category if rng.random() < 0.7 else int(rng.integers(1, 4))
                # Few different scores: of equal ones the evaluator's order counts.
                score = round(float(rng.random()), 1)
                records.append({"image_id": image, "category_id": label, "bbox": list(moved), "score": score})
    content = {"images": [{"id": n, "height": 300, "width": 300, "file_name": f"{n}.png"} for n in range(1, 9)]}
    content |= {"annotations": rows, "categories": [{"id": n, "name": f"c{n}"} for n in (1, 2, 3)]}
    index = load_coco(content)
    expected = evaluate_detections(index, records)
    errors = decompose(index.imgToAnns, records, sorted(index.imgs))
    assert errors.ap50 == pytest.approx(expected["AP50"], abs=1e-12)
    assert expected.precision_by_size.shape == (10, 101, 3, 4)
    for place, category in enumerate((1, 2, 3)):
        part = {**content, "annotations": [row for row in rows if row["category_id"] == category]}
        alone = evaluate_detections(part, [row for row in records if row["category_id"] == category])
        numbers = average_precisions(expected.precision_by_size[:, :, place : place + 1])
        assert numbers == pytest.approx({name: alone[name] for name in numbers}, abs=1e-12, nan_ok=True)


# ---- what is observed ----------------------------------------------------------------


@pytest.mark.parametrize("head", [{}, {"quality": None}, {"kind": "atss"}, {"quality": "both"}])
def test_positive_points_have_the_scores_and_boxes_of_the_decoder(tmp_path, head):
    if head.get("kind") == "atss":
        head = {**head, "quality": None}
    model = small_model(**head)
    dataset = CocoDetection(write_data(tmp_path), config=model.config.data, class_names=NAMES)
    batch = collate([dataset[0], dataset[1]])
    with torch.inference_mode():
        output = model(batch.images)
        seen = _at_positives(model.bbox_head, output, batch)
        decoded = model.bbox_head.decode(output, pre_topk=10**6, score_thr=0.0)
        assignment = model.bbox_head.assign(output, batch.boxes, batch.labels, batch.padded_sizes, batch.ignore_boxes)
    count = sum(height * width for height, width in shapes_of(output.class_logits))
    assert decoded.boxes.shape[1] == count and len(seen["image"])
    expected = []
    for image in range(2):
        back = decoded.points[image].argsort()
        boxes, scores = decoded.boxes[image][back], decoded.scores[image][back]
        for place in (assignment.index[image] > 0).nonzero()[:, 0].tolist():
            number = int(assignment.index[image, place]) - 1
            label = int(batch.labels[image][number])
            overlap = box_iou(boxes[place : place + 1], batch.boxes[image][number : number + 1]).item()
            expected.append((image, label, scores[place, label].item(), overlap))
    columns = [np.array(column) for column in zip(*expected, strict=True)]
    for name, column in zip(("image", "label", "score", "iou"), columns, strict=True):
        np.testing.assert_allclose(seen[name].numpy(), column, rtol=1e-4, atol=1e-5, err_msg=name)
    assert ("top1" in seen) == (head.get("kind") != "atss")
    assert ("quality" in seen) == (head.get("quality", "") is not None or head.get("kind") == "atss")
    if "quality" in seen:
        logits = output.quality_logits
        if logits is None:
            logits = model.bbox_head.targets(output, assignment, batch.boxes, batch.padded_sizes).quality
        np.testing.assert_allclose(seen["quality"], logits.sigmoid()[assignment.index > 0], rtol=1e-4)


# ---- the report ----------------------------------------------------------------


class Page(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("href", "src", "xlink:href", "action")]
        assert not any(name.startswith("on") for name, _ in attributes)

    def handle_data(self, content):
        self.text += content


def table(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analysis")
    model = small_model().train()
    found = analyze(model, write_data(folder / "data"), output=folder / "out", threshold=0.0, sides=3, progress=False)
    assert model.training
    return found, folder / "out"


def test_the_page_stands_alone_and_escapes_names(analysis):
    _, folder = analysis
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags and "link" not in page.tags and "img" not in page.tags and "b" in page.tags
    assert page.addresses and all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    for name in (*NAMES, FILE):
        assert name in page.text
    assert "url(" not in (folder / "report.html").read_text() and "@import" not in (folder / "report.html").read_text()


def test_the_raw_numbers_are_those_of_the_result(analysis):
    found, folder = analysis
    content = json.loads((folder / "analysis.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert content["pearson"] == {name: pytest.approx(value, nan_ok=True) for name, value in found.pearson.items()}
    assert set(found.pearson) == {
        "score_iou_points", "quality_iou_points", "top1_iou_points", "score_iou_detections", "top1_iou_detections",
        "score_iou_near", "top1_iou_near",
    }  # fmt: skip
    assert content["objects"] == 3 and content["images"] == 2 and len(content["uncertain"]) == 3
    rows = table(folder / "points.csv")
    x, y = (np.array([float(row[name]) for row in rows]) for name in ("top1", "iou"))
    assert np.corrcoef(x, y)[0, 1] == pytest.approx(found.pearson["top1_iou_points"], abs=1e-3)
    rows = table(folder / "detections.csv")
    assert len(rows) == found.detections == len(found.observations.top1)
    assert {row["class"] for row in rows} <= set(NAMES)
    assert len(table(folder / "precision_recall.csv")) == 101
    assert [row["objects"] for row in table(folder / "classes.csv")] == ["2", "1"]


def test_the_mark_of_a_chart_stands_at_the_expectation():
    picture = distribution_chart([40.0, 30.0, 20.0, 10.0], [0.1, 0.2, 0.3, 0.4])  # a left side: the mean is 20
    bars = [float(x) for x in re.findall(r'<rect x="([\d.]+)"', picture)]
    mark = float(re.search(r'<line x1="([\d.]+)"', picture)[1])
    width = bars[1] - bars[0]
    assert mark == pytest.approx(bars[1] + (width - 2) / 2, abs=0.1)  # the middle of the bar of 20
    heights = [float(height) for height in re.findall(r'height="([\d.]+)" fill', picture)]
    assert heights == sorted(heights, reverse=True)


def test_uncertain_sides_are_the_broadest(analysis):
    found, _ = analysis
    entropies = [side.entropy for side in found.uncertain]
    assert entropies == sorted(entropies, reverse=True)
    best = found.observations.entropy.max(1)
    assert entropies[0] == pytest.approx(best.max(), abs=1e-5)
    for side in found.uncertain:
        mean = sum(p * x for p, x in zip(side.probabilities, side.positions, strict=True))
        edge = side.box["left top right bottom".split().index(side.side)]
        limit = (180 if side.side in ("left", "right") else 120) if side.image_id == 7 else 100
        assert min(max(mean, 0), limit) == pytest.approx(edge, abs=1e-2)  # the box is clipped, the bins are not


def test_an_atss_model_says_what_does_not_apply(tmp_path):
    model = small_model(kind="atss", quality=None)
    found = analyze(model, write_data(tmp_path), output=tmp_path / "out", progress=False)
    assert set(found.pearson) == {"score_iou_points", "quality_iou_points", "score_iou_detections", "score_iou_near"}
    assert "no distributions" in found.notes[0] and found.uncertain == []
    page = Page((tmp_path / "out/report.html").read_text())
    assert "no distributions" in page.text and "uncertain sides do not apply" in page.text
    assert "top1" not in (tmp_path / "out/points.csv").read_text().splitlines()[0]


def test_views_of_an_image_are_not_used_which_is_said(tmp_path):
    model = small_model()
    model.config.test.tta.flip = True
    found = analyze(model, write_data(tmp_path), progress=False)
    assert found.notes[0] == "Each image was seen once: test.tta is set, but not used here."
    assert str(found).count("test.tta") == 1


def test_data_without_objects(tmp_path):
    path = write_data(tmp_path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    found = analyze(small_model(), path, output=tmp_path / "out", progress=False)
    assert math.isnan(found.ap["AP"]) and "no objects" in " ".join(found.notes) and "–" in str(found)
    json.loads((tmp_path / "out/analysis.json").read_text(), parse_constant=lambda text: pytest.fail(text))


@pytest.mark.parametrize("options", [{"threshold": 1.5}, {"threshold": math.nan}, {"sides": -1}, {"batch_size": 0}])
def test_numbers_out_of_range(options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        analyze(small_model(), "missing.json", **options)


def test_a_command_line(tmp_path, capsys, monkeypatch):
    path = write_data(tmp_path / "data")
    small_model(quality=None).save(tmp_path / "m.pt")
    arguments = ["analyze", str(tmp_path / "m.pt"), str(path), "--output", str(tmp_path / "out"), "--no-progress"]
    assert main([*arguments, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"score and IoU, at positive points +-?\d\.\d{3} +\d+", said)
    assert "no quality predictor" in said and str(tmp_path / "out" / "report.html") in said
    assert main([*arguments[:2], str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_a_network_that_others_trained_knows_its_boxes(tmp_path):
    """NanoDet-m on the first images of coco_mini: a score and a sharp distribution tell of a good box."""
    model = GFLV2(weights=data("nanodet_m") / "nanodet_m_320.onnx")
    folder = data("coco_mini")
    content = json.loads((folder / "instances_val.json").read_text())
    content["images"] = content["images"][:12]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    (tmp_path / "part.json").write_text(json.dumps(content))
    found = analyze(model, tmp_path / "part.json", image_dir=folder / "images", workers=0, progress=False)
    assert found.pearson["score_iou_points"] > 0.4 and found.pearson["top1_iou_points"] > 0.4
    assert found.pearson["top1_iou_near"] > found.pearson["top1_iou_detections"] + 0.2
    near = found.errors.overlaps[np.array(found.errors.kinds) != "on a crowd"] >= 0.1
    assert found.relations["score_iou_near"].samples == near.sum() < found.relations["score_iou_detections"].samples
    assert "quality_iou_points" not in found.pearson and found.errors.ap50 == pytest.approx(found.ap["AP50"], abs=1e-12)
