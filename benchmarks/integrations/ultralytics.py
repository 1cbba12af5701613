"""Ultralytics YOLOv8 and YOLO11 with and without ``accelerate()``, built from their YAML files with random weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import inputs
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import Inputs, leaf
from benchmarks.integrations import InPlace, accelerated

STRIDES = (8, 16, 32)
BINS = 16


def detector(case: Case, device: torch.device) -> nn.Module:
    """A detector in training mode, with seeded weights."""
    torch.manual_seed(0)
    build = importlib.import_module("ultralytics.nn.tasks").DetectionModel
    model = build(f"{case.model}.yaml", nc=case.classes, verbose=False)
    model.args = importlib.import_module("ultralytics.cfg").get_cfg()
    return model.to(device).train()


def assigner_of(case: Case, device: torch.device) -> Any:
    return detector(case, device).init_criterion().assigner


def truth(case: Case, device: torch.device, seed: int) -> dict[str, Tensor]:
    """Boxes as centres and sizes in parts of the image, and what image they are in."""
    boxes, labels = inputs.boxes(case, device, seed)
    corners = torch.cat(boxes) / torch.tensor([case.size[1], case.size[0]], device=device).repeat(2)
    centres, sizes = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    image = torch.arange(case.batch, device=device).repeat_interleave(case.boxes).float()
    return {"batch_idx": image, "cls": torch.cat(labels)[:, None].float(), "bboxes": torch.cat([centres, sizes], dim=1)}


def outputs(case: Case, device: torch.device, seed: int) -> dict[str, Any]:
    """What the head's convolutions leave: (B, 4·R, A), (B, C, A), and feature maps of which only the sizes matter."""
    draw = inputs.generator(device, seed)
    shapes = [tuple(-(-side // stride) for side in case.size) for stride in STRIDES]
    points = sum(height * width for height, width in shapes)
    boxes = 2 * torch.randn(case.batch, 4 * BINS, points, generator=draw, device=device)
    scores = torch.randn(case.batch, case.classes, points, generator=draw, device=device) - 4.6
    return {"boxes": boxes, "scores": scores, "feats": [torch.zeros(1, 1, *shape, device=device) for shape in shapes]}


class _Ultralytics(InPlace):
    package = "ultralytics"

    def with_ours(self, call: Callable[..., Any]) -> Callable[..., Any]:
        loss = importlib.import_module("ultralytics.utils.loss")
        decode = importlib.import_module("ultralytics.nn.modules.block").DFL
        criterion, assigner = loss.v8DetectionLoss, loss.TaskAlignedAssigner
        places = [(decode, "forward"), (loss.DFLoss, "__call__"), (criterion, "bbox_decode")]
        places += [(assigner, "forward"), (criterion, "get_assigned_targets_and_loss")]
        return accelerated(importlib.import_module("gflv2.integrations.ultralytics"), places, call)

    def tiny(self) -> Case:
        return Case(model="yolov8n", batch=1, size=(64, 64), classes=3, boxes=2)


class Step(_Ultralytics):
    """Forward, loss, backward and optimiser of a whole detector."""

    name = "ultralytics_step"
    what = "training step"
    axes = ("model", "batch", "size", "boxes")
    mode = "both"

    def bases(self, device: torch.device) -> list[Case]:
        if device.type == "cuda":
            return [Case(model=f"{name}s", batch=16, size=(640, 640)) for name in ("yolov8", "yolo11")]
        case = Case(model="yolov8n", batch=2, size=(640, 640))
        crowded = [case.but(boxes=100), case.but(boxes=300)]
        return [case, case.but(model="yolo11n"), *crowded, *(one.but(batch=8) for one in (case, *crowded))]

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        images = torch.rand(case.batch, 3, *case.size, generator=inputs.generator(device, seed), device=device)
        return Inputs(({"img": images, **truth(case, device, seed)},))

    def call(self, case: Case, device: torch.device) -> Callable[..., Tensor]:
        model = detector(case, device)
        # Rate 0: every candidate works on the same weights all the time.
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9)

        def step(batch: dict[str, Tensor]) -> Tensor:
            optimiser.zero_grad(set_to_none=True)
            value = model(batch)[0].sum()
            value.backward()
            optimiser.step()
            return value.detach()

        return step


class Head(_Ultralytics):
    """What follows the head's convolutions in training: boxes, assignment and losses, with all gradients."""

    name = "ultralytics_head"
    what = "assignment and losses"
    part_of = "ultralytics_step"
    axes = ("model", "batch", "size", "classes", "boxes")

    def bases(self, device: torch.device) -> list[Case]:
        case = Case(model="yolov8n", batch=16 if device.type == "cuda" else 2, size=(640, 640))
        return [case, case.but(boxes=100), case.but(boxes=300)]

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        found = outputs(case, device, seed)
        return Inputs((found, truth(case, device, seed)), {}, leaf([found["boxes"], found["scores"]]))

    def call(self, case: Case, device: torch.device) -> Callable[..., Tensor]:
        criterion = detector(case, device).init_criterion()
        return lambda found, batch: criterion(found, batch)[0].sum()


class Assigner(_Ultralytics):
    """The task-aligned assigner alone: labels, boxes, scores and places of all points."""

    name = "ultralytics_assigner"
    what = "task-aligned assignment"
    part_of = "ultralytics_step"
    axes = ("model", "batch", "size", "classes", "boxes")
    mode = "forward"

    def bases(self, device: torch.device) -> list[Case]:
        found = Head().bases(device)
        return found + [replace(case, batch=8) for case in found if case.batch < 8]  # a batch that one trains with

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        found, batch = outputs(case, device, seed), truth(case, device, seed)
        criterion = detector(case, device).init_criterion()
        points, strides = importlib.import_module("ultralytics.utils.tal").make_anchors(found["feats"], STRIDES, 0.5)
        predicted = criterion.bbox_decode(points, found["boxes"].transpose(1, 2).contiguous()) * strides
        rows = torch.cat([batch["batch_idx"][:, None], batch["cls"], batch["bboxes"]], 1)
        size = torch.tensor([case.size[1], case.size[0]] * 2, device=device)
        labels, boxes = criterion.preprocess(rows, case.batch, scale_tensor=size).split((1, 4), 2)
        scores = found["scores"].sigmoid().transpose(1, 2).contiguous()
        mask = boxes.sum(2, keepdim=True).gt_(0)
        return Inputs((scores, predicted.detach(), points * strides, labels, boxes, mask))

    def call(self, case: Case, device: torch.device) -> Callable[..., Tensor]:
        assigner = assigner_of(case, device)
        return lambda *arguments: assigner(*arguments)[2]


class Alignment(Assigner):
    """The operation behind it: what each point learns, without the package's dense tensors of scores and boxes.

    The result that both have is which points are positive.
    """

    name = "ultralytics_task_aligned"
    what = "`task_aligned` alone, without the package's dense results"

    def plain(self, case: Case, device: torch.device) -> Callable[..., Tensor]:
        assigner = assigner_of(case, device)
        return lambda *arguments: assigner(*arguments)[3]

    def ours(self, case: Case, device: torch.device) -> Callable[..., Tensor]:
        assign = importlib.import_module("gflv2.integrations.ultralytics.assigner").assign
        assigner = assigner_of(case, device)
        return lambda *arguments: assign(assigner, *arguments).index > 0


class Decode(_Ultralytics):
    """What follows the head's convolutions in inference: boxes and scores of all points, before NMS."""

    name = "ultralytics_decode"
    what = "decoding in Detect"
    axes = ("model", "batch", "size", "classes")
    mode = "forward"

    def bases(self, device: torch.device) -> list[Case]:
        return [Case(model="yolov8n", batch=16 if device.type == "cuda" else 1, size=(640, 640))]

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        return Inputs((outputs(case, device, seed),))

    def call(self, case: Case, device: torch.device) -> Callable[..., Tensor]:
        head = detector(case, device).eval().model[-1]
        return torch.no_grad()(head._inference)


OPERATIONS = [Step(), Head(), Assigner(), Alignment(), Decode()]
