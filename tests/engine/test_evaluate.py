import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gflv2.config import Config, DataConfig
from gflv2.data import CocoDetection, load_coco, make_loader, shapes
from gflv2.engine.evaluate import ENGINES, METRICS, CocoEvaluator, evaluate, evaluate_detections
from tests.shared import data

# What pycocotools gives for data("coco_evalcheck"), to six digits; its README lists them in this order.
EVALCHECK = (
    .503647, .696973, .571667, .593252, .557991, .489363, .386813, .593680, .595353, .654764, .603130, .553744,
)  # fmt: skip


@pytest.fixture(params=ENGINES)
def engine(request):
    if request.param == "faster-coco-eval":
        pytest.importorskip("faster_coco_eval")
    return request.param


def test_the_twelve_numbers_of_known_detections(engine, capfd):
    folder = data("coco_evalcheck")
    files = folder / "sampled_gts_bbox_area.json", folder / "cocoapi_results.json"
    result = evaluate_detections(*files, engine=engine)
    assert tuple(result) == METRICS
    for name, expected in zip(METRICS, EVALCHECK, strict=True):
        assert abs(result[name] - expected) <= 1e-6, f"{name}: {result[name]} instead of {expected}"
    assert (result.images, result.detections) == (100, 734)
    assert result["AP"] == pytest.approx(np.nanmean([row["AP"] for row in result.per_class.values()]), abs=1e-9)
    assert result["AP50"] == pytest.approx(np.nanmean([row["AP50"] for row in result.per_class.values()]), abs=1e-9)
    assert len(result.per_class) == 80 and math.isnan(result.per_class["fire hydrant"]["AP"])
    assert capfd.readouterr() == ("", ""), "the evaluators' own prints must not show"


def square(image_id, x, side=40, category=1, **more):
    return {"image_id": image_id, "category_id": category, "bbox": [x, 10, side, side], **more}


def truth(*annotations, images=2, categories=("a", "b")):
    rows = [{"id": i, "area": a["bbox"][2] * a["bbox"][3], "iscrowd": 0, **a} for i, a in enumerate(annotations, 1)]
    return {
        "images": [{"id": i + 1, "width": 200, "height": 200, "file_name": f"{i}.png"} for i in range(images)],
        "annotations": rows,
        "categories": [{"id": 10 * i + 1, "name": name} for i, name in enumerate(categories)],
    }


def test_perfect_detections_score_one(engine):
    gt = truth(square(1, 10), square(2, 100, category=11))
    found = [square(1, 10, score=0.9), square(2, 100, category=11, score=0.8)]
    result = evaluate_detections(gt, found, engine=engine)
    assert [result[name] for name in ("AP", "AP50", "AR1", "AP_medium")] == pytest.approx([1, 1, 1, 1])
    assert math.isnan(result["AP_small"]) and math.isnan(result["AR_large"])
    assert result.per_class == {"a": {"AP": pytest.approx(1), "AP50": pytest.approx(1)}} | {
        "b": {"AP": pytest.approx(1), "AP50": pytest.approx(1)}
    }


def test_a_known_precision(engine):
    """One of two objects found, IoU 0.6: hits at the thresholds .50, .55, .60, each with recall 0.5.

    Precision is 1 up to recall 0.5, that is at 51 of the 101 recall points.
    """
    gt = truth(square(1, 10), square(1, 140), images=1, categories=("a",))
    found = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 24.001], "score": 0.7}]
    result = evaluate_detections(gt, found, engine=engine)
    assert result["AP50"] == pytest.approx(51 / 101)
    assert result["AP75"] == 0
    assert result["AP"] == pytest.approx(3 / 10 * 51 / 101)
    assert result["AR100"] == pytest.approx(3 / 10 * 0.5)


def test_an_image_of_two_hundred_objects_is_measured_as_far_as_asked(engine):
    squares = [{"image_id": 1, "category_id": 1, "bbox": [10 * i, 10 * j, 8, 8]} for i in range(20) for j in range(10)]
    gt, found = truth(*squares, images=1, categories=("a",)), [{**s, "score": 0.9} for s in squares]
    hundred, all_of_them = (evaluate_detections(gt, found, engine=engine, max_detections=n) for n in (100, 200))
    assert hundred["AP"] == pytest.approx(51 / 101, abs=1e-3) and hundred["AR100"] == pytest.approx(0.5)
    assert all_of_them["AP"] == pytest.approx(1) and all_of_them["AR100"] == pytest.approx(1)
    assert "AR   200 per image" in all_of_them.table() and all_of_them.to_dict()["max_detections"] == 200
    assert evaluate_detections(gt, found, engine=engine, max_detections=5)["AR10"] == pytest.approx(5 / 200)
    with pytest.raises(ValueError, match="max_detections: expected an integer ≥ 1, got 0"):
        evaluate_detections(gt, found, max_detections=0)


def test_nothing_found_is_zero(engine):
    result = evaluate_detections(truth(square(1, 10)), [], engine=engine)
    assert result["AP"] == 0 and result["AR100"] == 0 and result.detections == 0
    assert result.per_class["a"] == {"AP": 0, "AP50": 0}
    assert math.isnan(result.per_class["b"]["AP"]), "a class without objects has no AP"


@pytest.mark.parametrize("found", [[], [square(1, 10, score=0.5)]])
def test_no_objects_are_nan(engine, found):
    result = evaluate_detections(truth(), found, engine=engine)
    assert all(math.isnan(value) for value in result.values()) and result.images == 2
    assert math.isnan(result.per_class["a"]["AP50"])


def test_detections_on_images_without_objects_count_as_errors(engine):
    found = [square(2, 10, score=0.9), square(1, 10, score=0.5)]
    assert evaluate_detections(truth(square(1, 10)), found, engine=engine)["AP"] == pytest.approx(0.5)
    only = evaluate_detections(truth(square(1, 10)), found, image_ids=[1], engine=engine)
    assert only["AP"] == pytest.approx(1) and (only.images, only.detections) == (1, 1)
    assert evaluate_detections(truth(square(1, 10)), found, image_ids=[], engine=engine).images == 0


def test_crowds_excuse_detections_and_are_no_objects(engine):
    gt = truth(square(1, 10), square(1, 100, 80, iscrowd=1))
    found = [square(1, 10, score=0.5), square(1, 110, 20, score=0.9)]
    result = evaluate_detections(gt, found, engine=engine)
    assert result["AP"] == pytest.approx(1) and result.boxes == 1


def test_annotation_id_zero_is_matched_like_any_other(engine):
    gt = truth(square(1, 10, id=0))
    assert evaluate_detections(gt, [square(1, 10, score=0.5)], engine=engine)["AP"] == pytest.approx(1)


def test_inputs_are_not_changed(engine):
    gt, found = truth(square(1, 10)), [square(1, 10, score=0.5)]
    before = json.dumps([gt, found])
    evaluate_detections(gt, found, engine=engine)
    index = load_coco(gt)
    evaluate_detections(index, found, engine=engine)
    assert json.dumps([gt, found]) == before
    assert json.dumps(index.dataset["annotations"]) == json.dumps(gt["annotations"])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}, "record 1: expected image_id.*score"),
        (square(1, 10, score=0.5) | {"bbox": [1, 2, 3]}, "record 1: expected"),
        (square(1, 10, score=float("nan")), "record 1: expected finite numbers, got .*nan"),
        (square(1, 10, score=0.5) | {"bbox": [1, float("inf"), 3, 4]}, "record 1: expected finite numbers"),
        (square(1, 10, score=0.5) | {"bbox": [1, 2, 10**400, 4]}, "record 1: expected image_id"),
        (square([1], 10, score=0.5), "record 1: expected image_id"),
        ("no record", "record 1: expected image_id"),
        (square(7, 10, score=0.5), "record 1: image_id 7 is not in the ground truth"),
        (square(1, 10, category=2, score=0.5), "record 1: category_id 2 is not in the ground truth"),
    ],
)
def test_wrong_records_are_named(record, message):
    with pytest.raises(ValueError, match=message):
        evaluate_detections(truth(square(1, 10)), [square(1, 10, score=0.5), record])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "file of detections .*found.json' is empty"),
        (b"[{", "file of detections .*found.json' is not JSON"),
        (b'{"annotations": []}', "expected a list of records"),
        (b"[" * 100_000, "is nested too deeply"),
    ],
)
def test_wrong_files_of_detections_are_named(tmp_path, text, message):
    (tmp_path / "found.json").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        evaluate_detections(truth(square(1, 10)), tmp_path / "found.json")


@pytest.mark.parametrize("ids", [("1", "2"), (-1, -2), (2**63 - 1, 2**63 - 2), (0, 1), ("ä", "10")])
def test_images_of_any_ids_are_told_apart(ids, engine):
    """Two images that differ in the last bit of their ids: with one of two objects found, AP is not 1."""
    gt = truth(square(1, 10), square(2, 100), categories=("a",))
    for image, annotation, own_id in zip(gt["images"], gt["annotations"], ids, strict=True):
        image["id"] = annotation["image_id"] = own_id
    both = [square(ids[0], 10, score=0.9), square(ids[1], 100, score=0.8)]
    assert evaluate_detections(gt, both, engine=engine)["AP"] == pytest.approx(1)
    assert evaluate_detections(gt, both[:1], engine=engine)["AP"] == pytest.approx(51 / 101)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="engine: expected one of 'pycocotools', 'faster-coco-eval', got 'fast'"):
        evaluate_detections(truth(), [], engine="fast")
    with pytest.raises(ValueError, match="engine: expected one of"):
        CocoEvaluator(truth(), engine="fast")
    with pytest.raises(ValueError, match="image_ids: 9 is not among the images"):
        evaluate_detections(truth(), [], image_ids=[9])


def test_result_as_text_and_json():
    result = evaluate_detections(truth(square(1, 10)), [square(1, 10, score=0.5)])
    text = result.table()
    assert "2 images, 1 boxes, 1 detections" in text and str(result) == text
    assert [line.split()[-2:] for line in text.splitlines() if line.startswith(("a ", "b "))] == [
        ["1.000", "1.000"],
        ["–", "–"],
    ]
    assert "class" not in result.table(per_class=False)
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["AP"] == pytest.approx(1) and plain["AP_small"] is None and plain["per_class"]["b"]["AP"] is None
    assert plain["images"] == 2


def detections(boxes=(), scores=(), labels=()):
    return SimpleNamespace(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores, dtype=torch.float32),
        labels=torch.tensor(labels, dtype=torch.int64),
    )


def test_the_accumulator_maps_labels_and_counts_each_image_once():
    gt = truth(square(1, 10), square(2, 100, category=11), images=3)
    evaluator = CocoEvaluator(gt, class_names=["unknown", "b", "a"])
    evaluator.update([1], [detections([[10, 10, 50, 50]], [0.9], [2])])
    evaluator.update([2], [detections([[100, 10, 140, 50], [0, 0, 9, 9]], [0.9, 0.95], [1, 0])])
    evaluator.update([2, 1], [detections([[0, 0, 50, 50]], [0.99], [1]), detections()])
    assert evaluator.records() == [
        {"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40], "score": pytest.approx(0.9)},
        {"image_id": 2, "category_id": 11, "bbox": [100, 10, 40, 40], "score": pytest.approx(0.9)},
    ], "class 'unknown' is not in the file, and the repeated images are left out"
    result = evaluator.compute()
    assert result["AP"] == pytest.approx(1) and result.images == 2
    evaluator.reset()
    evaluator.update([1, 2], [detections(), detections()])
    assert evaluator.compute()["AP"] == 0


def test_the_accumulator_checks_what_it_gets():
    evaluator = CocoEvaluator(truth(square(1, 10)))
    with pytest.raises(ValueError, match="expected one per image, 2, got 1"):
        evaluator.update([1, 2], [detections()])
    with pytest.raises(ValueError, match="expected labels of 2 classes, got labels from 2 to 2"):
        evaluator.update([1], [detections([[0, 0, 1, 1]], [0.5], [2])])
    with pytest.raises(ValueError, match=r"got shapes \(1, 4\), \(2,\) and \(1,\)"):
        evaluator.update([1], [detections([[0, 0, 1, 1]], [0.5, 0.4], [1])])
    assert CocoEvaluator(truth(square(1, 10))).compute().images == 0


class Oracle(torch.nn.Module):
    """Answers with the boxes of the data set, after the way through resized pixels and back that a detector takes."""

    def __init__(self, dataset: CocoDetection) -> None:
        super().__init__()
        self.samples = {tuple(s.image.shape) + (round(s.image.sum().item()),): s for s in dataset}
        self.calls = []

    def detect(self, images, image_sizes, scale_factors, **options):
        self.calls.append((self.training, torch.is_inference_mode_enabled(), options))
        found = []
        for image, (h, w), scale in zip(images, image_sizes, scale_factors, strict=True):
            own = image[:, :h, :w]
            sample = self.samples[tuple(own.shape) + (round(own.sum().item()),)]
            boxes = sample.boxes / scale.repeat(2)
            found.append(SimpleNamespace(boxes=boxes, scores=torch.ones(len(boxes)), labels=sample.labels))
        return found


@pytest.fixture(scope="module")
def sample_set(tmp_path_factory):
    return shapes.generate(tmp_path_factory.mktemp("shapes"), train=1, val=12, size=(120, 144))


CONFIG = DataConfig(long_side=213, short_side=[171, 171], test_short_side=171, workers=0)


def test_a_model_that_knows_the_boxes_scores_one(sample_set, tmp_path, capfd):
    dataset = CocoDetection(sample_set.val, config=CONFIG)
    model = Oracle(dataset)
    file = tmp_path / "not there yet" / "found.json"
    result = evaluate(model, dataset, batch_size=5, progress=False, save_detections=file, score_thr=0.3)
    assert result["AP"] > 0.999 and result.images == 12
    assert model.training, "the model's mode is restored"
    assert model.calls[0] == (False, True, {"score_thr": 0.3}) and len(model.calls) == 3
    assert capfd.readouterr() == ("", "")
    again = evaluate_detections(sample_set.val, file)
    assert dict(again) == pytest.approx(dict(result), nan_ok=True)
    model.class_names, model.config = dataset.class_names, Config(data=CONFIG)
    for source in (sample_set.val, make_loader(dataset, 12, train=False)):
        assert evaluate(model, source, progress=False)["AP"] > 0.999


def test_progress_is_shown_on_request(sample_set, capfd):
    dataset = CocoDetection(sample_set.val, config=CONFIG)
    evaluate(Oracle(dataset), dataset, batch_size=6)
    assert "evaluate: 100%" in capfd.readouterr().err


def test_only_evaluation_data_is_taken(sample_set, tmp_path):
    model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="train=False"):
        evaluate(model, CocoDetection(sample_set.val, config=CONFIG, train=True))
    folder = CocoDetection(sample_set.val_images, config=CONFIG)
    with pytest.raises(ValueError, match="a folder without annotations"):
        evaluate(model, folder, save_detections=tmp_path / "new" / "a.json")
    assert not (tmp_path / "new").exists()
    with pytest.raises(TypeError, match="a loader of CocoDetection, got one of list"):
        evaluate(model, torch.utils.data.DataLoader([1, 2]))


def _process(rank: int, world_size: int, file: str, val: Path, images: Path, results) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world_size)
    dataset = CocoDetection(val, images, config=CONFIG)
    result = evaluate(Oracle(dataset), dataset, batch_size=2, progress=False, save_detections=f"{file}.json")
    evaluator = CocoEvaluator(dataset)
    evaluator.update([-1], [detections()])  # an image that the file does not have
    try:
        evaluator.compute()
        message = "no error"
    except ValueError as error:
        message = str(error)
    results.put((rank, result["AP"], result.images, result.detections, message))
    torch.distributed.destroy_process_group()


def test_processes_share_the_work_and_the_result(sample_set, tmp_path):
    """11 images on 3 processes: one is repeated and must not count twice; an error reaches every process."""
    content = json.loads(sample_set.val.read_text())
    content["images"] = content["images"][:11]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] <= 11]
    val = sample_set.val.with_name("instances_eleven.json")
    val.write_text(json.dumps(content))
    context = torch.multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = (3, str(tmp_path / "store"), val, sample_set.val_images, results)
    processes = [context.Process(target=_process, args=(rank, *arguments)) for rank in range(3)]
    for process in processes:
        process.start()
    try:
        answers = [results.get(timeout=60) for _ in processes]
    finally:
        for process in processes:
            process.join(20)
            process.kill()
    assert sorted(answer[0] for answer in answers) == [0, 1, 2]
    for _, ap, images, count, message in answers:
        assert ap > 0.999 and images == 11 and count == len(content["annotations"])
        assert "-1 is not among the images" in message
    written = json.loads((tmp_path / "store.json").read_text())
    assert len(written) == len(content["annotations"]) and len({row["image_id"] for row in written}) == 11
