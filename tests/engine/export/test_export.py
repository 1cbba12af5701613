"""Exported files give what PyTorch gives: at other batches and sizes, with and without NMS, in every precision."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch

from gflv2 import GFLV2
from gflv2.checkpoint import CheckpointError, read
from gflv2.engine.export import ExportError, OnnxDetector, export, onnx_file, writing
from gflv2.engine.export.graph import ExportedGraph
from gflv2.engine.export.nms import append_nms
from gflv2.engine.predict import predict_files
from tests.engine.export.conftest import small_model

SIZES = [(96, 160), (160, 128), (64, 64)]


def pictures(batch: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch))


def assert_same(found: list, expected: list) -> None:
    assert len(found) == len(expected) and sum(len(image.scores) for image in expected) > 3 * len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert len(mine.scores) == len(theirs.scores)
        torch.testing.assert_close(mine.scores, theirs.scores, rtol=0, atol=1e-4)
        # Of two whose scores are the same up to rounding, either may come first.
        distance = (mine.boxes[None] - theirs.boxes[:, None]).abs().amax(2)
        distance += 1e3 * (mine.labels[None] != theirs.labels[:, None])
        nearest, rows = distance.min(1)
        assert nearest.max() < 1e-3 and len(set(rows.tolist())) == len(rows)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_detections_at_other_batches_and_sizes(model: GFLV2, open_file: Path, batch: int, size) -> None:
    detector = OnnxDetector(open_file)
    images, sizes = pictures(batch, size), [(size[0] - 9, size[1] - 5)] * batch
    factors = torch.tensor([[0.5, 0.4]]).repeat(batch, 1)
    assert_same(detector.detect(images, sizes, factors), model.detect(images, sizes, factors))
    options = {"score_thr": 0.15, "iou_thr": 0.4, "max_detections": 7}
    assert_same(detector.detect(images, **options), model.detect(images, **options))


def test_a_level_with_fewer_cells_than_top_k_is_filled_up(model: GFLV2, open_file: Path) -> None:
    session = onnx_file.session(str(open_file))
    boxes, scores = onnx_file.run(session, images=pictures(1, (64, 64)))
    assert boxes.shape == (1, 600, 4) and scores.shape == (1, 600, 5)  # 1024 and 256 cells, of each 300 rows
    assert [int((part > 0).any(-1).sum()) for part in scores[0].split(300)] == [300, 256]


def test_what_the_file_says_about_itself(model: GFLV2, open_file: Path) -> None:
    proto = onnx.load(str(open_file))
    onnx.checker.check_model(proto, full_check=True)
    texts = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    data = model.config.data
    assert texts["names"] == list(model.class_names) and texts["strides"] == [2, 4]
    assert (texts["mean"], texts["std"]) == (data.mean, data.std)
    assert (texts["short_side"], texts["long_side"], texts["size_multiple"]) == (96, 160, 32)
    assert (texts["score_thr"], texts["iou_thr"], texts["max_detections"]) == (0.1, 0.6, 100)
    assert texts["config"] == model.config.to_dict()
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in shape] == ["batch", 3, "32*rows", "32*columns"]
    # Neither stack traces nor paths of this machine; a top-k only with a constant k.
    assert b".py" not in proto.SerializeToString()
    constants = {tensor.name for tensor in proto.graph.initializer}
    constants |= {node.output[0] for node in proto.graph.node if node.op_type == "Constant"}
    tops = [node for node in proto.graph.node if node.op_type == "TopK"]
    assert len(tops) >= 2 and all(node.input[1] in constants for node in tops)


@pytest.mark.parametrize("score_thr", [0.1, 0.15, 1.0])
def test_nms_inside(model: GFLV2, open_file: Path, score_thr: float) -> None:
    """Also where images of a batch have none, some and too many detections."""
    program = append_nms(onnx.load(str(open_file)), score_thr=score_thr, iou_thr=0.6, max_detections=20)
    onnx.checker.check_model(program, full_check=True)
    session = onnx_file.session(program.SerializeToString())
    images = pictures(3, (96, 160)) * torch.tensor([1.0, 0.0, 0.3])[:, None, None, None]
    sizes = torch.tensor([[90.0, 150.0], [96.0, 160.0], [50.0, 160.0]])
    boxes, scores, labels, counts = onnx_file.run(session, images=images, image_sizes=sizes)
    assert boxes.shape == (3, 20, 4) and scores.shape == labels.shape == (3, 20)
    expected = model.detect(images, sizes, score_thr=score_thr, max_detections=20)
    assert counts.tolist() == [len(image.scores) for image in expected]
    assert score_thr < 1 or not counts.any()
    for image, theirs in enumerate(expected):
        count = int(counts[image])
        torch.testing.assert_close(boxes[image, :count], theirs.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(scores[image, :count], theirs.scores, rtol=0, atol=1e-4)
        assert torch.equal(labels[image, :count], theirs.labels)
        assert not boxes[image, count:].any() and not scores[image, count:].any()
        assert (labels[image, count:] == -1).all()


@pytest.mark.slow
def test_float16_with_softmax_and_integral_in_float32_and_nms(model: GFLV2, tmp_path: Path, caplog) -> None:
    path = tmp_path / "half.onnx"
    report = export(model, path, outputs="nms", precision="16", image_size=(96, 160), batch_size=2)
    assert report.size < 0.7 * sum(p.numel() for p in model.parameters()) * 4
    proto = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    kinds = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    softmax = [node for node in proto.graph.node if node.op_type == "Softmax"]
    assert len(softmax) == 2 and {kinds[node.output[0]] for node in softmax} == {onnx.TensorProto.FLOAT}
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    weights = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert {weights[node.input[1]] for node in convolutions} == {onnx.TensorProto.FLOAT16}
    # A file of two images gets three: one call more.
    detector = OnnxDetector(path)
    images, sizes = pictures(3, (96, 160)), torch.tensor([(90, 150)] * 3)
    for mine, theirs in zip(detector.detect(images, sizes), model.detect(images, sizes), strict=True):
        sure = theirs.scores > 0.2
        near = torch.cdist(theirs.boxes[sure], mine.boxes, p=torch.inf).min(1).values
        assert sure.sum() > 3 and (near < 1).float().mean() > 0.9  # pixels; NMS may choose another of two like boxes
    with pytest.raises(ValueError, match="iou_thr: expected 0.6, a constant of"):
        detector.detect(images, sizes, iou_thr=0.5)
    with pytest.raises(ValueError, match="score_thr: expected at least 0.1"):
        detector.detect(images, sizes, score_thr=0.01)
    assert max(len(image.scores) for image in detector.detect(images, sizes, max_detections=2)) == 2
    with pytest.raises(ValueError, match="image_sizes: expected a size for each image"):
        detector.detect(images)
    assert "are padded" not in caplog.text
    detector.detect(images[:, :, :64], sizes)
    assert "half.onnx takes 96×160, so images of 64×160 are padded" in caplog.text
    with pytest.raises(ValueError, match="takes images of 96×160"):
        detector.detect(pictures(1, (160, 96)), sizes[:1])


@pytest.mark.parametrize(
    "head", [{}, {"quality": None}, {"quality": "both"}, {"composition": "composed"}, {"kind": "atss"}]
)
def test_raw_logits_of_every_head(head: dict) -> None:
    model = small_model(**head)
    graph = ExportedGraph(model, "raw", pre_topk=300, half=False, open_size=False)
    images = pictures(1, (64, 64))
    found, output = dict(zip(graph.output_names(), graph(images), strict=True)), model(images)
    torch.testing.assert_close(found["class_logits_4"], output.class_logits[1])
    torch.testing.assert_close(found["box_logits_4"], output.box_logits[1] * output.scales[1])
    joint = found["class_logits_2"].sigmoid()
    if "quality_logits_2" in found:
        joint = joint * found["quality_logits_2"].sigmoid()
    torch.testing.assert_close(joint, model.bbox_head.joint_scores(output)[0])


@pytest.mark.slow
def test_raw_logits_by_torch_export(model: GFLV2, tmp_path: Path) -> None:
    path = tmp_path / "raw.pt2"
    export(model, path, outputs="raw", image_size=(64, 64))
    files = {"gflv2.json": ""}
    program = torch.export.load(path, extra_files=files)
    assert json.loads(json.loads(files["gflv2.json"])["outputs"]) == "raw"
    images = pictures(1, (64, 64))
    torch.testing.assert_close(program.module()(images)[1], model(images).class_logits[1])


def test_torch_export_for_any_batch_and_size(model: GFLV2, traced, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(writing, "trace", lambda *_: traced[1])
    path = tmp_path / "model.pt2"
    report = export(model, path, dynamic_batch=True, dynamic_size=True)
    assert report.checked[0] == (2, 3, 256, 320) and len(report.checked) == 4
    program = torch.export.load(path).module()
    for batch, size in ((1, (96, 160)), (4, (160, 64))):
        boxes, scores = program(pictures(batch, size))
        expected = model.bbox_head.decode(model(pictures(batch, size)), pre_topk=300, score_thr=0.0)
        assert boxes.shape == (batch, 600, 4)
        torch.testing.assert_close(scores.amax((1, 2)), expected.scores.amax((1, 2)))
        torch.testing.assert_close(scores.sum((1, 2)), expected.scores.sum((1, 2)), rtol=1e-4, atol=1e-4)


def written_before(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Tracing takes seconds: let `export` have the model that a file already holds."""
    monkeypatch.setattr(writing, "trace", lambda *_: None)
    monkeypatch.setattr(onnx_file, "to_onnx", lambda *_: onnx.load(str(file)))


def test_a_file_that_differs_is_not_left(model: GFLV2, open_file: Path, tmp_path: Path, monkeypatch) -> None:
    written_before(monkeypatch, open_file)
    right = onnx_file.run_images

    def shifted(session, images):
        boxes, scores = right(session, images)
        boxes[:, 5] += 0.05
        return boxes, scores

    path = tmp_path / "model.onnx"
    assert export(model, path, dynamic_batch=True, dynamic_size=True).boxes < 1e-3
    path.unlink()
    monkeypatch.setattr(onnx_file, "run_images", shifted)
    with pytest.raises(ExportError, match="1 of 300 boxes at stride 2 have no equal within 0.0005 pixels"):
        export(model, path, dynamic_batch=True, dynamic_size=True)
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(model: GFLV2, tmp_path: Path, monkeypatch) -> None:
    for options, message in (
        ({"path": "a.trt"}, "path: expected a file that ends in .onnx or .pt2"),
        ({"path": "a.pt2", "outputs": "nms"}, "outputs: expected 'decoded' or 'raw' for a .pt2 file"),
        ({"path": "a.pt2", "precision": "int8", "data": "x"}, "precision: expected '32' or '16' for a .pt2 file"),
        ({"path": "a.onnx", "precision": "int8"}, "data: expected a data set to calibrate on"),
        ({"path": "a.onnx", "image_size": (100, 64)}, "image_size: expected multiples of 32, for example 128 64"),
        ({"path": "a.onnx", "image_size": (64, 64), "dynamic_size": True}, "image_size: expected None"),
    ):
        with pytest.raises(ValueError, match=message.replace("(", r"\(")):
            export(model, **options)
    with pytest.raises(ValueError, match="background channel is not exported"):
        export(small_model(legacy_background=True), "a.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs the package 'onnxscript'.*pip install \"gflv2\[export\]\""):
        export(model, tmp_path / "a.onnx")


def test_files_that_are_none_of_ours(open_file: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match="broken.onnx: onnxruntime cannot run it"):
        OnnxDetector(tmp_path / "broken.onnx")
    proto = onnx.load(str(open_file))
    onnx_file.set_metadata(proto, {"outputs": '"raw"'})
    onnx.save(proto, str(tmp_path / "other.onnx"))
    with pytest.raises(ValueError, match="not a file of `gflv2 export`"):
        OnnxDetector(tmp_path / "other.onnx")
    texts = {entry.key: entry.value for entry in onnx.load(str(open_file)).metadata_props}
    onnx_file.set_metadata(proto, {name: text for name, text in texts.items() if name not in ("names", "config")})
    onnx.save(proto, str(tmp_path / "other.onnx"))
    with pytest.raises(ValueError, match="other.onnx: damaged: its metadata has no names, config"):
        OnnxDetector(tmp_path / "other.onnx")
    with pytest.raises(FileNotFoundError):
        OnnxDetector(tmp_path / "missing.onnx")
    with pytest.raises(ValueError, match="model.num_classes: the network of .* is fixed"):
        OnnxDetector(open_file, overrides={"model.num_classes": 3})


def test_an_exported_file_is_no_checkpoint(model: GFLV2, open_file: Path, traced, tmp_path: Path) -> None:
    torch.export.save(traced[1], str(tmp_path / "traced.pt2"))
    for path in (open_file, tmp_path / "traced.pt2"):
        with pytest.raises(CheckpointError, match=f"{path.name} is an exported file, not a checkpoint"):
            read(path)


def test_errors_of_onnxruntime_are_those_of_python(open_file: Path, sample_set, tmp_path: Path, monkeypatch) -> None:
    """Its own have no common class with ours, and would end the prediction of a whole folder."""
    detector = OnnxDetector(open_file)
    with pytest.raises(RuntimeError, match="onnxruntime: .*Invalid rank for input: images"):
        onnx_file.run_images(detector.session, torch.zeros(3, 64, 64))

    class Failed(Exception):
        pass

    def run(*arguments: object) -> None:
        raise Failed("[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested buffer of size 983040000")

    detector.session = SimpleNamespace(run=run)
    report = predict_files(detector, sample_set.val_images, tmp_path, pictures=False, progress=False)
    assert report.images == 0 and len(report.failures) == 4
    assert set(report.failures.values()) == {"there is not enough memory for its 96×96 pixels"}


def test_int8(model: GFLV2, open_file: Path, sample_set, tmp_path: Path, monkeypatch) -> None:
    written_before(monkeypatch, open_file)
    path = tmp_path / "int8.onnx"
    options = {"data": sample_set.val, "calibration_images": 3, "progress": False}
    # onnxruntime adds a handler where there is none, which would show every later line of a program.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    report = export(model, path, precision="int8", dynamic_batch=True, dynamic_size=True, **options)
    proto = onnx.load(str(path))
    computed = {output for node in proto.graph.node for output in node.output}
    in_float = [n for n in proto.graph.node if n.op_type == "Conv" and n.input[1] not in computed]
    quantised = [n for n in proto.graph.node if n.op_type == "Conv" and n.input[1] in computed]
    assert len(quantised) == report.quantised > 5
    assert len(in_float) == 4 and all("bbox_head.gfl_" in node.input[1] for node in in_float)  # two a level
    detector, images = OnnxDetector(path), pictures(2, (96, 96))
    assert logging.getLogger().handlers == []
    best = [image.scores[:5] for image in detector.detect(images)]
    expected = [image.scores[:5] for image in model.detect(images)]
    assert not torch.equal(torch.cat(best), torch.cat(expected))
    torch.testing.assert_close(torch.cat(best), torch.cat(expected), rtol=0, atol=0.1)
