"""predict: every kind of source, the boxes in original pixels, and whole folders of files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gflv2 import GFLV2
from gflv2.data.files import images_below
from gflv2.engine.image_sources import read_source
from gflv2.engine.predict import ImageError, expand, predict, predict_files
from gflv2.ops import integral

NAMES = ["circle", "square", "star"]
SMALL = {
    "model": {
        "backbone": {"name": "tf_efficientnet_lite0", "frozen_stages": 0},
        "neck": {"channels": 16},
        "head": {"channels": 16, "stacked_convs": 1, "gn_groups": 4},
    },
    "data": {"long_side": 160, "short_side": [96, 96], "test_short_side": 96},
    "test": {"score_thr": 0.0, "iou_thr": 0.8, "max_detections": 30},
}


def make_model(**head) -> GFLV2:
    torch.manual_seed(0)
    config = {**SMALL, "model": {**SMALL["model"], "head": {**SMALL["model"]["head"], **head}}}
    model = GFLV2(config, class_names=NAMES)
    # An untrained head answers the same everywhere; larger weights make its answers depend on the image.
    for parameter in (p for name, p in model.bbox_head.named_parameters() if name.endswith("weight") and p.dim() == 4):
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> GFLV2:
    return make_model()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """(120, 180, 3) RGB whose four corners and three channels all differ."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:120, :180]
    picture = np.stack([x, 2 * y, 255 - x], axis=-1) + rng.integers(0, 20, (120, 180, 3))
    picture[20:60, 30:90] = (250, 20, 20)
    return picture.clip(0, 255).astype(np.uint8)


@pytest.fixture
def file(tmp_path, picture) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    return path


def same(a, b) -> bool:
    return (
        len(a) > 0
        and torch.equal(a.boxes, b.boxes)
        and torch.equal(a.scores, b.scores)
        and torch.equal(a.labels, b.labels)
    )


def test_every_kind_of_source_gives_the_same(model, picture, file):
    expected = predict(model, picture)
    chw = torch.from_numpy(picture).permute(2, 0, 1)
    kinds = {
        "str": str(file),
        "path": file,
        "PIL": Image.fromarray(picture),
        "lazy PIL": Image.open(file),
        "RGBA": np.dstack([picture, np.zeros((120, 180), np.uint8)]),
        "PIL RGBA": Image.fromarray(np.dstack([picture, np.full((120, 180), 255, np.uint8)])),
        "tensor": chw,
        "negative strides": np.ascontiguousarray(picture[::-1, ::-1])[::-1, ::-1],
    }
    for kind, source in kinds.items():
        result = predict(model, source)
        assert same(result, expected), kind
        assert result.path == (file if kind in ("str", "path") else None), kind
    assert same(predict(model, picture[..., ::-1], bgr=True), expected)
    assert same(predict(model, chw.flip(0), bgr=True), expected)
    assert not same(predict(model, picture[..., ::-1]), expected)  # the order of the channels does matter
    assert same(model.predict(file), expected)


def test_grey_images(model, picture, tmp_path):
    grey = picture[..., 0]
    expected = predict(model, np.repeat(grey[..., None], 3, axis=2))
    for source in (grey, grey[..., None], torch.from_numpy(grey.copy())[None], Image.fromarray(grey)):
        assert same(predict(model, source), expected)


def test_read_only_array_is_left_alone(model, picture):
    frozen = picture.copy()
    frozen.setflags(write=False)
    assert same(predict(model, frozen), predict(model, picture))


def test_exif_orientation(model, picture, tmp_path):
    expected = predict(model, picture)
    turned = Image.fromarray(picture).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a turn of 90° clockwise
    path = tmp_path / "turned.png"
    turned.save(path, exif=exif)
    for source in (path, Image.open(path)):
        result = predict(model, source)
        assert result.size == (120, 180)
        assert same(result, expected)


def test_lists(model, picture, file):
    wide = picture[:60]
    results = predict(model, [file, wide, picture], batch_size=1)
    assert [result.size for result in results] == [(120, 180), (60, 180), (120, 180)]
    assert same(results[0], results[2]) and same(results[1], predict(model, wide))
    assert predict(model, []) == []
    assert same(predict(model, (picture,))[0], results[0])
    batched = predict(model, [picture, picture, picture], batch_size=2)
    assert len(batched) == 3
    for result in batched:  # one size: no padding; only the order of sums may differ
        torch.testing.assert_close(result.boxes, results[0].boxes, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        ("https://example.org/a.jpg", ValueError, "URLs are not fetched"),
        ("no/such/file.jpg", FileNotFoundError, "no/such/file.jpg"),
        ("no/such/*.jpg", ValueError, "pattern"),
        (np.zeros((4, 5, 3)), TypeError, r"source: expected a uint8 array .* got float64 of shape \(4, 5, 3\); .*255"),
        (np.zeros((4, 5, 3), np.int64), TypeError, "got int64"),
        (np.zeros((3, 4, 5), np.uint8), ValueError, "transpose"),
        (np.zeros((2, 4, 5, 3), np.uint8), ValueError, "list of images"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, "at least one pixel"),
        (torch.zeros(3, 4, 5), TypeError, "got float32"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), ValueError, "permute"),
        (torch.zeros(1, 3, 4, 5, dtype=torch.uint8), ValueError, "list of images"),
        (17, TypeError, "got int"),
        (None, TypeError, "got NoneType"),
        (Image.fromarray(np.zeros((4, 5), np.float32)), ValueError, "mode 'F'"),
    ],
)
def test_refused_sources(source, error, text):
    with pytest.raises(error, match=text):
        read_source(source)


def test_list_errors_name_the_item(model, picture):
    with pytest.raises(TypeError, match=r"source\[1\]"):
        predict(model, [picture, 1.5])


def test_folder_is_refused_with_advice(tmp_path):
    with pytest.raises(ValueError, match="predict_files"):
        read_source(tmp_path)


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "header only"])
def test_damaged_files_are_named(tmp_path, picture, damage):
    path = tmp_path / "broken.jpg"
    Image.fromarray(picture).save(path)
    content = path.read_bytes()
    damaged = {
        "text": b"not an image",
        "empty": b"",
        "truncated": content[: len(content) // 2],
        "header only": content[:60],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(ImageError, match="broken.jpg"):
        read_source(path)


def test_damaged_pil_image_is_named(tmp_path, picture):
    path = tmp_path / "broken.png"
    Image.fromarray(picture).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as image, pytest.raises(ImageError, match="broken.png"):
        read_source(image)


@pytest.mark.parametrize("options", [{"score_thr": 1.5}, {"batch_size": 0}, {"batch_size": True}])
def test_refused_options(model, picture, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        predict(model, picture, **options)


def test_options_limit_the_result(model, picture):
    everything = predict(model, picture)
    assert len(everything) == model.config.test.max_detections
    assert (everything.scores.diff() <= 0).all()
    middle = float(everything.scores[15])
    assert (predict(model, picture, score_thr=middle).scores > middle).all()
    assert len(predict(model, picture, max_detections=7)) == 7
    assert len(predict(model, picture, score_thr=1.0)) == 0
    # Any overlap suppresses: no two boxes of one class may meet.
    apart = predict(model, picture, iou_thr=0.0)
    for label in range(len(NAMES)):
        boxes = apart.boxes[apart.labels == label]
        from torchvision.ops import box_iou

        assert (box_iou(boxes, boxes).fill_diagonal_(0) == 0).all()


def test_boxes_follow_from_the_distributions(model, picture):
    # 120×180 is resized to 96×144: boxes, points and strides must all be given back in original pixels.
    result = predict(model, picture)
    assert result.distributions.shape == (len(result), 4, 17)
    torch.testing.assert_close(result.distributions.sum(-1), torch.ones(len(result), 4))
    means = (result.distributions * result.bin_positions()).sum(-1)
    limit = torch.tensor([180.0, 120.0, 180.0, 120.0])
    torch.testing.assert_close(means.clamp(min=0).minimum(limit), result.boxes, atol=2e-3, rtol=1e-5)
    assert result.strides.unique(dim=0).shape[0] > 1, "boxes of several levels, or the test shows little"
    for level, stride in enumerate(model.bbox_head.strides):
        rows = result.levels == level
        torch.testing.assert_close(result.strides[rows], torch.full((int(rows.sum()), 2), stride / 0.8))


def test_points_are_those_of_the_decoder(model, picture):
    # The same boxes once more, from the raw output at the reported points.
    from gflv2.data import preprocess

    sample = preprocess(torch.from_numpy(picture).permute(2, 0, 1), model.config.data)
    padded = torch.zeros(1, 3, 96, 160)
    padded[0, :, :96, :144] = sample.image
    result = predict(model, picture, max_detections=20)
    with torch.no_grad():
        output = model(padded)
    for row in range(len(result)):
        level = int(result.levels[row])
        stride = model.bbox_head.strides[level]
        x, y = (result.points[row] * 0.8 / stride).round().long().tolist()
        logits = output.box_logits[level][0, :, y, x].view(1, 4, 17) * output.scales[level]
        point = torch.tensor([[x * stride, y * stride]], dtype=torch.float32)
        box = integral(logits, strides=torch.tensor([float(stride)]), points=point)[0]
        box = box.clamp(min=0).minimum(torch.tensor([144.0, 96.0, 144.0, 96.0])) / 0.8
        torch.testing.assert_close(box, result.boxes[row], atol=1e-2, rtol=1e-4)


def test_boxes_without_area_are_dropped(model, picture):
    result = predict(model, picture)
    assert (result.boxes[:, 2:] > result.boxes[:, :2]).all()

    class Flat(torch.nn.Module):
        """The same head, every second box of which has lost its width."""

        def __init__(self, head):
            super().__init__()
            self.inner, self.strides, self.grid, self.integral = head, head.strides, head.grid, head.integral

        def forward(self, features):
            return self.inner(features)

        def detect(self, *args, **kwargs):
            found = self.inner.detect(*args, **kwargs)[0]
            boxes = found.boxes.clone()
            boxes[::2, 2] = boxes[::2, 0]
            return [found._replace(boxes=boxes)]

    flat = make_model()
    flat.load_state_dict(model.state_dict())
    flat.bbox_head = Flat(flat.bbox_head)
    kept = predict(flat, picture)
    torch.testing.assert_close(kept.boxes, result.boxes[1::2])
    assert len(kept.distributions) == len(kept.points) == len(kept.levels) == len(kept)


def test_training_state_is_restored(picture):
    model = make_model()
    model.train()
    model.neck.eval()  # a part that its owner froze
    before = {name: module.training for name, module in model.named_modules()}
    assert any(before.values()) and not all(before.values())
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    predict(model, picture)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    model.bbox_head.detect = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        predict(model, picture)
    assert {name: module.training for name, module in model.named_modules()} == before


def test_results_are_ordinary_tensors(model, picture):
    with torch.inference_mode():
        inside = predict(model, picture)
    outside = predict(model, picture)
    assert same(inside, outside)
    for tensor in (outside.boxes, outside.scores, outside.labels, outside.distributions, outside.points):
        assert not tensor.is_inference() and not tensor.requires_grad


def test_model_without_distributions(picture):
    torch.manual_seed(0)
    config = {**SMALL, "model": {**SMALL["model"], "head": {**SMALL["model"]["head"], "kind": "atss"}}}
    model = GFLV2(config, class_names=NAMES).eval()
    result = predict(model, picture)
    assert result.distributions is None and len(result) > 0
    assert "Result(" in repr(result)
    for refused in (result.spread, result.entropy, lambda: result.plot(distributions=True)):
        with pytest.raises(ValueError, match="distributions"):
            refused()


def test_coco_records(model, picture):
    result = predict(model, picture, max_detections=5)
    records = result.to_coco(42, category_ids=[7, 11, 90])
    assert len(records) == 5 and {record["image_id"] for record in records} == {42}
    for record, box, label in zip(records, result.boxes.tolist(), result.labels.tolist(), strict=True):
        x, y, w, h = record["bbox"]
        assert [x, y, x + w, y + h] == pytest.approx(box, abs=2e-3)
        assert record["category_id"] == [7, 11, 90][label]
    assert {record["category_id"] for record in result.to_coco()} <= {1, 2, 3}
    json.dumps(records)
    with pytest.raises(ValueError, match="category_ids"):
        result.to_coco(category_ids=[1])


def test_repr_is_a_table(model, picture, file):
    result = predict(model, file)
    text = repr(result)
    lines = text.splitlines()
    assert lines[0] == f"Result(30 detections, 180×120, {file})"
    assert len(lines) == 23 and lines[-1].strip() == "… and 10 more"
    assert result.names[0] in lines[2] and f"{result.scores[0]:.3f}" in lines[2]
    assert "0 detections" in repr(predict(model, picture, score_thr=1.0))
    assert result.names == [NAMES[label] for label in result.labels]


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, picture) -> Path:
    """Three images in two folders, two of one name, and a text file."""
    root = tmp_path / "photos"
    (root / "more").mkdir(parents=True)
    Image.fromarray(picture).save(root / "b.png")
    Image.fromarray(picture[:60]).save(root / "a.JPG")
    Image.fromarray(picture[:, :90]).save(root / "more" / "a.jpg")
    (root / "notes.txt").write_text("no image")
    return root


def test_expand_takes_the_files_that_a_data_set_takes(tmp_path):
    for name in ("a.jp2", "b.PNG", "._b.png", ".c.jpg", "d.txt"):
        (tmp_path / name).write_bytes(b"")
    assert expand(tmp_path)[0] == list(images_below(tmp_path)) == [tmp_path / "a.jp2", tmp_path / "b.PNG"]


def test_expand(folder):
    a, b, more = folder / "a.JPG", folder / "b.png", folder / "more" / "a.jpg"
    assert expand(folder) == ([a, b], {})
    assert expand(str(folder / "**" / "*")) == ([a, b, more], {})
    assert expand([b, folder]) == ([b, a], {})  # each once, in the order asked for
    files, failures = expand([folder / "*.gif", folder / "absent.png", a])
    assert files == [a]
    assert list(failures.values()) == ["no image file matches", "no such file"]
    assert expand(folder / "notes.txt") == ([folder / "notes.txt"], {})  # named outright: its reading will tell


@pytest.mark.parametrize("batch_size", [1, 2])
def test_predict_files(model, folder, tmp_path, batch_size):
    (folder / "broken.jpg").write_bytes(b"nothing")
    output = tmp_path / "out"
    report = predict_files(
        model, [folder, folder / "more", "absent.png"], output, batch_size=batch_size, score_thr=0.01, progress=False
    )
    assert report.images == 3
    assert set(report.failures) == {str(folder / "broken.jpg"), "absent.png"}
    assert "2 could not be read" in str(report) and "broken.jpg" in str(report)
    assert sorted(path.name for path in report.pictures) == ["a.jpg", "a_2.jpg", "b.jpg"]
    with Image.open(output / "b.jpg") as drawn:
        assert drawn.size == (180, 120)
    content = json.loads(report.json.read_text())
    assert [image["file_name"] for image in content["images"]] == [
        str(folder / "a.JPG"), str(folder / "b.png"), str(folder / "more" / "a.jpg"),
    ]  # fmt: skip
    assert [category["name"] for category in content["categories"]] == NAMES
    assert len(content["annotations"]) == report.detections > 0
    # It is an annotation file that COCO's own tools read.
    from gflv2.data import load_coco

    index = load_coco(content)
    if batch_size == 1:
        single = predict(model, folder / "b.png", score_thr=0.01)
        assert len(index.getAnnIds(imgIds=2)) == len(single)


def test_files_never_overwrite_images(model, folder, tmp_path):
    Image.open(folder / "b.png").save(folder / "c.jpg")
    before = (folder / "c.jpg").read_bytes()
    with pytest.raises(ValueError, match="overwrite"):
        predict_files(model, folder, folder, progress=False)
    assert (folder / "c.jpg").read_bytes() == before


def test_nothing_to_predict(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing to predict \(.*\.jpg: no image file matches\)"):
        predict_files(model, str(tmp_path / "*.jpg"), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_only_json(model, folder, tmp_path):
    report = predict_files(model, folder, tmp_path / "out", pictures=False, progress=False)
    assert report.pictures == [] and [path.name for path in (tmp_path / "out").iterdir()] == ["detections.json"]


def test_command_line_tells_by_its_exit_code(model, folder, tmp_path, capsys):
    from gflv2 import cli

    weights = tmp_path / "model.pt"
    model.save(weights)
    arguments = ["predict", str(folder), "--weights", str(weights), "--no-progress", "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    (folder / "broken.jpg").write_bytes(b"nothing")
    assert cli.main(arguments) == 1
    assert "broken.jpg" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())["images"]) == 2


def test_category_ids_of_a_data_set(model, folder, tmp_path):
    file = tmp_path / "data.json"
    categories = [{"id": 90 - number, "name": name} for number, name in enumerate(["other", *NAMES])]
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    options = {"progress": False, "pictures": False, "score_thr": 0.01}
    report = predict_files(model, folder / "b.png", tmp_path / "out", categories=file, **options)
    content = json.loads(report.json.read_text())
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(89, "circle"), (88, "square"), (87, "star")]
    plain = json.loads(predict_files(model, folder / "b.png", tmp_path / "plain", **options).json.read_text())
    ids = [row["category_id"] for row in content["annotations"]]
    assert ids == [90 - row["category_id"] for row in plain["annotations"]] and len(set(ids)) > 1
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": categories[:-1]}))
    with pytest.raises(ValueError, match="data.json: 1 of the model's 3 classes are not among its categories.*'star'"):
        predict_files(model, folder / "b.png", tmp_path / "none", categories=file, **options)
    assert not (tmp_path / "none").exists()


def test_a_pipe_and_a_link_to_nothing_in_a_folder_are_told(model, folder, tmp_path):
    os.mkfifo(folder / "pipe.png")
    (folder / "link.jpg").symlink_to("nowhere.jpg")
    (folder / "\x1b[31m.png").write_bytes(b"x")
    report = predict_files(model, folder, tmp_path / "out", progress=False, pictures=False)
    assert report.images == 2 and len(report.failures) == 3
    assert "is a pipe, device or socket" in report.failures[str(folder / "pipe.png")]
    assert "does not exist" in report.failures[str(folder / "link.jpg")]
    assert all(line.isprintable() for line in str(report).splitlines())


# ---- images that memory does not do for ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        torch.OutOfMemoryError("CUDA out of memory."),
    ],
    ids=["python", "cpu", "cuda"],
)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_others_are_predicted_where_memory_does_not_do_for_one(
    model, folder, tmp_path, monkeypatch, batch_size, error
):
    """Of a.JPG (60 × 180) and b.png (120 × 180); the network is too large for the second."""
    from gflv2.engine import predict as module

    real = module._predict_batch

    def too_small(model, images, limits):
        if any(image.shape[1] > 100 for image, _ in images):
            raise error
        return real(model, images, limits)

    monkeypatch.setattr(module, "_predict_batch", too_small)
    report = predict_files(model, folder, tmp_path / "out", batch_size=batch_size, progress=False)
    assert report.failures == {str(folder / "b.png"): "there is not enough memory for its 180×120 pixels"}
    assert report.images == 1 and [path.name for path in report.pictures] == ["a.jpg"]


def test_another_error_of_the_network_is_no_lack_of_memory(model, folder, tmp_path, monkeypatch):
    from gflv2.engine import predict as module

    def broken(model, images, limits):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(module, "_predict_batch", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        predict_files(model, folder, tmp_path / "out", progress=False)
    assert json.loads((tmp_path / "out" / "detections.json").read_text())["images"] == []


def test_a_picture_that_memory_does_not_do_for(model, folder, tmp_path, monkeypatch):
    def lacking(self, path, *options):
        raise MemoryError

    monkeypatch.setattr("gflv2.engine.results.Result.save", lacking)
    report = predict_files(model, folder, tmp_path / "out", progress=False)
    assert report.images == 2 and len(report.failures) == 2 and report.pictures == []


def test_what_was_found_is_written_whatever_ends_it(model, folder, tmp_path, monkeypatch):
    from gflv2.engine import predict as module

    real = module.read_source

    def interrupted(file, **options):
        if getattr(file, "name", "") == "b.png":
            raise KeyboardInterrupt
        return real(file, **options)

    monkeypatch.setattr(module, "read_source", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_files(model, folder, tmp_path / "out", progress=False)
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [str(folder / "a.JPG")]


def test_the_json_file_grows_while_a_long_prediction_runs(model, folder, tmp_path, monkeypatch):
    from gflv2.engine import predict as module

    seen = []
    real = module.read_source

    def watching(file, **options):
        path = tmp_path / "out" / "detections.json"
        seen.append(len(json.loads(path.read_text())["images"]) if path.exists() else None)
        return real(file, **options)

    monkeypatch.setattr(module, "read_source", watching)
    monkeypatch.setattr(module, "_WRITE_EVERY", 0.0)
    monkeypatch.setattr(module.time, "monotonic", iter(range(100)).__next__)
    predict_files(model, [folder, folder / "more"], tmp_path / "out", progress=False, pictures=False)
    assert seen[0] is None and 1 in seen[1:]


def test_huge_images_by_a_named_option(model, tmp_path, capsys, monkeypatch):
    from gflv2 import cli
    from gflv2.data import image

    model.save(tmp_path / "model.pt")
    Image.new("RGB", (200, 100)).save(tmp_path / "wide.png")
    Image.new("RGB", (20, 10)).save(tmp_path / "small.png")
    monkeypatch.setattr(image, "MAX_PIXELS", 10_000)
    monkeypatch.delenv("GFLV2_MAX_PIXELS", raising=False)
    arguments = ["predict", str(tmp_path), "--weights", str(tmp_path / "model.pt"), "--no-progress", "--no-pictures"]
    arguments += ["--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 1
    said = capsys.readouterr().out
    assert "wide.png' has 200×100 pixels, more than the 10000 that are allowed; --max-pixels" in said
    assert " in 1 images" in said
    assert cli.main([*arguments, "--max-pixels", "20000"]) == 0
    assert "GFLV2_MAX_PIXELS" not in os.environ


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--overlap", "0.5"], "--overlap: expected with --tiles"),
        (["--max-frames", "3"], "--max-frames: expected with a video or camera, got images"),
        (["--threshold", "nan"], r"threshold: expected a number in [0, 1], got nan"),
        (["--threshold", "30"], r"threshold: expected a number in [0, 1], got 30.0"),
    ],
)
def test_options_without_effect_are_refused(model, folder, tmp_path, capsys, arguments, message):
    from gflv2 import cli

    line = ["predict", str(folder), "--weights", str(model.save(tmp_path / "model.pt")), "--no-progress"]
    assert cli.main([*line, "--output", str(tmp_path / "out"), *arguments]) == 2
    assert f"gflv2 predict: error: {message}" in capsys.readouterr().err


def test_a_wrong_limit_of_pixels_is_not_the_fault_of_the_images(folder, capsys, monkeypatch):
    from gflv2 import cli

    monkeypatch.setenv("GFLV2_MAX_PIXELS", "many")
    assert cli.main(["predict", str(folder), "--weights", "any.pt"]) == 2
    expected = "gflv2 predict: error: GFLV2_MAX_PIXELS: expected a whole number above 0, got 'many'\n"
    assert capsys.readouterr().err == expected


def test_pictures_of_huge_images_are_smaller(monkeypatch):
    from gflv2.engine import plot

    monkeypatch.setattr(plot, "MOST_PIXELS", 10_000)
    monkeypatch.setattr(plot, "LONGEST_SIDE", 300)
    for size, expected in (((100, 100), (100, 100)), ((200, 400), (70, 141)), ((1, 1000), (1, 300))):
        pixels = np.zeros((*size, 3), np.uint8)
        drawing = plot.Drawing(pixels, np.array([[0, 0, size[1] / 2, size[0]]]), np.ones(1), np.zeros(1), ["x"])
        picture = plot.plot_boxes(drawing)
        assert picture.size == expected[::-1]
        right = np.asarray(picture)[:, expected[1] // 2 - 2 : expected[1] // 2 + 3]
        assert right.max() > 100, "the box ends in the middle of the picture too"
