"""A detector that others trained, decoded by our operations: NanoDet-m, whose head is a GFLV1 head with 8 bins a side.

It shows on real distributions what golden arrays cannot: that integral, NMS, evaluation and pictures fit together.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from gflv2.data import read_image
from gflv2.engine.evaluate import EvalResult, evaluate_detections
from gflv2.engine.results import Result
from gflv2.ops import Decoded, batched_nms, integral
from tests.shared import data

SIDE, STRIDES, BINS = 320, (8, 16, 32), 8
MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)  # blue, green, red


def letterbox(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(3, H, W) RGB uint8 → network input (1, 3, 320, 320), shift (x, y) and factors (x, y) of original → input pixels.

    The border is black before the normalisation, as in the network's own training (its images are warped onto black). A
    border of zeros after it, which is what our detectors are padded with, costs this network 0.007 AP and 0.018 AP50.
    """
    height, width = image.shape[1:]
    factor = min(SIDE / height, SIDE / width)
    new_height, new_width = round(height * factor), round(width * factor)
    resized = F.resize(image, [new_height, new_width], antialias=False).flip(0)
    top, left = (SIDE - new_height) // 2, (SIDE - new_width) // 2
    canvas = torch.zeros(1, 3, SIDE, SIDE)
    canvas[0, :, top : top + new_height, left : left + new_width] = resized
    return (
        F.normalize(canvas, list(MEAN), list(STD)),
        torch.tensor([left, top]),
        torch.tensor([new_width / width, new_height / height]),
    )


def grid() -> tuple[Tensor, Tensor, Tensor]:
    """Points (A, 2), strides (A,) and levels (A,): centres at i·stride + (stride − 1) / 2."""
    points, strides, levels = [], [], []
    for level, stride in enumerate(STRIDES):
        centres = torch.arange(SIDE // stride) * stride + (stride - 1) / 2
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        points.append(torch.stack([x, y], dim=-1).reshape(-1, 2))
        strides.append(torch.full((x.numel(),), float(stride)))
        levels.append(torch.full((x.numel(),), level))
    return torch.cat(points), torch.cat(strides), torch.cat(levels)


class NanoDet:
    """The ONNX network and our decoding of what it gives."""

    def __init__(self, path: Path, class_names: list[str]) -> None:
        onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3  # the file's initialisers are listed as inputs, one warning each
        self.network = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.class_names = tuple(class_names)

    def outputs(self, canvas: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (A, 80) and box logits (A, 4, 8)."""
        names = [f"{kind}_pred_stride_{stride}" for kind in ("cls", "dis") for stride in STRIDES]
        levels = [torch.from_numpy(level[0]) for level in self.network.run(names, {"input.1": canvas.numpy()})]
        return torch.cat(levels[:3]), torch.cat(levels[3:]).view(-1, 4, BINS)

    def __call__(self, path: Path) -> Result:
        image = read_image(path)
        canvas, shift, factors = letterbox(image)
        scores, logits = self.outputs(canvas)
        points, strides, levels = grid()
        boxes = (integral(logits, strides=strides, points=points) - shift.repeat(2)) / factors.repeat(2)
        boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([image.shape[2], image.shape[1]]).repeat(2))
        candidates = Decoded(
            boxes=boxes[None],
            scores=scores[None],
            points=torch.arange(len(boxes))[None],
            counts=(scores > 0.01).any(1).sum()[None],
        )
        (found,) = batched_nms(candidates, iou_thr=0.6, score_thr=0.01, max_detections=100)
        rows = found.rows
        return Result(
            boxes=found.boxes,
            scores=found.scores,
            labels=found.labels,
            class_names=self.class_names,
            image=image.permute(1, 2, 0).numpy(),
            path=path,
            distributions=logits[rows].softmax(-1),
            projection=torch.arange(float(BINS)),
            points=(points[rows] - shift) / factors,
            strides=strides[rows, None] / factors,
            levels=levels[rows],
        )


@pytest.fixture(scope="module")
def detections() -> tuple[dict, dict[int, Result], Path]:
    """The annotations of the 55 validation images, the result for each, and the annotation file."""
    folder = data("coco_mini")
    file = folder / "instances_val.json"
    content = json.loads(file.read_text())
    # The classes are numbered in the order of their ids, which have gaps.
    categories = sorted(content["categories"], key=lambda category: category["id"])
    network = NanoDet(data("nanodet_m") / "nanodet_m_320.onnx", [category["name"] for category in categories])
    results = {image["id"]: network(folder / "images" / image["file_name"]) for image in content["images"]}
    return content, results, file


def measure(content: dict, results: dict[int, Result], file: Path) -> EvalResult:
    ids = sorted(category["id"] for category in content["categories"])
    records = [record for image_id, result in results.items() for record in result.to_coco(image_id, category_ids=ids)]
    return evaluate_detections(file, records)


@pytest.mark.slow
def test_another_decoder_s_ap(detections):
    content, results, file = detections
    assert len(results) == 55
    measured = measure(content, results, file)
    # What an independent decoder of the same network got at score > .01, NMS .6, 100 detections.
    assert measured["AP"] == pytest.approx(0.244, abs=0.01)
    assert measured["AP50"] == pytest.approx(0.396, abs=0.01)


@pytest.mark.slow
def test_the_ap_depends_on_the_decoding(detections):
    # Half a bin more on every side: were the comparison above blind to the decoding, this would not show.
    content, results, file = detections
    wider = {}
    for image_id, result in results.items():
        grow = 0.5 * result.strides.repeat(1, 2) * torch.tensor([-1, -1, 1, 1])
        wider[image_id] = Result(**{**vars(result), "boxes": result.boxes + grow})
    assert measure(content, wider, file)["AP"] < measure(content, results, file)["AP"] - 0.03


@pytest.mark.slow
def test_picture_of_real_distributions(detections, tmp_path):
    _, results, _ = detections
    # The most ambiguous side among the confident detections.
    best = {image_id: result for image_id, result in results.items() if len(result) and result.scores[0] > 0.5}
    image_id = max(
        best, key=lambda image_id: float(best[image_id].entropy()[0].max() - best[image_id].entropy()[0].min())
    )
    result = best[image_id]
    path = result.save(tmp_path / "distributions.png", distributions=True)
    plain = result.save(tmp_path / "boxes.png")
    assert path.stat().st_size > 10_000 and plain.stat().st_size > 10_000
    # Where a side is not clipped, the drawn bins average to the side of the box.
    means = (result.bin_positions() * result.distributions).sum(-1)
    height, width = result.size
    inside = (means > 0) & (means < torch.tensor([width, height, width, height]))
    np.testing.assert_allclose(result.boxes[inside], means[inside], atol=0.02)
    assert inside.sum() > 10
