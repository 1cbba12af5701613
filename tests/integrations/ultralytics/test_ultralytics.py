"""YOLOv8 and YOLO11 of ultralytics, with and without ours: built from their YAML files with random weights."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.nn.modules.block import DFL
from ultralytics.nn.tasks import ClassificationModel, DetectionModel
from ultralytics.utils.loss import DFLoss, v8DetectionLoss
from ultralytics.utils.tal import TaskAlignedAssigner, make_anchors

from gflv2.integrations import ultralytics
from gflv2.integrations.ultralytics import assigner, criterion, distributions
from tests.integrations import noise

METHODS = (
    (DFL, "forward"),
    (DFLoss, "__call__"),
    (v8DetectionLoss, "bbox_decode"),
    (TaskAlignedAssigner, "forward"),
    (v8DetectionLoss, "get_assigned_targets_and_loss"),
)
PLACES = {
    "dfl": [distributions],
    "integral": [distributions, criterion],
    "qfl": [criterion],
    "task_aligned": [assigner],
}
NONE = dict.fromkeys(PLACES, 0)


@pytest.fixture(autouse=True)
def as_before():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    ultralytics.restore()


@pytest.fixture
def calls(monkeypatch) -> dict[str, int]:
    """How often our operations were called."""
    counts = dict(NONE)

    def counted(name: str, function):
        def call(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    for name, modules in PLACES.items():
        for module in modules:
            monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return counts


def build(name: str) -> DetectionModel:
    model = DetectionModel(f"{name}.yaml", nc=3, verbose=False)
    model.args = get_cfg()
    return model


def batch() -> dict[str, Tensor]:
    return {
        "img": torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1)),
        "batch_idx": torch.tensor([0.0, 0.0, 1.0]),
        "cls": torch.tensor([[0.0], [1.0], [2.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.5], [0.3, 0.6, 0.2, 0.3], [0.6, 0.4, 0.7, 0.6]]),
    }


def step(model: DetectionModel, *, disturbed: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Box, class and distribution loss, and all gradients of a training step."""
    model.train().zero_grad()
    data = batch()
    if disturbed:
        data["img"] = noise.disturbed(data["img"])
    losses, _ = model(data)
    losses.sum().backward()
    return losses.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def detect(model: DetectionModel) -> Tensor:
    """(B, 4 + C, A): boxes (x, y, w, h) in pixels, and scores."""
    with torch.no_grad():
        return model.eval()(batch()["img"])[0]


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n"])
def test_training_and_detections(name, calls):
    model = build(name)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    losses, gradients = step(model)
    model.load_state_dict(state)
    _, off = step(model, disturbed=True)
    model.load_state_dict(state)
    found = detect(model)
    assert calls == NONE

    ultralytics.accelerate()
    model.load_state_dict(state)
    our_losses, our_gradients = step(model)
    once = {"dfl": 1, "integral": 2, "qfl": 1, "task_aligned": 1}
    assert calls == once
    model.load_state_dict(state)
    ours = detect(model)
    assert calls == {**once, "integral": 3}

    torch.testing.assert_close(our_losses, losses, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == our_gradients.keys()
    names = list(gradients)
    noise.check(*([of[name] for name in names] for of in (our_gradients, gradients, off)), name=names.__getitem__)
    torch.testing.assert_close(ours, found, rtol=1e-5, atol=1e-4)

    ultralytics.restore()
    assert torch.equal(detect(model), found)


def test_restore_leaves_no_trace():
    before = [vars(owner)[name] for owner, name in METHODS]
    for _ in range(2):  # twice is once
        ultralytics.accelerate()
        assert all(vars(owner)[name] is not old for (owner, name), old in zip(METHODS, before, strict=True))
    ultralytics.restore()
    assert [vars(owner)[name] for owner, name in METHODS] == before


def test_another_version_is_refused(monkeypatch):
    before = DFL.forward
    monkeypatch.setattr(v8DetectionLoss, "bbox_decode", lambda self, points, logits: None)
    with pytest.raises(RuntimeError, match=r"bbox_decode\(anchor_points, pred_dist\), found \(points, logits\)"):
        ultralytics.accelerate()
    assert DFL.forward is before


def test_distribution_focal_loss():
    """Targets end at R − 1 − 0.01; a point's loss is the mean of its sides; no points, no loss."""
    loss, logits = DFLoss(16), torch.randn(6 * 4, 16)
    target = torch.rand(6, 4) * 14
    target[0] = torch.tensor([-3.0, 0.0, 15.0, 40.0])
    for dtype in (torch.float32, torch.float16):
        wanted = loss(logits.to(dtype), target.clone())
        ultralytics.accelerate()
        found = loss(logits.to(dtype), target.clone())
        assert found.shape == wanted.shape == (6, 1) and found.dtype == torch.float32
        torch.testing.assert_close(found, wanted.float(), rtol=2e-3 if dtype == torch.float16 else 1e-5, atol=1e-6)
        assert loss(logits[:0], target[:0]).shape == (0, 1)
        ultralytics.restore()
    ultralytics.accelerate()
    (last, before_last), wide = logits[:4].log_softmax(1)[:, [15, 14]].mean(0), torch.full((1, 4), 99.0)
    torch.testing.assert_close(loss(logits[:4], wide).squeeze(), -(0.99 * last + 0.01 * before_last))


def test_decoding():
    """Bin b of side s is channel s·16 + b; cell (i, j) has its point at (j + 0.5, i + 0.5)."""
    module, logits = DFL(16), torch.full((1, 4, 16, 3), -1e4)
    bins = torch.tensor([2, 3, 5, 7])  # left, top, right, bottom
    logits[0, torch.arange(4), bins] = 0
    logits = logits.flatten(1, 2)
    wanted = module(logits)
    ultralytics.accelerate()
    torch.testing.assert_close(module(logits), wanted)
    torch.testing.assert_close(module(logits)[0, :, 0], bins.float())
    half = module.half()(logits.half())
    assert half.dtype == torch.float16 and half.shape == (1, 4, 3)
    # In the loss the channels come last, and the point is added.
    criterion = build("yolov8n").init_criterion()
    points, _ = make_anchors([torch.zeros(1, 1, 1, 3)], torch.tensor([8.0]), 0.5)
    boxes = criterion.bbox_decode(points, logits.transpose(1, 2).contiguous())
    assert points[2].tolist() == [2.5, 0.5]
    torch.testing.assert_close(boxes[0, 2], torch.tensor([2.5 - 2, 0.5 - 3, 2.5 + 5, 0.5 + 7]))


def test_mixed_precision():
    """The forward pass in bfloat16, then the loss, which sees bfloat16 logits."""
    model = build("yolov8n").train()

    def losses() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch())[0]

    state = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = losses()
    model.load_state_dict(state)
    ultralytics.accelerate()
    found = losses()
    torch.testing.assert_close(found.float(), wanted.float(), rtol=2e-2, atol=1e-2)
    found.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def criterion_losses(criterion, dtype: torch.dtype, seed: int) -> Tensor:
    """Box, class and distribution loss of logits that bfloat16 has, for an image of 640 × 640."""
    draw, shapes = torch.Generator().manual_seed(seed), [(80, 80), (40, 40), (20, 20)]
    boxes, scores = (torch.randn(2, channels, 8400, generator=draw).bfloat16() for channels in (64, 3))
    sizes = torch.cat(
        [torch.rand(12, 2, generator=draw) * 0.6 + 0.2, torch.rand(12, 2, generator=draw) * 0.3 + 0.05], 1
    )
    truth = {"batch_idx": torch.arange(12) // 6.0, "cls": torch.arange(12.0)[:, None] % 3, "bboxes": sizes}
    feats = [torch.zeros(1, 1, *shape, dtype=dtype) for shape in shapes]
    return criterion({"boxes": (2 * boxes).to(dtype), "scores": (scores - 3).to(dtype), "feats": feats}, truth)[0]


def test_boxes_in_float32():
    """The same logits in bfloat16 and in float32: box and distribution loss differ by rounding alone."""
    criterion, errors = build("yolov8n").init_criterion(), {"stock": [], "ours": []}
    for seed in range(4):
        exact = criterion_losses(criterion, torch.float32, seed)
        for who, found in errors.items():
            if who == "ours":
                ultralytics.accelerate()
            with torch.autocast("cpu", torch.bfloat16):
                losses = criterion_losses(criterion, torch.bfloat16, seed)
            found.append(((losses - exact).abs() / exact)[[0, 2]])
            ultralytics.restore()
    stock, ours = (torch.stack(errors[who]).max(0).values for who in ("stock", "ours"))
    assert (ours < 3e-4).all() and (stock > 5 * ours).all(), (stock, ours)


def test_what_was_replaced():
    first, second = ultralytics.accelerate(), ultralytics.accelerate()
    methods = [f"{owner.__module__}.{owner.__name__}.{name}" for owner, name in METHODS]
    assert [one.what for one in first.replaced] == methods and not first.before
    assert second.before == first.replaced and not second.replaced
    assert str(second).startswith("ultralytics: nothing is left to replace; gflv2 replaced before\n")
    assert "YOLO26" in str(first) and "class weights" in str(first)
    for owner, name in METHODS:
        method = vars(owner)[name]
        assert method.__module__.startswith("gflv2.integrations.ultralytics.") and method.__wrapped__.__name__ == name


def test_what_a_model_has_of_it():
    model = build("yolov8n")
    assert not ultralytics.report(model).replaced
    ultralytics.accelerate()
    assert [one.where for one in ultralytics.report(model).replaced] == [("model.22 (Detect)",)] * 5
    rotated = [one.what for one in ultralytics.report(build("yolov8n-obb")).replaced]
    assert [what.rpartition(".")[2] for what in rotated] == ["forward", "__call__"]
    answer = ultralytics.report(build("yolo26n"))
    assert [one.what.split(".")[-2:] for one in answer.replaced] == [["TaskAlignedAssigner", "forward"]]
    assert "reg_max = 1" in answer.stayed[-1].why
    answer = ultralytics.report(ClassificationModel("yolov8n-cls.yaml", nc=3, verbose=False))
    assert not answer.replaced and "has no head with boxes" in answer.stayed[-1].why
    assert "gflv2 replaced nothing" in str(answer)
    with pytest.raises(TypeError, match="model: expected a YOLO, or another torch.nn.Module, got 'yolov8n'"):
        ultralytics.report("yolov8n")


def test_compile_and_export():
    module, logits = DFL(16), torch.randn(2, 64, 21)
    wanted = module(logits)
    ultralytics.accelerate()
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(logits), wanted)
    # What leaves the process holds nothing of ours.
    exported = torch.export.export(module, (logits,))
    traced = torch.jit.trace(module, logits)
    assert "gflv2" not in str(exported.graph) and "gflv2::" not in str(traced.inlined_graph)  # that one names files too
    torch.testing.assert_close(traced(logits), wanted)


def test_checkpoints_hold_nothing_of_ours():
    ultralytics.accelerate()
    file = io.BytesIO()
    torch.save(build("yolov8n"), file)
    assert b"gflv2" not in file.getvalue()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four images of noise with two boxes each, in YOLO's layout."""
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / folder / split).mkdir(parents=True)
        for index in range(4):
            pixels = np.random.default_rng(index).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / split / f"{index}.png")
            lines = "0 0.5 0.5 0.4 0.5\n1 0.3 0.3 0.2 0.3\n"
            (tmp_path / "labels" / split / f"{index}.txt").write_text(lines)
    file = tmp_path / "data.yaml"
    file.write_text(f"path: {tmp_path}\ntrain: images/train\nval: images/val\nnames: [a, b]\n")
    return file


def train(data: Path, name: str) -> tuple[dict[str, float], Tensor]:
    """The last row of the trainer's table, and the trained weights."""
    settings = {"epochs": 2, "imgsz": 64, "batch": 2, "workers": 0, "device": "cpu", "plots": False, "verbose": False}
    model = YOLO("yolov8n.yaml")
    model.train(data=str(data), project=str(data.parent / "runs"), name=name, seed=0, **settings)
    with open(data.parent / "runs" / name / "results.csv") as file:
        row = list(csv.DictReader(file))[-1]
    weights = torch.cat([p.detach().float().flatten() for p in model.trainer.model.parameters()])
    return {key.strip(): float(value) for key, value in row.items()}, weights


def test_the_trainer(data, calls):
    wanted, weights = train(data, "theirs")
    assert calls == NONE
    ultralytics.accelerate()
    found, ours = train(data, "ours")
    assert calls["dfl"] >= 4 and calls["integral"] > calls["dfl"]
    losses = [f"{split}/{kind}_loss" for split in ("train", "val") for kind in ("box", "cls", "dfl")]
    assert [found[name] for name in losses] == pytest.approx([wanted[name] for name in losses], rel=1e-3)
    torch.testing.assert_close(ours, weights, rtol=1e-3, atol=1e-4)
