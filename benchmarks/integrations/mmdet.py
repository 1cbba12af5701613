"""mmdet 3.3: GFL, ATSS and RTMDet with and without ``accelerate()``; and GFLV2Head, which mmdet has no counterpart for.

The detectors are mmdet's own configurations, with a smaller backbone where the case says so. Of LD it is the student's
head alone: GFL's, with a teacher's box logits.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import inputs, peers
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import Inputs, leaf
from benchmarks.integrations import Integration

RTMDET_STRIDES = (8, 16, 32)
_CHANNELS = {18: [64, 128, 256, 512], 50: [256, 512, 1024, 2048]}


def detector(case: Case, device: torch.device, *, accelerated: bool, head: str | None = None) -> nn.Module:
    """A detector in training mode, named as gfl_r18_fpn, ld_r18_fpn or rtmdet_tiny, with seeded weights."""
    peers.mmdet.load()
    ours = importlib.import_module("gflv2.integrations.mmdet")
    importlib.import_module("mmengine.registry").init_default_scope("mmdet")
    config = _config(case.model)
    config.bbox_head.num_classes = case.classes
    if head is not None:
        config.bbox_head.type = head
    torch.manual_seed(0)
    if accelerated:
        ours.accelerate()
    try:
        model = importlib.import_module("mmdet.registry").MODELS.build(config)
    finally:
        ours.restore()
    # Synchronised batch normalisation needs several GPUs.
    return importlib.import_module("mmengine.model").revert_sync_batchnorm(model).to(device).train()


def _config(name: str) -> Any:
    kind, size, *_ = name.split("_")
    folder = Path(importlib.import_module("mmdet").__file__).parent / ".mim" / "configs" / kind
    read = importlib.import_module("mmengine.config").Config.fromfile
    if kind == "rtmdet":
        config = read(folder / f"{name}_8xb32-300e_coco.py").model
        config.backbone.init_cfg = None
        return config
    if kind == "ld":
        config = read(folder / "ld_r18-gflv1-r101_fpn_1x_coco.py").model
        config.type = "GFL"  # without the teacher, whose weights would be downloaded
        for name in ("teacher_config", "teacher_ckpt"):
            del config[name]
        config.backbone.init_cfg = None
        return config
    config = read(folder / f"{kind}_r50_fpn_1x_coco.py").model
    config.backbone.update(depth=int(size[1:]), init_cfg=None)
    config.neck.in_channels = _CHANNELS[config.backbone.depth]
    return config


def truth(case: Case, device: torch.device, seed: int) -> tuple[list[Any], list[dict]]:
    """Boxes as mmdet's InstanceData, and what it wants to know of each image."""
    instances = importlib.import_module("mmengine.structures").InstanceData
    boxes, labels = inputs.boxes(case, device, seed)
    found = [instances(bboxes=image, labels=label) for image, label in zip(boxes, labels, strict=True)]
    meta = {"img_shape": case.size, "pad_shape": case.size, "batch_input_shape": case.size, "scale_factor": (1.0, 1.0)}
    return found, [dict(meta) for _ in range(case.batch)]


class Step(Integration):
    """Forward, loss, backward and optimiser of a whole detector."""

    name = "mmdet_step"
    package = "mmdet"
    what = "training step"
    axes = ("model", "batch", "size", "boxes")
    mode = "both"

    def bases(self, device: torch.device) -> list[Case]:
        if device.type == "cuda":
            return [Case(model=name, batch=16) for name in ("gfl_r50_fpn", "atss_r50_fpn", "rtmdet_s")]
        names = ("gfl_r18_fpn", "atss_r18_fpn", "rtmdet_tiny")
        dense = Case(model="rtmdet_tiny", size=(640, 640))
        return [*(Case(model=name, size=(320, 320)) for name in names), dense, dense.but(boxes=100)]

    def tiny(self) -> Case:
        return Case(model="gfl_r18_fpn", batch=1, size=(64, 64), boxes=2)

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        peers.mmdet.load()
        sample = importlib.import_module("mmdet.structures").DetDataSample
        draw = inputs.generator(device, seed)
        images = torch.randn(case.batch, 3, *case.size, generator=draw, device=device)
        samples = []
        for instances, meta in zip(*truth(case, device, seed), strict=True):
            samples.append(sample(metainfo=meta))
            samples[-1].gt_instances = instances
        return Inputs((images, samples))

    def plain(self, case: Case, device: torch.device) -> Callable[..., Tensor]:
        return _step(detector(case, device, accelerated=False))

    def ours(self, case: Case, device: torch.device) -> Callable[..., Tensor]:
        return _step(detector(case, device, accelerated=True))

    def others(self, case: Case, device: torch.device) -> dict[str, Callable[..., Tensor]]:
        if not case.model.startswith("gfl"):
            return {}
        return {"GFLV2Head": _step(detector(case, device, accelerated=False, head="GFLV2Head"))}


def _step(model: nn.Module) -> Callable[..., Tensor]:
    # Rate 0: every candidate works on the same weights all the time.
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9)

    def call(images: Tensor, samples: list[Any]) -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        value = _total(model.loss(images, samples))
        value.backward()
        optimiser.step()
        return value.detach()

    return call


class Head(Integration):
    """What the head does after its convolutions: assignment, targets and losses, with all gradients."""

    name = "mmdet_head"
    package = "mmdet"
    what = "assignment and losses"
    part_of = "mmdet_step"
    axes = ("model", "batch", "size", "classes", "boxes")

    def bases(self, device: torch.device) -> list[Case]:
        case = Case(model="gfl_r18_fpn", batch=16 if device.type == "cuda" else 2)
        step = case.but(size=(320, 320))
        dense = step.but(model="rtmdet_tiny", size=(640, 640))
        others = [step, step.but(model="ld_r18_fpn"), step.but(model="rtmdet_tiny"), dense, dense.but(boxes=100)]
        return [case, case.but(boxes=100), *others]

    def tiny(self) -> Case:
        return Case(model="gfl_r18_fpn", batch=1, size=(64, 64), classes=3, boxes=2)

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        peers.mmdet.load()
        if case.model.startswith("rtmdet"):
            levels = rtmdet_outputs(case, device, seed)
            return Inputs((*levels, *truth(case, device, seed)), {}, leaf([*levels[0], *levels[1]]))
        head = inputs.head(case, device, seed)
        logits = [*head.class_logits, *head.box_logits]
        teacher = []
        if case.model.startswith("ld"):
            teacher = [[level.detach() for level in inputs.head(case, device, seed + 1).box_logits]]
        return Inputs((head.class_logits, head.box_logits, *truth(case, device, seed), *teacher), {}, logits)

    def plain(self, case: Case, device: torch.device) -> Callable[..., Tensor]:
        return _head(detector(case, device, accelerated=False))

    def ours(self, case: Case, device: torch.device) -> Callable[..., Tensor]:
        return _head(detector(case, device, accelerated=True))

    def others(self, case: Case, device: torch.device) -> dict[str, Callable[..., Tensor]]:
        if not case.model.startswith("gfl"):
            return {}
        return {"GFLV2Head": _head(detector(case, device, accelerated=False, head="GFLV2Head"))}


class Assigner(Integration):
    """An assigner by predictions, image by image, as most heads call it; the case's model is its name."""

    name = "mmdet_assigner"
    package = "mmdet"
    what = "assignment"
    axes = ("model", "batch", "size", "classes", "boxes")
    mode = "forward"

    def bases(self, device: torch.device) -> list[Case]:
        batch = 16 if device.type == "cuda" else 2
        cases = [
            Case(model=name, batch=batch, size=(640, 640))
            for name in ("DynamicSoftLabelAssigner", "TaskAlignedAssigner")
        ]
        return [case.but(boxes=count) for case in cases for count in (10, 300)]

    def tiny(self) -> Case:
        return Case(model="DynamicSoftLabelAssigner", batch=2, size=(64, 64), classes=3, boxes=2)

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        peers.mmdet.load()
        levels, distances = rtmdet_outputs(case, device, seed)
        instances = importlib.import_module("mmengine.structures").InstanceData
        grid = importlib.import_module("mmdet.models.task_modules.prior_generators").MlvlPointGenerator
        shapes = [tuple(level.shape[2:]) for level in levels]
        points = grid(RTMDET_STRIDES, offset=0).grid_priors(shapes, device=device, with_stride=True)
        points = torch.cat(points)
        scores = torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2).contiguous()
        away = torch.cat([level.flatten(2) for level in distances], 2).transpose(1, 2)
        boxes = torch.cat([points[:, :2] - away[..., :2], points[:, :2] + away[..., 2:]], -1)
        if case.model == "TaskAlignedAssigner":
            scores = scores.sigmoid()
            points = torch.cat([points[:, :2] - 4 * points[:, 2:], points[:, :2] + 4 * points[:, 2:]], 1)
        predicted = [instances(scores=s, bboxes=b, priors=points) for s, b in zip(scores, boxes, strict=True)]
        return Inputs((predicted, truth(case, device, seed)[0]))

    def plain(self, case: Case, device: torch.device) -> Callable[..., Tensor]:
        return _assigner(case, accelerated=False)

    def ours(self, case: Case, device: torch.device) -> Callable[..., Tensor]:
        return _assigner(case, accelerated=True)


def _assigner(case: Case, *, accelerated: bool) -> Callable[..., Tensor]:
    peers.mmdet.load()
    ours = importlib.import_module("gflv2.integrations.mmdet")
    if accelerated:
        ours.accelerate()
    try:
        assigner = importlib.import_module("mmdet.registry").TASK_UTILS.build({"type": case.model, "topk": 13})
    finally:
        ours.restore()

    def call(predicted: list[Any], instances: list[Any]) -> Tensor:
        pairs = zip(predicted, instances, strict=True)
        return torch.stack([assigner.assign(image, boxes).max_overlaps for image, boxes in pairs])

    return call


def rtmdet_outputs(case: Case, device: torch.device, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """What the convolutions of RTMDet's head leave: class logits, and distances of up to four strides in pixels."""
    draw = inputs.generator(device, seed)
    shapes = [tuple(-(-side // stride) for side in case.size) for stride in RTMDET_STRIDES]
    logits = [
        0.8 * torch.randn(case.batch, case.classes, *shape, generator=draw, device=device) - 4.6 for shape in shapes
    ]
    distances = [
        4 * stride * torch.rand(case.batch, 4, *shape, generator=draw, device=device)
        for shape, stride in zip(shapes, RTMDET_STRIDES, strict=True)
    ]
    return logits, distances


def _head(model: nn.Module) -> Callable[..., Tensor]:
    head = model.bbox_head
    return lambda *arguments: _total(head.loss_by_feat(*arguments))


def _total(losses: dict[str, Any]) -> Tensor:
    return sum(sum(value) if isinstance(value, list) else value for value in losses.values())


OPERATIONS = [Step(), Head(), Assigner()]
