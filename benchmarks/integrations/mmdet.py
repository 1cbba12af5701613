"""mmdet 3.3: GFL and ATSS with and without ``accelerate()``; and GFLV2Head, which mmdet has no counterpart for.

The detectors are mmdet's own configurations, with a smaller backbone where the case says so.
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
from benchmarks.harness.operation import Inputs
from benchmarks.integrations import Integration

_CHANNELS = {18: [64, 128, 256, 512], 50: [256, 512, 1024, 2048]}


def detector(case: Case, device: torch.device, *, accelerated: bool, head: str | None = None) -> nn.Module:
    """A detector in training mode, named as gfl_r18_fpn, with seeded weights."""
    peers.mmdet.load()
    ours = importlib.import_module("gflv2.integrations.mmdet")
    importlib.import_module("mmengine.registry").init_default_scope("mmdet")
    kind, depth, _ = case.model.split("_")
    folder = Path(importlib.import_module("mmdet").__file__).parent / ".mim" / "configs" / kind
    config = importlib.import_module("mmengine.config").Config.fromfile(folder / f"{kind}_r50_fpn_1x_coco.py").model
    config.backbone.update(depth=int(depth[1:]), init_cfg=None)
    config.neck.in_channels = _CHANNELS[config.backbone.depth]
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
    return model.to(device).train()


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
            return [Case(model=f"{kind}_r50_fpn", batch=16) for kind in ("gfl", "atss")]
        return [Case(model=f"{kind}_r18_fpn", size=(480, 640)) for kind in ("gfl", "atss")]

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
    """What the head does after its convolutions: assignment, targets and losses of GFLHead, with all gradients."""

    name = "mmdet_head"
    package = "mmdet"
    what = "assignment and losses"
    axes = ("model", "batch", "size", "classes", "boxes")

    def bases(self, device: torch.device) -> list[Case]:
        case = Case(model="gfl_r18_fpn", batch=16 if device.type == "cuda" else 2)
        return [case, case.but(boxes=100)]

    def tiny(self) -> Case:
        return Case(model="gfl_r18_fpn", batch=1, size=(64, 64), classes=3, boxes=2)

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        peers.mmdet.load()
        head = inputs.head(case, device, seed)
        logits = [*head.class_logits, *head.box_logits]
        return Inputs((head.class_logits, head.box_logits, *truth(case, device, seed)), {}, logits)

    def plain(self, case: Case, device: torch.device) -> Callable[..., Tensor]:
        return _head(detector(case, device, accelerated=False))

    def ours(self, case: Case, device: torch.device) -> Callable[..., Tensor]:
        return _head(detector(case, device, accelerated=True))

    def others(self, case: Case, device: torch.device) -> dict[str, Callable[..., Tensor]]:
        return {"GFLV2Head": _head(detector(case, device, accelerated=False, head="GFLV2Head"))}


def _head(model: nn.Module) -> Callable[..., Tensor]:
    head = model.bbox_head
    return lambda *arguments: _total(head.loss_by_feat(*arguments))


def _total(losses: dict[str, Any]) -> Tensor:
    return sum(sum(value) if isinstance(value, list) else value for value in losses.values())


OPERATIONS = [Step(), Head()]
