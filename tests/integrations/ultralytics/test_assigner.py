"""Ultralytics' assigner and the losses around it: the package's own code with and without ours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel, OBBModel, PoseModel, SegmentationModel
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.tal import TaskAlignedAssigner

from gflv2.integrations import ultralytics
from gflv2.integrations.ultralytics import assigner, criterion
from tests.integrations import noise

CLASSES = 3
STRIDES = (8, 16, 32)


@pytest.fixture(autouse=True)
def as_before():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    ultralytics.restore()


def points(size: int) -> tuple[Tensor, Tensor]:
    """(A, 2) points in pixels and their strides (A, 1)."""
    levels = []
    for stride in STRIDES:
        axis = (torch.arange(size // stride) + 0.5) * stride
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        levels.append(torch.stack([x, y, torch.full_like(x, stride)], -1).view(-1, 3))
    found = torch.cat(levels)
    return found[:, :2], found[:, 2:]


def scene(boxes: int, seed: int, size: int = 256, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Arguments of the assigner: two images, predictions that fit the boxes more or less, tiny boxes, padding."""
    draw = torch.Generator().manual_seed(seed)
    places, strides = points(size)
    sides = size * torch.exp(torch.rand(2, boxes, 2, generator=draw) * -3.5)  # from 8 pixels
    low = torch.rand(2, boxes, 2, generator=draw) * (size - sides)
    truth = torch.cat([low, low + sides], -1)
    labels = torch.randint(0, CLASSES, (2, boxes, 1), generator=draw).float()
    mask = torch.ones(2, boxes, 1)
    mask[1, boxes // 2 :] = 0
    truth[1, boxes // 2 :] = 0
    # Each point guesses a box that it lies in, if there is one, and is somewhat off.
    inside = ((places[:, None] > truth[:, None, :, :2]) & (places[:, None] < truth[:, None, :, 2:])).all(-1)
    own = truth.gather(1, inside.float().argmax(-1)[..., None].expand(-1, -1, 4))
    predicted = own + torch.randn(own.shape, generator=draw) * strides
    scores = torch.rand(2, len(places), CLASSES, generator=draw)
    return scores.to(dtype), predicted.to(dtype).to(truth.dtype), places, labels, truth, mask


def with_and_without(call) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    wanted = call()
    ultralytics.accelerate()
    found = call()
    ultralytics.restore()
    return found, wanted


def compare(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> int:
    """Bit-equal, but for points whose metric is 0: of these the package takes what topk gives. Returns the positive."""
    assert [one.dtype for one in found] == [one.dtype for one in wanted]
    assert [one.shape for one in found] == [one.shape for one in wanted]
    own = [results[3] & (results[2].amax(-1) > 0) for results in (found, wanted)]
    assert torch.equal(*own)
    decided = own[0] | ~(found[3] | wanted[3])
    for index in (0, 1, 3, 4):
        assert torch.equal(found[index][decided], wanted[index][decided]), index
    torch.testing.assert_close(found[2], wanted[2], rtol=1e-5, atol=1e-7)
    return int(own[0].sum())


@pytest.mark.parametrize("boxes", [1, 12, 40])
@pytest.mark.parametrize("settings", [{}, {"topk": 13, "alpha": 1.0}, {"topk": 7, "topk2": 1}], ids=str)
def test_assignments(boxes, settings):
    module = TaskAlignedAssigner(**{"num_classes": CLASSES, "topk": 10, "alpha": 0.5, **settings}, stride=list(STRIDES))
    for seed in range(3):
        found, wanted = with_and_without(lambda seed=seed: module(*scene(boxes, seed)))
        assert compare(found, wanted) > boxes // 2


def test_a_masked_box_among_others():
    """A box is no padding but masked, as one whose corners sum up to 0."""
    module = TaskAlignedAssigner(num_classes=CLASSES, topk=10, alpha=0.5, stride=list(STRIDES))
    arguments = scene(12, 5)
    arguments[5][0, 3] = 0
    found, wanted = with_and_without(lambda: module(*arguments))
    assert compare(found, wanted) and not (found[4][found[3]] == 3)[: int(found[3][0].sum())].any()


def test_half_precision_and_no_boxes():
    module = TaskAlignedAssigner(num_classes=CLASSES, topk=10, alpha=0.5, stride=list(STRIDES))
    found, wanted = with_and_without(lambda: module(*scene(12, 0, dtype=torch.bfloat16)))
    assert [one.dtype for one in found] == [one.dtype for one in wanted]
    # The package rounds score^0.5 to bfloat16: some of the last of ten differ.
    agree = (found[3] == wanted[3]).float().mean()
    assert agree > 0.99 and (found[4] == wanted[4])[found[3] & wanted[3]].float().mean() > 0.9
    arguments = scene(12, 0)
    none = (*arguments[:3], *(one[:, :0] for one in arguments[3:]))
    for one, other in zip(*with_and_without(lambda: module(*none)), strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype


def test_assigners_with_another_overlap_stay(monkeypatch):
    class Other(TaskAlignedAssigner):
        def iou_calculation(self, gt_bboxes, pd_bboxes):
            return super().iou_calculation(gt_bboxes, pd_bboxes) ** 2

    monkeypatch.setattr(assigner, "task_aligned", lambda *_, **__: pytest.fail("not ours"))
    # The operation has no eps of 0.
    for kind, more in ((Other, {}), (TaskAlignedAssigner, {"eps": 0.0})):
        module = kind(num_classes=CLASSES, topk=10, alpha=0.5, stride=list(STRIDES), **more)
        found, wanted = with_and_without(lambda module=module: module(*scene(12, 0)))
        assert all(torch.allclose(*pair, rtol=0, atol=0, equal_nan=True) for pair in zip(found, wanted, strict=True))


MODELS = {
    "yolov8n": DetectionModel,
    "yolo11n": DetectionModel,
    "yolov10n": DetectionModel,
    "yolo26n": DetectionModel,
    "yolov8n-seg": SegmentationModel,
    "yolov8n-pose": PoseModel,
    "yolov8n-obb": OBBModel,
}
OURS = {"yolo26n": 0, "yolov10n": 2, "yolov8n-obb": 0}  # calls of the class loss a step


def build(name: str) -> DetectionModel:
    torch.manual_seed(0)
    model = MODELS[name](f"{name}.yaml", nc=CLASSES, verbose=False)
    model.args = get_cfg()
    return model.train()


def batch(name: str, boxes: int = 5) -> dict[str, Tensor]:
    """Two images of 96 × 128; masks and keypoints where the model learns them."""
    draw = torch.Generator().manual_seed(1)
    centre, side = 0.3 + 0.4 * torch.rand(boxes, 2, generator=draw), 0.1 + 0.4 * torch.rand(boxes, 2, generator=draw)
    found = {
        "img": torch.rand(2, 3, 96, 128, generator=draw),
        "batch_idx": (torch.arange(boxes) >= boxes - boxes // 3).float(),
        "cls": torch.randint(0, CLASSES, (boxes, 1), generator=draw).float(),
        "bboxes": torch.cat([centre, side], 1),
    }
    if name.endswith("obb"):
        found["bboxes"] = torch.cat([found["bboxes"], torch.rand(boxes, 1, generator=draw)], 1)
    if name.endswith("seg"):
        found["masks"] = torch.randint(0, boxes - boxes // 3 + 1, (2, 24, 32), generator=draw).float()
    if name.endswith("pose"):
        found["keypoints"] = torch.cat([torch.rand(boxes, 17, 2, generator=draw), torch.ones(boxes, 17, 1)], 2)
    return found


def step(model: DetectionModel, name: str, *, boxes: int = 5, noisy: bool = False) -> list[Tensor]:
    """All losses of a training step, and all gradients."""
    given = batch(name, boxes)
    if noisy:
        given["img"] = noise.disturbed(given["img"])
    model.zero_grad()
    losses, _ = model(given)
    losses.sum().backward()
    return [losses.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients(name, monkeypatch):
    model, calls, original = build(name), [], criterion.qfl
    state = {key: value.clone() for key, value in model.state_dict().items()}

    def run(**options) -> list[Tensor]:
        model.load_state_dict(state)
        return step(model, name, **options)

    wanted, disturbed = run(), run(noisy=True)
    monkeypatch.setattr(criterion, "qfl", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    ultralytics.accelerate()
    found = run()
    assert len(calls) == OURS.get(name, 1)
    for part in (slice(0, 1), slice(1, None)):
        noise.check(found[part], wanted[part], disturbed[part], name=lambda index: f"{name}: {index}")


def test_a_batch_without_boxes():
    model = build("yolov8n")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    results = []
    for ours in (False, True):
        if ours:
            ultralytics.accelerate()
        model.load_state_dict(state)
        results.append(step(model, "yolov8n", boxes=0))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("change", ["class_weights", "bce"])
def test_settings_of_the_packages_own(change, monkeypatch):
    """Class weights, another class loss: the package's loop, with our assigner."""
    model = build("yolov8n")
    loss = model.criterion = model.init_criterion()
    if change == "class_weights":
        loss.class_weights = torch.tensor([[[1.0, 2.0, 0.5]]])
    else:
        loss.bce = torch.nn.BCEWithLogitsLoss(reduction="none", pos_weight=torch.tensor([2.0]))
    monkeypatch.setattr(criterion, "qfl", lambda *_, **__: pytest.fail("not ours"))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = step(model, "yolov8n")
    model.load_state_dict(state)
    ultralytics.accelerate()
    assert isinstance(loss, v8DetectionLoss)
    for one, other in zip(step(model, "yolov8n"), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(wanted[0].abs().max()))


def test_ten_steps():
    """The losses of ten steps of training, by the package, disturbed, and by ours."""

    def run(noisy: bool = False) -> Tensor:
        model = build("yolov8n")
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        rows = []
        for _ in range(10):
            rows.append(step(model, "yolov8n", noisy=noisy)[0])
            optimiser.step()
        return torch.stack(rows)

    wanted, disturbed = run(), run(noisy=True)
    ultralytics.accelerate()
    found = run()
    assert (wanted[-1] - wanted[0]).abs().max() > 0.01 * wanted[0].abs().max()
    noise.check([found], [wanted], [disturbed])
