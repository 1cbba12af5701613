import json

import numpy as np
import pytest
from PIL import Image

from gflv2.config import DataConfig
from gflv2.data import CocoDetection, find_image_folder, load_coco
from tests.data.generated import annotation, picture, write_set
from tests.shared import data

SMALL = DataConfig(long_side=96, short_side=[64, 64], test_short_side=64, flip=0.0)


def test_gaps_in_category_ids_are_closed_in_the_order_of_ids(tmp_path):
    rows = [annotation(1, (5, 5, 20, 20), 90), annotation(1, (30, 5, 20, 20), 3), annotation(1, (5, 30, 20, 20), 17)]
    path = write_set(tmp_path, [(64, 64)], rows, categories={90: "z", 3: "a", 17: "m"})
    dataset = CocoDetection(path, config=SMALL)
    assert dataset.class_names == ["a", "m", "z"]
    assert dataset.category_ids == [3, 17, 90]
    assert dataset[0].labels.tolist() == [2, 0, 1]


def test_class_names_decide_the_labels(tmp_path):
    rows = [annotation(1, (5, 5, 20, 20), 90), annotation(1, (30, 5, 20, 20), 3)]
    path = write_set(tmp_path, [(64, 64)], rows, categories={90: "z", 3: "a", 17: "unused"})
    dataset = CocoDetection(path, config=SMALL, class_names=["other", "z", "a"])
    assert dataset[0].labels.tolist() == [1, 2]
    assert dataset.category_ids == [None, 90, 3]
    with pytest.raises(ValueError, match=r"\['a'\] have annotations but are not among the class_names \['z'\]"):
        CocoDetection(path, config=SMALL, class_names=["z"])
    with pytest.raises(ValueError, match="every name once"):
        CocoDetection(path, config=SMALL, class_names=["z", "a", "a"])


def test_one_rule_says_which_boxes_count_and_crowds_are_kept_apart(tmp_path):
    rows = [
        annotation(1, (10, 10, 20, 20)),
        annotation(1, (20, 20, 10, 10), ignore=1),  # a crowd by another name
        annotation(1, (11, 10, 20, 20), area=0),  # the area is that of a mask, and says nothing about the box
        annotation(1, (10, 10, 0.9, 20)),
        annotation(1, (10, 10, 20, 0.9)),
        annotation(1, (64, 10, 20, 20)),  # begins at the right edge: outside
        annotation(1, (10, -30, 20, 30)),
        annotation(1, (60, 60, 20, 20)),  # reaches over the edge: clipped
        annotation(1, (0, 0, 40, 40), iscrowd=1),
        annotation(1, (64, 0, 40, 40), iscrowd=1),  # a crowd outside is left out too
    ]
    path = write_set(tmp_path, [(64, 64)], rows)
    dataset = CocoDetection(path, config=SMALL)
    sample = dataset[0]
    assert sample.boxes.tolist() == [[10, 10, 30, 30], [11, 10, 31, 30], [60, 60, 64, 64]]
    assert sample.labels.tolist() == [0, 0, 0]
    assert sample.ignore_boxes.tolist() == [[20, 20, 30, 30], [0, 0, 40, 40]]
    assert dataset.left_out["annotations"] == 5
    evaluated = [(a["bbox"], a["iscrowd"]) for a in load_coco(path).dataset["annotations"]]
    assert evaluated == [
        ([10, 10, 20, 20], 0),
        ([20, 20, 10, 10], 1),
        ([11, 10, 20, 20], 0),
        ([60, 60, 4, 4], 0),
        ([0, 0, 40, 40], 1),
    ]


def test_training_leaves_out_images_without_targets_and_small_ones(tmp_path):
    rows = [
        annotation(1, (5, 5, 20, 20)),
        annotation(3, (5, 5, 20, 20), iscrowd=1),
        annotation(4, (5, 5, 20, 20)),
        annotation(5, (5, 5, 20, 20)),
    ]
    path = write_set(tmp_path, [(64, 64), (64, 80), (64, 64), (31, 64), (32, 64)], rows)
    assert CocoDetection(path, config=SMALL, train=True).image_ids == [1, 5]
    keeping = DataConfig(**{**vars(SMALL), "keep_empty": True})
    negatives = CocoDetection(path, config=keeping, train=True)
    assert negatives.image_ids == [1, 2, 3, 5]
    assert negatives[1].boxes.shape == (0, 4) and negatives[1].labels.shape == (0,)
    assert negatives[2].ignore_boxes.shape == (1, 4)
    everything = CocoDetection(path, config=SMALL)
    assert everything.image_ids == [1, 2, 3, 4, 5]
    assert everything.aspect_groups.tolist() == [False, True, False, True, True]


def test_no_image_left_is_an_error(tmp_path):
    path = write_set(tmp_path, [(64, 64)], [])
    with pytest.raises(ValueError, match="no image is left for training.*'images without boxes': 1"):
        CocoDetection(path, config=SMALL, train=True)


def test_a_missing_image_is_named(tmp_path):
    path = write_set(tmp_path, [(64, 64), (64, 64)], [annotation(2, (5, 5, 20, 20))])
    dataset = CocoDetection(path, config=SMALL)
    (tmp_path / "images" / "0002.png").unlink()
    with pytest.raises(FileNotFoundError, match="0002.png"):
        dataset[1]
    with pytest.raises(FileNotFoundError, match="0001.png.*elsewhere"):
        CocoDetection(path, tmp_path / "elsewhere", config=SMALL)


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("instances.json", "images"),
        ("instances.json", "."),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val.json", "images/val"),
        ("annotations/anything.json", "images"),
        ("annotations/instances_val.json", "."),
    ],
)
def test_image_folders_are_found_beside_the_file(tmp_path, file, images):
    path = write_set(tmp_path, [(64, 64)], [annotation(1, (5, 5, 20, 20))], file=file, images=images)
    assert CocoDetection(path, config=SMALL).path(0).samefile(tmp_path / images / "0001.png")


def test_file_names_may_hold_folders_and_none_found_lists_the_places(tmp_path):
    (tmp_path / "train").mkdir()
    Image.fromarray(picture(64, 64)).save(tmp_path / "train" / "a.png")
    file = tmp_path / "annotations" / "all.json"
    assert find_image_folder(file, None, ["train/a.png"]).samefile(tmp_path)
    with pytest.raises(FileNotFoundError, match="'b.png'.*give the folder of the images"):
        find_image_folder(file, None, ["b.png"])


def test_sizes_left_out_of_the_file_are_read_from_the_images(tmp_path):
    path = write_set(tmp_path, [(48, 80)], [annotation(1, (70, 5, 20, 20))])
    content = json.loads(path.read_text())
    for key in ("width", "height"):
        del content["images"][0][key]
    path.write_text(json.dumps(content))
    dataset = CocoDetection(path, config=SMALL)
    assert dataset[0].original_size == (48, 80)
    assert dataset.aspect_groups.tolist() == [True]


def test_incomplete_annotations_are_completed(tmp_path):
    path = write_set(tmp_path, [(64, 64)], [annotation(1, (5, 5, 20, 10)), annotation(1, (5, 5, 4, 4))])
    content = json.loads(path.read_text())
    content["annotations"][0]["id"] = 0
    index = load_coco(content)
    assert sorted(index.anns) == [1, 2]
    assert [index.anns[i]["area"] for i in (1, 2)] == [200, 16]
    assert index.anns[1]["iscrowd"] == 0
    assert "area" not in content["annotations"][0], "the caller's records must not change"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), "list under the key 'categories'"),
        (lambda c: c["annotations"][0].pop("bbox"), "annotation 1: expected 'bbox'"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), r"four numbers .* got \[1, 2, 3\]"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 4]), "annotation 1: expected 'bbox'"),
        (lambda c: c["annotations"][0].update(category_id=9), "category_id 9 is not among the categories"),
        (lambda c: c["annotations"][0].pop("image_id"), "expected the key 'image_id'"),
        (lambda c: c["images"].append(c["images"][0]), "image id 1 stands twice"),
    ],
)
def test_broken_files_are_refused_with_the_record(tmp_path, change, message):
    path = write_set(tmp_path, [(64, 64)], [annotation(1, (5, 5, 20, 20))])
    content = json.loads(path.read_text())
    change(content)
    with pytest.raises(ValueError, match=message):
        load_coco(content)


def test_missing_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.json"):
        load_coco(tmp_path / "absent.json")
    (tmp_path / "text.json").write_text("no JSON")
    with pytest.raises(ValueError, match="text.json.*is not JSON"):
        load_coco(tmp_path / "text.json")


def test_nothing_is_printed(tmp_path, capsys):
    load_coco(write_set(tmp_path, [(64, 64)], []))
    assert capsys.readouterr() == ("", "")


def test_coco_mini_matches_its_file():
    folder = data("coco_mini")
    dataset = CocoDetection(folder / "instances_val.json", config=SMALL)
    assert len(dataset) == 55 and dataset.num_classes == 80
    assert dataset.category_ids[0] == 1 and dataset.category_ids[-1] == 90
    content = json.loads((folder / "instances_val.json").read_text())
    crowds = sum(a["iscrowd"] for a in content["annotations"])
    assert crowds > 0, "the set is known to hold crowds"
    samples = [dataset[i] for i in range(len(dataset))]
    assert sum(len(s.ignore_boxes) for s in samples) == crowds
    assert sum(len(s.boxes) for s in samples) == len(content["annotations"]) - crowds - dataset.left_out["annotations"]
    for sample in samples[:10]:
        rows = [a for a in content["annotations"] if a["image_id"] == sample.image_id and not a["iscrowd"]]
        boxes = np.array([a["bbox"] for a in rows]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(sample.boxes / sample.boxes.new_tensor(sample.scale_factor * 2), boxes, atol=0.02)
        assert [dataset.category_ids[label] for label in sample.labels] == [a["category_id"] for a in rows]


def test_bccd_is_read():
    dataset = CocoDetection(data("bccd") / "instances_train.json", config=SMALL, train=True)
    assert len(dataset) == 205 and dataset.class_names == ["RBC", "WBC", "Platelets"]
    assert dataset[0].image.shape == (3, 64, 85)
