import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gflv2.config import DataConfig
from gflv2.data import CocoDetection, shapes
from gflv2.engine.evaluate import CocoEvaluator
from tests.data.formats import write_voc, write_yolo
from tests.shared import data

CONFIG = DataConfig(long_side=96, short_side=[64, 64], test_short_side=64, flip=0.0)


def by_name(dataset):
    """Size, boxes and labels of each image, by the image's name; boxes in a fixed order."""
    found = {}
    for item in range(len(dataset)):
        boxes, labels = dataset.annotations(item)
        rows = sorted((*box, label) for box, label in zip(boxes.tolist(), labels.tolist(), strict=True))
        found[dataset.path(item).name] = (dataset.size(item), rows)
    return found


def copies(content, images, folder, class_names, split="val", **options):
    """The data set read from COCO, YOLO and Pascal VOC."""
    coco = folder / f"instances_{split}.json"
    coco.write_text(json.dumps(content))
    sources = {
        "coco": (coco, images),
        "yolo": (write_yolo(content, images, folder / "yolo", split), None),
        "voc": (write_voc(content, images, folder / "voc", split), None),
    }
    return {
        name: CocoDetection(source, image_dir, config=CONFIG, class_names=class_names, split=split, **options)
        for name, (source, image_dir) in sources.items()
    }


def scores(dataset):
    """The evaluation of detections that depend on the image's name only."""
    evaluator = CocoEvaluator(dataset)
    for item, image_id in enumerate(dataset.image_ids):
        rng = np.random.default_rng([ord(c) for c in dataset.path(item).name])
        _, rows = by_name(dataset)[dataset.path(item).name]
        boxes = np.array([row[:4] for row in rows], dtype=np.float32).reshape(-1, 4)
        moved = boxes + rng.normal(0, 0.08, boxes.shape) * (boxes[:, 2:] - boxes[:, :2]).repeat(2, axis=1)
        found = SimpleNamespace(
            boxes=torch.from_numpy(moved),
            scores=torch.from_numpy(rng.uniform(0.1, 1, len(rows))),
            labels=torch.tensor([max(int(row[4]), 0) for row in rows], dtype=torch.int64),
        )
        evaluator.update([image_id], [found])
    return dict(evaluator.compute())


def test_bccd_is_the_same_from_coco_yolo_and_voc(tmp_path):
    folder = data("bccd")
    content = json.loads((folder / "instances_val.json").read_text())
    sets = copies(content, folder / "images", tmp_path, ["RBC", "WBC", "Platelets"])
    boxes = {name: by_name(dataset) for name, dataset in sets.items()}
    assert len(boxes["coco"]) == 87 and sum(len(rows) for _, rows in boxes["coco"].values()) == 1137
    assert boxes["yolo"] == boxes["coco"] and boxes["voc"] == boxes["coco"], "to the last digit: its boxes are whole"
    measured = {name: scores(dataset) for name, dataset in sets.items()}
    assert 0.3 < measured["coco"]["AP"] < 0.9
    assert measured["yolo"] == measured["coco"] and measured["voc"] == measured["coco"]
    trained = copies(content, folder / "images", _folder(tmp_path), ["RBC", "WBC", "Platelets"], "train", train=True)
    assert by_name(trained["yolo"]) == by_name(trained["voc"]) == by_name(trained["coco"])


def _folder(tmp_path):
    (tmp_path / "train").mkdir()
    return tmp_path / "train"


def test_boxes_in_fractions_of_pixels_differ_by_the_rounding_alone(tmp_path):
    files = shapes.generate(tmp_path / "shapes", train=1, val=6, size=(120, 144))
    content = json.loads(files.val.read_text())
    for number, row in enumerate(content["annotations"]):
        row["bbox"] = [value + 0.001 * (number % 7) for value in row["bbox"]]
    sets = copies(content, files.val_images, tmp_path, list(shapes.CLASS_NAMES))
    boxes = {name: by_name(dataset) for name, dataset in sets.items()}
    assert boxes["voc"] == boxes["coco"]
    for name, (size, rows) in boxes["coco"].items():
        assert boxes["yolo"][name][0] == size
        np.testing.assert_allclose(boxes["yolo"][name][1], rows, atol=0.0051)


@pytest.mark.parametrize("form", ["coco", "yolo", "voc"])
def test_items_carry_their_images_and_go_through_the_loader(tmp_path, form):
    files = shapes.generate(tmp_path / "shapes", train=1, val=3, size=(96, 128))
    content = json.loads(files.val.read_text())
    dataset = copies(content, files.val_images, tmp_path, list(shapes.CLASS_NAMES))[form]
    assert sorted(dataset.path(i).name for i in range(3)) == ["000001.jpg", "000002.jpg", "000003.jpg"]
    sample = dataset[0]
    assert sample.image.shape == (3, 64, 85) and len(sample.boxes) == len(sample.labels) > 0
    assert sample.image_id in dataset.index.imgs


def test_a_folder_of_images_has_images_without_boxes(tmp_path):
    folder = tmp_path / "photos"
    shapes.generate(tmp_path / "shapes", train=1, val=2, size=(96, 128)).val_images.rename(folder)
    (folder / "deep").mkdir()
    (folder / "000002.jpg").rename(folder / "deep" / "b.jpg")
    (folder / "notes.md").write_text("no image")
    dataset = CocoDetection(folder, config=CONFIG, class_names=["a", "b"])
    assert [dataset.path(i).relative_to(folder).as_posix() for i in range(2)] == ["000001.jpg", "deep/b.jpg"]
    assert dataset.class_names == ["a", "b"] and dataset.category_ids == [None, None]
    assert dataset[1].original_size == (96, 128) and dataset[1].boxes.shape == (0, 4)
    with pytest.raises(ValueError, match="photos: a folder without annotations"):
        CocoDetection(folder, config=CONFIG, train=True)
    with pytest.raises(ValueError, match="shapes/annotations: holds no images"):
        CocoDetection(tmp_path / "shapes" / "annotations", config=CONFIG)


@pytest.fixture
def sample(tmp_path):
    files = shapes.generate(tmp_path / "shapes", train=2, val=1, size=(96, 128))
    return files, json.loads(files.train.read_text())


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_leads_to_the_file_in_it(sample, tmp_path, split, caplog):
    caplog.set_level("INFO")
    files, content = sample
    by_folder = CocoDetection(tmp_path / "shapes", config=CONFIG, split=split)
    named = CocoDetection(files.train if split == "train" else files.val, config=CONFIG)
    assert by_name(by_folder) == by_name(named)
    assert any(f"read as instances_{split}.json says" in message for message in caplog.messages)
    folder = tmp_path / "export" / "train"
    files.train_images.rename(folder.parent.mkdir() or folder)
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    assert len(CocoDetection(tmp_path / "export", config=CONFIG, split="train")) == 2
    yolo = write_yolo(content, folder, tmp_path / "yolo", "train")
    assert len(CocoDetection(yolo.parent, config=CONFIG, split="train")) == 2


def test_a_folder_of_two_descriptions_is_refused(sample, tmp_path):
    files, content = sample
    yolo = write_yolo(content, files.train_images, tmp_path / "yolo", "train")
    (yolo.parent / "other.yml").write_text(yolo.read_text())
    with pytest.raises(ValueError, match="yolo: holds data.yaml, other.yml; name one of them"):
        CocoDetection(yolo.parent, config=CONFIG, split="train")
    (yolo.parent / "other.yml").write_text("learning_rate: 1\n")
    assert len(CocoDetection(yolo.parent, config=CONFIG, split="train")) == 2


def test_what_is_no_data_set_is_refused_with_a_hint(tmp_path):
    for name, hint in (("a.txt", "give the YAML file"), ("a.xml", "give its folder")):
        (tmp_path / name).write_text("x")
        with pytest.raises(ValueError, match=hint):
            CocoDetection(tmp_path / name, config=CONFIG)
    for name in ("absent.yaml", "absent.json", "absent"):
        with pytest.raises(FileNotFoundError, match=f"{name}' does not exist"):
            CocoDetection(tmp_path / name, config=CONFIG)


def test_a_list_of_the_challenge_names_the_part(sample, tmp_path):
    files, content = sample
    folder = write_voc(content, files.train_images, tmp_path / "voc", "trainval")
    dataset = CocoDetection(folder / "ImageSets" / "Main" / "trainval.txt", config=CONFIG, train=True)
    assert len(dataset) == 2 and dataset.class_names == sorted(dataset.class_names)


def test_problems_survive_the_way_to_a_worker(sample):
    import pickle

    files, _ = sample
    dataset = CocoDetection(files.train, config=CONFIG)
    again = pickle.loads(pickle.dumps(dataset))
    assert dataset.index is not None and again.index is None
    assert by_name(again) == by_name(dataset) and torch.equal(again[0].image, dataset[0].image)
