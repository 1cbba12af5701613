"""Detections written as YOLO, Pascal VOC and CSV, read back by our own readers; and handed to `supervision`."""

from __future__ import annotations

import csv
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gflv2.data import CocoDetection
from gflv2.engine.formats import LabelFiles
from gflv2.engine.results import Result

NAMES = ("red cell", "it's", "ünnamed")
BOXES = [[10.25, 5.5, 40.75, 30.0], [0.0, 0.0, 100.0, 60.0]]


def result(path: Path, boxes: list = BOXES, labels: tuple[int, ...] = (2, 1)) -> Result:
    scores = torch.tensor([0.9, 0.25])[: len(boxes)]
    rows = torch.tensor(boxes).reshape(-1, 4)
    image = np.zeros((60, 100, 3), dtype=np.uint8)
    return Result(rows, scores, torch.tensor(labels[: len(boxes)], dtype=torch.int64), NAMES, image, path)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    files = LabelFiles(tmp_path, ["yolo", "voc", "csv"], NAMES)
    files.add(result(Path("a/photo.jpg")))
    files.add(result(Path("b/photo.jpg"), BOXES[:1], (0,)))
    files.add(result(Path("b/empty.png"), []))
    return tmp_path


@pytest.mark.parametrize("kind", ["yolo", "voc"])
def test_our_readers_read_them(kind: str, written: Path) -> None:
    for name in ("photo.jpg", "photo_2.jpg", "empty.jpg"):
        folder = written / kind / "images" if kind == "yolo" else written / kind
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (100, 60)).save(folder / name)
    source = written / "yolo" / "data.yaml" if kind == "yolo" else written / "voc"
    if kind == "yolo":
        # As labels: five columns, and the sets named.
        for file in (written / "yolo" / "labels").iterdir():
            file.write_text("".join(line.rpartition(" ")[0] + "\n" for line in file.read_text().splitlines()))
        source.write_text("train: images\nval: images\n" + source.read_text())
    data = CocoDetection(source, train=False, class_names=NAMES)
    found = {data.path(index).stem: data.annotations(index) for index in range(len(data))}
    assert found.keys() == {"photo", "photo_2", "empty"}
    boxes, labels = found["photo"]
    np.testing.assert_allclose(boxes, BOXES, atol=1e-3)
    assert labels.tolist() == [2, 1] and found["photo_2"][1].tolist() == [0] and not len(found["empty"][0])


def test_csv_and_scores(written: Path) -> None:
    rows = list(csv.DictReader((written / "detections.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["file"], row["class"], float(row["score"])) for row in rows] == [
        ("a/photo.jpg", "ünnamed", 0.9),
        ("a/photo.jpg", "it's", 0.25),
        ("b/photo.jpg", "red cell", 0.9),
    ]
    assert [float(rows[0][side]) for side in ("x1", "y1", "x2", "y2")] == BOXES[0]
    assert (written / "yolo" / "labels" / "photo.txt").read_text().splitlines()[0].endswith(" 0.90000")
    assert "<score>0.25000</score>" in (written / "voc" / "photo.xml").read_text()


def test_an_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="formats: expected one of 'yolo', 'voc', 'csv', got 'xml'"):
        LabelFiles(tmp_path, ["xml"], NAMES)


def test_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    made = types.ModuleType("supervision")
    made.Detections = lambda **fields: types.SimpleNamespace(**fields)
    monkeypatch.setitem(sys.modules, "supervision", made)
    found = result(Path("photo.jpg")).to_supervision()
    np.testing.assert_array_equal(found.xyxy, np.float32(BOXES))
    assert found.confidence.dtype == np.float32 and found.class_id.tolist() == [2, 1]
    assert found.data["class_name"].tolist() == ["ünnamed", "it's"]
    assert result(Path("photo.jpg"), []).to_supervision().xyxy.shape == (0, 4)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs the package 'supervision'.*gflv2\[supervision\]"):
        result(Path("photo.jpg")).to_supervision()
